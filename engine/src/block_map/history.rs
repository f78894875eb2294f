//! History: which snapshots a volume has, and how they descend from one another.
//!
//! How it works      Without rollbacks each snapshot descends from the one before it, and the live volume from the
//!                   newest. A rollback ends a line: writes in epochs above `at` descend from the snapshot of epoch
//!                   `to`. So a snapshot's epoch determines its line, and nothing else needs to be stored.
//! Invariants        RB1 rollbacks are in order of `at`, and `to` is not above `at`; RB2 the target epoch of a rollback
//!                   stays retained, that is, its map is kept, also when its snapshot is deleted: other lines end
//!                   there.
//! Owner and locks   each share has its own copy; the catalog is authoritative.

use crate::units::Epoch;

/// A rollback: epochs above `at` continue from the snapshot of epoch `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rollback {
    /// The last epoch of the line that was left.
    pub at: Epoch,
    /// The snapshot's epoch; 0 if its target has no snapshot any more.
    pub to: Epoch,
}

/// See the module's head.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    snapshots: Vec<Epoch>,
    rollbacks: Vec<Rollback>,
    retained: Vec<Epoch>,
}

impl History {
    /// A history of snapshots and rollbacks; `None` if they are not in order (RB1).
    pub fn new(snapshots: Vec<Epoch>, rollbacks: Vec<Rollback>) -> Option<History> {
        let in_order = snapshots.windows(2).all(|pair| pair[0] < pair[1])
            && rollbacks.windows(2).all(|pair| pair[0].at < pair[1].at)
            && rollbacks.iter().all(|rollback| rollback.to <= rollback.at);
        let mut history = History { snapshots, rollbacks, retained: Vec::new() };
        history.find_retained();
        in_order.then_some(history)
    }

    /// A history of snapshots only, in order.
    pub fn line(snapshots: &[Epoch]) -> History {
        History::new(snapshots.to_vec(), Vec::new()).expect("the caller passes them in order")
    }

    fn find_retained(&mut self) {
        self.retained.clone_from(&self.snapshots);
        self.retained
            .extend(self.rollbacks.iter().map(|rollback| rollback.to).filter(|to| *to != 0));
        self.retained.sort_unstable();
        self.retained.dedup();
    }

    /// The snapshots, in order.
    pub fn snapshots(&self) -> &[Epoch] {
        &self.snapshots
    }

    /// The rollbacks, in order.
    pub fn rollbacks(&self) -> &[Rollback] {
        &self.rollbacks
    }

    /// Epochs whose maps are kept, in order (RB2).
    pub fn retained_epochs(&self) -> &[Epoch] {
        &self.retained
    }

    /// Whether there is a snapshot of this epoch.
    pub fn has(&self, epoch: Epoch) -> bool {
        self.snapshots.binary_search(&epoch).is_ok()
    }

    /// The rollback that began the line of an epoch, if one did.
    pub fn rollback_before(&self, epoch: Epoch) -> Option<Rollback> {
        let index = self.rollbacks.partition_point(|rollback| rollback.at < epoch);
        index.checked_sub(1).map(|index| self.rollbacks[index])
    }

    /// The newest snapshot up to `epoch` on its line, and on those from which the line descends; 0 if there is none.
    pub fn snapshot_until(&self, epoch: Epoch) -> Epoch {
        self.snapshot_below(epoch, epoch.saturating_add(1))
    }

    /// The newest snapshot from which `epoch` descends; 0 if there is none.
    pub fn snapshot_before(&self, epoch: Epoch) -> Epoch {
        self.snapshot_below(epoch, epoch)
    }

    /// The newest snapshot below `end` on the line of `epoch`.
    fn snapshot_below(&self, mut epoch: Epoch, mut end: Epoch) -> Epoch {
        loop {
            let rollback = self.rollback_before(epoch);
            let after = rollback.map_or(0, |rollback| rollback.at);
            let index = self.snapshots.partition_point(|snapshot| *snapshot < end);
            match index.checked_sub(1).map(|index| self.snapshots[index]) {
                Some(found) if found > after => return found,
                _ => {}
            }
            match rollback {
                Some(Rollback { to, .. }) if to != 0 => (epoch, end) = (to, to + 1),
                _ => return 0,
            }
        }
    }

    /// Whether the rollback at this epoch can be garbage-collected, because the descent of all versions is known
    /// without it: its line has no retained epoch, or continues where the previous line ended. Rollbacks are forgotten
    /// one by one, because the next one may be needed until the maps that this one retains are gone.
    pub fn is_unneeded(&self, at: Epoch) -> bool {
        let rollbacks = &self.rollbacks;
        let none_in = |after: Epoch, last: Epoch| {
            let next = self.retained.partition_point(|mark| *mark <= after);
            self.retained.get(next).is_none_or(|mark| *mark > last)
        };
        let unneeded = |number: usize| {
            let Rollback { at, to } = rollbacks[number];
            let before = number.checked_sub(1).map_or(0, |before| rollbacks[before].at);
            let empty = rollbacks.get(number + 1).is_some_and(|next| none_in(at, next.at));
            empty || (to > before && none_in(to, at))
        };
        rollbacks.binary_search_by_key(&at, |rollback| rollback.at).is_ok_and(unneeded)
    }

    /// The `at` of the first rollback that can be garbage-collected ([`History::is_unneeded`]).
    pub fn unneeded(&self) -> Option<Epoch> {
        self.rollbacks.iter().map(|rollback| rollback.at).find(|at| self.is_unneeded(*at))
    }

    /// The history before the rollback of this number, with the epochs that are retained now.
    pub fn before_rollback(&self, number: usize) -> History {
        let mut history = self.clone();
        history.rollbacks.truncate(number);
        history
    }

    /// Adds a snapshot, the newest.
    pub fn add_snapshot(&mut self, epoch: Epoch) {
        debug_assert!(self.retained.last().is_none_or(|newest| *newest < epoch));
        self.snapshots.push(epoch);
        self.retained.push(epoch);
    }

    /// Adds a rollback.
    pub fn roll_back(&mut self, rollback: Rollback) {
        self.rollbacks.push(rollback);
        self.find_retained();
    }

    /// Removes snapshots; returns the epochs that are no longer retained.
    pub fn remove_snapshots(&mut self, gone: &[Epoch]) -> Vec<Epoch> {
        self.snapshots.retain(|epoch| !gone.contains(epoch));
        self.ended()
    }

    /// Removes the rollback at this epoch, which is unneeded; returns the epochs that are no longer retained.
    pub fn forget_rollback(&mut self, at: Epoch) -> Vec<Epoch> {
        self.rollbacks.retain(|rollback| rollback.at != at);
        self.ended()
    }

    fn ended(&mut self) -> Vec<Epoch> {
        let mut before = std::mem::take(&mut self.retained);
        self.find_retained();
        before.retain(|epoch| self.retained.binary_search(epoch).is_err());
        before
    }
}
