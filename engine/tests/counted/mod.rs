//! What the engine counts of each partition, and says of partition snapshots and change logs, compared with a reference.
//!
//! Invariants        what a snapshot shows of a partition never changes: not through kills, rollbacks, growth, or the end
//!                   of other snapshots; every block in a slot is where its change log says.

use std::collections::{BTreeMap, BTreeSet};

use polyvol_engine::block_map::change_logs::PlaceCounts;
use polyvol_engine::block_map::counters::Counters;
use polyvol_engine::engine::Engine;
use polyvol_engine::engine::partitions::Spot;

const VOLUME: u64 = 7;
const PARTITION: u64 = 1 << 20;
const ALL: std::ops::Range<u32> = 0..u32::MAX;

/// What is known of one partition at a snapshot: its size, its zero and its other blocks (relocation moves these
/// between slots and their base places), its latest change, and what was counted.
type State = (u64, [u32; 2], u64, Counters);

/// The reference.
#[derive(Default)]
pub struct Counted {
    /// Writes and bytes of each partition.
    live: BTreeMap<u32, (u64, u64)>,
    snapshots: BTreeMap<u64, BTreeMap<u32, State>>,
}

fn states(engine: &Engine, epoch: u64) -> BTreeMap<u32, State> {
    let found = engine.partition_snapshots(VOLUME, epoch, ALL).unwrap();
    let state = |one: polyvol_engine::engine::partitions::PartitionSnapshot| {
        let counters = one.counters.expect("counted from the beginning");
        let PlaceCounts { slots, zeroes, bases } = one.places;
        (one.partition, (one.size, [zeroes, slots + bases], one.write_seq, counters))
    };
    found.into_iter().map(state).collect()
}

impl Counted {
    /// A request was done.
    pub fn written(&mut self, offset: u64, length: u64) {
        let mut at = offset;
        while at < offset + length {
            let end = ((at / PARTITION + 1) * PARTITION).min(offset + length);
            let counted = self.live.entry((at / PARTITION) as u32).or_default();
            *counted = (counted.0 + 1, counted.1 + end - at);
            at = end;
        }
    }

    /// Some of a request may have been done, or a kill has lost what was counted since the last cut.
    pub fn read_again(&mut self, engine: &Engine) {
        let found = engine.partitions(VOLUME, ALL).unwrap();
        let counted = found.iter().map(|one| (one.partition, one.counters));
        self.live =
            counted.map(|(number, all)| (number, (all.writes, all.written_bytes))).collect();
    }

    /// A snapshot was taken.
    pub fn cut(&mut self, engine: &Engine, epoch: u64) {
        let states = states(engine, epoch);
        for (partition, (_, _, _, counters)) in &states {
            let expected = self.live.get(partition).copied().unwrap_or_default();
            assert_eq!((counters.writes, counters.written_bytes), expected, "at the cut {epoch}");
            assert_eq!(counters.writes > 0, counters.last_write_ns > 0);
        }
        self.snapshots.insert(epoch, states);
    }

    /// The volume was rolled back.
    pub fn roll_back(&mut self, to: u64) {
        let counted =
            |(number, state): (&u32, &State)| (*number, (state.3.writes, state.3.written_bytes));
        self.live = self.snapshots[&to].iter().map(counted).collect();
    }

    /// Compares everything.
    pub fn check(&self, engine: &Engine, epochs: &BTreeSet<u64>) {
        for epoch in epochs {
            let known = &self.snapshots[epoch];
            assert_eq!(states(engine, *epoch), *known, "the states of snapshot {epoch}");
        }
        let live = engine.partitions(VOLUME, ALL).unwrap();
        for one in &live {
            let expected = self.live.get(&one.partition).copied().unwrap_or_default();
            let counted = (one.counters.writes, one.counters.written_bytes);
            assert_eq!(counted, expected, "partition {}", one.partition);
        }
        let page = engine.partitions(VOLUME, 1..3).unwrap();
        assert_eq!(page.iter().map(|one| one.partition).collect::<Vec<_>>(), [1, 2]);
        check_logs(engine, epochs);
    }
}

/// Each block that is in a slot is in a run of the change log that its place names.
fn check_logs(engine: &Engine, epochs: &BTreeSet<u64>) {
    let logs = engine.change_logs(VOLUME, ALL, None).unwrap();
    let mut runs = BTreeMap::new();
    for log in &logs {
        assert!(log.begin == 0 || epochs.contains(&log.begin));
        let (partition, begin) = (log.partition, log.begin);
        let (found, total) = engine.change_log_runs(VOLUME, partition, begin, 0, 9999).unwrap();
        assert_eq!((found.len(), total), (log.runs, log.runs));
        assert_eq!(found.iter().map(|run| u64::from(run.blocks)).sum::<u64>(), log.blocks);
        assert_eq!(log.areas.iter().map(|area| area.1).sum::<u64>(), log.blocks);
        runs.insert((partition, begin), found);
    }
    for epoch in epochs {
        let begin = engine.change_logs(VOLUME, ALL, Some(*epoch)).unwrap();
        let found = engine.partition_snapshots(VOLUME, *epoch, ALL).unwrap();
        for one in found {
            let log = begin.iter().find(|log| log.partition == one.partition);
            assert_eq!(one.log, log.map(|log| [log.blocks, log.zeroes, log.bases]));
        }
    }
    for partition in engine.partitions(VOLUME, ALL).unwrap() {
        let blocks = partition.places.slots + partition.places.zeroes + partition.places.bases;
        for block in (0..blocks).step_by(43) {
            let offset = u64::from(partition.partition) * PARTITION + u64::from(block) * 4096 + 9;
            let found = engine.locate(VOLUME, offset, None).unwrap();
            assert_eq!((found.partition, found.block), (partition.partition, block));
            let Spot::Log(area, device, at, begin) = found.spot else { continue };
            let runs = &runs[&(partition.partition, begin)];
            let has = |run: &&polyvol_engine::engine::partitions::LocatedRun| {
                (run.block..run.block + run.blocks).contains(&block)
                    && run.offset + u64::from(block - run.block) * 4096 + 9 == at
            };
            let run = runs.iter().find(has).expect("its log has it there");
            assert_eq!((run.area, run.device), (area, device));
        }
    }
}
