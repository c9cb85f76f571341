//! Test harness entry: one module a subject.
mod store_rebuild;
