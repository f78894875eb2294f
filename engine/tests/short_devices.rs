//! Devices that become shorter while they are in use: the range beyond their end is an error for every verb, never
//! zeroes, and no write makes them long again.
//!
//! Strategy          Real files, truncated without the engine, through the page cache and with O_DIRECT. Each verb is
//!                   once the first to find the shorter file.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use polyvol_engine::engine::Engine;
use polyvol_engine::engine::spec::{ExtentSpec, Manifests, VolumeSpec};
use polyvol_engine::error::Errno;
use polyvol_engine::io::device::Mode;
use polyvol_engine::processor::share::scrub::Cursor;
use polyvol_engine::request::Verb;
use polyvol_engine::volume::local_client::LocalClient;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;
const EIO: Errno = Errno::EIO;
/// Size of the base device and of the volume.
const SIZE: u64 = 4 * MIB;
/// Length after the truncation: in the middle of a block of the third partition.
const CUT: u64 = 2 * MIB + MIB / 2 + 100;
const LOG: u64 = 8 * MIB;

struct World {
    directory: PathBuf,
    engine: Engine,
    contents: Vec<u8>,
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.engine.stop();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn modes() -> [Mode; 2] {
    let buffered = Mode { size: SIZE, ..Mode::SPARSE };
    [buffered, Mode { direct: true, ..buffered }]
}

impl World {
    /// A volume of four partitions on one device that is full of data, with two log areas.
    fn new(mode: Mode) -> World {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("polyvol-short-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir(&directory).unwrap();
        let contents: Vec<u8> = (0..SIZE).map(|at| (at / 512 % 255) as u8 + 1).collect();
        std::fs::write(directory.join("base"), &contents).unwrap();
        let engine = Engine::new(2).unwrap();
        let world = World { directory, engine, contents };
        if world.engine.open_device(1, &world.path("base"), mode).is_err() {
            // O_DIRECT is not supported here.
            let mode = Mode { direct: false, ..mode };
            world.engine.open_device(1, &world.path("base"), mode).unwrap();
        }
        for (id, name) in [(2, "log-a"), (3, "log-b")] {
            File::create(world.path(name)).unwrap().set_len(LOG).unwrap();
            let mode = Mode { size: LOG, ..Mode::SPARSE };
            world.engine.open_device(id, &world.path(name), mode).unwrap();
        }
        let base = |number| vec![ExtentSpec { device: 1, offset: number * MIB, length: MIB }];
        let partitions = (0..4).map(|number| (number as u32 % 2, base(number))).collect();
        world.engine.add_volume(world.spec(1, partitions, 2..=3, None)).unwrap();
        world
    }

    fn spec(
        &self,
        id: u64,
        partitions: Vec<(u32, Vec<ExtentSpec>)>,
        logs: impl Iterator<Item = u64>,
        origin: Option<(u64, u64)>,
    ) -> VolumeSpec {
        let log = |device| vec![ExtentSpec { device, offset: 0, length: LOG }];
        let logs: Vec<_> = logs.map(|device| (device as u16, log(device))).collect();
        VolumeSpec {
            id,
            uuid: [id as u8; 16],
            name: format!("v{id}"),
            size: SIZE,
            partition_size: MIB,
            partitions,
            log_rules: Default::default(),
            logs,
            directory: self.directory.join(format!("volume{id}")),
            manifests: Manifests::new(self.directory.join(format!("volume{id}"))),
            snapshots: Vec::new(),
            next_epoch: 1,
            bounds: Vec::new(),
            rollbacks: Vec::new(),
            origin,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn set_length(&self, name: &str, length: u64) {
        OpenOptions::new().write(true).open(self.path(name)).unwrap().set_len(length).unwrap();
    }

    fn length(&self, name: &str) -> u64 {
        std::fs::metadata(self.path(name)).unwrap().len()
    }

    fn export(&self, name: &str, volume: u64, epoch: Option<u64>) -> LocalClient {
        self.engine.export(name, "", volume, epoch).unwrap();
        LocalClient::new(self.engine.exports.attach(name).unwrap())
    }

    fn live(&self) -> LocalClient {
        self.export("v", 1, None)
    }

    fn snapshot(&self) -> u64 {
        let epoch = self.engine.cut(&[(1, Default::default())]).unwrap().epochs[0].1;
        self.engine.settle(1, epoch).unwrap();
        self.engine.flush(1).unwrap();
        epoch
    }

    fn short(&self, device: u64) -> Option<(u64, u64)> {
        self.engine.device_fault(device).unwrap().and_then(|fault| fault.short)
    }

    /// The remaining range can be read, the rest cannot, and nothing is reported as zeroes.
    fn shows_no_zeroes(&self, client: &LocalClient) {
        let whole = CUT / BLOCK * BLOCK;
        for (offset, length) in [(0, 4096), (0, whole), (whole - 512, 512), (whole, 100)] {
            let found = read(client, offset, length).unwrap();
            assert!(found == self.contents[offset as usize..(offset + length) as usize]);
        }
        for (offset, length) in [
            (whole, BLOCK),
            (CUT - 1, 2),
            (CUT, 1),
            (0, SIZE),
            (SIZE - BLOCK, BLOCK),
            (3 * MIB, MIB),
        ] {
            assert_eq!(read(client, offset, length), Err(EIO), "{offset} {length}");
        }
        for offset in [CUT, whole + BLOCK, 3 * MIB, SIZE - BLOCK] {
            assert_eq!(client.block_status(offset, SIZE - offset), Err(EIO), "{offset}");
        }
        for offset in [0, MIB, whole] {
            let status = client.block_status(offset, SIZE - offset).unwrap();
            assert_eq!(status[0].offset, offset);
            let far = |end: u64, one: &polyvol_engine::request::StatusExtent| {
                assert!(!one.zero && !one.hole && one.offset == end);
                end + one.length
            };
            assert_eq!(status.iter().fold(offset, far), CUT);
        }
    }
}

fn read(client: &LocalClient, offset: u64, length: u64) -> Result<Vec<u8>, Errno> {
    client.read(offset, length).map(|request| request.data.as_slice().to_vec())
}

type Act = (&'static str, fn(&LocalClient) -> Result<(), Errno>);

/// Requests that change bytes at their base place, or need the old ones; beyond the end, across it, and before it.
const CHANGES: [Act; 12] = [
    ("write the last block", |host| host.write(SIZE - BLOCK, &[9; 4096], false)),
    ("write beyond", |host| host.write(3 * MIB, &[9; 65536], false)),
    ("write much", |host| host.write(2 * MIB, &vec![9; MIB as usize], false)),
    ("write before", |host| host.write(0, &[9; 4096], false)),
    ("write with FUA", |host| host.write(3 * MIB, &[9; 4096], true)),
    ("write a part", |host| host.write(3 * MIB + 100, &[9; 100], false)),
    ("write a part of the cut block", |host| host.write(CUT - 50, &[9; 100], false)),
    ("trim beyond", |host| host.range(Verb::Trim, 3 * MIB, MIB, false)),
    ("trim across", |host| host.range(Verb::Trim, 2 * MIB, MIB, false)),
    ("zero", |host| host.range(ZERO, 3 * MIB, MIB, false)),
    ("zero, kept", |host| host.range(ZERO_KEPT, 2 * MIB, 2 * MIB, false)),
    ("zero parts", |host| host.range(ZERO, 3 * MIB + 1, 5000, false)),
];
const ZERO: Verb = Verb::Zero { no_hole: false, fast: false };
const ZERO_KEPT: Verb = Verb::Zero { no_hole: true, fast: false };

#[test]
fn a_change_fails_and_does_not_make_the_file_long_again() {
    for mode in modes() {
        for (what, change) in CHANGES {
            let world = World::new(mode);
            let host = world.live();
            world.set_length("base", CUT);
            assert_eq!(change(&host), Err(EIO), "{what}");
            assert_eq!(world.length("base"), CUT, "{what}");
            assert_eq!(world.short(1), Some((CUT, SIZE)), "{what}");
            assert_eq!(host.flush(), Err(EIO), "{what}");
            world.shows_no_zeroes(&host);
        }
    }
}

#[test]
fn reads_and_status_are_errors_in_the_volume_its_snapshots_and_clones() {
    for mode in modes() {
        let world = World::new(mode);
        let host = world.live();
        let epoch = world.snapshot();
        let snapshot = world.export("v@s", 1, Some(epoch));
        let log = world.path("log-c");
        File::create(&log).unwrap().set_len(LOG).unwrap();
        world.engine.open_device(4, &log, Mode { size: LOG, ..Mode::SPARSE }).unwrap();
        let partitions = (0..4).map(|number| (number % 2, Vec::new())).collect();
        world.engine.add_volume(world.spec(2, partitions, 4..=4, Some((1, epoch)))).unwrap();
        let clone = world.export("c", 2, None);
        world.set_length("base", CUT);
        for view in [&snapshot, &clone, &host] {
            world.shows_no_zeroes(view);
        }
        assert_eq!(world.short(1), Some((CUT, SIZE)));
        // A partial block needs the rest of the block.
        for writer in [&host, &clone] {
            assert_eq!(writer.write(3 * MIB + 5, &[7; 10], false), Err(EIO));
            assert_eq!(writer.range(ZERO, CUT - 1, 2, false), Err(EIO));
            assert_eq!(read(writer, 3 * MIB, BLOCK), Err(EIO));
            // A complete block is in a change log.
            writer.write(3 * MIB, &[8; 4096], false).unwrap();
            assert_eq!(read(writer, 3 * MIB, BLOCK).unwrap(), [8; 4096]);
        }
        world.shows_no_zeroes(&snapshot);
        assert_eq!(world.length("base"), CUT);
        drop((clone, host, snapshot));
    }
}

#[test]
fn a_device_that_was_short_counts_as_short_until_it_is_reopened() {
    for mode in modes() {
        let world = World::new(mode);
        let host = world.live();
        host.flush().unwrap();
        world.set_length("base", CUT);
        assert_eq!(world.short(1), Some((CUT, SIZE)), "a query reports it");
        let refused = world.engine.reopen_device(1, &world.path("base")).unwrap_err();
        assert!(refused.what.contains(&format!("is {CUT} bytes and must be {SIZE}")), "{refused}");
        world.set_length("base", SIZE);
        world.shows_no_zeroes(&host);
        for (what, change) in CHANGES {
            assert_eq!(change(&host), Err(EIO), "{what}");
        }
        assert_eq!(host.flush(), Err(EIO));
        // The shortest length counts.
        world.set_length("base", MIB);
        assert_eq!(world.short(1), Some((MIB, SIZE)));
        world.set_length("base", SIZE);
        assert_eq!(read(&host, MIB, BLOCK), Err(EIO));
        std::fs::write(world.path("base"), &world.contents).unwrap();
        world.engine.reopen_device(1, &world.path("base")).unwrap();
        assert_eq!(world.short(1), None);
        assert!(read(&host, 0, SIZE).unwrap() == world.contents);
        assert_eq!(host.flush(), Err(EIO), "a loss is reported once");
        host.write(SIZE - BLOCK, &[9; 4096], true).unwrap();
        host.flush().unwrap();
    }
}

#[test]
fn a_sync_detects_that_the_file_was_truncated_after_the_last_write() {
    for mode in modes() {
        let world = World::new(mode);
        let host = world.live();
        host.write(3 * MIB, &[5; 4096], false).unwrap();
        world.set_length("base", CUT);
        assert_eq!(host.flush(), Err(EIO));
        assert_eq!(world.short(1), Some((CUT, SIZE)));
        assert!(world.engine.flush(1).is_err());
    }
}

#[test]
fn a_short_change_log_is_not_written_and_a_scrub_reports_the_lost_slots() {
    let world = World::new(modes()[0]);
    let host = world.live();
    world.snapshot();
    host.write(0, &vec![3; SIZE as usize], false).unwrap();
    for name in ["log-a", "log-b"] {
        world.set_length(name, BLOCK);
    }
    assert_eq!(read(&host, 0, SIZE), Err(EIO));
    let bad: Vec<_> = (0..4)
        .flat_map(|partition| {
            world.engine.scrub(1, partition, Cursor::default(), SIZE).unwrap().bad
        })
        .collect();
    assert!(bad.len() as u64 >= SIZE / BLOCK - 2 && bad.iter().all(|bad| bad.errno == Some(EIO)));
    assert_eq!(host.write(0, &[4; 4096], false), Err(EIO));
    for (id, name) in [(2, "log-a"), (3, "log-b")] {
        assert_eq!(world.length(name), BLOCK);
        assert_eq!(world.short(id), Some((BLOCK, LOG)));
    }
}

#[test]
fn a_hole_at_the_end_of_a_file_that_is_long_enough_is_a_hole() {
    let world = World::new(modes()[0]);
    let host = world.live();
    let file = OpenOptions::new().write(true).open(world.path("base")).unwrap();
    file.set_len(MIB).unwrap();
    file.set_len(SIZE).unwrap(); // before the first check of the size
    file.write_all_at(&[1; 4096], 2 * MIB).unwrap();
    let status = host.block_status(0, SIZE).unwrap();
    let found: Vec<_> = status.iter().map(|one| (one.offset, one.hole)).collect();
    let written = 2 * MIB;
    let all = [(0, false), (MIB, true), (written, false), (written + BLOCK, true)];
    assert_eq!(found, all);
    assert_eq!(status.last().map(|last| last.offset + last.length), Some(SIZE));
    assert_eq!(world.short(1), None);
}

#[test]
fn a_file_that_is_too_short_is_not_opened() {
    let world = World::new(modes()[0]);
    world.set_length("log-a", LOG - 1);
    let mode = Mode { size: LOG, ..Mode::SPARSE };
    let refused = world.engine.open_device(9, &world.path("log-a"), mode).unwrap_err();
    assert!(refused.what.contains(&format!("is {} bytes and must be {LOG}", LOG - 1)), "{refused}");
}
