//! Agreement: whether a processor's journal and the catalog tell the same history of a volume.
//!
//! How it works      The catalog says which snapshots and rollbacks exist. The journal says when each epoch ended, and
//!                   whether a cut or a rollback ended it. Both are compared while records are replayed.
//! Invariants        A1 the catalog records a snapshot after the journal has its cut, and a rollback before the journal has it;
//!                   A2 the catalog forgets a rollback after a checkpoint of every processor covers it. So a record of a
//!                   rollback that no checkpoint covers has its row in the catalog.
//! Errors            a clause that says what does not fit. The volume is not served then.

use super::expected::Expect;
use super::format::{Record, RecordKind};
use crate::block_map::history::History;
use crate::units::Epoch;

/// Segments of this format version and later ones have a record for each rollback.
const ROLLBACKS_RECORDED: u32 = 2;

/// What the catalog says of a volume, as far as one processor's journal must agree.
#[derive(Clone, Debug)]
pub struct CatalogState {
    /// Its snapshots and rollbacks.
    pub history: History,
    /// The volume's size in blocks at each rollback.
    pub sizes: Vec<u64>,
    /// What must be there of its journal.
    pub expect: Expect,
    /// The epoch that the journal must have reached: snapshots and rollbacks up to it include partitions of this processor.
    pub reached: Epoch,
}

impl CatalogState {
    /// Snapshots without rollbacks, in order; the journal may have reached any epoch.
    pub fn line(snapshots: &[Epoch]) -> CatalogState {
        CatalogState {
            history: History::line(snapshots),
            sizes: Vec::new(),
            expect: Expect::Nothing,
            reached: 0,
        }
    }
}

/// How far a replay has got in the history.
pub struct Agreement<'a> {
    catalog: &'a CatalogState,
    /// Rollbacks that the maps have.
    rolled: usize,
    /// The newest epoch of which a record says that it ended.
    ended: Epoch,
}

impl<'a> Agreement<'a> {
    /// At a checkpoint that was taken in `epoch`.
    pub fn new(catalog: &'a CatalogState, epoch: Epoch) -> Agreement<'a> {
        let rolled = catalog.history.rollbacks().partition_point(|rollback| rollback.at < epoch);
        // The record that the epoch before ended may follow the checkpoint.
        Agreement { catalog, rolled, ended: epoch.saturating_sub(2) }
    }

    /// The number of rollbacks that the maps have.
    pub fn rolled(&self) -> usize {
        self.rolled
    }

    /// The next record, of a segment of this format version. Returns how many rollbacks the maps have to go through first.
    pub fn meet(&mut self, record: &Record, version: u32) -> Result<usize, String> {
        let epoch = record.epoch;
        let rollbacks = self.catalog.history.rollbacks();
        let before = self.rolled.checked_sub(1).map(|last| rollbacks[last].at);
        if before.is_some_and(|at| epoch <= at) {
            return Err(format!("it is of epoch {epoch}, which a rollback has ended"));
        }
        if record.kind != RecordKind::Map {
            if epoch <= self.ended {
                return Err(format!("it ends epoch {epoch}, which had ended"));
            }
            self.ended = epoch;
        }
        let due = rollbacks[self.rolled..].iter().take_while(|next| next.at < epoch).count();
        let recorded = version >= ROLLBACKS_RECORDED;
        if recorded && due > 0 {
            let at = rollbacks[self.rolled].at;
            return Err(format!(
                "it is of epoch {epoch}, but no record says that the volume was rolled back at epoch {at}, as the \
                 catalog does"
            ));
        }
        let next = rollbacks.get(self.rolled + due).filter(|next| next.at == epoch);
        let due = match (record.kind, next) {
            (RecordKind::Rollback, Some(next)) => {
                let size = u64::from(record.first) << 32 | u64::from(record.partition);
                let same = next.to == record.place
                    && self.catalog.sizes.get(self.rolled + due) == Some(&size);
                if !same {
                    return Err(format!(
                        "the volume, of {size} blocks, was rolled back at epoch {epoch} to epoch {}, but the catalog \
                         has this rollback differently",
                        record.place
                    ));
                }
                due + 1
            }
            (RecordKind::Rollback, None) => {
                return Err(format!(
                    "the volume was rolled back at epoch {epoch} to epoch {}, but the catalog does not have this rollback",
                    record.place
                ));
            }
            (RecordKind::Cut, Some(_)) if recorded => {
                return Err(format!(
                    "a snapshot ended epoch {epoch}, but the catalog says that a rollback did"
                ));
            }
            _ => due,
        };
        self.rolled += due;
        Ok(due)
    }

    /// All records were met, and the last epoch is `epoch`. `recorded`: every segment is of a version that has a record for
    /// each end of an epoch.
    pub fn end(&self, epoch: Epoch, recorded: bool) -> Result<(), String> {
        if recorded && epoch < self.catalog.reached {
            return Err(format!(
                "it ends in epoch {epoch}, but the catalog has snapshots or rollbacks up to epoch {}: the journal is \
                 older than the catalog",
                self.catalog.reached
            ));
        }
        Ok(())
    }
}

/// Whether segments of this format version have a record for each end of an epoch.
pub fn records_ends(version: u32) -> bool {
    version >= ROLLBACKS_RECORDED
}
