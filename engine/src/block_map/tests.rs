//! Tests of a partition's versions against a simple reference: an array of places for each version.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::diff::differing;
use super::history::{History, Rollback};
use super::place::Place;
use super::tree::Map;
use super::usage::{Measured, Memory, VersionUse, measure};
use super::versions::{Change, Versions};
use crate::block_map::leaf::LEAF_BLOCKS;
use crate::change_log::leaf_bytes::{self, LEAF_BYTES_MAX};
use crate::units::{Epoch, SlotIndex};

mod change_logs;
mod homeward;
mod relocation;

const BLOCKS: u32 = 1300; // not a multiple of 512

#[derive(Clone, Debug)]
enum Op {
    Slots {
        first: u32,
        count: u32,
        log: u16,
    },
    Scatter {
        first: u32,
        step: u32,
        logs: u16,
    },
    Zero {
        first: u32,
        count: u32,
    },
    /// Where no version sees them.
    Bases {
        first: u32,
        count: u32,
    },
    /// Those that can be.
    Relocate {
        first: u32,
        count: u32,
    },
    /// What only snapshots see there.
    Away {
        first: u32,
        count: u32,
    },
    /// All records so far are durable.
    Commit,
    Cut,
    Drop(usize),
    RollBack {
        nth: usize,
        cut: bool,
    },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let range = (0..BLOCKS, 1u32..600).prop_map(|(first, n)| (first, n.min(BLOCKS - first)));
    let op = prop_oneof![
        4 => (range.clone(), 1..4u16).prop_map(|((first, count), log)| Op::Slots { first, count, log }),
        2 => (0..BLOCKS, 1u32..9, 1..4u16)
            .prop_map(|(first, step, logs)| Op::Scatter { first, step, logs }),
        2 => range.clone().prop_map(|(first, count)| Op::Zero { first, count }),
        3 => range.clone().prop_map(|(first, count)| Op::Bases { first, count }),
        3 => range.clone().prop_map(|(first, count)| Op::Relocate { first, count }),
        3 => range.prop_map(|(first, count)| Op::Away { first, count }),
        2 => Just(Op::Commit),
        1 => Just(Op::Zero { first: 0, count: BLOCKS }),
        2 => Just(Op::Cut),
        3 => (0usize..8).prop_map(Op::Drop),
        2 => (0usize..8, any::<bool>()).prop_map(|(nth, cut)| Op::RollBack { nth, cut }),
    ];
    prop::collection::vec(op, 1..60)
}

/// Versions and their reference: contents by epoch, and which slots are used.
struct Twin {
    versions: Versions,
    history: History,
    live: Vec<Place>,
    snapshots: BTreeMap<Epoch, Vec<Place>>,
    epoch: Epoch,
    next_slot: u64,
    used: std::collections::BTreeSet<u64>,
    seq: u64,
    /// Base places that are held.
    held: std::collections::BTreeSet<u32>,
    /// Results of earlier measurements.
    memory: Memory,
    logs: change_logs::Logs,
}

impl Twin {
    fn new() -> Twin {
        Twin {
            versions: Versions::new(BLOCKS),
            history: History::default(),
            live: vec![Place::BASE; BLOCKS as usize],
            snapshots: BTreeMap::new(),
            epoch: 1,
            next_slot: 0,
            used: Default::default(),
            seq: 0,
            held: Default::default(),
            memory: Memory::default(),
            logs: change_logs::Logs::default(),
        }
    }

    fn epochs(&self) -> Vec<Epoch> {
        self.snapshots.keys().copied().collect()
    }

    fn set(&mut self, first: u32, count: u32, place: Place) {
        let sums: Vec<u32> = match place.is_slot() {
            true => (0..count).map(|i| place.step(i).raw() as u32).collect(),
            false => Vec::new(),
        };
        self.seq += 1;
        self.versions.freeze_before(self.epoch, self.history.retained_epochs());
        let mut freed = Vec::new();
        let change =
            Change { epoch: self.epoch, first, count, place, checksums: &sums, seq: self.seq };
        self.versions.apply(change, &self.history, |_, count, place| freed.push((count, place)));
        for i in 0..count {
            self.live[(first + i) as usize] = place.step(i);
            self.logs.changed(self.seq, first + i, place.step(i));
            if place.is_slot() {
                self.used.insert(place.step(i).raw());
            }
        }
        self.count_write(count);
        self.release(&freed);
    }

    fn check_usage(&mut self) {
        let (history, expected) = (self.history.clone(), counted(self));
        let live = self.live.iter().filter(|place| place.is_slot()).count() as u64;
        for mut memory in [Memory::default(), self.memory.clone()] {
            let mut measured = Measured::default();
            let found = measure(&self.versions, &history, &mut memory, &mut measured);
            assert_eq!(found, (expected.clone(), live));
            let again = Measured(measured.0);
            assert_eq!(measure(&self.versions, &history, &mut memory, &mut measured), found);
            assert_eq!(measured, again, "what did not change is not measured at twice");
            self.memory = memory;
        }
        self.check_homeward();
    }

    fn slots(&mut self, first: u32, count: u32, log: u16) {
        // Slots of the third log are near the border of the two halves of a place.
        let base = if log == 3 { (1 << 32) - 300 } else { 0 };
        let place = Place::slot(log, SlotIndex(base + self.next_slot));
        self.next_slot += u64::from(count) + 1;
        self.set(first, count, place);
    }

    /// Has blocks at their base places again, where no version sees these.
    fn bases(&mut self, first: u32, count: u32) {
        self.versions.freeze_before(self.epoch, self.history.retained_epochs());
        self.versions.learn_taken(first, count);
        let taken = |twin: &Twin, block: u32| {
            let mut frozen = twin.versions.frozen().iter();
            frozen.len() > 0
                && (twin.held.contains(&block)
                    || frozen.any(|frozen| frozen.map.place(block) == Place::BASE))
        };
        let mut block = first;
        while block < first + count {
            let live = self.versions.live.find(block, first + count - block);
            if live.place == Place::BASE {
                block += live.count;
                continue;
            }
            let (here, is_taken) = self.versions.base_is_taken(block, live.count);
            for each in block..block + here {
                assert_eq!(taken(self, each), is_taken, "block {each}");
            }
            if !is_taken {
                self.set(block, here, Place::BASE);
            }
            block += here;
        }
    }

    /// For each pair of versions, the blocks that differ.
    fn differences(&self) -> Vec<Vec<u32>> {
        let snapshots = self.snapshots.keys().map(|epoch| self.versions.at(*epoch).0);
        let maps: Vec<&Map> = snapshots.chain([&self.versions.live]).collect();
        let pairs = (0..maps.len()).flat_map(|one| (0..one).map(move |other| (one, other)));
        let of = |(one, other): (usize, usize)| {
            let mut blocks = Vec::new();
            differing(maps[one], maps[other], 0..BLOCKS, |first, count| {
                blocks.extend(first..first + count);
            });
            blocks
        };
        pairs.map(of).collect()
    }

    fn release(&mut self, freed: &[(u32, Place)]) {
        for (count, place) in freed {
            for i in 0..*count {
                if place.is_slot() {
                    let slot = place.step(i);
                    assert!(self.used.remove(&slot.raw()), "{slot:?} was freed twice");
                }
            }
        }
    }

    fn step(&mut self, op: &Op) {
        match *op {
            Op::Slots { first, count, log } => self.slots(first, count, log),
            Op::Scatter { first, step, logs } => {
                // The new size neither ends a leaf nor is larger.
                let blocks: Vec<u32> = (first..BLOCKS).step_by(step as usize).take(200).collect();
                for block in blocks.into_iter().rev() {
                    self.slots(block, 1, 1 + (block % u32::from(logs)) as u16);
                }
            }
            Op::Zero { first, count } => self.set(first, count, Place::ZERO),
            Op::Bases { first, count } => self.bases(first, count),
            Op::Relocate { first, count } => self.relocate(first, count),
            Op::Away { first, count } => self.move_away(first, count),
            Op::Commit => {
                self.versions.release_held(self.seq);
                self.held.clear();
            }
            Op::Cut => self.cut(),
            Op::RollBack { nth, cut } => {
                let Some(to) = self.epochs().get(nth).copied() else { return };
                if cut {
                    self.cut();
                }
                let rollback = Rollback { at: self.epoch, to };
                let mut freed = Vec::new();
                self.seq += 1;
                self.versions.roll_back(rollback, &self.history, self.seq, |_, count, place| {
                    freed.push((count, place));
                });
                self.history.roll_back(rollback);
                self.epoch += 1;
                self.live.clone_from(&self.snapshots[&to]);
                self.logs.rolled_back(to);
                self.release(&freed);
            }
            Op::Drop(nth) => {
                let Some(epoch) = self.epochs().get(nth).copied() else { return };
                self.snapshots.remove(&epoch);
                self.logs.deleted(epoch);
                let mut freed = Vec::new();
                self.history.remove_snapshots(&[epoch]);
                let note = |_, count, place| freed.push((count, place));
                match epoch % 2 {
                    0 => self.versions.prune(&self.history, note),
                    _ => self.versions.forget(epoch, &self.history, note),
                }
                self.release(&freed);
                if epoch % 3 != 0 {
                    self.forget_rollbacks();
                }
            }
        }
    }

    fn cut(&mut self) {
        self.snapshots.insert(self.epoch, self.live.clone());
        self.history.add_snapshot(self.epoch);
        self.logs.cut(self.epoch);
        self.epoch += 1;
    }

    fn forget_rollbacks(&mut self) {
        while let Some(at) = self.history.unneeded() {
            let mut freed = Vec::new();
            for epoch in self.history.forget_rollback(at) {
                let note = |_, count, place| freed.push((count, place));
                self.versions.forget(epoch, &self.history, note);
            }
            self.release(&freed);
        }
    }

    /// The maps that are retained only because of a rollback.
    fn hidden(&self) -> Vec<&Map> {
        let hidden = self.history.retained_epochs().iter().filter(|mark| !self.history.has(**mark));
        hidden.map(|mark| self.versions.at(*mark).0).collect()
    }

    fn check(&mut self) {
        if self.versions.frozen().is_empty() {
            self.held.clear(); // TB1: what was held for snapshots that are gone stays free with the next one
        }
        self.check_usage();
        self.check_logs();
        same(&self.versions.live, &self.live);
        let mut visible = std::collections::BTreeSet::new();
        for (epoch, contents) in &self.snapshots {
            same(self.versions.at(*epoch).0, contents);
        }
        for contents in self.snapshots.values().chain([&self.live]) {
            visible.extend(contents.iter().filter(|p| p.is_slot()).map(|p| p.raw()));
        }
        for map in self.hidden() {
            map.for_each_run(|_, count, place| {
                let slots = if place.is_slot() { count } else { 0 };
                visible.extend((0..slots).map(|i| place.step(i).raw()));
            });
        }
        assert!(visible == self.used, "exactly the visible slots are used");
    }
}

/// What each snapshot refers to, counted block by block.
fn counted(twin: &Twin) -> Vec<VersionUse> {
    let all: Vec<&Vec<Place>> = twin.snapshots.values().chain([&twin.live]).collect();
    let ours = |epoch: &Epoch| twin.versions.at(*epoch).0;
    let others =
        |epoch| twin.hidden().into_iter().filter(|map| !std::ptr::eq(*map, ours(epoch))).collect();
    let hidden: Vec<Vec<&Map>> = twin.snapshots.keys().map(others).collect();
    let held = |index: usize| {
        let mut held = VersionUse::default();
        for (block, place) in all[index].iter().enumerate() {
            let others = all.iter().enumerate().filter(|(other, _)| *other != index);
            let only = others.map(|(_, other)| other[block]).all(|other| other != *place)
                && hidden[index].iter().all(|other| other.place(block as u32) != *place);
            held.slots += u64::from(place.is_slot());
            held.only_slots += u64::from(place.is_slot() && only);
            held.only_bases += u64::from(*place == Place::BASE && only);
        }
        held
    };
    (0..twin.snapshots.len()).map(held).collect()
}

fn same(map: &Map, contents: &[Place]) {
    let mut block = 0;
    while block < BLOCKS {
        let found = map.find(block, BLOCKS);
        assert!(found.count > 0);
        for i in 0..found.count {
            assert_eq!(found.place.step(i), contents[(block + i) as usize]);
            if found.place.is_slot() {
                assert_eq!(found.checksums[i as usize], found.place.step(i).raw() as u32);
            }
        }
        block += found.count;
    }
    let expected = contents.iter().filter(|place| **place != Place::BASE).count();
    assert_eq!(map.mapped() as usize, expected);
    let mut from_runs = vec![Place::BASE; BLOCKS as usize];
    map.for_each_run(|first, count, place| {
        (0..count).for_each(|i| from_runs[(first + i) as usize] = place.step(i));
    });
    assert!(from_runs == contents);
    for leaf in 0..super::tree::leaves(BLOCKS) as u32 {
        let super::tree::NodeRef::Leaf(leaf) = map.node(leaf) else { continue };
        let mut bytes = Vec::new();
        leaf_bytes::encode(leaf, &mut bytes);
        assert!(bytes.len() <= LEAF_BYTES_MAX);
        let back = leaf_bytes::decode(&bytes).unwrap();
        let mut block = 0;
        while block < LEAF_BLOCKS {
            let (a, b) = (leaf.find(block, LEAF_BLOCKS), back.find(block, LEAF_BLOCKS));
            let count = a.count.min(b.count); // the leaf may have changed its form
            let sums = if a.place.is_slot() { count as usize } else { 0 };
            assert_eq!((a.place, &a.checksums[..sums]), (b.place, &b.checksums[..sums]));
            block += count;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn versions_keep_what_each_snapshot_saw_and_free_exactly_what_no_version_sees(ops in ops()) {
        let mut twin = Twin::new();
        for op in &ops {
            twin.step(op);
            twin.check();
        }
    }
}

#[test]
fn a_write_that_ends_late_changes_its_snapshot_and_the_live_map() {
    let mut versions = Versions::new(BLOCKS);
    let put = |versions: &mut Versions, epoch, first, slot| {
        let change = Change {
            epoch,
            first,
            count: 1,
            place: Place::slot(1, SlotIndex(slot)),
            checksums: &[7],
            seq: slot,
        };
        versions.freeze_before(epoch, &[1]);
        versions.apply(change, &History::line(&[1]), |_, _, _| {});
    };
    put(&mut versions, 2, 10, 5); // freezes for the snapshot of epoch 1
    put(&mut versions, 1, 20, 6); // was started before the cut
    assert_eq!(versions.at(1).0.place(20), Place::slot(1, SlotIndex(6)));
    assert_eq!(versions.live.place(20), Place::slot(1, SlotIndex(6)));
    assert_eq!(versions.at(1).0.place(10), Place::BASE);
}

#[test]
fn growing_after_a_rollback_leaves_no_map_that_no_snapshot_sees() {
    let (mut versions, mut history) = (Versions::new(BLOCKS), History::default());
    let put = |versions: &mut Versions, history: &History, epoch: Epoch, first, slot| {
        let place = Place::slot(1, SlotIndex(slot));
        let change = Change { epoch, first, count: 1, place, checksums: &[7], seq: slot };
        versions.freeze_before(epoch, history.retained_epochs());
        versions.apply(change, history, |_, _, _| {});
    };
    put(&mut versions, &history, 1, 5, 1);
    history.add_snapshot(1);
    put(&mut versions, &history, 2, 5, 2);
    history.add_snapshot(2);
    history.add_snapshot(3);
    put(&mut versions, &history, 4, 9, 3); // freezes one map for the snapshots of epochs 2 and 3
    history.remove_snapshots(&[3]);
    versions.forget(3, &history, |_, _, _| {});
    let rollback = Rollback { at: 4, to: 1 };
    versions.roll_back(rollback, &history, 4, |_, _, _| {});
    history.roll_back(rollback);
    versions.grow(BLOCKS + 512, history.retained_epochs());
    let mut freed = Vec::new();
    history.remove_snapshots(&[1, 2]);
    for epoch in [1, 2] {
        versions.forget(epoch, &history, |_, _, place| freed.push(place));
    }
    for epoch in history.forget_rollback(4) {
        versions.forget(epoch, &history, |_, _, place| freed.push(place));
    }
    freed.retain(|place| place.is_slot());
    assert_eq!(versions.live.place(5), Place::slot(1, SlotIndex(1)));
    assert_eq!(freed, [Place::slot(1, SlotIndex(2))]);
    assert!(versions.frozen().is_empty());
}
