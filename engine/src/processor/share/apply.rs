//! Apply: applies a part's writes to the map: each change is recorded first (J2), then mapped; replaced slots are
//! reusable when their freeing is durable (J4), unless they are [young](crate::change_log::young). Unused slots are
//! freed.

use std::cell::RefCell;

use crate::block_map::place::Place;
use crate::block_map::versions::Change;
use crate::change_log::format::{RECORD_SUMS_MAX, RecordKind};
use crate::change_log::journal::Entry;
use crate::change_log::space::AreaBits;
use crate::error::Errno;
use crate::mutants::{Bug, bug};
use crate::processor::io_job::{Frees, NewPlace};
use crate::processor::share::Share;
use crate::units::{Epoch, LocalIndex};

impl Share {
    /// Records and maps a job's writes, or frees its slots if it failed.
    pub(super) fn settle_changes(
        &mut self,
        local: LocalIndex,
        epoch: Epoch,
        changes: &[NewPlace],
        frees: &Frees,
        mut result: Result<(), Errno>,
    ) -> Result<(), Errno> {
        let mut ended: AreaBits = 0;
        for change in changes {
            if result.is_ok() {
                result = self.apply(local, epoch, change);
            }
            if change.place.is_slot() && result.is_err() {
                self.free_unrecorded(change.place, change.count);
            }
        }
        let slots = changes.iter().filter(|change| change.place.is_slot());
        let landed = slots.map(|change| (self.area_of(change.place), u64::from(change.count)));
        for (area, slots) in landed.chain(frees.iter().map(|(area, slots)| (area, *slots))) {
            area.end_write(slots); // SP2
            ended |= area.bit();
        }
        self.space_waiters.wake(ended | self.slots.take_freed_in());
        result
    }

    /// Appends the record of a change, then makes it (J2). On an error it was not recorded.
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
        slots.young.observe(sync_watermark, if bug(Bug::YoungTooLong) { 0 } else { self.epoch });
        let slots = RefCell::new(slots);
        let alone = |place, count| slots.borrow().are_young(place, count); // Y3
        local.versions.apply_with_hint(made, &self.history, alone, |_, count, place| {
            if place.is_slot() {
                bad.forget(place, count);
                slots.borrow_mut().free(seq, place, count); // J4
            }
        });
        // A write that was started in an older epoch changes the map of that epoch too (Y3).
        if change.place.is_slot() && (epoch == self.epoch || bug(Bug::YoungTooLong)) {
            slots.into_inner().recorded(seq, change.place, change.count);
        }
        self.expect_release();
        Ok(())
    }
}
