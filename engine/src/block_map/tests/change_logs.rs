//! Change logs against a reference that notes, with each slot, which snapshot was the newest when it was written.

use std::collections::{BTreeMap, BTreeSet};

use super::{BLOCKS, Twin};
use crate::block_map::change_logs::{Attribution, count_places, on_devices};
use crate::block_map::counters::Counters;
use crate::block_map::history::History;
use crate::block_map::place::Place;
use crate::block_map::versions::{Change, Versions};
use crate::units::{Epoch, SlotIndex};

/// Changes that need no slot: to zero, or back to the base place.
#[derive(Default)]
struct Changes {
    /// By block: the change, now and in each snapshot; 0: it is not so.
    now: Vec<u64>,
    at: BTreeMap<Epoch, Vec<u64>>,
    /// By such a change: the snapshot with which its change log begins.
    begin: BTreeMap<u64, Epoch>,
}

impl Changes {
    /// A change of this number has made a block so, or otherwise.
    fn changed(&mut self, seq: u64, block: u32, is_so: bool, newest: Epoch) {
        self.now.resize(BLOCKS as usize, 0);
        let now = &mut self.now[block as usize];
        if !is_so {
            *now = 0;
        } else if *now == 0 {
            *now = seq;
            self.begin.insert(seq, newest);
        }
    }

    /// How many changes of the log that begins with a snapshot are still seen.
    fn after(&self, begin: Epoch) -> u64 {
        let all = self.at.values().chain([&self.now]);
        let all = all.flat_map(|changes| changes.iter().enumerate());
        // What was so when it began is not changed, whatever came between.
        let was_so = |block: usize| {
            let at = self.at.get(&begin);
            at.is_some_and(|at| at.get(block).is_some_and(|seq| *seq > 0))
        };
        let began = |seq: &u64| self.begin.get(seq) == Some(&begin);
        let ours = all.filter(|(block, seq)| began(seq) && !was_so(*block));
        ours.collect::<BTreeSet<_>>().len() as u64
    }
}

/// The reference. Without epochs: which snapshot follows which is noted when it is taken.
#[derive(Default)]
pub(super) struct Logs {
    /// By raw place: the snapshot with which its change log begins; 0: none.
    begin: BTreeMap<u64, Epoch>,
    /// The newest snapshot of the present line.
    newest: Epoch,
    /// By snapshot: the one before it on its line.
    before: BTreeMap<Epoch, Epoch>,
    zeroes: Changes,
    bases: Changes,
    /// What was counted at each snapshot, and until now.
    counted: BTreeMap<Epoch, Counters>,
    live: Counters,
}

impl Logs {
    /// A change of this number has set a block.
    pub(super) fn changed(&mut self, seq: u64, block: u32, place: Place) {
        self.zeroes.changed(seq, block, place == Place::ZERO, self.newest);
        self.bases.changed(seq, block, place == Place::BASE, self.newest);
        if place.is_slot() {
            self.begin.insert(place.raw(), self.newest);
        }
    }

    /// A block is at this place now, in the versions of these epochs, which had it at another (`Epoch::MAX`: in the live
    /// one): a change of the same log.
    pub(super) fn relocated(&mut self, block: u32, from: Place, to: Place, versions: &[Epoch]) {
        let mut changes: Vec<&mut u64> = Vec::new();
        let Changes { now, at, begin } = &mut self.bases;
        for (epoch, of) in at.iter_mut().map(|(epoch, of)| (*epoch, of)).chain([(Epoch::MAX, now)])
        {
            of.resize(BLOCKS as usize, 0);
            if versions.contains(&epoch) {
                changes.push(&mut of[block as usize]);
            }
        }
        if from.is_slot() {
            let seq = u64::MAX - from.raw(); // no other change has it
            begin.insert(seq, self.begin[&from.raw()]);
            changes.into_iter().for_each(|change| *change = seq);
            return;
        }
        // What was always at its base place is in the log that begins with the volume.
        let seq = changes.first().map_or(0, |change| **change);
        self.begin.insert(to.raw(), begin.get(&seq).copied().unwrap_or(0));
        changes.into_iter().for_each(|change| *change = 0);
    }

    pub(super) fn cut(&mut self, epoch: Epoch) {
        self.before.insert(epoch, self.newest);
        self.counted.insert(epoch, self.live);
        for changes in [&mut self.zeroes, &mut self.bases] {
            changes.at.insert(epoch, changes.now.clone());
        }
        self.newest = epoch;
    }

    pub(super) fn rolled_back(&mut self, to: Epoch) {
        self.newest = to;
        self.live = self.counted[&to];
        for changes in [&mut self.zeroes, &mut self.bases] {
            changes.now.clone_from(&changes.at[&to]);
        }
    }

    /// Its log joins the one before it.
    pub(super) fn deleted(&mut self, epoch: Epoch) {
        let before = self.before.remove(&epoch).unwrap();
        self.counted.remove(&epoch);
        for changes in [&mut self.zeroes, &mut self.bases] {
            changes.at.remove(&epoch);
        }
        let begins = self.before.values_mut().chain(self.begin.values_mut());
        let begins = begins.chain(self.zeroes.begin.values_mut());
        let begins = begins.chain(self.bases.begin.values_mut());
        begins.chain([&mut self.newest]).filter(|one| **one == epoch).for_each(|one| *one = before);
    }
}

impl Twin {
    pub(super) fn count_write(&mut self, blocks: u32) {
        let written_bytes = u64::from(blocks) * 4096;
        let counted = Counters { writes: 1, written_bytes, last_write_ns: self.seq };
        self.versions.count(self.epoch, counted);
        self.logs.live.add(counted);
    }

    fn check_without_slots(&self, begin: Epoch, zeroes: u64, bases: u64) {
        let (logs, history) = (&self.logs, &self.history);
        // A version that no snapshot sees any more is passed over: what became zero there counts in each of its lines,
        // and what was zero before it and again after it does not count.
        if history.retained_epochs() == history.snapshots() {
            assert_eq!(zeroes, logs.zeroes.after(begin), "log {begin}");
            // Without a snapshot before, what was always there is not told from what went back.
            let expected = if begin == 0 { 0 } else { logs.bases.after(begin) };
            assert_eq!(bases, expected, "log {begin}");
        }
    }

    pub(super) fn check_logs(&self) {
        let (versions, history) = (&self.versions, &self.history);
        let attribution = Attribution { versions, history, blocks_at: |_| BLOCKS };
        let found = attribution.change_logs(None);
        assert!(found.windows(2).all(|pair| pair[0].begin < pair[1].begin));
        let mut seen = BTreeMap::new();
        for log in &found {
            for run in &log.runs {
                for i in 0..run.count {
                    let place = run.place().step(i);
                    assert!(seen.insert(place.raw(), log.begin).is_none(), "{place:?} is twice");
                }
            }
            assert_eq!(attribution.change_logs(Some(log.begin)).first(), Some(log));
            self.check_without_slots(log.begin, log.zeroes, log.bases);
        }
        let mut expected = self.logs.begin.clone();
        expected.retain(|place, _| self.used.contains(place));
        assert_eq!(seen, expected);
        for begin in self.logs.before.keys().copied().chain([0]) {
            let exists = found.iter().any(|log| log.begin == begin);
            if !exists {
                self.check_without_slots(begin, 0, 0);
            }
            assert!(exists || attribution.change_logs(Some(begin)).is_empty());
        }
        self.check_places(&attribution);
        for (epoch, counted) in &self.logs.counted {
            assert_eq!(versions.counters_at(*epoch), *counted);
            assert_eq!(history.snapshot_before(*epoch), self.logs.before[epoch]);
        }
        assert_eq!(versions.counters(), self.logs.live);
        assert_eq!(history.snapshot_before(self.epoch), self.logs.newest);
    }

    /// Looks blocks up one by one.
    fn check_places(&self, attribution: &Attribution<'_, impl Fn(Epoch) -> u32>) {
        let versions = &self.versions;
        let shown = self.snapshots.iter().map(|(epoch, all)| (versions.first_from(*epoch), all));
        for (index, contents) in shown.chain([(versions.frozen().len(), &self.live)]) {
            let counts = count_places(versions.map(index), BLOCKS);
            let of = |wanted: fn(&Place) -> bool| {
                contents.iter().filter(|place| wanted(place)).count() as u32
            };
            assert_eq!(counts.slots, of(|place| place.is_slot()));
            assert_eq!(counts.zeroes, of(|place| *place == Place::ZERO));
            assert_eq!(counts.bases, of(|place| *place == Place::BASE));
            for (block, place) in contents.iter().enumerate().step_by(97) {
                if place.is_slot() {
                    let begin = attribution.begin_of_block(index, block as u32);
                    assert_eq!(begin, self.logs.begin[&place.raw()]);
                }
            }
        }
    }
}

fn put(versions: &mut Versions, history: &History, epoch: Epoch, first: u32, slot: u64) {
    let place = Place::slot(1, SlotIndex(slot));
    let change = Change { epoch, first, count: 1, place, checksums: &[7], seq: slot };
    versions.freeze_before(epoch, history.retained_epochs());
    versions.apply(change, history, |_, _, _| {});
}

#[test]
fn a_write_that_ends_late_is_in_the_log_of_the_epoch_in_which_it_began() {
    let (mut versions, history) = (Versions::new(BLOCKS), History::line(&[1, 2]));
    put(&mut versions, &history, 3, 10, 5);
    put(&mut versions, &history, 2, 20, 6);
    put(&mut versions, &history, 1, 30, 7);
    let (versions, history) = (&versions, &history);
    let attribution = Attribution { versions, history, blocks_at: |_| BLOCKS };
    let logs = attribution.change_logs(None);
    let found: Vec<_> = logs.iter().map(|log| (log.begin, log.runs[0].block)).collect();
    assert_eq!(found, [(0, 30), (1, 20), (2, 10)]);
}

#[test]
fn what_a_snapshot_does_not_have_of_a_grown_partition_is_no_change() {
    let (mut versions, history) = (Versions::new(BLOCKS), History::line(&[1, 2]));
    put(&mut versions, &history, 2, 10, 5);
    versions.grow(BLOCKS + 700, &[1]);
    versions.freeze_before(3, &[1, 2]);
    let zero = Change {
        epoch: 3,
        first: BLOCKS - 5,
        count: 15,
        place: Place::ZERO,
        checksums: &[],
        seq: 9,
    };
    versions.apply(zero, &history, |_, _, _| {});
    let (versions, history) = (&versions, &history);
    let blocks_at = |epoch| if epoch == 1 { BLOCKS } else { BLOCKS + 700 };
    let logs = Attribution { versions, history, blocks_at }.change_logs(None);
    let found: Vec<_> = logs.iter().map(|log| (log.begin, log.blocks(), log.zeroes)).collect();
    assert_eq!(found, [(1, 1, 0), (2, 0, 15)]);
    let (first, _) = versions.at(1);
    let counts = count_places(first, BLOCKS);
    assert_eq!((counts.slots, counts.zeroes, counts.bases), (0, 0, BLOCKS));
}

#[test]
fn runs_are_cut_where_an_area_continues_elsewhere() {
    let (mut versions, history) = (Versions::new(BLOCKS), History::default());
    for block in 0..30 {
        put(&mut versions, &history, 1, block, 2040 + u64::from(block));
    }
    let (versions, history) = (&versions, &history);
    let attribution = Attribution { versions, history, blocks_at: |_| BLOCKS };
    let runs = &attribution.change_logs(None)[0].runs;
    let shown = |breaks: &dyn Fn(Place) -> bool| {
        let runs = on_devices(runs, 1024, breaks);
        runs.iter().map(|run| (run.block, run.count)).collect::<Vec<_>>()
    };
    assert_eq!(shown(&|_| false), [(0, 30)]);
    assert_eq!(shown(&|_| true), [(0, 8), (8, 22)]);
}
