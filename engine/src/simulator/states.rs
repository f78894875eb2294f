//! States: what the engine says of each partition snapshot, which never changes.
//!
//! How it works      When a snapshot was committed its partition snapshots are noted; whenever everything is compared
//!                   with the model, and so after crashes of any kind, they must be the same.

use super::driver::{Result, Running, Simulation};
use super::shape::VOLUME;
use crate::engine::partitions::PartitionSnapshot;
use crate::units::{Epoch, PartitionIndex};

/// Whether two descriptions of a partition snapshot have the same number, size, zeroes, other blocks, latest change and
/// counters: relocation moves blocks between slots and base places.
fn same(one: &PartitionSnapshot, later: &PartitionSnapshot) -> bool {
    let state = |of: &PartitionSnapshot| {
        let blocks = [of.places.zeroes, of.places.slots + of.places.bases];
        (of.partition, of.size, blocks, of.write_seq, of.counters)
    };
    state(one) == state(later)
}

impl Simulation {
    fn states_of(&self, running: &Running, epoch: Epoch) -> Result<Option<Vec<PartitionSnapshot>>> {
        let found = running.engine.partition_snapshots(VOLUME, epoch, 0..PartitionIndex::MAX);
        if self.disk.lock().dead {
            return Ok(None);
        }
        found.map(Some).map_err(|e| format!("the states of snapshot {epoch} are not known: {e}"))
    }

    /// Notes the states of a snapshot that was committed.
    pub(super) fn note_states(&mut self, running: &Running, epoch: Epoch) -> Result<()> {
        if let Some(states) = self.states_of(running, epoch)? {
            self.states.insert(epoch, states);
        }
        Ok(())
    }

    /// Compares the states of all snapshots with those that were noted.
    pub(super) fn check_states(&mut self, running: &Running) -> Result<()> {
        for (epoch, _) in self.catalog.snapshots.clone() {
            let Some(found) = self.states_of(running, epoch)? else { return Ok(()) };
            let known = self.states.entry(epoch).or_insert_with(|| found.clone());
            let as_noted = known.len() == found.len();
            if !as_noted || !known.iter().zip(&found).all(|(one, other)| same(one, other)) {
                return Err(format!("snapshot {epoch} was {known:?} and is {found:?}"));
            }
        }
        Ok(())
    }
}
