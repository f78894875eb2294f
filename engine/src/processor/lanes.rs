//! Lanes: queued items, in one lane for each connection, so that no connection waits for all requests of another.
//!
//! How it works      Each lane is in order (round robin over the lanes). [`Lanes::pop`] takes the first item of the
//!                   next lane, and that lane goes to the end; [`Lanes::next`] takes several small ones of one lane.
//! Invariants        LN1 a lane is in `order` exactly once as long as it is not empty, and not at all otherwise: an
//!                   item comes after at most one turn of each other lane for each turn of its own.
//! Owner and locks   the owner of the value.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::processor::part::Part;

/// Identifies a connection: the address of its sink.
pub type Key = usize;

/// The lane of a part.
pub fn lane_of(part: &Part) -> Key {
    Arc::as_ptr(part.request.sink()).cast::<()>().addr()
}

/// Cost of one turn of a lane: this many small parts, or one large one.
pub const QUANTUM: u32 = 16;

/// See the module's head.
pub struct Lanes<T> {
    lanes: HashMap<Key, VecDeque<T>>,
    order: VecDeque<Key>,
}

impl<T> Default for Lanes<T> {
    fn default() -> Lanes<T> {
        Lanes { lanes: HashMap::new(), order: VecDeque::new() }
    }
}

impl<T> Lanes<T> {
    /// Whether all lanes are empty.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// All items, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.lanes.values().flatten()
    }

    /// Adds an item at the end of a lane.
    pub fn push(&mut self, key: Key, item: T) {
        let lane = self.lanes.entry(key).or_default();
        if lane.is_empty() {
            self.order.push_back(key); // LN1
        }
        lane.push_back(item);
    }

    /// The first item of the next lane.
    pub fn pop(&mut self) -> Option<T> {
        let mut item = None;
        self.next(1, |_| 1, |only| item = Some(only));
        item
    }

    /// Calls `f` with the first items of the next lane, at least one, as long as their total cost is below `quantum`.
    pub fn next(&mut self, quantum: u32, cost: impl Fn(&T) -> u32, mut f: impl FnMut(T)) {
        let Some(key) = self.order.pop_front() else { return };
        let lane = self.lanes.get_mut(&key).expect("LN1");
        let mut spent = 0;
        while spent < quantum
            && let Some(item) = lane.pop_front()
        {
            spent += cost(&item);
            f(item);
        }
        if lane.is_empty() {
            self.lanes.remove(&key);
        } else {
            self.order.push_back(key); // LN1
        }
    }

    /// Removes and returns all items for which `of` is true.
    pub fn take_if(&mut self, of: impl Fn(&T) -> bool) -> Vec<T> {
        let mut taken = Vec::new();
        for key in std::mem::take(&mut self.order) {
            let lane = self.lanes.get_mut(&key).expect("LN1");
            let (out, stays): (VecDeque<T>, VecDeque<T>) = lane.drain(..).partition(&of);
            taken.extend(out);
            if stays.is_empty() {
                self.lanes.remove(&key);
            } else {
                *lane = stays;
                self.order.push_back(key); // LN1
            }
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::Lanes;

    #[test]
    fn a_late_item_waits_for_one_turn_of_each_other_lane() {
        let mut lanes = Lanes::default();
        for number in 0..64 * 1000 {
            lanes.push(number % 64, "others'");
        }
        lanes.push(1000, "late");
        let before = std::iter::from_fn(|| lanes.pop()).take_while(|item| *item != "late").count();
        assert_eq!(before, 64);
        assert_eq!(std::iter::from_fn(|| lanes.pop()).count(), 64 * 1000 - 64);
        assert!(lanes.is_empty());
    }

    #[test]
    fn a_turn_takes_small_items_up_to_the_quantum_and_at_least_one() {
        let mut lanes = Lanes::default();
        [3, 3, 3, 3, 9, 9].into_iter().for_each(|cost| lanes.push(1, cost));
        let mut turns = Vec::new();
        while !lanes.is_empty() {
            let mut turn = Vec::new();
            lanes.next(8, |cost| *cost, |cost| turn.push(cost));
            turns.push(turn);
        }
        assert_eq!(turns, [vec![3, 3, 3], vec![3, 9], vec![9]]);
    }

    #[test]
    fn after_a_removal_the_rest_stays_in_order() {
        let mut lanes = Lanes::default();
        (0..12).for_each(|number| lanes.push(number % 3, number));
        let mut taken = lanes.take_if(|number| number % 3 == 1 || *number > 8);
        taken.sort_unstable();
        assert_eq!(taken, [1, 4, 7, 9, 10, 11]);
        let left: Vec<usize> = std::iter::from_fn(|| lanes.pop()).collect();
        assert_eq!(left, [0, 2, 3, 5, 6, 8]);
    }
}
