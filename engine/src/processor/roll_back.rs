//! Rolling back: a share's part in it, when nothing of the volume is under way and nobody can ask it for anything.
//!
//! How it works      Each partition's live map becomes a reference to the one that the snapshot sees, in a new epoch: that
//!                   is all, whatever the size. What only the old live map saw is freed; after a cut that is nothing, as
//!                   that snapshot sees it all.
//! Durability        The catalog has recorded it before. A share that was killed first does it as it is read back, before
//!                   the first record of a later epoch ([`crate::change_log::recover`]); a checkpoint of a later epoch
//!                   has it.

use crate::block_map::history::Rollback;
use crate::block_map::place::Place;
use crate::change_log::format::RecordKind;
use crate::change_log::journal::Entry;
use crate::processor::reclaim::FreedBase;
use crate::processor::share::Share;

impl Share {
    /// Goes back to a snapshot; `false` if it does not have it or is in another epoch: then nothing has changed.
    pub fn roll_back(&mut self, rollback: Rollback) -> bool {
        if self.epoch != rollback.at || !self.history.has(rollback.to) {
            return false;
        }
        assert!(self.idle() && self.reserved.is_empty(), "its caller has waited for that");
        // Of the new epoch, so that the maps are not taken for older ones; nothing depends on it, so nothing fails with it.
        let _ = self.journal.append(Entry {
            kind: RecordKind::Cut,
            epoch: rollback.at,
            partition: 0,
            first: 0,
            count: 0,
            place: 0,
            checksums: &[],
        });
        let seq = self.journal.shared().appended();
        let has_base = self.source.is_none();
        for (number, local) in self.locals.iter_mut().enumerate() {
            let (slots, bases, bad) = (&mut self.slots, &mut self.freed_bases, &self.bad);
            local.versions.roll_back(rollback, &self.history, seq, |first, count, place| {
                if place.is_slot() {
                    slots.give_later(seq, place, count);
                    bad.forget(place, count);
                } else if has_base && place == Place::BASE {
                    bases.push_back(FreedBase { seq, local: number as u32, first, count });
                }
            });
        }
        self.history.roll_back(rollback);
        self.epoch = rollback.at + 1;
        self.count_waiting();
        true
    }
}
