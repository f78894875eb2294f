//! Pins: the snapshots of a volume whose maps its clones have copies of.
//!
//! How it works      A clone looks blocks up in the maps that its snapshot had when the clone was opened. What these maps
//!                   see is not relocated: a [`Pin`] in the clone's origin says which snapshot that is.
//! Invariants        PI1 a snapshot is pinned before the first of its maps is copied, until no clone has them.
//! Owner and locks   the volume, its shares and its clones' origins; one lock, held for a look.

use std::fmt;
use std::sync::Arc;

use crate::sync::Mutex;
use crate::units::Epoch;

/// The epochs of a volume's pinned snapshots; one for each pin.
#[derive(Debug, Default)]
pub struct Pins(Mutex<Vec<Epoch>>);

impl Pins {
    /// The epochs.
    pub fn epochs(&self) -> Vec<Epoch> {
        self.0.lock().expect("no holder panics").clone()
    }
}

/// Pins a snapshot as long as it exists.
pub struct Pin {
    pins: Arc<Pins>,
    epoch: Epoch,
}

impl Pin {
    /// Pins the snapshot of an epoch.
    pub fn new(pins: &Arc<Pins>, epoch: Epoch) -> Pin {
        pins.0.lock().expect("no holder panics").push(epoch);
        Pin { pins: Arc::clone(pins), epoch }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut epochs = self.pins.0.lock().expect("no holder panics");
        let ours = epochs.iter().position(|epoch| *epoch == self.epoch);
        epochs.swap_remove(ours.expect("PI1"));
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pin of epoch {}", self.epoch)
    }
}
