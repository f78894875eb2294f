//! Claims: a share's writes claim the slots that they need in the areas of their partition, and note which slots of other
//! areas they may free.
//!
//! How it works      A write in flight may free slots: those that its blocks have now. A part that waits for slots of an
//!                   area waits for such a write too, so it is counted there until it ends (SP2). Where it has new
//!                   slots it is counted for these already.

use std::sync::Arc;

use crate::block_map::place::Place;
use crate::change_log::space::LogArea;
use crate::processor::io_job::{Frees, NewPlace};
use crate::processor::part::Part;
use crate::processor::share::Share;
use crate::processor::share::write::NoSpace;
use crate::units::{BLOCK_SIZE, LocalIndex};

impl Share {
    /// Claims all of these slots for a partition, or none.
    pub(super) fn claim(&mut self, local: LocalIndex, wanted: u64) -> Result<(), NoSpace> {
        if wanted == 0 {
            return Ok(());
        }
        let order = self.log_orders.of(self.locals[local.index()].partition);
        self.claim.make(&order.areas, order.equal, wanted).map_err(|too_few| {
            if too_few.gave_back {
                self.space_waiters.wake(order.bits);
            }
            NoSpace { wanted }
        })
    }

    /// Counts what a part's write with these changes may free in areas in which it has no new slots.
    pub(super) fn may_free(&self, part: &Part, changes: &[NewPlace]) -> Frees {
        let mut frees = Frees::new();
        let redirects = changes.iter().any(|change| change.place.is_slot());
        if changes.is_empty() || (redirects && !self.log_orders.has_several_areas()) {
            return frees; // almost always: it has new slots in the only area
        }
        let covered = |old: Place| {
            changes.iter().any(|change| change.place.is_slot() && change.place.log() == old.log())
        };
        let versions = &self.locals[part.local.index()].versions;
        let end = (part.offset + part.length).div_ceil(BLOCK_SIZE as u32);
        let mut block = part.offset / BLOCK_SIZE as u32;
        while block < end {
            let found = versions.live.find(block, end - block);
            block += found.count;
            if found.place.is_slot() && !covered(found.place) {
                self.add_freed(&mut frees, found.place, found.count);
            }
        }
        frees
    }

    fn add_freed(&self, frees: &mut Frees, place: Place, count: u32) {
        let log = self.area_of(place);
        log.begin_write(u64::from(count));
        match frees.iter_mut().find(|(other, _)| Arc::ptr_eq(other, log)) {
            Some((_, slots)) => *slots += u64::from(count),
            None => frees.push((Arc::clone(log), u64::from(count))),
        }
    }

    /// Allocates up to `want` consecutive slots for a partition, which were claimed.
    pub(super) fn allocate_slots(&mut self, local: LocalIndex, want: u32) -> (Place, u32) {
        let order = self.log_orders.of(self.locals[local.index()].partition);
        self.slots.allocate(local, &order.areas, &mut self.claim, want)
    }

    /// The area of a slot that was allocated here.
    pub(super) fn area_of(&self, place: Place) -> &Arc<LogArea> {
        self.slots.log(place.log()).expect("its slots were allocated here")
    }
}
