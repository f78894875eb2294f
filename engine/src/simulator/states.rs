//! States: what the engine says of each partition snapshot, which never changes.
//!
//! How it works      When a snapshot was committed its partition snapshots are noted; whenever everything is compared
//!                   with the model, and so after crashes of any kind, they must be the same.

use std::collections::BTreeMap;

use super::driver::{Result, Running, Simulation};
use super::shape::VOLUME;
use crate::block_map::change_logs::PlaceCounts;
use crate::block_map::counters::Counters;
use crate::units::{Epoch, PartitionIndex};

/// The state of one partition: its number and size, its map's blocks and latest change, its counters.
type State = (PartitionIndex, u64, PlaceCounts, u64, Counters);

/// By snapshot.
pub(super) type States = BTreeMap<Epoch, Vec<State>>;

impl Simulation {
    fn states_of(&self, running: &Running, epoch: Epoch) -> Result<Option<Vec<State>>> {
        let found = running.engine.partition_snapshots(VOLUME, epoch, 0..PartitionIndex::MAX);
        if self.disk.lock().dead {
            return Ok(None);
        }
        let found = found.map_err(|e| format!("snapshot {epoch} has no states: {e}"))?;
        let state = |one: crate::engine::partitions::PartitionSnapshot| {
            (one.partition, one.size, one.places, one.write_seq, one.counters)
        };
        Ok(Some(found.into_iter().map(state).collect()))
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
            if *known != found {
                return Err(format!("snapshot {epoch} was {known:?} and is {found:?}"));
            }
        }
        Ok(())
    }
}
