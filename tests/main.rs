//! Tests through the real binary: one module a subject.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a test that meets the unexpected should stop, and say so"
)]

mod browser;
mod cli_contexts;
mod cli_data;
mod cli_delta;
mod cli_dump;
mod cli_errors;
mod cli_examples;
mod cli_export;
mod cli_fsck;
mod cli_import;
mod cli_in_place;
mod cli_legacy;
mod cli_map;
mod cli_metrics;
mod cli_model;
mod cli_mount;
mod cli_online;
mod cli_online_killed;
mod cli_pages;
mod cli_report;
mod cli_resize;
mod cli_restore;
mod cli_resume;
mod cli_server;
mod cli_server_failures;
mod cli_server_start;
mod cli_service;
mod cli_signals;
mod cli_sources;
mod cli_store;
mod cli_tls;
mod cli_upgrade;
mod cli_usage;
mod corpus;
mod filesystems;
mod harness;
mod legacy_golden;
mod model;
mod mount;
mod power_cut;
mod random;
mod soak;
mod store_crash;
mod store_dump;
mod store_faults;
mod store_full;
mod store_hold;
mod store_live;
mod store_model;
mod store_rebuild;
mod store_unwatched;
mod vm_attach;
mod vm_log_writes;
mod vm_loop;
mod vm_ublk;
