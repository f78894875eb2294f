//! Roll back: a share's part in a rollback, when nothing of the volume is in flight and it is not exported.
//!
//! How it works      Each partition's live map becomes a reference to the one that the snapshot sees, in a new epoch:
//!                   that is all, for any size. What only the old live map saw is freed; after a cut that is nothing,
//!                   because that snapshot sees it all.
//! Durability        The catalog has recorded it before, and its record in the journal is appended here. If the process
//!                   was killed before that, recovery does it, and records it before anything else; a checkpoint of a
//!                   later epoch includes it.
//! Errors            if the record cannot be appended, nothing has changed here: the caller may try again, and the next
//!                   start does it.

use crate::block_map::history::Rollback;
use crate::block_map::place::Place;
use crate::change_log::journal::Entry;
use crate::error::Errno;
use crate::processor::share::Share;
use crate::processor::share::reclaim::FreedBase;
use crate::units::{BLOCK_SIZE, LocalIndex};

impl Share {
    /// Rolls back to a snapshot, unless it has already done so. EINVAL: it does not have the snapshot or is in another
    /// epoch.
    pub fn roll_back(&mut self, rollback: Rollback) -> Result<(), Errno> {
        if self.epoch == rollback.at + 1 && self.history.rollbacks().last() == Some(&rollback) {
            return Ok(());
        }
        if self.epoch != rollback.at || !self.history.has(rollback.to) {
            return Err(Errno::EINVAL);
        }
        assert!(self.idle(), "the caller has waited for that");
        let seq =
            self.journal.append(Entry::rollback(rollback, self.geometry.size / BLOCK_SIZE))?;
        let has_base = self.origin.is_none();
        for (number, local) in self.locals.iter_mut().enumerate() {
            let (slots, bases, bad) = (&mut self.slots, &mut self.freed_bases, &self.bad);
            local.versions.roll_back(rollback, &self.history, seq, |first, count, place| {
                if place.is_slot() {
                    slots.free_later(seq, place, count);
                    bad.forget(place, count);
                } else if has_base && place == Place::BASE {
                    bases.push_back(FreedBase {
                        seq,
                        local: LocalIndex(number as u32),
                        first,
                        count,
                    });
                }
            });
        }
        self.history.roll_back(rollback);
        self.epoch = rollback.at + 1;
        self.slots.begin_logs();
        self.unrecorded_cut = None; // it has ended before
        self.expect_release();
        Ok(())
    }
}
