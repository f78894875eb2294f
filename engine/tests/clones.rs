//! Clones: random operations on a volume, its clones and their clones, compared with arrays.
//!
//! Strategy          Writes, trims, zeroes, cuts, clones, rollbacks and growth of any of the volumes; deletions of
//!                   snapshots and of volumes as in the catalog: what a clone needs is kept, hidden, until the last
//!                   clone is deleted. Restarts, clean and by kill.
//! Invariants        after each operation its range is compared; after each one that is more than a write, every volume
//!                   and every snapshot is compared completely. At the end no slot is used twice or leaked.

use std::collections::{BTreeMap, BTreeSet};

use crate::cloned::{LOG, MIB, SIZE, Twin, World};
use polyvol_engine::engine::spec::ExtentSpec;
use polyvol_engine::error::{Errno, ErrorKind};
use polyvol_engine::io::device::Mode;
use polyvol_engine::request::Verb;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Op {
    Write { nth: usize, offset: u64, length: u64, seed: u8 },
    Zero { nth: usize, offset: u64, length: u64 },
    Trim { nth: usize, offset: u64, length: u64 },
    Cut(usize),
    Clone { nth: usize, snapshot: usize, processors: u32 },
    Drop { nth: usize, snapshot: usize },
    Delete(usize),
    RollBack { nth: usize, snapshot: usize },
    Grow(usize),
    Relocate(usize, bool),
    Restart { kill: bool },
}

fn range() -> impl Strategy<Value = (u64, u64)> {
    let any = (0..3 * SIZE, 1..100_000u64);
    let aligned = (0..3 * SIZE / 4096, 1..40u64).prop_map(|(o, n)| (o * 4096, n * 4096));
    let whole = Just((0, 3 * SIZE));
    prop_oneof![4 => any, 6 => aligned, 1 => whole]
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let (nth, snapshot) = (|| 0..6usize, || 0..4usize);
    let op = prop_oneof![
        10 => (nth(), range(), 1..255u8)
            .prop_map(|(nth, (offset, length), seed)| Op::Write { nth, offset, length, seed }),
        2 => (nth(), range()).prop_map(|(nth, (offset, length))| Op::Zero { nth, offset, length }),
        2 => (nth(), range()).prop_map(|(nth, (offset, length))| Op::Trim { nth, offset, length }),
        4 => nth().prop_map(Op::Cut),
        4 => (nth(), snapshot(), 1..4u32)
            .prop_map(|(nth, snapshot, processors)| Op::Clone { nth, snapshot, processors }),
        3 => (nth(), snapshot()).prop_map(|(nth, snapshot)| Op::Drop { nth, snapshot }),
        2 => nth().prop_map(Op::Delete),
        1 => (nth(), snapshot()).prop_map(|(nth, snapshot)| Op::RollBack { nth, snapshot }),
        1 => nth().prop_map(Op::Grow),
        4 => (nth(), any::<bool>()).prop_map(|(nth, away)| Op::Relocate(nth, away)),
        1 => any::<bool>().prop_map(|kill| Op::Restart { kill }),
    ];
    prop::collection::vec(op, 1..60)
}

fn step(world: &mut World, op: &Op) {
    match *op {
        Op::Write { nth, offset, length, seed } => {
            return world.write(nth, offset, length, None, seed);
        }
        Op::Zero { nth, offset, length } => {
            let verb = Verb::Zero { no_hole: false, fast: false };
            return world.write(nth, offset, length, Some(verb), 0);
        }
        Op::Trim { nth, offset, length } => {
            return world.write(nth, offset, length, Some(Verb::Trim), 0);
        }
        Op::Cut(nth) => {
            let Some(id) = world.nth(nth) else { return };
            let epoch = world.cut(id);
            world.engine().export(&format!("v{id}@{epoch}"), "", id, Some(epoch)).unwrap();
        }
        Op::Clone { nth, snapshot, processors } => {
            let Some(id) = world.nth(nth) else { return };
            let Some(epoch) = world.snapshot(id, snapshot) else { return };
            world.clone(id, epoch, processors);
        }
        Op::Drop { nth, snapshot } => {
            let Some(id) = world.nth(nth) else { return };
            let Some(epoch) = world.snapshot(id, snapshot) else { return };
            world.drop_snapshot(id, epoch);
        }
        Op::Delete(nth) => {
            let Some(id) = world.nth(nth) else { return };
            world.delete(id);
        }
        Op::RollBack { nth, snapshot } => {
            let Some(id) = world.nth(nth) else { return };
            let Some(epoch) = world.snapshot(id, snapshot) else { return };
            world.roll_back(id, epoch);
        }
        Op::Grow(nth) => {
            let Some(id) = world.nth(nth) else { return };
            world.grow(id);
        }
        Op::Relocate(nth, away) => {
            let Some(id) = world.nth(nth) else { return };
            world.relocate(id, away);
        }
        Op::Restart { kill } => {
            world.stop(kill);
            world.start();
        }
    }
    world.check();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30, max_shrink_iters: 300, ..ProptestConfig::default() })]

    #[test]
    fn clones_show_their_snapshot_and_what_was_written_to_them(ops in ops()) {
        let mut world = World::new();
        for op in &ops {
            step(&mut world, op);
        }
        world.check();
        world.check_files();
    }
}

#[test]
fn an_origin_outlives_its_snapshots_name_and_its_volume() {
    let mut world = World::new();
    world.write(0, 5000, 300_000, None, 3);
    let epoch = world.cut(1);
    world.engine().export(&format!("v1@{epoch}"), "", 1, Some(epoch)).unwrap();
    world.clone(1, epoch, 3);
    world.write(0, 0, SIZE, None, 9);
    world.check();
    world.drop_snapshot(1, epoch);
    assert_eq!(world.engine().remove_volume(1).unwrap_err().kind, ErrorKind::Busy);
    world.delete(1);
    assert_eq!(world.volumes.len(), 2);
    world.check();
    world.write(0, 100_000, 100, None, 7);
    world.stop(true);
    world.start();
    world.check();
    world.delete(2);
    assert!(world.volumes.is_empty(), "what was kept for it is gone too");
}

#[test]
fn a_clone_is_refused_that_would_show_something_else() {
    let mut world = World::new();
    let epoch = world.cut(1);
    world.next_id = 3;
    let twin = |origin| Twin {
        id: 2,
        processors: 1,
        origin: Some(origin),
        live: vec![0; SIZE as usize],
        snapshots: BTreeMap::new(),
        kept: BTreeSet::new(),
        deleted: false,
        next_epoch: 1,
        rollbacks: Vec::new(),
    };
    let log = world.directory.join("log2");
    std::fs::File::create(&log).unwrap().set_len(LOG).unwrap();
    world.engine().open_device(102, &log, Mode::SPARSE).unwrap();
    let kind = |spec| world.engine().add_volume(spec).unwrap_err().kind;
    let spec = |origin| twin(origin).spec(&world.directory);
    assert_eq!(kind(spec((1, epoch + 1))), ErrorKind::NotFound);
    assert_eq!(kind(spec((7, epoch))), ErrorKind::Invalid);
    assert_eq!(kind(spec((2, epoch))), ErrorKind::Invalid);
    let mut smaller = spec((1, epoch));
    smaller.partition_size = 2 * MIB;
    smaller.partitions.pop();
    assert_eq!(kind(smaller), ErrorKind::Invalid);
    let mut with_base = spec((1, epoch));
    with_base.partitions[0].1.push(ExtentSpec { device: 1, offset: 0, length: MIB });
    assert_eq!(kind(with_base), ErrorKind::Invalid);
    world.engine().add_volume(spec((1, epoch))).unwrap();
    world.engine().export("v2", "", 2, None).unwrap();
    let client = world.client("v2");
    assert_eq!(client.write(SIZE, &[1], false), Err(Errno::ENOSPC));
}
