//! Test harness entry: one module a subject.
