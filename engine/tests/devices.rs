//! Devices that fail, are missing, or are reopened: what fails with them, and what does not.
//!
//! Strategy          Volumes over three devices, two of them with log areas, on a system whose files fail on demand.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::copied;
use crate::faulty::{Faulty, Rules};
use polyvol_engine::engine::Engine;
use polyvol_engine::engine::spec::{ExtentSpec, Manifests, VolumeSpec};
use polyvol_engine::error::Errno;
use polyvol_engine::io::device::Mode;
use polyvol_engine::request::Verb;
use polyvol_engine::volume::local_client::LocalClient;

const MIB: u64 = 1 << 20;
const EIO: Errno = Errno::EIO;

struct Scratch {
    path: PathBuf,
    rules: Rules,
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

const DEVICES: [(u64, &str); 4] = [(1, "base-a"), (2, "base-b"), (3, "log-a"), (4, "log-b")];

/// Makes a directory and four devices in it, and an engine that has them open except `missing`.
fn begin(missing: &[u64], clean: bool) -> (Scratch, Engine) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path =
        std::env::temp_dir().join(format!("polyvol-devices-{}-{number}", std::process::id()));
    std::fs::create_dir(&path).unwrap();
    let scratch = Scratch { path, rules: Rules::default() };
    let engine = start(&scratch, missing, clean);
    (scratch, engine)
}

fn start(scratch: &Scratch, missing: &[u64], clean: bool) -> Engine {
    let system = Arc::new(Faulty { rules: scratch.rules.clone() });
    let engine = Engine::with_system(system, 2).unwrap();
    for (id, name) in DEVICES {
        let path = scratch.path.join(name);
        if !path.exists() {
            std::fs::File::create(&path).unwrap().set_len(8 * MIB).unwrap();
        }
        if missing.contains(&id) {
            engine.absent_device(id, Mode::SPARSE, clean).unwrap();
        } else {
            engine.open_device(id, &path, Mode::SPARSE).unwrap();
        }
    }
    engine
}

/// Two partitions of 1 MiB, each on a device and a processor of its own, and these log areas.
fn spec(scratch: &Scratch, logs: &[u64], epochs: &[u64]) -> VolumeSpec {
    let extent = |device, length| vec![ExtentSpec { device, offset: 0, length }];
    VolumeSpec {
        id: 1,
        uuid: [1; 16],
        name: "v".to_owned(),
        size: 2 * MIB,
        partition_size: MIB,
        partitions: vec![(0, extent(1, MIB)), (1, extent(2, MIB))],
        logs: logs.iter().map(|log| (*log as u16, extent(*log, 8 * MIB))).collect(),
        log_rules: Default::default(),
        directory: scratch.path.join("volume"),
        manifests: Manifests::new(scratch.path.join("volume")),
        snapshots: epochs.iter().map(|epoch| (*epoch, Default::default())).collect(),
        next_epoch: epochs.last().map_or(1, |last| last + 1),
        bounds: Vec::new(),
        rollbacks: Vec::new(),
        origin: None,
    }
}

fn client(engine: &Engine) -> LocalClient {
    engine.export("v", "", 1, None).unwrap();
    LocalClient::new(engine.exports.attach("v").unwrap())
}

fn cut(engine: &Engine) -> u64 {
    let epoch = engine.cut(&[(1, Default::default())]).unwrap().epochs[0].1;
    engine.settle(1, epoch).unwrap();
    engine.flush(1).unwrap();
    epoch
}

fn read(client: &LocalClient, offset: u64, length: u64) -> Result<Vec<u8>, Errno> {
    client.read(offset, length).map(|request| request.data.as_slice().to_vec())
}

fn forbid(scratch: &Scratch, device: &'static str, call: &'static str) {
    scratch.rules.lock().unwrap().insert((device, call));
}

fn allow_all(scratch: &Scratch) {
    scratch.rules.lock().unwrap().clear();
}

fn reopen(engine: &Engine, scratch: &Scratch, device: u64) {
    let name = DEVICES.iter().find(|(id, _)| *id == device).unwrap().1;
    engine.reopen_device(device, &scratch.path.join(name)).unwrap();
}

/// The name of the call that made a device faulty, if one did.
fn mark(engine: &Engine, device: u64) -> Option<&'static str> {
    engine.device_fault(device).unwrap().map(|fault| fault.call.name())
}

fn end(engine: Engine, client: LocalClient) {
    drop(client);
    let _ = engine.stop();
}

#[test]
fn a_device_that_fails_fails_the_requests_that_touch_it_until_it_works_again() {
    let (scratch, engine) = begin(&[], false);
    engine.add_volume(spec(&scratch, &[3], &[])).unwrap();
    let client = client(&engine);
    client.write(0, &[1; 2 * MIB as usize], false).unwrap();
    forbid(&scratch, "base-b", "read");
    forbid(&scratch, "base-b", "write");
    assert_eq!(read(&client, MIB, 4096), Err(EIO));
    assert_eq!(client.write(MIB, &[2; 4096], false), Err(EIO));
    assert_eq!(client.write(MIB - 4096, &[2; 8192], false), Err(EIO));
    assert_eq!(read(&client, 0, 4096).unwrap(), [1; 4096]);
    client.write(0, &[2; 8192], true).unwrap();
    assert_eq!((mark(&engine, 1), mark(&engine, 2)), (None, Some("writing")));
    let fault = engine.device_fault(2).unwrap().unwrap();
    assert!(fault.times >= 3 && fault.first_ns <= fault.last_ns && fault.errno == EIO);
    allow_all(&scratch);
    // Calls are still made, and it is still faulty.
    assert_eq!(read(&client, MIB, 4096).unwrap(), [1; 4096]);
    assert_eq!(mark(&engine, 2), Some("writing"));
    reopen(&engine, &scratch, 2);
    assert_eq!(mark(&engine, 2), None);
    client.flush().unwrap();
    end(engine, client);
}

#[test]
fn a_failed_sync_stays_failed_until_the_device_is_reopened() {
    let (scratch, engine) = begin(&[], false);
    engine.add_volume(spec(&scratch, &[3], &[])).unwrap();
    let client = client(&engine);
    client.write(0, &[1; 2 * MIB as usize], false).unwrap();
    forbid(&scratch, "base-a", "sync");
    assert_eq!(client.flush(), Err(EIO));
    allow_all(&scratch);
    assert_eq!(client.flush(), Err(EIO), "D2");
    assert_eq!(client.write(0, &[2; 4096], true), Err(EIO), "FUA");
    assert_eq!(mark(&engine, 1), Some("syncing"));
    reopen(&engine, &scratch, 1);
    assert_eq!(mark(&engine, 1), None);
    client.flush().unwrap();
    end(engine, client);
}

#[test]
fn a_failed_sync_outlives_the_process_until_it_is_reported_to_hosts() {
    let (scratch, engine) = begin(&[], false);
    engine.add_volume(spec(&scratch, &[3], &[])).unwrap();
    let first = client(&engine);
    first.write(0, &[1; 4096], false).unwrap();
    forbid(&scratch, "base-a", "sync");
    assert!(engine.flush(1).is_err());
    std::mem::forget((engine, first)); // killed
    allow_all(&scratch);
    for reopened in [false, true, true, false] {
        let engine = start(&scratch, &[], false);
        engine.add_volume(spec(&scratch, &[3], &[])).unwrap();
        let client = client(&engine);
        assert_eq!(mark(&engine, 1), Some("syncing"));
        assert!(engine.flush(1).is_err(), "D2");
        if reopened {
            reopen(&engine, &scratch, 1);
            assert_eq!(mark(&engine, 1), None);
            engine.flush(1).unwrap();
        }
        std::mem::forget((engine, client)); // it was not reported to a host
    }
    let engine = start(&scratch, &[], false);
    engine.add_volume(spec(&scratch, &[3], &[])).unwrap();
    let second = client(&engine);
    reopen(&engine, &scratch, 1);
    assert_eq!(second.flush(), Err(EIO), "F2");
    second.flush().unwrap();
    std::mem::forget((engine, second));
    let engine = start(&scratch, &[], false);
    engine.add_volume(spec(&scratch, &[3], &[])).unwrap();
    let third = client(&engine);
    assert_eq!(mark(&engine, 1), None);
    third.flush().unwrap();
    end(engine, third);
}

#[test]
fn a_journal_whose_sync_failed_before_a_kill_commits_after_a_checkpoint() {
    let (scratch, engine) = begin(&[], false);
    engine.add_volume(spec(&scratch, &[3], &[])).unwrap();
    let first = client(&engine);
    let epoch = cut(&engine);
    first.write(0, &[1; 4096], false).unwrap();
    forbid(&scratch, ".journal", "sync");
    forbid(&scratch, ".checkpoint.new", "sync");
    assert_eq!(first.flush(), Err(EIO));
    std::mem::forget((engine, first)); // killed
    let volume = scratch.path.join("volume");
    let checkpoints = || {
        let names = std::fs::read_dir(&volume).unwrap().map(|entry| entry.unwrap().path());
        names.filter(|name| name.extension().is_some_and(|end| end == "checkpoint")).count()
    };
    assert!(volume.join("p000.failed-sync").exists());
    assert_eq!(checkpoints(), 0);
    allow_all(&scratch);
    let engine = start(&scratch, &[], false);
    engine.add_volume(spec(&scratch, &[3], &[epoch])).unwrap();
    let second = client(&engine);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while second.flush().is_err() {
        assert!(std::time::Instant::now() < deadline, "it recovers without a restart");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert!(checkpoints() > 0, "J8");
    assert!(!volume.join("p000.failed-sync").exists());
    assert_eq!(read(&second, 0, 4096).unwrap(), [1; 4096]);
    end(engine, second);
}

#[test]
fn a_loss_is_reported_to_hosts_also_if_the_device_was_reopened_before_they_flush() {
    let (scratch, engine) = begin(&[], false);
    engine.add_volume(spec(&scratch, &[3], &[])).unwrap();
    let client = client(&engine);
    client.flush().unwrap();
    client.write(0, &[1; 4096], false).unwrap();
    forbid(&scratch, "base-a", "sync");
    // A sync of the engine itself fails; that is not reported to a host.
    assert!(engine.flush(1).is_err());
    allow_all(&scratch);
    reopen(&engine, &scratch, 1);
    engine.flush(1).unwrap();
    assert_eq!(client.flush(), Err(EIO), "F2");
    client.flush().unwrap();
    // Written, never synced, and lost when the file is replaced.
    client.write(0, &[2; 4096], false).unwrap();
    let other = scratch.path.join("other");
    std::fs::copy(scratch.path.join("base-a"), &other).unwrap();
    forbid(&scratch, "base-a", "sync");
    engine.reopen_device(1, &other).unwrap();
    assert_eq!(client.flush(), Err(EIO), "D4");
    client.flush().unwrap();
    end(engine, client);
}

#[test]
fn a_failed_query_of_holes_is_an_error_and_not_a_hole() {
    let (scratch, engine) = begin(&[2], true);
    engine.add_volume(spec(&scratch, &[3], &[])).unwrap();
    let client = client(&engine);
    let status = client.block_status(0, 2 * MIB).unwrap();
    let found: Vec<_> = status.iter().map(|one| (one.offset, one.length, one.zero)).collect();
    // Nothing is known of a missing device: its range is data, whose contents only a read can tell.
    assert_eq!(found, [(0, MIB, true), (MIB, MIB, false)]);
    forbid(&scratch, "base-a", "status");
    assert_eq!(client.block_status(0, 4096), Err(EIO));
    assert_eq!(client.block_status(0, 2 * MIB), Err(EIO));
    assert_eq!(mark(&engine, 1), Some("reading"));
    assert_eq!(client.block_status(MIB, 4096).unwrap().len(), 1);
    end(engine, client);
}

#[test]
fn a_reopen_reports_what_is_still_wrong() {
    let (scratch, engine) = begin(&[], false);
    engine.add_volume(spec(&scratch, &[3], &[])).unwrap();
    let client = client(&engine);
    forbid(&scratch, "base-a", "sync");
    client.write(0, &[1; 4096], false).unwrap();
    assert!(client.flush().is_err());
    reopen(&engine, &scratch, 1);
    assert_eq!(mark(&engine, 1), Some("syncing"));
    assert!(engine.reopen_device(1, Path::new("/nowhere")).is_err());
    forbid(&scratch, "base-a", "read");
    assert!(engine.reopen_device(1, &scratch.path.join("base-a")).is_err());
    allow_all(&scratch);
    end(engine, client);
}

#[test]
fn a_log_that_cannot_be_written_leaves_writes_to_another_one() {
    let (scratch, engine) = begin(&[], false);
    engine.add_volume(spec(&scratch, &[3, 4], &[])).unwrap();
    let client = client(&engine);
    cut(&engine);
    for log in ["log-a", "log-b"] {
        forbid(&scratch, log, "write");
        // The processor writes small ones, a pool thread large and partial ones.
        for (offset, length) in [(0, 4096), (MIB, 4096), (8192, 100), (MIB / 2, MIB as usize)] {
            client.write(offset, &vec![7; length], false).unwrap();
            assert_eq!(read(&client, offset, length as u64).unwrap(), vec![7; length]);
        }
        allow_all(&scratch);
        for device in [3, 4] {
            reopen(&engine, &scratch, device);
        }
    }
    forbid(&scratch, "log-a", "write");
    forbid(&scratch, "log-b", "write");
    assert_eq!(client.write(0, &[8; 4096], false), Err(EIO));
    assert_eq!(client.write(0, &vec![8; MIB as usize], false), Err(EIO));
    assert_eq!(read(&client, 0, 4096).unwrap(), [7; 4096]);
    allow_all(&scratch);
    client.write(0, &[9; 4096], true).unwrap();
    end(engine, client);
}

#[test]
fn one_bad_sector_does_not_disable_a_log() {
    let (scratch, engine) = begin(&[], false);
    engine.add_volume(spec(&scratch, &[3], &[])).unwrap();
    let client = client(&engine);
    cut(&engine);
    forbid(&scratch, "log-a", "write at 0");
    for block in 0..20 {
        client.write(block * 4096, &[block as u8; 4096], false).unwrap();
    }
    client.flush().unwrap();
    assert_eq!(read(&client, 5 * 4096, 4096).unwrap(), [5; 4096]);
    assert_eq!(engine.device_fault(3).unwrap().unwrap().times, 1, "it was not tried again");
    allow_all(&scratch);
    reopen(&engine, &scratch, 3);
    // The quarantined slots can be used again: all 2048 slots of the log are available.
    for round in 0..3 {
        client.write(0, &vec![round; 2 * MIB as usize], true).unwrap();
    }
    end(engine, client);
}

#[test]
fn a_missing_device_degrades_its_partitions_and_is_reopened_while_they_are_in_use() {
    let (scratch, engine) = begin(&[], false);
    engine.add_volume(spec(&scratch, &[3, 4], &[])).unwrap();
    let host = client(&engine);
    host.write(0, &[1; 2 * MIB as usize], true).unwrap();
    end(engine, host);

    let engine = start(&scratch, &[2, 3], true);
    engine.add_volume(spec(&scratch, &[3, 4], &[])).unwrap();
    let host = client(&engine);
    assert_eq!(read(&host, 0, MIB).unwrap(), vec![1; MIB as usize]);
    assert_eq!(read(&host, MIB, 4096), Err(EIO));
    assert_eq!(host.write(MIB, &[2; 4096], false), Err(EIO));
    host.write(0, &[2; 4096], true).unwrap();
    // A cut is made, new slots are in the other log, and complete blocks can be written even if their old contents are
    // not available.
    let epoch = cut(&engine);
    host.write(4096, &[3; 4096], true).unwrap();
    host.write(MIB, &[3; 4096], true).unwrap();
    assert_eq!(
        host.write(MIB + 4096 + 7, &[3; 10], false),
        Err(EIO),
        "the old contents are needed"
    );
    assert_eq!(mark(&engine, 2), None, "missing is not faulty");
    reopen(&engine, &scratch, 2);
    reopen(&engine, &scratch, 3);
    assert_eq!(read(&host, MIB, 8192).unwrap()[4095..4097], [3, 1]);
    host.write(MIB + 4096 + 7, &[3; 10], true).unwrap();
    end(engine, host);

    let engine = start(&scratch, &[], true);
    engine.add_volume(spec(&scratch, &[3, 4], &[epoch])).unwrap();
    let host = client(&engine);
    assert_eq!(
        read(&host, 0, 12288).unwrap()[4095..=8192],
        [[2].as_slice(), &[3; 4096], &[1]].concat()
    );
    end(engine, host);
}

#[test]
fn slots_of_a_missing_log_cannot_be_read_and_writes_that_need_one_fail_with_eio() {
    let (scratch, engine) = begin(&[], false);
    engine.add_volume(spec(&scratch, &[3], &[])).unwrap();
    let host = client(&engine);
    host.write(0, &[1; 16384], true).unwrap();
    let epoch = cut(&engine);
    host.write(0, &[2; 4096], true).unwrap();
    end(engine, host);

    let engine = start(&scratch, &[3], true);
    engine.add_volume(spec(&scratch, &[3], &[epoch])).unwrap();
    let host = client(&engine);
    assert_eq!(read(&host, 0, 4096), Err(EIO));
    assert_eq!(read(&host, 4096, 4096).unwrap(), [1; 4096]);
    assert_eq!(host.write(4096, &[3; 4096], false), Err(EIO), "not ENOSPC");
    reopen(&engine, &scratch, 3);
    assert_eq!(read(&host, 0, 4096).unwrap(), [2; 4096]);
    host.write(4096, &[3; 4096], true).unwrap();
    end(engine, host);
}

#[test]
fn a_flush_is_honest_about_what_an_earlier_run_wrote_to_a_missing_device() {
    let (scratch, engine) = begin(&[], false);
    engine.add_volume(spec(&scratch, &[3], &[])).unwrap();
    let host = client(&engine);
    host.write(0, &[1; 2 * MIB as usize], false).unwrap();
    end(engine, host);
    let engine = start(&scratch, &[2], false);
    engine.add_volume(spec(&scratch, &[3], &[])).unwrap();
    let host = client(&engine);
    host.write(0, &[2; 4096], false).unwrap();
    assert_eq!(host.flush(), Err(EIO));
    reopen(&engine, &scratch, 2);
    host.flush().unwrap();
    end(engine, host);
    // There was no flush while it was missing: then the first one reports the loss.
    let engine = start(&scratch, &[2], false);
    engine.add_volume(spec(&scratch, &[3], &[])).unwrap();
    let host = client(&engine);
    reopen(&engine, &scratch, 2);
    assert_eq!(host.flush(), Err(EIO));
    host.flush().unwrap();
    end(engine, host);
}

#[test]
fn slots_that_an_uncommitted_record_freed_are_not_used_while_nothing_can_be_committed() {
    let (scratch, engine) = begin(&[], false);
    engine.add_volume(spec(&scratch, &[3], &[])).unwrap();
    let host = client(&engine);
    let epoch = cut(&engine);
    host.write(0, &[1; 4096], true).unwrap();
    // Not flushed: a power loss restores the block in slot 0.
    host.write(0, &[2; 4096], false).unwrap();
    let volume = scratch.path.join("volume");
    let saved = scratch.path.join("saved");
    copied::copy_directory(&volume, &saved);
    end(engine, host);
    std::fs::remove_dir_all(&volume).unwrap();
    std::fs::rename(&saved, &volume).unwrap();

    let engine = start(&scratch, &[2], false);
    engine.add_volume(spec(&scratch, &[3], &[epoch])).unwrap();
    let host = client(&engine);
    for block in 1..40 {
        host.write(block * 4096, &[9; 4096], false).unwrap();
    }
    let slot = &std::fs::read(scratch.path.join("log-a")).unwrap()[..4096];
    assert_eq!(slot, [1; 4096], "J4");
    reopen(&engine, &scratch, 2);
    let _ = host.flush();
    host.flush().unwrap();
    end(engine, host);
}

#[test]
fn a_slow_file_with_fragments_smaller_than_a_block_is_cleared_block_by_block() {
    let (scratch, engine) = begin(&[], true);
    engine.add_volume(spec(&scratch, &[3], &[])).unwrap();
    let client = Arc::new(client(&engine));
    client.write(0, &[7; 5 * 4096], true).unwrap();
    forbid(&scratch, "base-a", "fragments");
    let (clearing, (sender, ended)) = (Arc::clone(&client), std::sync::mpsc::channel());
    std::thread::spawn(move || {
        let result = clearing.range(Verb::Trim, 4096, 3 * 4096, true);
        drop(clearing);
        sender.send(result)
    });
    ended.recv_timeout(Duration::from_secs(60)).expect("the processor continues").unwrap();
    let whole = [vec![7; 4096], vec![0; 3 * 4096], vec![7; 4096]].concat();
    assert!(read(&client, 0, 5 * 4096).unwrap() == whole);
    end(engine, Arc::into_inner(client).unwrap());
}
