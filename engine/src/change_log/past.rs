//! Past: what a processor's journal records of its volume's history, apart from maps, so that an older copy of the catalog
//! is noticed.
//!
//! How it works      A checkpoint has the epochs that have ended and have no snapshot, the rollbacks, the cuts of the
//!                   snapshots, and the volume's size; records behind it say which snapshots were dropped since, which
//!                   cuts were made, and how the volume has grown. Recovery
//!                   compares this with the catalog ([`Past::stale`], [`Past::check`]). What the catalog has
//!                   and the journal says is gone is [`Stale`]: the volume is served without it.
//! Invariants        PA1 an epoch that has ended without a snapshot, or whose snapshot was dropped, never has one again;
//!                   PA2 the catalog forgets a snapshot or a rollback before the journal does, and grows before it.
//! Errors            a clause that says how they differ. The volume is then not served.

use crate::block_map::history::{History, Rollback};
use crate::units::{BLOCK_SIZE, Epoch};

/// A set of epochs, as ranges in order that neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EpochRanges(Vec<(Epoch, Epoch)>);

impl EpochRanges {
    /// The epochs below `end` that are not in `snapshots`, which are in order.
    pub fn without(snapshots: &[Epoch], end: Epoch) -> EpochRanges {
        let mut ranges = Vec::new();
        let mut first = 1;
        for snapshot in snapshots.iter().copied().take_while(|snapshot| *snapshot < end) {
            if first < snapshot {
                ranges.push((first, snapshot - 1));
            }
            first = snapshot + 1;
        }
        if first < end {
            ranges.push((first, end - 1));
        }
        EpochRanges(ranges)
    }

    /// Ranges as they were read; `None` if they are not in order, or touch.
    pub fn from_parts(ranges: Vec<(Epoch, Epoch)>) -> Option<EpochRanges> {
        let right = ranges.iter().all(|(first, last)| 0 < *first && first <= last)
            && ranges.windows(2).all(|pair| pair[0].1 < pair[1].0 - 1);
        right.then_some(EpochRanges(ranges))
    }

    /// Adds the epochs from `first` to `last`.
    pub fn add(&mut self, first: Epoch, last: Epoch) {
        let from = self.0.partition_point(|range| range.1.saturating_add(1) < first);
        let to = self.0.partition_point(|range| range.0 <= last.saturating_add(1));
        let merged = self.0[from..to.max(from)]
            .iter()
            .fold((first, last), |sum, range| (sum.0.min(range.0), sum.1.max(range.1)));
        self.0.splice(from..to.max(from), [merged]);
    }

    /// Whether it has this epoch.
    pub fn has(&self, epoch: Epoch) -> bool {
        let range = self.0.partition_point(|range| range.1 < epoch);
        self.0.get(range).is_some_and(|range| range.0 <= epoch)
    }

    /// Its ranges, first and last epoch each.
    pub fn ranges(&self) -> &[(Epoch, Epoch)] {
        &self.0
    }

    /// What it has and `other` has not.
    pub fn minus(&self, other: &EpochRanges) -> Vec<(Epoch, Epoch)> {
        let mut rest = Vec::new();
        for (first, last) in self.0.iter().copied() {
            let mut first = first;
            let from = other.0.partition_point(|range| range.1 < first);
            for (begin, end) in other.0[from..].iter().take_while(|range| range.0 <= last) {
                if first < *begin {
                    rest.push((first, begin - 1));
                }
                first = end + 1;
            }
            if first <= last {
                rest.push((first, last));
            }
        }
        rest
    }
}

/// A cut, as a processor has recorded it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordedCut {
    /// The epoch that it ended.
    pub epoch: Epoch,
    /// Nanoseconds since 1970.
    pub instant_ns: u64,
    /// How many partitions of the volume the processor had; 0: not recorded.
    pub partitions: u32,
}

/// See the module's head.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Past {
    /// The volume's size in blocks; 0: not recorded.
    pub blocks: u64,
    /// Epochs that have no snapshot.
    pub dropped: EpochRanges,
    /// The rollbacks up to the checkpoint; `None`: there is no checkpoint, or it is of version 1, which has none.
    pub rollbacks: Option<Vec<Rollback>>,
    /// The recorded cuts of snapshots, in order.
    pub cuts: Vec<RecordedCut>,
    /// The epoch in which the counters of partitions began to count; 0: when the partitions were made. Cuts of earlier
    /// epochs may not be recorded.
    pub counted_from: Epoch,
}

/// What the catalog has although the journals say that it is gone: the catalog is an older copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stale {
    /// Epochs of snapshots that were deleted.
    pub snapshots: Vec<Epoch>,
    /// The `at` of rollbacks that were forgotten.
    pub rollbacks: Vec<Epoch>,
}

impl Stale {
    /// Whether there is nothing of that.
    pub fn is_empty(&self) -> bool {
        self.snapshots.is_empty() && self.rollbacks.is_empty()
    }

    /// Adds what another processor's journal says.
    pub fn add(&mut self, other: &Stale) {
        let merge = |ours: &mut Vec<Epoch>, theirs: &[Epoch]| {
            ours.extend(theirs);
            ours.sort_unstable();
            ours.dedup();
        };
        merge(&mut self.snapshots, &other.snapshots);
        merge(&mut self.rollbacks, &other.rollbacks);
    }
}

impl Past {
    /// The past of a share that is in `epoch`.
    pub fn of(history: &History, epoch: Epoch, blocks: u64) -> Past {
        Past {
            blocks,
            dropped: EpochRanges::without(history.snapshots(), epoch),
            rollbacks: Some(history.rollbacks().to_vec()),
            ..Past::default()
        }
    }

    /// Notes a cut that a record has.
    pub fn add_cut(&mut self, cut: RecordedCut) {
        if cut.instant_ns != 0 && self.cuts.last().is_none_or(|last| last.epoch < cut.epoch) {
            self.cuts.push(cut);
        }
    }

    /// What of the catalog's history is gone. The checkpoint was taken in `epoch`.
    pub fn stale(&self, catalog: &History, epoch: Epoch) -> Stale {
        let snapshots = catalog.snapshots().iter().copied();
        let forgotten = |rollback: &&Rollback| {
            let known = self.rollbacks.as_ref().is_none_or(|known| known.contains(rollback));
            rollback.at < epoch && !known
        };
        let rollbacks = catalog.rollbacks().iter().filter(forgotten);
        Stale {
            snapshots: snapshots.filter(|snapshot| self.dropped.has(*snapshot)).collect(),
            rollbacks: rollbacks.map(|rollback| rollback.at).collect(),
        }
    }

    /// Refuses a catalog, of which nothing is stale, that lacks a growth, or a rollback without which the descent of its
    /// snapshots would not be known. The catalog may have forgotten others (A2). Of its rollbacks, the first `done` are
    /// done; the next ones need their targets.
    pub fn check(&self, catalog: &History, blocks: u64, done: usize) -> Result<(), String> {
        let mut undone = catalog.rollbacks()[done..].iter();
        if let Some(Rollback { at, to }) = undone.find(|next| self.dropped.has(next.to)) {
            return Err(format!(
                "the catalog has a rollback at epoch {at} to epoch {to}, whose snapshot was deleted before that"
            ));
        }
        if self.blocks > blocks {
            return Err(format!(
                "the volume had grown to {} bytes, but in the catalog it has {}: the catalog is older than the journal",
                self.blocks.saturating_mul(BLOCK_SIZE),
                blocks * BLOCK_SIZE
            ));
        }
        let known = self.rollbacks.as_deref().unwrap_or(&[]);
        let there = catalog.rollbacks();
        let mut lacking: Vec<Rollback> =
            known.iter().filter(|rollback| !there.contains(rollback)).copied().collect();
        let mut rollbacks = [there, &lacking[..]].concat();
        rollbacks.sort_unstable_by_key(|rollback| rollback.at);
        let all = History::new(catalog.snapshots().to_vec(), rollbacks);
        let mut all = all.ok_or("its rollbacks and the catalog's are not of one history")?;
        while let Some(next) = lacking.iter().position(|rollback| all.is_unneeded(rollback.at)) {
            all.forget_rollback(lacking.swap_remove(next).at);
        }
        match lacking.iter().min_by_key(|rollback| rollback.at) {
            None => Ok(()),
            Some(Rollback { at, to }) => Err(format!(
                "the volume was rolled back at epoch {at} to epoch {to}, but the catalog does not have this rollback"
            )),
        }
    }
}
