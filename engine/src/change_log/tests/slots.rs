//! Slots and space: claimed, allocated, freed, punched; by one processor and by several at once.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::Scratch;
use crate::block_map::history::History;
use crate::block_map::place::Place;
use crate::block_map::versions::{Change, Versions};
use crate::change_log::chunks::{CHUNK_BYTES, CHUNK_SLOTS};
use crate::change_log::claim::Claim;
use crate::change_log::punching::Punching;
use crate::change_log::slots::Slots;
use crate::change_log::space::{EmptyChunk, LogArea, Space};
use crate::change_log::used_slots::UsedSlots;
use crate::io::device::{Device, Mode};
use crate::io::extent::Extent;
use crate::system::linux::Linux;
use crate::units::{LocalIndex, SlotIndex};

pub(super) fn space(scratch: &Scratch, chunks: &[u64]) -> Space {
    let space = Space::default();
    for (index, chunks) in chunks.iter().enumerate() {
        let path = scratch.0.join(format!("log{index}"));
        std::fs::File::create(&path).unwrap().set_len(chunks * CHUNK_BYTES).unwrap();
        let linux: Arc<dyn crate::system::System> = Arc::new(Linux);
        let device = Arc::new(Device::open(&linux, 1 + index as u64, &path, Mode::SPARSE).unwrap());
        // In two extents, if there are enough chunks for two.
        let (first, rest) = (CHUNK_BYTES, (chunks - 1) * CHUNK_BYTES);
        let extents = [(0, first), (first, rest)].into_iter().filter(|(_, length)| *length > 0);
        let extents = extents.map(|(offset, length)| {
            let device = Arc::clone(&device);
            Extent { device, offset, length }
        });
        let log = space.add(LogArea::new(1 + index as u16, extents.collect()).unwrap()).unwrap();
        log.open(0);
    }
    space
}

pub(super) fn numbers(place: Place, count: u32) -> impl Iterator<Item = u64> {
    (0..count).map(move |i| place.step(i).raw())
}

/// Allocates exactly `want` slots of any area, or none.
pub(super) fn take(space: &Space, slots: &mut Slots, want: u32) -> Option<Vec<(Place, u32)>> {
    let logs = space.logs();
    take_for(LocalIndex(0), (&logs, logs.len()), slots, want)
}

/// Allocates exactly `want` slots for a partition in these areas, of which the first ones have equal priority, or none.
pub(super) fn take_for(
    local: LocalIndex,
    (logs, equal): (&[Arc<LogArea>], usize),
    slots: &mut Slots,
    want: u32,
) -> Option<Vec<(Place, u32)>> {
    let mut claim = Claim::default();
    claim.make(logs, equal, u64::from(want)).ok()?;
    let (mut runs, mut left) = (Vec::new(), want);
    while left > 0 {
        let (place, count) = slots.allocate(local, logs, &mut claim, left);
        assert!(count >= 1 && count <= left);
        assert!(logs.iter().any(|log| log.number == place.log()));
        left -= count;
        end_write(logs, place, count);
        runs.push((place, count));
    }
    assert_eq!(claim.areas().next(), None, "S2");
    Some(runs)
}

fn end_write(logs: &[Arc<LogArea>], place: Place, count: u32) {
    let log = logs.iter().find(|log| log.number == place.log());
    log.unwrap().end_write(u64::from(count));
}

/// Those of each processor.
pub(super) fn owners<const N: usize>() -> [(Slots, Vec<(Place, u32)>); N] {
    std::array::from_fn(|processor| (Slots::new(processor as u32), Vec::new()))
}

fn punch(empty: Vec<EmptyChunk>) {
    let taken = empty.iter().filter_map(|one| Punching::take(&one.log, one.chunk, 0));
    taken.for_each(|punching| punching.punch());
}

proptest! {
    #[test]
    fn slots_are_allocated_once_and_reused_only_when_released(
        ops in prop::collection::vec(
            (0..3u8, 0..3usize, prop_oneof![1..20u32, 1..2000u32], any::<prop::sample::Index>()), 1..80),
    ) {
        let scratch = Scratch::new();
        let space = space(&scratch, &[6, 1]);
        let mut owners = owners::<3>();
        let (mut used, mut seq) = (BTreeSet::new(), 0);
        for (op, owner, want, pick) in ops {
            let (slots, runs) = &mut owners[owner];
            match op {
                0 => match take(&space, slots, want) {
                    Some(taken) => {
                        for (place, count) in &taken {
                            for number in numbers(*place, *count) {
                                prop_assert!(used.insert(number), "allocated twice");
                            }
                        }
                        runs.extend(taken);
                    }
                    None => prop_assert!(used.len() as u64 + u64::from(want) > 7 * CHUNK_SLOTS),
                },
                1 if !runs.is_empty() => {
                    let (place, count) = runs.swap_remove(pick.index(runs.len()));
                    seq += 1;
                    slots.free_later(seq, place, count);
                    let mut empty = Vec::new();
                    prop_assert_eq!(slots.release(seq - 1, usize::MAX, &mut empty), 0);
                    prop_assert!(empty.is_empty(), "released too early");
                    let released = slots.release(seq, usize::MAX, &mut empty);
                    prop_assert_eq!(released, u64::from(count));
                    numbers(place, count).for_each(|number| {
                        used.remove(&number);
                    });
                    punch(empty);
                }
                _ => {}
            }
            let logs = space.logs();
            prop_assert_eq!(space.usage().used, used.len() as u64);
            prop_assert_eq!(logs.iter().map(|log| log.slots.used()).sum::<u64>(), used.len() as u64);
            let chunks: BTreeSet<u64> = used.iter().map(|slot| slot / CHUNK_SLOTS).collect();
            let claimed = logs.iter().map(|log| log.slots.claimed()).sum::<u64>();
            prop_assert!(claimed <= (chunks.len() + 4 * owners.len()) as u64);
        }
    }
}

#[test]
fn long_runs_stay_in_one_piece_when_single_slots_are_free() {
    let scratch = Scratch::new();
    let space = space(&scratch, &[16]);
    let mut slots = Slots::default();
    let (place, _) = take(&space, &mut slots, 1).unwrap()[0];
    let singles: Vec<_> = (0..600).flat_map(|_| take(&space, &mut slots, 1).unwrap()).collect();
    for (single, _) in singles.iter().step_by(2) {
        slots.free_now(*single, 1, &mut Vec::new());
    }
    for _ in 0..100 {
        let runs = take(&space, &mut slots, 32).unwrap();
        assert_eq!(runs.len(), 1, "it is in pieces");
    }
    // A single one of another partition fills the gaps.
    let logs = space.logs();
    let (next, _) = take_for(LocalIndex(1), (&logs, 1), &mut slots, 1).unwrap()[0];
    assert_eq!(next, place.step(1));
}

#[test]
fn the_last_free_slot_is_found_wherever_it_is() {
    let scratch = Scratch::new();
    let space = space(&scratch, &[2, 2]);
    let (mut mine, mut other) = (Slots::new(0), Slots::new(1));
    // The other's active chunk has one slot used; mine allocates all that is left, chunk by chunk and slot by slot.
    let (theirs, _) = take(&space, &mut other, 1).unwrap()[0];
    assert_eq!(take(&space, &mut mine, 4096), None, "one is used");
    let taken = take(&space, &mut mine, 4095).unwrap();
    assert_eq!(space.free(), 0);
    assert_eq!(take(&space, &mut mine, 1), None);
    // The other finds a slot that one freed anywhere.
    let (place, _) = taken[taken.len() / 2];
    mine.free_now(place.step(1), 1, &mut Vec::new());
    assert_eq!(take(&space, &mut other, 1).unwrap(), [(place.step(1), 1)]);
    other.free_now(theirs, 1, &mut Vec::new());
    assert_eq!(take(&space, &mut mine, 1).unwrap(), [(theirs, 1)]);
}

#[test]
fn slots_that_are_punched_are_not_allocated_and_never_the_last_free_ones() {
    let scratch = Scratch::new();
    let space = space(&scratch, &[2]);
    let log = space.log(1).unwrap();
    let mut slots = Slots::default();
    let runs = take(&space, &mut slots, 2048).unwrap();
    let mut empty = Vec::new();
    runs.iter().for_each(|(place, count)| slots.free_now(*place, *count, &mut empty));
    assert_eq!(empty.len(), 2);
    let punching = Punching::take(&log, empty[0].chunk, 0).unwrap();
    assert_eq!((log.free(), log.returning(), log.usage().used), (1024, 1024, 0));
    assert_eq!(take(&space, &mut slots, 1025), None);
    assert!(log.claim(1), "a processor is about to allocate one");
    assert!(Punching::take(&log, empty[1].chunk, 0).is_none(), "it would remove claimed slots");
    assert_eq!((log.free(), log.returning()), (1023, 1024));
    log.add_free(1);
    let chunk = empty[0].chunk;
    let taken = take(&space, &mut slots, 1024).unwrap();
    assert!(taken.iter().all(|(place, _)| place.slot_number().chunk().0 != chunk));
    drop(punching);
    assert_eq!((log.free(), log.returning()), (1024, 0));
    assert!(take(&space, &mut slots, 1024).is_some());
}

#[test]
fn recovery_marks_each_slot_once() {
    let scratch = Scratch::new();
    let space = space(&scratch, &[2]);
    let log = space.log(1).unwrap();
    let take = |first: u64, count: u32| {
        let mut versions = Versions::new(2048);
        let (place, sums) = (Place::slot(1, SlotIndex(first)), vec![0; count as usize]);
        let change = Change { epoch: 1, first: 0, count, place, checksums: &sums, seq: 1 };
        versions.apply(change, &History::default(), |_, _, _| {});
        let mut used = UsedSlots::new(&space);
        used.add_partition(&versions, &History::default())?;
        let other_partition = used.add_partition(&versions, &History::default());
        assert_eq!(other_partition, Err(place), "used twice by one processor");
        let mut used = UsedSlots::new(&space);
        used.add_partition(&versions, &History::default())?;
        Slots::default().allocate_used(used)
    };
    assert_eq!(take(1000, 100), Ok(()));
    assert_eq!(take(1100, 100), Ok(()), "in the same chunk");
    assert_eq!(take(1099, 1), Err(Place::slot(1, SlotIndex(1099))), "used twice");
    assert_eq!(take(2047, 2), Err(Place::slot(1, SlotIndex(2047))), "outside");
    assert_eq!(take(0, 1), Ok(()));
    assert_eq!(log.slots.used(), 201);
}

#[test]
fn processors_that_fill_the_logs_together_allocate_every_slot_once() {
    let scratch = Scratch::new();
    let space = &space(&scratch, &[4, 3, 1]);
    let size = 8 * CHUNK_SLOTS;
    let used = &Mutex::new(BTreeSet::new());
    let turns = &AtomicU64::new(0);
    std::thread::scope(|scope| {
        for owner in 0..4u64 {
            scope.spawn(move || {
                let (mut slots, mut runs) = (Slots::new(owner as u32), Vec::new());
                while turns.fetch_add(1, Ordering::Relaxed) < 4000 {
                    let want = 1 + (turns.load(Ordering::Relaxed) * 37 + owner * 11) % 300;
                    if let Some(taken) = take(space, &mut slots, want as u32) {
                        let mut used = used.lock().unwrap();
                        for (place, count) in &taken {
                            numbers(*place, *count).for_each(|slot| assert!(used.insert(slot)));
                        }
                        runs.extend(taken);
                    } else if let Some((place, count)) = runs.pop() {
                        numbers(place, count).for_each(|slot| {
                            used.lock().unwrap().remove(&slot);
                        });
                        let mut empty = Vec::new();
                        slots.free_now(place, count, &mut empty);
                        punch(empty);
                    }
                }
                while take(space, &mut slots, 1).is_some() {}
            });
        }
    });
    assert_eq!((space.free(), space.usage().used), (0, size));
    assert_eq!(space.logs().iter().map(|log| log.slots.used()).sum::<u64>(), size);
}

/// Allocates a run to which records refer afterwards.
fn take_recorded(space: &Space, slots: &mut Slots, seq: u64, want: u32) -> Vec<(Place, u32)> {
    let runs = take(space, slots, want).unwrap();
    runs.iter().for_each(|(place, count)| slots.recorded(seq, *place, *count));
    runs
}

#[test]
fn a_young_slot_is_reused_at_once_and_an_older_one_is_not() {
    let scratch = Scratch::new();
    let space = space(&scratch, &[1]);
    let mut slots = Slots::default();
    slots.young.observe(10, 1);
    let first = take_recorded(&space, &mut slots, 11, 600)[0];
    let given = slots.free(11, first.0, 600);
    assert_eq!((given, slots.pending_free()), (600, 0));

    let old = take_recorded(&space, &mut slots, 12, 600)[0];
    slots.young.observe(10, 1);
    slots.young.observe(15, 1); // a sync has begun
    let young = take_recorded(&space, &mut slots, 16, 400)[0];
    assert_eq!((slots.free(17, old.0, 600), slots.pending_free()), (0, 600));
    assert_eq!((slots.free(17, young.0, 400), slots.pending_free()), (400, 600));
    slots.release(15, usize::MAX, &mut Vec::new());
    assert_eq!(slots.pending_free(), 600);
    assert_eq!(slots.release(17, usize::MAX, &mut Vec::new()), 600);
}

#[test]
fn a_slot_is_not_young_if_a_sync_covers_its_record_although_it_was_just_appended() {
    let scratch = Scratch::new();
    let space = space(&scratch, &[1]);
    let mut slots = Slots::default();
    slots.young.observe(11, 1); // a sync began between the record and this
    let (place, count) = take_recorded(&space, &mut slots, 11, 5)[0];
    assert_eq!(slots.free(12, place, count), 0);
}

#[test]
fn a_run_that_is_young_in_part_is_freed_in_parts() {
    let scratch = Scratch::new();
    let space = space(&scratch, &[2]);
    let mut slots = Slots::default();
    slots.young.observe(1, 1);
    let (place, count) = take(&space, &mut slots, 100).unwrap()[0];
    assert_eq!(count, 100);
    slots.recorded(2, place.step(10), 30);
    slots.recorded(2, place.step(70), 30);
    assert_eq!((slots.free(2, place, 100), slots.pending_free()), (60, 40));
    assert_eq!(slots.release(2, usize::MAX, &mut Vec::new()), 40);
    assert_eq!(space.usage().used, 0);
}

#[test]
fn nothing_is_young_while_a_sync_begins_or_after_a_checkpoint() {
    let scratch = Scratch::new();
    let space = space(&scratch, &[1]);
    let mut slots = Slots::default();
    for aged in [
        |slots: &mut Slots| slots.young.observe(u64::MAX, 1),
        |slots: &mut Slots| {
            slots.young.clear();
        },
    ] {
        let (place, count) = take_recorded(&space, &mut slots, 2, 5)[0];
        aged(&mut slots);
        assert_eq!(slots.free(3, place, count), 0);
    }
    slots.young.observe(u64::MAX, 1);
    let (place, count) = take_recorded(&space, &mut slots, 2, 5)[0];
    slots.young.observe(u64::MAX, 1); // another one begins, or the same one still does
    assert_eq!(slots.free(3, place, count), 0);
}

#[test]
fn no_slot_is_young_in_the_next_epoch() {
    let scratch = Scratch::new();
    let space = space(&scratch, &[1]);
    let mut slots = Slots::default();
    slots.young.observe(1, 1);
    let (place, count) = take_recorded(&space, &mut slots, 2, 5)[0];
    assert!(slots.are_young(place, count));
    assert!(!slots.are_young(place, count + 1));
    assert!(!slots.are_young(Place::BASE, count) && !slots.are_young(Place::ZERO, count));
    slots.young.observe(1, 2);
    assert!(!slots.are_young(place, 1));
    assert_eq!(slots.free(3, place, count), 0);
}

#[test]
fn a_long_run_goes_to_another_log_of_equal_priority_instead_of_being_split() {
    let scratch = Scratch::new();
    let space = space(&scratch, &[2, 8]);
    let logs = space.logs();
    let mut slots = Slots::default();
    let mut take =
        |equal, want| take_for(LocalIndex(0), (&logs, equal), &mut slots, want).unwrap()[0];
    let taken: Vec<Place> = (0..2 * CHUNK_SLOTS).map(|_| take(2, 1).0).collect();
    assert!(taken.iter().all(|place| place.log() == 1));
    let scattered: Vec<Place> = taken.into_iter().step_by(7).take(100).collect();
    scattered.iter().for_each(|place| slots.free_now(*place, 1, &mut Vec::new()));

    let mut take =
        |equal, want| take_for(LocalIndex(0), (&logs, equal), &mut slots, want).unwrap()[0];
    let (place, count) = take(1, 32);
    assert_eq!((place.log(), count), (1, 1), "only the first log is wanted");
    let (place, count) = take(2, 32);
    assert_eq!((place.log(), count), (2, 32));
    assert_eq!(take(2, 1).0.log(), 1, "short ones fill the holes");
}

#[test]
fn a_release_frees_the_given_number_of_runs_and_leaves_the_others() {
    let scratch = Scratch::new();
    let space = space(&scratch, &[1]);
    let mut slots = Slots::default();
    slots.young.observe(1, 1);
    let (place, _) = take(&space, &mut slots, 100).unwrap()[0];
    (0..100).for_each(|slot| slots.free_later(2 + u64::from(slot / 50), place.step(slot), 1));
    assert_eq!(slots.release(2, 30, &mut Vec::new()), 30);
    assert!(slots.can_release(2));
    assert_eq!(slots.release(2, 30, &mut Vec::new()), 20);
    assert!(!slots.can_release(2), "the others wait for the next commit");
    assert_eq!(slots.pending_free(), 50);
    assert_eq!(slots.release(3, 50, &mut Vec::new()), 50);
    assert_eq!(space.usage().used, 0);
}
