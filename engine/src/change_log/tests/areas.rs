//! Several areas, processors and partitions: who gets slots where, and that a partition's slots lie together.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::Scratch;
use super::slots::{numbers, space, take_for};
use crate::block_map::place::Place;
use crate::change_log::chunks::CHUNK_SLOTS;
use crate::change_log::slots::Slots;
use crate::change_log::space::{LogArea, Space};
use crate::units::LocalIndex;

/// The areas of an order, by number.
fn order(space: &Space, numbers: &[u16]) -> Vec<Arc<LogArea>> {
    numbers.iter().map(|number| space.log(*number).unwrap()).collect()
}

/// The chunk of a slot, with its area.
fn chunk_of(raw: u64) -> (u16, u64) {
    let place = Place::from_raw(raw).unwrap();
    (place.log(), place.slot_number().chunk().0)
}

fn free_now(slots: &mut Slots, place: Place, count: u32) {
    slots.free_now(place, count, &mut Vec::new());
}

#[derive(Clone, Debug)]
enum Op {
    Take { processor: usize, partition: u32, want: u32 },
    Free { processor: usize, pick: prop::sample::Index },
    BeginLogs { processor: usize },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let want = prop_oneof![4 => 1..4u32, 2 => 1..100u32, 1 => 1..1500u32];
    let take = (0..3usize, 0..4u32, want).prop_map(|(processor, partition, want)| Op::Take {
        processor,
        partition,
        want,
    });
    let free = (0..3usize, any::<prop::sample::Index>())
        .prop_map(|(processor, pick)| Op::Free { processor, pick });
    let begin = (0..3usize).prop_map(|processor| Op::BeginLogs { processor });
    prop::collection::vec(prop_oneof![6 => take, 4 => free, 1 => begin], 1..120)
}

/// What a processor has in the model.
struct Owner {
    slots: Slots,
    runs: Vec<(Place, u32)>,
}

proptest! {
    /// Each partition of each processor has an order of its own.
    #[test]
    fn slots_come_from_allowed_areas_in_order_and_from_chunks_of_others_only_at_last(
        sizes in prop::collection::vec(1..4u64, 1..4),
        orders in prop::collection::vec(prop::collection::vec(0..3usize, 1..4), 12),
        ops in ops(),
    ) {
        let scratch = Scratch::new();
        let space = space(&scratch, &sizes);
        let orders: Vec<Vec<u16>> = orders.iter().map(|order| {
            let mut numbers: Vec<u16> = Vec::new();
            for number in order.iter().map(|index| (index % sizes.len()) as u16 + 1) {
                if !numbers.contains(&number) {
                    numbers.push(number);
                }
            }
            numbers
        }).collect();
        let mut owners: Vec<Owner> = (0..3)
            .map(|processor| Owner { slots: Slots::new(processor), runs: Vec::new() })
            .collect();
        let mut used: BTreeMap<u64, usize> = BTreeMap::new();
        for op in ops {
            match op {
                Op::Take { processor, partition, want } => {
                    let allowed = &orders[processor * 4 + partition as usize];
                    let areas = order(&space, allowed);
                    let free: Vec<u64> = areas.iter().map(|area| area.free()).collect();
                    let mut theirs: BTreeSet<(u16, u64)> = BTreeSet::new();
                    for area in &areas {
                        let owner = |chunk| area.slots.owner(chunk);
                        let not_mine = |chunk: &u64| owner(*chunk).is_some_and(|one| one != processor as u32);
                        theirs.extend((0..area.chunks).filter(not_mine).map(|chunk| (area.number, chunk)));
                    }
                    // All areas are alike, or each one is full before the next one is used.
                    let equal = if partition % 2 == 0 { 1 } else { areas.len() };
                    let empty: Vec<u16> = areas
                        .iter()
                        .filter(|area| area.slots.claimed() < area.chunks)
                        .map(|area| area.number)
                        .collect();
                    let before = used.len();
                    let owner = &mut owners[processor];
                    let taken = take_for(LocalIndex(partition), (&areas, equal), &mut owner.slots, want);
                    prop_assert_eq!(taken.is_some(), free.iter().sum::<u64>() >= u64::from(want));
                    for (place, count) in taken.into_iter().flatten() {
                        prop_assert!(allowed.contains(&place.log()), "the rule allows {:?}", allowed);
                        for raw in numbers(place, count) {
                            prop_assert!(used.insert(raw, processor).is_none(), "allocated twice");
                        }
                        owner.runs.push((place, count));
                        let stolen = theirs.contains(&chunk_of(place.raw()));
                        let here = empty.contains(&place.log());
                        let has_empty = if equal == 1 { here } else { !empty.is_empty() };
                        // A long request may use up the empty chunks itself.
                        prop_assert!(!stolen || !has_empty || want > 64, "stolen although a chunk is empty");
                    }
                    prop_assert!(used.len() == before || used.len() == before + want as usize);
                }
                Op::Free { processor, pick } => {
                    let owner = &mut owners[processor];
                    if owner.runs.is_empty() {
                        continue;
                    }
                    let (place, count) = owner.runs.swap_remove(pick.index(owner.runs.len()));
                    free_now(&mut owner.slots, place, count);
                    numbers(place, count).for_each(|raw| {
                        used.remove(&raw);
                    });
                }
                Op::BeginLogs { processor } => owners[processor].slots.begin_logs(),
            }
            for area in space.logs() {
                let its = used.keys().filter(|raw| chunk_of(**raw).0 == area.number).count() as u64;
                prop_assert_eq!((area.free(), area.usage().used), (area.size() - its, its));
                prop_assert_eq!((area.slots.used(), area.in_flight()), (its, 0));
            }
        }
        // All that is free can be had by one processor, to the last slot.
        let all = space.logs();
        while take_for(LocalIndex(9), (&all, 1), &mut owners[1].slots, 1).is_some() {}
        prop_assert_eq!(space.free(), 0);
    }
}

#[test]
fn areas_are_used_in_order_and_a_request_is_split_between_them() {
    let scratch = Scratch::new();
    let space = space(&scratch, &[1, 1, 1]);
    let mut slots = Slots::new(0);
    let areas = order(&space, &[3, 1]);
    let mut take = |want| take_for(LocalIndex(0), (&areas, 1), &mut slots, want);
    let first = take(1000).unwrap();
    assert!(first.iter().all(|(place, _)| place.log() == 3));
    let split = take(100).unwrap();
    let of =
        |number| split.iter().filter(|run| run.0.log() == number).map(|run| run.1).sum::<u32>();
    assert_eq!((of(3), of(1)), (24, 76));
    assert_eq!(take(1000), None, "area 2 is not allowed");
    let free: Vec<u64> = space.logs().iter().map(|area| area.free()).collect();
    assert_eq!(free, [1024 - 76, 1024, 0], "nothing is left claimed");
}

#[test]
fn a_processor_uses_an_area_of_the_same_priority_before_a_chunk_of_another_processor() {
    let scratch = Scratch::new();
    let space = space(&scratch, &[1, 1]);
    let (mut mine, mut other) = (Slots::new(0), Slots::new(1));
    let both = order(&space, &[1, 2]);
    take_for(LocalIndex(0), (&both, 2), &mut other, 1).unwrap();
    for _ in 0..1024 {
        let taken = take_for(LocalIndex(0), (&both, 2), &mut mine, 1).unwrap();
        assert_eq!(taken[0].0.log(), 2, "the chunk of area 1 belongs to the other one");
    }
    assert_eq!((both[0].free(), both[1].free()), (1023, 0));
    let last = take_for(LocalIndex(0), (&both, 2), &mut mine, 1).unwrap();
    assert_eq!(last[0].0.log(), 1, "nothing else is free");
}

#[test]
fn an_area_is_full_before_one_that_is_named_after_it_is_used() {
    let scratch = Scratch::new();
    let space = space(&scratch, &[1, 1]);
    let (mut mine, mut other) = (Slots::new(0), Slots::new(1));
    let both = order(&space, &[1, 2]);
    take_for(LocalIndex(0), (&both, 1), &mut other, 1).unwrap();
    for _ in 0..1023 {
        let taken = take_for(LocalIndex(0), (&both, 1), &mut mine, 1).unwrap();
        assert_eq!(taken[0].0.log(), 1, "also in the chunk of the other one");
    }
    let next = take_for(LocalIndex(0), (&both, 1), &mut mine, 1).unwrap();
    assert_eq!(next[0].0.log(), 2, "area 1 is full");
}

#[test]
fn partitions_with_one_changed_block_cost_a_slot_each() {
    for processors in [1, 4] {
        let scratch = Scratch::new();
        let space = space(&scratch, &[40]);
        let logs = space.logs();
        let mut owners: Vec<Slots> = (0..processors).map(Slots::new).collect();
        for partition in 0..16_384u32 {
            let slots = &mut owners[(partition % processors) as usize];
            take_for(LocalIndex(partition / processors), (&logs, 1), slots, 1).unwrap();
        }
        assert_eq!(logs[0].slots.used(), 16_384);
        // At most 1.1 times 16 chunks.
        assert!(logs[0].slots.claimed() <= 17, "{} chunks", logs[0].slots.claimed());
    }
}

/// How many runs these slots are in, in the order in which the blocks were written.
fn runs(slots: &[u64]) -> usize {
    1 + slots.windows(2).filter(|pair| pair[0] + 1 != pair[1]).count()
}

/// Has each of these partitions write so many blocks, in turn; returns the mean length of a run of slots.
fn mean_run(partitions: u32, blocks: u32) -> f64 {
    let scratch = Scratch::new();
    let space = space(&scratch, &[32]);
    let logs = space.logs();
    let mut slots = Slots::new(0);
    let mut taken: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    for _ in 0..blocks {
        for partition in 0..partitions {
            let run = take_for(LocalIndex(partition), (&logs, 1), &mut slots, 1).unwrap();
            taken.entry(partition).or_default().push(run[0].0.raw());
        }
    }
    f64::from(partitions * blocks) / taken.values().map(|slots| runs(slots)).sum::<usize>() as f64
}

#[test]
fn changes_of_partitions_that_are_written_in_turn_lie_in_runs() {
    for (blocks, wanted) in [(16, 3.0), (256, 25.0), (4096, 150.0)] {
        let mean = mean_run(4, blocks);
        println!("4 partitions, {blocks} blocks each: {mean:.1} slots in a run");
        assert!(mean >= wanted, "{blocks} blocks: {mean}");
    }
}

#[test]
fn windows_begin_again_with_a_change_log_and_what_the_older_ones_reserved_is_used() {
    let scratch = Scratch::new();
    let space = space(&scratch, &[8]);
    let logs = space.logs();
    let (mut slots, mut other) = (Slots::new(0), Slots::new(1));
    // The other one has the last chunk; 7 are left.
    take_for(LocalIndex(0), (&logs, 1), &mut other, 1024).unwrap();
    let mut taken = Vec::new();
    for partition in 0..28 {
        for _ in 0..129 {
            let run = take_for(LocalIndex(partition), (&logs, 1), &mut slots, 1).unwrap();
            taken.push(run[0].0);
        }
    }
    assert_eq!(logs[0].slots.claimed(), 8, "windows reserve about as much as is used");
    slots.begin_logs();
    let free = logs[0].free();
    for partition in 0..free as u32 {
        take_for(LocalIndex(1000 + partition), (&logs, 1), &mut slots, 1).unwrap();
    }
    assert_eq!(logs[0].free(), 0);
}

#[test]
fn processors_with_rules_of_their_own_fill_their_areas_at_once_to_the_last_slot() {
    let scratch = Scratch::new();
    let space = &space(&scratch, &[2, 3, 1]);
    let used = &Mutex::new(BTreeSet::new());
    let turns = &AtomicU64::new(0);
    let orders: [&[u16]; 4] = [&[1], &[2, 1], &[2], &[1, 2]];
    std::thread::scope(|scope| {
        for (processor, allowed) in orders.into_iter().enumerate() {
            scope.spawn(move || {
                let (mut slots, mut runs) = (Slots::new(processor as u32), Vec::new());
                let areas = order(space, allowed);
                loop {
                    let turn = turns.fetch_add(1, Ordering::Relaxed);
                    let want = 1 + ((turn * 37 + processor as u64 * 11) % 90) as u32;
                    let local = LocalIndex((turn % 5) as u32);
                    if let Some(taken) = take_for(local, (&areas, 1), &mut slots, want) {
                        for (place, count) in taken {
                            assert!(allowed.contains(&place.log()));
                            let mut used = used.lock().unwrap();
                            numbers(place, count).for_each(|raw| assert!(used.insert(raw)));
                            runs.push((place, count));
                        }
                    } else if let Some((place, count)) = runs.pop() {
                        numbers(place, count).for_each(|raw| {
                            used.lock().unwrap().remove(&raw);
                        });
                        free_now(&mut slots, place, count);
                    }
                    if turn > 6000 {
                        break;
                    }
                    if turn.is_multiple_of(500) {
                        slots.begin_logs();
                    }
                }
                while take_for(LocalIndex(7), (&areas, 1), &mut slots, 1).is_some() {}
            });
        }
    });
    let free: Vec<u64> = space.logs().iter().map(|area| area.free()).collect();
    assert_eq!(free, [0, 0, CHUNK_SLOTS], "nobody may use area 3");
    for area in space.logs() {
        assert_eq!(area.slots.used() + area.free(), area.size());
        assert_eq!(area.in_flight(), 0);
    }
}

#[test]
fn recovery_gives_each_chunk_its_owner_back() {
    let scratch = Scratch::new();
    let space = space(&scratch, &[4]);
    let logs = space.logs();
    let mine = take_for(LocalIndex(0), (&logs, 1), &mut Slots::new(3), 10).unwrap();
    let chunk = mine[0].0.slot_number().chunk().0;
    // As after a restart: the area is new, and one slot of a chunk is found used by processor 3.
    let again = super::slots::space(&scratch, &[4]);
    let area = again.log(1).unwrap();
    let mut bits = [0; 16];
    bits[0] = 1;
    area.slots.allocate_exactly(chunk, 3, &bits).unwrap();
    assert!(!area.slots.activate(chunk, 2), "it is not processor 2's");
    assert!(area.slots.activate(chunk, 3));
}
