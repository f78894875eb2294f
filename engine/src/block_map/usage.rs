//! Usage: how many blocks each version of a partition's map holds, and which of them nobody else sees.
//!
//! How it works      By V2 a frozen map's place is its own exactly if neither its parent nor a child has it, so what releasing it
//!                   would free is found by walking the leaves that it shares with neither. How many slots a map refers
//!                   to is its older neighbour's number and what the leaves differ by that the two do not share.
//!                   Frozen maps do not change, so what was found is remembered by what it was found from: a map's
//!                   epoch with the sequence number of its latest change, and its neighbours'. Only the newest frozen
//!                   map, whose neighbour is the live one, is looked at again and again.
//! Owner and locks   a [`Memory`] belongs to the caller; the versions are clones.

use std::collections::HashMap;

use super::diff::only_in;
use super::history::History;
use super::place::Place;
use super::tree::{Map, NodeRef, leaves};
use super::versions::Versions;
use crate::units::{Epoch, PartitionIndex};

/// What a version holds, blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Slots that it refers to.
    pub slots: u64,
    /// Those of them that only it refers to.
    pub only_slots: u64,
    /// Base places that only it refers to.
    pub only_bases: u64,
}

impl Held {
    /// Adds what another partition's version holds.
    pub fn add(&mut self, other: &Held) {
        self.slots += other.slots;
        self.only_slots += other.only_slots;
        self.only_bases += other.only_bases;
    }
}

/// A map by what it was when it was looked at: the last epoch that sees it (the live one: all ones), and its latest
/// change.
type Identity = (Epoch, u64);

/// What is remembered of one frozen map.
#[derive(Clone, Debug)]
struct Known {
    from: Vec<Identity>,
    held: Held,
}

/// What is remembered of one partition.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    frozen: HashMap<Epoch, Known>,
}

/// What is remembered of a volume's partitions.
#[derive(Debug, Default)]
pub struct UsageMemory(HashMap<PartitionIndex, Memory>);

impl UsageMemory {
    /// What is remembered of this one.
    pub fn of(&mut self, partition: PartitionIndex) -> &mut Memory {
        self.0.entry(partition).or_default()
    }
}

/// How much was looked at, rather than remembered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measured(pub u64);

/// What each of `snapshots` (in order) holds, and the slots that the live map refers to.
pub fn measure(
    versions: &Versions,
    history: &History,
    memory: &mut Memory,
    measured: &mut Measured,
) -> (Vec<Held>, u64) {
    let (frozen, snapshots) = (versions.frozen(), history.snapshots());
    memory
        .frozen
        .retain(|epoch, _| frozen.binary_search_by_key(epoch, |one| one.last_epoch).is_ok());
    let identity = |index: usize| match frozen.get(index) {
        Some(one) => (one.last_epoch, one.map.write_seq),
        None => (Epoch::MAX, versions.live.write_seq),
    };
    let map = |index: usize| frozen.get(index).map_or(&versions.live, |one| &one.map);
    let mut found = vec![Held::default(); snapshots.len()];
    let mut slots = 0;
    let mut first = 0;
    for index in 0..=frozen.len() {
        let before = index.checked_sub(1);
        let last_epoch = identity(index).0;
        let end = first + snapshots[first..].partition_point(|epoch| *epoch <= last_epoch);
        let mut held = Held::default();
        if index == frozen.len() {
            slots = slots_of(map(index), before.map(|before| (map(before), slots)));
            held.slots = slots;
        } else {
            let others = versions.neighbours(index, history);
            let from: Vec<Identity> =
                [index].iter().chain(&others).map(|one| identity(*one)).collect();
            let known = memory.frozen.get(&last_epoch).filter(|known| known.from == from);
            held = known.map_or_else(
                || {
                    measured.0 += 1;
                    let others: Vec<&Map> = others.iter().map(|other| map(*other)).collect();
                    look(map(index), before.map(|before| (map(before), slots)), &others)
                },
                |known| known.held,
            );
            memory.frozen.insert(last_epoch, Known { from, held });
            slots = held.slots;
        }
        if end - first != 1 || index == frozen.len() {
            // Seen by several snapshots, or by the live volume: deleting one of them frees nothing.
            held = Held { slots: held.slots, ..Held::default() };
        }
        found[first..end].fill(held);
        first = end;
    }
    (found, slots)
}

fn look(map: &Map, before: Option<(&Map, u64)>, neighbours: &[&Map]) -> Held {
    let mut held = Held { slots: slots_of(map, before), ..Held::default() };
    only_in(map, neighbours, |_, count, place| match place {
        Place::BASE => held.only_bases += u64::from(count),
        place if place.is_slot() => held.only_slots += u64::from(count),
        _ => {}
    });
    held
}

/// How many slots a map refers to, given a map that shares leaves with it, and its slots.
fn slots_of(map: &Map, like: Option<(&Map, u64)>) -> u64 {
    let Some((other, mut slots)) = like else {
        return (0..leaves(map.blocks()) as u32).map(|leaf| slots_in(map.node(leaf))).sum();
    };
    if map.same(other) && map.blocks() == other.blocks() {
        return slots;
    }
    let common = leaves(other.blocks()) as u32;
    for leaf in 0..leaves(map.blocks()) as u32 {
        if leaf >= common {
            slots += slots_in(map.node(leaf));
        } else if !map.shares_leaf(other, leaf) {
            slots = slots + slots_in(map.node(leaf)) - slots_in(other.node(leaf));
        }
    }
    slots
}

fn slots_in(node: NodeRef<'_>) -> u64 {
    let mut slots = 0;
    if let NodeRef::Leaf(leaf) = node {
        leaf.for_each_run(|_, run| {
            slots += if run.place.is_slot() { u64::from(run.count) } else { 0 }
        });
    }
    slots
}
