//! Agreement: whether a processor's journal and the catalog have the same history of a volume.
//!
//! How it works      The catalog lists the existing snapshots and rollbacks. The journal records when each epoch ended,
//!                   and whether a cut or a rollback ended it. Both are compared while records are replayed.
//! Invariants        A1 the catalog records a snapshot after the journal has its cut, and a rollback before the journal
//!                   has it;
//!                   A2 the catalog forgets a rollback after a checkpoint of every processor covers it. So a record of
//!                      a rollback that no checkpoint covers has its row in the catalog.
//! Errors            a clause that says how they differ. The volume is then not served.

use super::expected::Expect;
use super::format::{Record, RecordKind};
use crate::block_map::history::History;
use crate::units::Epoch;

/// Segments of this format version and later ones have a record for each rollback.
const ROLLBACKS_RECORDED: u32 = 2;

/// The part of the catalog with which one processor's journal must agree.
#[derive(Clone, Debug)]
pub struct CatalogState {
    /// Its snapshots and rollbacks.
    pub history: History,
    /// The volume's size in blocks.
    pub blocks: u64,
    /// Its size in blocks at each rollback.
    pub sizes: Vec<u64>,
    /// What must exist of its journal.
    pub expect: Expect,
    /// The epoch that the journal must have reached: snapshots and rollbacks up to it include partitions of this
    /// processor.
    pub reached: Epoch,
}

impl CatalogState {
    /// Snapshots without rollbacks, in order; the journal may end in any epoch, and the volume may have grown.
    pub fn line(snapshots: &[Epoch]) -> CatalogState {
        CatalogState {
            history: History::line(snapshots),
            blocks: u64::MAX,
            sizes: Vec::new(),
            expect: Expect::Nothing,
            reached: 0,
        }
    }
}

/// The state of a comparison during a replay.
pub struct Agreement<'a> {
    catalog: &'a CatalogState,
    /// Number of rollbacks that were applied to the maps.
    applied_rollbacks: usize,
    /// The newest epoch whose end is recorded.
    ended: Epoch,
    /// That end is a cut of a segment of version 1 in place of a rollback. The rollback's own record may follow, in a
    /// later segment: a start has added it.
    cut_for_rollback: bool,
}

impl<'a> Agreement<'a> {
    /// The state after a checkpoint that was taken in `epoch`.
    pub fn new(catalog: &'a CatalogState, epoch: Epoch) -> Agreement<'a> {
        let applied_rollbacks =
            catalog.history.rollbacks().partition_point(|rollback| rollback.at < epoch);
        // The record of the end of the epoch before may follow the checkpoint.
        let ended = epoch.saturating_sub(2);
        Agreement { catalog, applied_rollbacks, ended, cut_for_rollback: false }
    }

    /// Number of rollbacks that were applied to the maps.
    pub fn applied_rollbacks(&self) -> usize {
        self.applied_rollbacks
    }

    /// Checks the next record, of a segment of this format version. Returns the number of rollbacks that have to be
    /// applied to the maps before it.
    pub fn check_record(&mut self, record: &Record, version: u32) -> Result<usize, String> {
        let epoch = record.epoch;
        let rollbacks = self.catalog.history.rollbacks();
        let before = self.applied_rollbacks.checked_sub(1).map(|last| rollbacks[last].at);
        if before.is_some_and(|at| epoch <= at) {
            return Err(format!("it is of epoch {epoch}, which a rollback has ended"));
        }
        let due =
            rollbacks[self.applied_rollbacks..].iter().take_while(|next| next.at < epoch).count();
        let recorded = version >= ROLLBACKS_RECORDED;
        let next = rollbacks.get(self.applied_rollbacks + due).filter(|next| next.at == epoch);
        if matches!(record.kind, RecordKind::Cut | RecordKind::Rollback) {
            let adds =
                record.kind == RecordKind::Rollback && self.cut_for_rollback && epoch == self.ended;
            if epoch <= self.ended && !adds {
                return Err(format!("it ends epoch {epoch}, which had ended"));
            }
            self.ended = epoch;
            self.cut_for_rollback = record.kind == RecordKind::Cut && !recorded && next.is_some();
        }
        if recorded && due > 0 {
            let at = rollbacks[self.applied_rollbacks].at;
            return Err(format!(
                "it is of epoch {epoch}, but no record says that the volume was rolled back at epoch {at}, as the \
                 catalog does"
            ));
        }
        let due = match (record.kind, next) {
            (RecordKind::Rollback, Some(next)) => {
                let size = record.volume_blocks();
                let same = next.to == record.place
                    && self.catalog.sizes.get(self.applied_rollbacks + due) == Some(&size);
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
        self.applied_rollbacks += due;
        Ok(due)
    }

    /// Checks the end of the replay: all records were checked, and the last epoch is `epoch`. `recorded`: every segment
    /// is of a version that has a record for each end of an epoch.
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
