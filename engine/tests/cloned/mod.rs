//! A volume and its clones, with the expected contents of each; deletions are made in the same way as by the catalog.

#![allow(missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::{copied, relocated};
use polyvol_engine::block_map::history::Rollback;
use polyvol_engine::engine::Engine;
use polyvol_engine::engine::check::check_volume;
use polyvol_engine::engine::spec::{ExtentSpec, Manifests, VolumeSpec};
use polyvol_engine::error::ErrorKind;
use polyvol_engine::io::device::Mode;
use polyvol_engine::request::Verb;
use polyvol_engine::system::System;
use polyvol_engine::system::linux::Linux;
use polyvol_engine::volume::local_client::LocalClient;

pub const MIB: u64 = 1 << 20;
pub const SIZE: u64 = 2 * MIB + 3 * 4096;
const GROWTH: u64 = 700 * 1024;
pub const LOG: u64 = 24 * MIB;
const VOLUMES_MAX: u64 = 6;

/// A volume's entry in the catalog, and the expected contents of it and its snapshots.
pub struct Twin {
    pub id: u64,
    pub processors: u32,
    pub origin: Option<(u64, u64)>,
    pub live: Vec<u8>,
    pub snapshots: BTreeMap<u64, Vec<u8>>,
    /// Snapshots that are deleted, and kept for clones.
    pub kept: BTreeSet<u64>,
    /// The volume itself is deleted, and kept for clones.
    pub deleted: bool,
    pub next_epoch: u64,
    pub rollbacks: Vec<(Rollback, u64, u64)>,
}

impl Twin {
    pub fn spec(&self, directory: &Path) -> VolumeSpec {
        let size = self.live.len() as u64;
        let extent = |device, offset, length| ExtentSpec { device, offset, length };
        let partition = |number: u64| {
            let (start, end) = (number * MIB, size.min((number + 1) * MIB));
            // After growth there is one more extent.
            let steps = (0..).map(|step| SIZE + step * GROWTH).skip_while(|at| *at <= start);
            let mut borders: Vec<u64> = steps.take_while(|at| *at < end).collect();
            borders.insert(0, start);
            borders.push(end);
            let pieces = borders.windows(2).map(|at| extent(1, at[0], at[1] - at[0]));
            let extents = if self.origin.is_none() { pieces.collect() } else { Vec::new() };
            (number as u32 % self.processors, extents)
        };
        let bound = |(epoch, contents): (&u64, &Vec<u8>)| (*epoch + 1, contents.len() as u64);
        let hidden = self.rollbacks.iter().map(|(rollback, _, size)| (rollback.to + 1, *size));
        VolumeSpec {
            id: self.id,
            uuid: [self.id as u8; 16],
            name: format!("v{}", self.id),
            size,
            partition_size: MIB,
            partitions: (0..size.div_ceil(MIB)).map(partition).collect(),
            logs: vec![(1, vec![extent(100 + self.id, 0, LOG)])],
            log_rules: Default::default(),
            directory: directory.join("volumes").join(self.id.to_string()),
            manifests: Manifests::new(directory.join("volumes").join(self.id.to_string())),
            snapshots: self.snapshots.keys().map(|epoch| (*epoch, Default::default())).collect(),
            next_epoch: self.next_epoch,
            bounds: self.snapshots.iter().map(bound).chain(hidden).collect(),
            rollbacks: self.rollbacks.iter().map(|(one, size, _)| (*one, *size)).collect(),
            origin: self.origin,
        }
    }

    pub fn names(&self) -> Vec<(String, Option<u64>)> {
        if self.deleted {
            return Vec::new();
        }
        let shown = self.snapshots.keys().filter(|epoch| !self.kept.contains(epoch));
        let snapshots = shown.map(|epoch| (format!("v{}@{epoch}", self.id), Some(*epoch)));
        std::iter::once((format!("v{}", self.id), None)).chain(snapshots).collect()
    }
}

pub struct World {
    pub directory: PathBuf,
    pub engine: Option<Engine>,
    pub volumes: BTreeMap<u64, Twin>,
    pub next_id: u64,
}

impl World {
    pub fn new() -> World {
        let mut random = [0u8; 8];
        std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom").unwrap(), &mut random)
            .unwrap();
        let name = format!("polyvol-clones-{:016x}", u64::from_le_bytes(random));
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir(&directory).unwrap();
        std::fs::create_dir(directory.join("volumes")).unwrap();
        let first = Twin {
            id: 1,
            processors: 2,
            origin: None,
            live: vec![0; SIZE as usize],
            snapshots: BTreeMap::new(),
            kept: BTreeSet::new(),
            deleted: false,
            next_epoch: 1,
            rollbacks: Vec::new(),
        };
        let volumes = BTreeMap::from([(1, first)]);
        let mut world = World { directory, engine: None, volumes, next_id: 2 };
        let base: Vec<u8> = (0..16 * MIB).map(|at| (at >> 12) as u8).collect();
        std::fs::write(world.directory.join("base"), &base).unwrap();
        world.volumes.get_mut(&1).unwrap().live.copy_from_slice(&base[..SIZE as usize]);
        std::fs::File::create(world.directory.join("log1")).unwrap().set_len(LOG).unwrap();
        world.start();
        world
    }

    pub fn start(&mut self) {
        let engine = Engine::new(4).unwrap();
        engine.open_device(1, &self.directory.join("base"), Mode::SPARSE).unwrap();
        self.engine = Some(engine);
        for id in self.volumes.keys() {
            self.serve(*id);
        }
    }

    pub fn serve(&self, id: u64) {
        let (engine, twin) = (self.engine.as_ref().unwrap(), &self.volumes[&id]);
        engine
            .open_device(100 + id, &self.directory.join(format!("log{id}")), Mode::SPARSE)
            .unwrap();
        engine.add_volume(twin.spec(&self.directory)).unwrap();
        for (name, epoch) in twin.names() {
            engine.export(&name, "", id, epoch).unwrap();
        }
    }

    pub fn stop(&mut self, kill: bool) {
        let engine = self.engine.take().unwrap();
        let (saved, volumes) = (self.directory.join("saved"), self.directory.join("volumes"));
        if kill {
            std::fs::create_dir(&saved).unwrap();
            for id in self.volumes.keys() {
                copied::copy_directory(&volumes.join(id.to_string()), &saved.join(id.to_string()));
            }
        }
        engine.stop().unwrap();
        if kill {
            std::fs::remove_dir_all(&volumes).unwrap();
            std::fs::rename(&saved, &volumes).unwrap();
        }
    }

    pub fn engine(&self) -> &Engine {
        self.engine.as_ref().unwrap()
    }

    pub fn client(&self, name: &str) -> LocalClient {
        LocalClient::new(self.engine().exports.attach(name).unwrap())
    }

    /// The nth of the volumes that exist.
    pub fn nth(&self, nth: usize) -> Option<u64> {
        let shown: Vec<u64> =
            self.volumes.values().filter(|twin| !twin.deleted).map(|twin| twin.id).collect();
        (!shown.is_empty()).then(|| shown[nth % shown.len()])
    }

    pub fn snapshot(&self, id: u64, nth: usize) -> Option<u64> {
        let twin = &self.volumes[&id];
        let shown: Vec<u64> =
            twin.snapshots.keys().filter(|epoch| !twin.kept.contains(epoch)).copied().collect();
        (!shown.is_empty()).then(|| shown[nth % shown.len()])
    }

    pub fn write(&mut self, nth: usize, offset: u64, length: u64, verb: Option<Verb>, seed: u8) {
        let Some(id) = self.nth(nth) else { return };
        let client = self.client(&format!("v{id}"));
        let size = client.size();
        let (offset, length) = (offset % size, length.min(size - offset % size));
        let bytes: Vec<u8> = (0..length)
            .map(|i| seed.wrapping_mul(((i >> 9) as u8) | 1).wrapping_add(i as u8))
            .collect();
        match verb {
            None => client.write(offset, &bytes, false).unwrap(),
            Some(verb) => client.range(verb, offset, length, false).unwrap(),
        }
        let now = client.read(offset, length).unwrap();
        let live = &mut self.volumes.get_mut(&id).unwrap().live;
        let old = &mut live[offset as usize..(offset + length) as usize];
        for (i, (old, now)) in old.iter_mut().zip(now.data.as_slice()).enumerate() {
            let right = match verb {
                None => *now == bytes[i],
                Some(Verb::Trim) => *now == 0 || now == old,
                Some(_) => *now == 0,
            };
            assert!(right, "byte {i} of v{id} is {now}");
            *old = *now;
        }
    }

    pub fn cut(&mut self, id: u64) -> u64 {
        let engine = self.engine.as_ref().unwrap();
        let epoch = engine.cut(&[(id, Default::default())]).unwrap().epochs[0].1;
        engine.settle(id, epoch).unwrap();
        engine.flush(id).unwrap();
        let twin = self.volumes.get_mut(&id).unwrap();
        twin.next_epoch = epoch + 1;
        twin.snapshots.insert(epoch, twin.live.clone());
        epoch
    }

    pub fn clone(&mut self, id: u64, epoch: u64, processors: u32) {
        if self.next_id > VOLUMES_MAX {
            return;
        }
        let number = self.next_id;
        self.next_id += 1;
        let log = self.directory.join(format!("log{number}"));
        std::fs::File::create(log).unwrap().set_len(LOG).unwrap();
        let twin = Twin {
            id: number,
            processors,
            origin: Some((id, epoch)),
            live: self.volumes[&id].snapshots[&epoch].clone(),
            snapshots: BTreeMap::new(),
            kept: BTreeSet::new(),
            deleted: false,
            next_epoch: 1,
            rollbacks: Vec::new(),
        };
        self.volumes.insert(number, twin);
        self.serve(number);
    }

    pub fn has_clones(&self, id: u64, epoch: u64) -> bool {
        self.volumes.values().any(|twin| twin.origin == Some((id, epoch)))
    }

    pub fn drop_snapshot(&mut self, id: u64, epoch: u64) {
        let name = format!("v{id}@{epoch}");
        self.engine().exports.remove(&name).unwrap();
        if self.has_clones(id, epoch) {
            let refused = self.engine().drop_snapshot(id, epoch).unwrap_err();
            assert_eq!(refused.kind, ErrorKind::Busy);
            self.volumes.get_mut(&id).unwrap().kept.insert(epoch);
            return;
        }
        self.volumes.get_mut(&id).unwrap().snapshots.remove(&epoch);
        self.engine().drop_snapshot(id, epoch).unwrap();
    }

    pub fn delete(&mut self, id: u64) {
        for (name, _) in self.volumes[&id].names() {
            self.engine().exports.remove(&name).unwrap();
        }
        let epochs: Vec<u64> = self.volumes[&id].snapshots.keys().copied().collect();
        for epoch in epochs {
            if self.has_clones(id, epoch) {
                self.volumes.get_mut(&id).unwrap().kept.insert(epoch);
            } else {
                self.volumes.get_mut(&id).unwrap().snapshots.remove(&epoch);
                self.engine().drop_snapshot(id, epoch).unwrap();
            }
        }
        self.volumes.get_mut(&id).unwrap().deleted = true;
        self.release_unneeded();
    }

    /// Releases what is kept for clones that no longer exist.
    pub fn release_unneeded(&mut self) {
        loop {
            let mut again = false;
            let kept = self.volumes.values().flat_map(|twin| {
                twin.kept.iter().map(|epoch| (twin.id, *epoch)).collect::<Vec<_>>()
            });
            let unneeded: Vec<_> =
                kept.filter(|(id, epoch)| !self.has_clones(*id, *epoch)).collect();
            for (id, epoch) in unneeded {
                let twin = self.volumes.get_mut(&id).unwrap();
                twin.snapshots.remove(&epoch);
                twin.kept.remove(&epoch);
                self.engine().drop_snapshot(id, epoch).unwrap();
            }
            let gone = |twin: &&Twin| twin.deleted && twin.snapshots.is_empty();
            let gone: Vec<u64> = self.volumes.values().filter(gone).map(|twin| twin.id).collect();
            for id in gone {
                self.engine().remove_volume(id).unwrap();
                self.engine().close_device(100 + id).unwrap();
                self.volumes.remove(&id);
                again = true;
            }
            if !again {
                return;
            }
        }
    }

    pub fn roll_back(&mut self, id: u64, to: u64) {
        let name = format!("v{id}");
        self.engine().exports.remove(&name).unwrap();
        let epoch = self.cut(id);
        let twin = self.volumes.get_mut(&id).unwrap();
        let rollback = Rollback { at: epoch + 1, to };
        twin.next_epoch = epoch + 2;
        let mut shown = twin.snapshots[&to].clone();
        twin.rollbacks.push((rollback, twin.live.len() as u64, shown.len() as u64));
        shown.resize(twin.live.len(), 0);
        twin.live = shown;
        self.engine().roll_back(id, rollback).unwrap();
        self.engine().export(&format!("{name}@{epoch}"), "", id, Some(epoch)).unwrap();
        self.engine().export(&name, "", id, None).unwrap();
    }

    pub fn relocate(&self, id: u64, away: bool) {
        let done = relocated::relocate(self.engine(), id, u64::MAX, away);
        assert!(done.failed == 0 && done.at_end, "{done:?}");
        self.engine().flush(id).unwrap(); // what was freed is used again, or punched
    }

    pub fn grow(&mut self, id: u64) {
        let twin = self.volumes.get_mut(&id).unwrap();
        let (before, after) = (twin.live.len(), twin.live.len() + GROWTH as usize);
        if after as u64 > 8 * MIB {
            return;
        }
        twin.live.resize(after, 0);
        let spec = twin.spec(&self.directory);
        self.engine().grow_volume(spec).unwrap();
        if self.volumes[&id].origin.is_none() {
            // The base file is not empty in that range.
            let client = self.client(&format!("v{id}"));
            let verb = Verb::Zero { no_hole: false, fast: false };
            client.range(verb, before as u64, GROWTH, false).unwrap();
        }
    }

    pub fn check(&self) {
        for twin in self.volumes.values() {
            for (name, epoch) in twin.names() {
                let client = self.client(&name);
                let expected = epoch.map_or(&twin.live, |epoch| &twin.snapshots[&epoch]);
                assert_eq!(client.size(), expected.len() as u64, "{name}");
                same(&name, client.read(0, client.size()).unwrap().data.as_slice(), expected);
                same(
                    &name,
                    client.read(4097, 9000).unwrap().data.as_slice(),
                    &expected[4097..13097],
                );
                for status in client.block_status(0, client.size()).unwrap() {
                    let range = status.offset as usize..(status.offset + status.length) as usize;
                    assert!(!status.zero || expected[range].iter().all(|byte| *byte == 0));
                }
            }
        }
    }

    /// Stops, and checks all files.
    pub fn check_files(&mut self) {
        let used: BTreeMap<u64, u64> = self
            .volumes
            .keys()
            .map(|id| {
                self.engine().flush(*id).unwrap();
                let space = &self.engine().volume(*id).unwrap().space;
                (*id, space.logs().iter().map(|log| log.slots.used()).sum())
            })
            .collect();
        self.stop(false);
        let system: Arc<dyn System> = Arc::new(Linux);
        for twin in self.volumes.values() {
            let log = self.directory.join(format!("log{}", twin.id));
            let devices = BTreeMap::from([(100 + twin.id, log)]);
            let report =
                check_volume(&system, &twin.spec(&self.directory), &devices, true).unwrap();
            assert_eq!(report.problems, Vec::<String>::new(), "v{}", twin.id);
            assert!(report.slots <= used[&twin.id], "v{}: slots in use are free", twin.id);
        }
    }
}

fn same(what: &str, found: &[u8], expected: &[u8]) {
    if let Some(at) = found.iter().zip(expected).position(|(a, b)| a != b) {
        panic!("{what}: byte {at} (block {}) is {} not {}", at / 4096, found[at], expected[at]);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(engine) = self.engine.take() {
            let _ = engine.stop();
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
