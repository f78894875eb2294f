//! Claim: the slots that a write has claimed in log areas, and not allocated yet.
//!
//! How it works      A write first claims the number of slots that it needs: all of them, or none, in the first area of
//!                   its partition's order that has free slots, then in the next one. Claimed slots exist somewhere in
//!                   their area. Then it allocates them, area by area.
//! Invariants        SQ1 a processor makes a claim when it has none, and allocates all of it before its turn ends;
//!                   SQ2 two claims in several areas are made one after the other: so two large ones never each take
//!                       half of what is left, and give it back, for ever.
//! Owner and locks   the processor; the areas' counters are atomic. A claim that fits in one area takes no lock.

use std::ops::Range;
use std::sync::Arc;

use super::space::LogArea;

/// Length of a long run, which is better allocated in one piece: 32 KiB.
pub const LONG_RUN: u32 = 8;

/// See the module's head.
#[derive(Debug, Default)]
pub struct Claim {
    /// Areas, by index in the order, with the slots claimed in each, in reverse.
    parts: Vec<(usize, u64)>,
    /// How many of the first areas have equal priority.
    equal: usize,
}

/// A claim that failed, because too few slots are free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooFew {
    /// It had claimed some slots, and gave them back: other claims may have failed because of these.
    pub gave_back: bool,
}

impl Claim {
    /// Claims `wanted` slots in these areas, of which the `equal` first ones have equal priority: a long run goes to
    /// the first of those that has many empty chunks, so that it stays in one piece.
    pub fn make(
        &mut self,
        areas: &[Arc<LogArea>],
        equal: usize,
        wanted: u64,
    ) -> Result<(), TooFew> {
        assert!(self.parts.is_empty(), "SQ1");
        self.equal = equal;
        let long = equal > 1 && wanted >= u64::from(LONG_RUN);
        let roomy = |area: &Arc<LogArea>| area.slots.has_plenty_empty();
        let first = if long { areas[..equal].iter().position(roomy).unwrap_or(0) } else { 0 };
        if areas.get(first).is_some_and(|area| area.claim(wanted)) {
            self.parts.push((first, wanted));
            return Ok(());
        }
        self.make_of_several(areas, wanted)
    }

    fn make_of_several(&mut self, areas: &[Arc<LogArea>], wanted: u64) -> Result<(), TooFew> {
        // Usually this is enough to fail without claiming anything.
        if areas.iter().map(|area| area.free()).sum::<u64>() < wanted {
            return Err(TooFew { gave_back: false });
        }
        let _one_at_a_time = areas[0].spanning.lock().expect("no holder panics"); // SQ2
        let mut left = wanted;
        for (index, area) in areas.iter().enumerate() {
            let claimed = area.claim_up_to(left);
            if claimed > 0 {
                self.parts.push((index, claimed));
                left -= claimed;
            }
        }
        if left > 0 {
            let gave_back = !self.parts.is_empty();
            for (index, claimed) in self.parts.drain(..) {
                areas[index].add_free(claimed);
                areas[index].end_write(claimed);
            }
            return Err(TooFew { gave_back });
        }
        self.parts.reverse();
        Ok(())
    }

    /// The area, by index in the order, in which slots are allocated next, and how many.
    pub fn next(&self) -> (usize, u64) {
        *self.parts.last().expect("S2: the slots were claimed")
    }

    /// The areas of the same priority as the one to allocate in next: from that one on, by index in the order.
    pub fn alike(&self) -> Range<usize> {
        let (index, _) = self.next();
        index..self.equal.max(index + 1)
    }

    /// The areas with slots that are claimed and not allocated, by index in the order.
    pub fn areas(&self) -> impl Iterator<Item = usize> {
        self.parts.iter().map(|(index, _)| *index)
    }

    /// Notes that so many slots of that area were allocated.
    pub fn allocated(&mut self, slots: u64) {
        let (_, left) = self.parts.last_mut().expect("S2: the slots were claimed");
        *left = left.checked_sub(slots).expect("S2: no more than were claimed");
        if *left == 0 {
            self.parts.pop();
        }
    }
}
