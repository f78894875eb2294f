//! Space waiters: each waiter for slots is woken to try again as long as slots may become free (SW1), also if it waited
//! because of a claim of another share that failed (SW3).

use std::sync::Arc;

use loom::thread;

use super::check;
use crate::change_log::space::Space;
use crate::processor::queue::Queue;
use crate::processor::space_waiters::{SpaceWaiters, Verdict};

/// The shares of one volume, each with a write of `wanted` slots; no event asks for space.
struct Shares {
    space: Space,
    space_waiters: SpaceWaiters,
    queues: Vec<Arc<Queue>>,
    wanted: u64,
}

impl Shares {
    fn new(count: usize, free: u64, wanted: u64) -> Arc<Shares> {
        let space = Space::default();
        space.add_free(free);
        let queues = (0..count).map(|_| Arc::default()).collect();
        Arc::new(Shares { space, space_waiters: SpaceWaiters::default(), queues, wanted })
    }

    /// A share's write; `false`: the write waits. A write that ends frees `frees` slots.
    fn write(&self, share: usize, frees: u64) -> bool {
        if !self.space.claim(self.wanted) {
            let queue = &self.queues[share];
            let verdict =
                self.space_waiters.wait_or_refuse(&self.space, self.wanted, queue, share as u32);
            return verdict == Verdict::Refuse;
        }
        self.space.add_free(frees);
        self.space.end_write(self.wanted);
        self.space_waiters.wake_all();
        true
    }
}

/// Makes each share write once at the same time; then the woken ones continue; at the end none waits.
fn all_end(shares: &Arc<Shares>, frees: u64) {
    let write = |share| {
        let shares = Arc::clone(shares);
        thread::spawn(move || shares.write(share, frees))
    };
    let others: Vec<_> = (1..shares.queues.len()).map(write).collect();
    let mut ended = vec![shares.write(0, frees)];
    ended.extend(others.into_iter().map(|other| other.join().unwrap()));
    let mut batch = Vec::new();
    while let Some(waits) = ended.iter().position(|ended| !ended) {
        let woken = (waits..ended.len())
            .find(|share| !ended[*share] && shares.queues[*share].try_take_all(&mut batch))
            .expect("a waiter was woken to try again");
        batch.clear();
        shares.queues[woken].leave(false);
        ended[woken] = shares.write(woken, frees);
    }
}

#[test]
fn without_space_no_share_waits_for_a_claim_that_failed() {
    check(|| all_end(&Shares::new(3, 1, 2), 0));
}

#[test]
fn a_share_that_waits_for_a_write_is_woken_when_it_has_ended() {
    check(|| all_end(&Shares::new(3, 1, 1), 1));
    check(|| all_end(&Shares::new(3, 1, 1), 0));
}
