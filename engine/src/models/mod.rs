//! Models: protocols between threads, run in every relevant order of their steps.
//!
//! How it works      `cargo test --no-default-features --features loom --lib models::` builds the
//!                   crate on loom's primitives (see [`crate::sync`]), so that a model runs the code that serves hosts,
//!                   not a copy of it. Each model starts two to four threads; loom runs it repeatedly until all orders
//!                   with up to [`PREEMPTIONS`] preemptions were tried, and detects deadlocks.
//! What they cannot see   orders that need more preemptions, and code that does not use these primitives: sockets,
//!                   disks, time.

mod connection;
mod cut;
mod flusher;
mod pins;
mod queue;
mod request;
mod space_waiters;
mod watermark;

/// Preemptions in one run: most bugs need one or two.
const PREEMPTIONS: usize = 2;

/// Tries every order of a model.
fn check(model: impl Fn() + Send + Sync + 'static) {
    check_within(PREEMPTIONS, model);
}

/// Like [`check`], with another number of preemptions.
fn check_within(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}
