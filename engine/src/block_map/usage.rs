//! Usage: how many blocks each version of a partition's map refers to, and which of them no other version sees.
//!
//! How it works      By V2 a place is exclusive to a frozen map exactly if neither its parent nor a child has it, so a
//!                   walk of the leaves that it shares with neither finds what releasing it would free. The number of
//!                   slots of a map is that of its older neighbour, plus the difference of the leaves that the two do
//!                   not share. Frozen maps do not change, so results are cached; the key is a map's epoch with the
//!                   sequence numbers of its latest change and relocation, and the same of its neighbours. Only the newest frozen map,
//!                   whose neighbour is the live one, is measured repeatedly.
//! Owner and locks   a [`Memory`] belongs to the caller; the versions are clones.

use std::collections::HashMap;

use super::diff::only_in;
use super::history::History;
use super::homeward::{CachedHomeward, Homeward};
use super::place::Place;
use super::tree::{Map, NodeRef, leaves};
use super::versions::Versions;
use crate::units::{Epoch, PartitionIndex};

/// What a version refers to, blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VersionUse {
    /// Slots to which it refers.
    pub slots: u64,
    /// Slots to which only it refers.
    pub only_slots: u64,
    /// Base places to which only it refers.
    pub only_bases: u64,
}

impl VersionUse {
    /// Adds the use of another partition's version.
    pub fn add(&mut self, other: &VersionUse) {
        self.slots += other.slots;
        self.only_slots += other.only_slots;
        self.only_bases += other.only_bases;
    }
}

/// Identifies a map's contents: the last epoch that sees it (the live one: all ones), its latest change, and its latest
/// relocation.
type Identity = (Epoch, u64, u64);

/// The cached result for one frozen map.
#[derive(Clone, Debug)]
struct Cached {
    from: Vec<Identity>,
    used: VersionUse,
}

/// The cached results for one partition.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    frozen: HashMap<Epoch, Cached>,
    homeward: CachedHomeward,
}

impl Memory {
    /// The live blocks that can go home; `pinned`: the epochs of the snapshots that clones were made from.
    pub fn homeward(&mut self, versions: &Versions, pinned: &[Epoch]) -> Homeward {
        self.homeward.count(versions, pinned)
    }
}

/// Results for a volume's partitions.
#[derive(Debug, Default)]
pub struct UsageMemory(HashMap<PartitionIndex, Memory>);

impl UsageMemory {
    /// What is remembered of this one.
    pub fn of(&mut self, partition: PartitionIndex) -> &mut Memory {
        self.0.entry(partition).or_default()
    }
}

/// Number of maps that were measured, rather than found in the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measured(pub u64);

/// What each snapshot refers to, in order, and the number of slots to which the live map refers.
pub fn measure(
    versions: &Versions,
    history: &History,
    memory: &mut Memory,
    measured: &mut Measured,
) -> (Vec<VersionUse>, u64) {
    let (frozen, snapshots) = (versions.frozen(), history.snapshots());
    memory
        .frozen
        .retain(|epoch, _| frozen.binary_search_by_key(epoch, |one| one.last_epoch).is_ok());
    let identity = |index: usize| match frozen.get(index) {
        Some(one) => (one.last_epoch, one.map.write_seq, one.map.moved_seq),
        None => (Epoch::MAX, versions.live.write_seq, versions.live.moved_seq),
    };
    let map = |index: usize| frozen.get(index).map_or(&versions.live, |one| &one.map);
    let mut found = vec![VersionUse::default(); snapshots.len()];
    let mut slots = 0;
    let mut first = 0;
    for index in 0..=frozen.len() {
        let before = index.checked_sub(1);
        let last_epoch = identity(index).0;
        let end = first + snapshots[first..].partition_point(|epoch| *epoch <= last_epoch);
        let mut used = VersionUse::default();
        if index == frozen.len() {
            slots = slots_of(map(index), before.map(|before| (map(before), slots)));
            used.slots = slots;
        } else {
            let others = versions.neighbours(index, history);
            let from: Vec<Identity> =
                [index].iter().chain(&others).map(|one| identity(*one)).collect();
            let known = memory.frozen.get(&last_epoch).filter(|known| known.from == from);
            used = known.map_or_else(
                || {
                    measured.0 += 1;
                    let others: Vec<&Map> = others.iter().map(|other| map(*other)).collect();
                    measure_map(map(index), before.map(|before| (map(before), slots)), &others)
                },
                |known| known.used,
            );
            memory.frozen.insert(last_epoch, Cached { from, used });
            slots = used.slots;
        }
        if end - first != 1 || index == frozen.len() {
            // Several snapshots, or the live volume, see it: deleting one snapshot frees nothing.
            used = VersionUse { slots: used.slots, ..VersionUse::default() };
        }
        found[first..end].fill(used);
        first = end;
    }
    (found, slots)
}

fn measure_map(map: &Map, before: Option<(&Map, u64)>, neighbours: &[&Map]) -> VersionUse {
    let mut used = VersionUse { slots: slots_of(map, before), ..VersionUse::default() };
    only_in(map, neighbours, |_, count, place| match place {
        Place::BASE => used.only_bases += u64::from(count),
        place if place.is_slot() => used.only_slots += u64::from(count),
        _ => {}
    });
    used
}

/// Number of slots to which a map refers; `like` is a map that shares leaves with it, and its number of slots.
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
