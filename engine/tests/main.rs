//! The engine's own tests on real files, in one program: a program for each file would have to be linked for each.
//!
//! Alone         `map_memory` and `nbd_memory_bound` measure their process's memory, and `simulator` needs its feature:
//!               these are programs of their own.
//! Run some      `cargo test --test engine rollbacks::` runs those of one file.

mod changes;
mod check;
mod cloned;
mod clones;
mod copied;
mod counted;
mod devices;
mod differences;
mod done_requests;
mod faulty;
mod give_back;
mod grow;
mod hollow;
mod hung;
mod inspect;
mod log_rules;
mod model;
mod nbd_hostile;
mod nbd_support;
mod nbd_transmission;
mod recovery;
mod relocated;
mod relocation;
mod rollbacks;
mod scrub;
mod short_devices;
mod space;
mod space_sync_fails;
mod volumes;
