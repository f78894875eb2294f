//! Simulator: the engine on a disk, a clock and a scheduler that are determined by one seed.
//!
//! How it works      [`system`] provides files, time and threads to the engine: a [`disk`] in memory that fails, and
//!                   tears, reorders and loses writes, and a [`scheduler`] that runs processors and jobs one at a time.
//!                   A [`host`] makes requests and checks the answers against a [`model`]; the [`driver`] starts
//!                   engines, makes them crash, and takes and deletes snapshots. The same seed gives the same run, bit
//!                   for bit: [`Outcome::trace`] is a hash of it.
//! What it cannot see   see docs/decisions/0011-the-simulator.md.

pub mod contents;
pub mod counts;
pub mod disk;
pub mod driver;
pub mod faults;
mod hang;
pub mod host;
pub mod inbox;
pub mod model;
pub mod names;
pub mod random;
mod relocate;
pub mod rules;
pub mod scarcity;
pub mod scheduler;
pub mod shape;
mod states;
pub mod system;
pub mod tamper;
pub mod verify;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;

use crate::limits::{CHECKPOINT_BYTES_MIN, NO_SPACE_RETRY_NS, SEGMENT_BYTES};
use crate::mutants::{self, Bug};
use counts::Counts;
use driver::Simulation;

/// Bytes of a journal's segment here: about ninety records. No request here needs a record of more than 2,000 blocks.
const SEGMENT: usize = 12 << 10;
/// Bytes of records at which a checkpoint is due here.
const CHECKPOINT: u64 = 10 << 10;

/// Options of a simulation.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// The seed, which determines everything.
    pub seed: u64,
    /// Print all operations.
    pub trace: bool,
    /// The kind of its faults, see [`faults::KINDS`]; `None`: the seed chooses.
    pub kind: Option<u64>,
    /// The mutant that is active.
    pub bug: Option<Bug>,
}

/// Result of a simulation.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// A hash of everything that happened.
    pub trace: u64,
    /// Counts of what happened.
    pub counts: Counts,
    /// The failure, if there was one.
    pub failure: Option<String>,
}

/// Lowers limits for simulations, in the whole process.
pub fn lower_limits() {
    SEGMENT_BYTES.store(SEGMENT, Ordering::Relaxed);
    NO_SPACE_RETRY_NS.store(0, Ordering::Relaxed);
    CHECKPOINT_BYTES_MIN.store(CHECKPOINT, Ordering::Relaxed);
}

/// Runs one simulation, on this thread alone.
pub fn run(options: &Options) -> Outcome {
    lower_limits();
    mutants::set(options.bug);
    let mut simulation = Simulation::new(options);
    let result = catch_unwind(AssertUnwindSafe(|| simulation.run()));
    mutants::set(None);
    let failure = match result {
        Ok(result) => result.err(),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or(panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            let failure = format!("panic: {}", text.unwrap_or_default());
            // Its locks may be poisoned; they are not used again.
            return Outcome { trace: 0, counts: Counts::default(), failure: Some(failure) };
        }
    };
    Outcome { trace: simulation.trace(), counts: simulation.counts, failure }
}
