//! Space waiters: each waiter for slots is woken to try again as long as slots of its areas may become free (SW1), also
//! if it waited because of a claim of another share that failed (SW3), and is refused only when none will.

use std::sync::Arc;

use loom::thread;

use super::check;
use crate::change_log::claim::Claim;
use crate::change_log::space::{LogArea, Space};
use crate::processor::queue::Queue;
use crate::processor::space_waiters::{SpaceWaiters, Verdict, Wanted};

/// A write of a share: the areas that it may use, by index, how many slots it needs, and how many it frees in which.
struct Write {
    areas: Vec<usize>,
    wanted: u64,
    frees: Option<(usize, u64)>,
}

/// The shares of one volume, each with one write; no event asks for space.
struct Shares {
    areas: Vec<Arc<LogArea>>,
    space_waiters: SpaceWaiters,
    queues: Vec<Arc<Queue>>,
    writes: Vec<Write>,
}

/// How a write went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Waits,
    Written,
    Refused,
}

impl Shares {
    fn new(free: &[u64], writes: Vec<Write>) -> Arc<Shares> {
        let space = Space::default();
        let area = |(number, free): (usize, &u64)| {
            let area = space.add(LogArea::new(number as u16, Vec::new()).unwrap()).unwrap();
            area.add_free(*free);
            area
        };
        let areas = free.iter().enumerate().map(area).collect();
        let queues = writes.iter().map(|_| Arc::default()).collect();
        Arc::new(Shares { areas, space_waiters: SpaceWaiters::default(), queues, writes })
    }

    /// The same write by so many shares, in one area.
    fn alike(count: usize, free: u64, wanted: u64, frees: u64) -> Arc<Shares> {
        let write = |_| Write { areas: vec![0], wanted, frees: Some((0, frees)) };
        Shares::new(&[free], (0..count).map(write).collect())
    }

    fn write(&self, share: usize) -> Ended {
        let Write { areas, wanted, frees } = &self.writes[share];
        let areas: Vec<_> = areas.iter().map(|index| Arc::clone(&self.areas[*index])).collect();
        let bits = areas.iter().fold(0, |bits, area| bits | area.bit());
        let mut claim = Claim::default();
        if let Err(too_few) = claim.make(&areas, 1, *wanted) {
            if too_few.gave_back {
                self.space_waiters.wake(bits);
            }
            let wanted = Wanted { areas: &areas, bits, slots: *wanted };
            let verdict =
                self.space_waiters.wait_or_refuse(&wanted, &self.queues[share], share as u32);
            return if verdict == Verdict::Wait { Ended::Waits } else { Ended::Refused };
        }
        let freed = frees.map(|(index, slots)| (&self.areas[index], slots));
        freed.iter().for_each(|(area, slots)| area.begin_write(*slots));
        let mut ended = 0;
        freed.iter().for_each(|(area, slots)| {
            area.add_free(*slots);
            area.end_write(*slots);
            ended |= area.bit();
        });
        while claim.areas().next().is_some() {
            let (index, slots) = claim.next();
            claim.allocated(slots);
            areas[index].end_write(slots);
            ended |= areas[index].bit();
        }
        self.space_waiters.wake(ended);
        Ended::Written
    }
}

/// Makes each share write once at the same time; then the woken ones continue; at the end none waits.
fn all_end(shares: &Arc<Shares>) -> Vec<Ended> {
    let write = |share| {
        let shares = Arc::clone(shares);
        thread::spawn(move || shares.write(share))
    };
    let others: Vec<_> = (1..shares.queues.len()).map(write).collect();
    let mut ended = vec![shares.write(0)];
    ended.extend(others.into_iter().map(|other| other.join().unwrap()));
    let mut batch = Vec::new();
    while let Some(waits) = ended.iter().position(|ended| *ended == Ended::Waits) {
        let woken = (waits..ended.len())
            .find(|share| {
                ended[*share] == Ended::Waits && shares.queues[*share].try_take_all(&mut batch)
            })
            .expect("a waiter was woken to try again");
        batch.clear();
        shares.queues[woken].leave(false);
        ended[woken] = shares.write(woken);
    }
    ended
}

fn written(ended: &[Ended]) -> usize {
    ended.iter().filter(|ended| **ended == Ended::Written).count()
}

#[test]
fn without_space_no_share_waits_for_a_claim_that_failed() {
    check(|| {
        all_end(&Shares::alike(3, 1, 2, 0));
    });
}

#[test]
fn a_share_that_waits_for_a_write_is_woken_when_it_has_ended() {
    check(|| assert_eq!(written(&all_end(&Shares::alike(2, 1, 1, 1))), 2));
    check(|| assert_eq!(written(&all_end(&Shares::alike(3, 1, 1, 0))), 1));
}

#[test]
fn a_claim_in_two_areas_that_fails_refuses_nobody_who_fits() {
    // The first one needs more than there is; it may hold what the second one needs for a moment.
    let writes = || {
        vec![
            Write { areas: vec![0, 1], wanted: 3, frees: None },
            Write { areas: vec![1], wanted: 1, frees: None },
        ]
    };
    check(move || {
        let ended = all_end(&Shares::new(&[1, 1], writes()));
        assert_eq!(ended[1], Ended::Written);
    });
}

#[test]
fn of_two_claims_in_two_areas_one_succeeds() {
    let write = |areas| Write { areas, wanted: 3, frees: None };
    check(move || {
        let ended = all_end(&Shares::new(&[2, 2], vec![write(vec![0, 1]), write(vec![1, 0])]));
        assert_eq!(written(&ended), 1);
    });
}

#[test]
fn a_share_waits_for_a_write_of_other_areas_only_if_it_frees_slots_of_its_own() {
    let writes = |frees| {
        vec![
            Write { areas: vec![0], wanted: 1, frees: Some((frees, 1)) },
            Write { areas: vec![1], wanted: 1, frees: None },
        ]
    };
    // The write of the first one frees a slot of its own area: the second one is refused, whatever the first does.
    check(move || {
        let ended = all_end(&Shares::new(&[1, 0], writes(0)));
        assert_eq!(ended, [Ended::Written, Ended::Refused]);
    });
    // It frees one of the second one's area: that one is written, or was refused before the first had begun.
    check(move || {
        let shares = Shares::new(&[1, 0], writes(1));
        let ended = all_end(&shares);
        assert_eq!(ended[0], Ended::Written);
        let free = shares.areas[1].free();
        assert_eq!(free, u64::from(ended[1] == Ended::Refused), "slots are taken once");
    });
}
