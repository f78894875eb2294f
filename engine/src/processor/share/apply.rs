//! Apply: how what a part has written becomes part of the map: recorded first (J2), then mapped; what it replaces waits for
//! its freeing to be durable (J4), unless it is [young](crate::change_log::young). Slots that were taken for nothing are given back.

use std::cell::RefCell;

use crate::block_map::place::Place;
use crate::block_map::versions::Change;
use crate::change_log::format::{RECORD_SUMS_MAX, RecordKind};
use crate::change_log::journal::Entry;
use crate::error::Errno;
use crate::mutants::{Bug, bug};
use crate::processor::io_job::NewPlace;
use crate::processor::share::Share;
use crate::units::{Epoch, LocalIndex};

impl Share {
    /// Records and maps what a job has written, or gives its slots back if it failed.
    pub(super) fn settle_changes(
        &mut self,
        local: LocalIndex,
        epoch: Epoch,
        changes: &[NewPlace],
        mut result: Result<(), Errno>,
    ) -> Result<(), Errno> {
        let mut landed = 0;
        for change in changes {
            if result.is_ok() {
                result = self.apply(local, epoch, change);
            }
            if change.place.is_slot() {
                landed += u64::from(change.count);
                if result.is_err() {
                    self.give_back_unrecorded(change.place, change.count);
                }
            }
        }
        if landed > 0 {
            self.space.land(landed);
        }
        self.space_waiters.wake_all();
        result
    }

    /// Appends the records of a change, then makes it (J2). On an error nothing of it was recorded.
    fn apply(&mut self, local: LocalIndex, epoch: Epoch, change: &NewPlace) -> Result<(), Errno> {
        let partition = self.locals[local.index()].partition;
        let sums = if change.place.is_slot() { change.count } else { 0 };
        assert!(change.sums.len() == sums as usize && sums <= RECORD_SUMS_MAX, "planned so");
        let seq = self.journal.append(Entry {
            kind: RecordKind::Map,
            epoch,
            partition,
            first: change.first,
            count: change.count,
            place: change.place.raw(),
            checksums: &change.sums,
        })?;
        let (slots, bad) = (&mut self.slots, &self.bad);
        let local = &mut self.locals[local.index()];
        if change.place == Place::BASE {
            local.moved_back = seq;
        }
        let made = Change {
            epoch,
            first: change.first,
            count: change.count,
            place: change.place,
            checksums: &change.sums,
            seq,
        };
        let sync_watermark = self.journal.shared().watermark.sync_watermark();
        let sync_watermark = if bug(Bug::YoungForEver) { 0 } else { sync_watermark };
        slots.young.see(sync_watermark, if bug(Bug::YoungTooLong) { 0 } else { self.epoch });
        let mut given = 0;
        let slots = RefCell::new(slots);
        let alone = |place, count| slots.borrow().are_young(place, count); // Y3
        local.versions.apply_with_hint(made, &self.history, alone, |_, count, place| {
            if place.is_slot() {
                bad.forget(place, count);
                given += slots.borrow_mut().give(seq, place, count); // J4
            }
        });
        // One that was started in an older epoch is in that one's map, too (Y3).
        if change.place.is_slot() && (epoch == self.epoch || bug(Bug::YoungTooLong)) {
            slots.into_inner().recorded(seq, change.place, change.count);
        }
        self.space.give(given);
        self.count_waiting();
        Ok(())
    }

    /// Takes up to `want` consecutive slots, which were claimed.
    pub(super) fn take_slots(&mut self, want: u32) -> (Place, u32) {
        self.slots.take(&self.log_order, self.equal_priority_logs, want)
    }
}
