//! Relocation of both kinds, in versions and their reference.

use super::Twin;
use crate::block_map::place::Place;
use crate::block_map::relocation::Move;
use crate::block_map::versions::Versions;
use crate::units::{Epoch, SlotIndex};

impl Twin {
    /// Relocates the live blocks that are in slots to their base places, where no version sees these. No difference of
    /// two versions changes.
    pub(super) fn relocate(&mut self, first: u32, count: u32) {
        let can_go = |versions: &Versions, block, here| {
            let (here, taken) = versions.base_is_taken(block, here);
            (here, !taken)
        };
        let mut moves = self.moves(first, count, can_go);
        for one in &mut moves {
            one.from = self.live[one.first as usize];
        }
        self.make(&moves);
    }

    /// Relocates to new slots what snapshots see at the base places of live blocks that are in slots.
    pub(super) fn move_away(&mut self, first: u32, count: u32) {
        let mut moves = self.moves(first, count, Versions::snapshot_sees_base);
        for one in &mut moves {
            one.to = Place::slot(1, SlotIndex(self.next_slot));
            one.sums = (0..one.count).map(|i| one.to.step(i).raw() as u32).collect();
            self.next_slot += u64::from(one.count) + 1;
            self.used.extend((0..one.count).map(|i| one.to.step(i).raw()));
            self.held.extend(one.first..one.first + one.count);
        }
        self.make(&moves);
    }

    /// The runs of live blocks in slots for which the answer is yes, from base place to base place.
    fn moves(
        &mut self,
        first: u32,
        count: u32,
        can_go: impl Fn(&Versions, u32, u32) -> (u32, bool),
    ) -> Vec<Move> {
        self.versions.learn_taken(first, count);
        let (mut block, mut moves) = (first, Vec::new());
        while block < first + count {
            let live = self.versions.live.find(block, first + count - block);
            let (here, goes) = match live.place.is_slot() {
                true => can_go(&self.versions, block, live.count),
                false => (live.count, false),
            };
            if goes {
                let (from, to, sums) = (Place::BASE, Place::BASE, Vec::new());
                moves.push(Move { first: block, count: here, from, to, sums });
            }
            block += here;
        }
        moves
    }

    fn make(&mut self, moves: &[Move]) {
        let differences = self.differences();
        self.seq += 1;
        self.versions.relocate(moves, self.seq);
        for one in moves {
            for i in 0..one.count {
                self.relocated(one.first + i, one.from.step(i), one.to.step(i));
            }
            self.release(&[(one.count, one.from)]);
        }
        assert!(self.differences() == differences, "moving is no change");
    }

    fn relocated(&mut self, block: u32, from: Place, to: Place) {
        let snapshots = self.snapshots.iter_mut().map(|(epoch, contents)| (*epoch, contents));
        let mut moved = Vec::new();
        for (epoch, contents) in snapshots.chain([(Epoch::MAX, &mut self.live)]) {
            let place = &mut contents[block as usize];
            if *place == from {
                *place = to;
                moved.push(epoch);
            }
        }
        self.logs.relocated(block, from, to, &moved);
    }
}
