//! Devices that hang: which requests wait, for how long, and the fate of writes that were given up.
//!
//! Strategy          Two volumes on the same two processors, each on a device and a log area of its own, on a system
//!                   whose files hang on demand. All time limits are generous.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::faulty::{Faulty, Rules};
use polyvol_engine::engine::Engine;
use polyvol_engine::engine::spec::{ExtentSpec, Manifests, VolumeSpec};
use polyvol_engine::error::Errno;
use polyvol_engine::io::device::Mode;
use polyvol_engine::request::Verb;
use polyvol_engine::volume::local_client::LocalClient;

const MIB: u64 = 1 << 20;
const EIO: Errno = Errno::EIO;
const BLOCK: usize = 4096;
/// Requests to a volume that does not hang take less time, on any machine.
const PROMPT_MAX: Duration = Duration::from_secs(20);
const ROUNDS: usize = 40;

struct Scratch {
    path: PathBuf,
    rules: Rules,
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

fn spec(path: &Path, id: u64) -> VolumeSpec {
    let extent = |device, offset, length| vec![ExtentSpec { device, offset, length }];
    VolumeSpec {
        id,
        uuid: [id as u8; 16],
        name: format!("v{id}"),
        size: 4 * MIB,
        partition_size: MIB,
        partitions: (0..4).map(|n| (n % 2, extent(id, u64::from(n) * MIB, MIB))).collect(),
        logs: vec![(1, extent(id + 10, 0, 8 * MIB))],
        log_rules: Default::default(),
        directory: path.join(format!("volume{id}")),
        manifests: Manifests::new(path.join(format!("volume{id}"))),
        snapshots: Vec::new(),
        next_epoch: 1,
        bounds: Vec::new(),
        rollbacks: Vec::new(),
        origin: None,
    }
}

/// An engine with volumes 1 and 2; requests end after a second. Files `base1`, `base2`, `log11`, `log12`.
fn begin() -> (Scratch, Arc<Engine>) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("polyvol-hung-{}-{number}", std::process::id()));
    std::fs::create_dir(&path).unwrap();
    let scratch = Scratch { path, rules: Rules::default() };
    let system = Arc::new(Faulty { rules: scratch.rules.clone() });
    let engine = Arc::new(Engine::with_system(system, 2).unwrap());
    engine.set_io_timeout(Duration::from_secs(1));
    for (id, name) in [(1, "base1"), (2, "base2"), (11, "log11"), (12, "log12")] {
        let path = scratch.path.join(name);
        std::fs::File::create(&path).unwrap().set_len(8 * MIB).unwrap();
        let mode = Mode { size: 8 * MIB, ..Mode::SPARSE };
        engine.open_device(id, &path, mode).unwrap();
    }
    for id in [1, 2] {
        engine.add_volume(spec(&scratch.path, id)).unwrap();
        engine.export(&format!("v{id}"), "", id, None).unwrap();
    }
    (scratch, engine)
}

fn client(engine: &Engine, volume: u64) -> LocalClient {
    LocalClient::new(engine.exports.attach(&format!("v{volume}")).unwrap())
}

fn hang(scratch: &Scratch, name: &'static str) {
    scratch.rules.lock().unwrap().insert((name, "hang"));
}

fn end_hang(scratch: &Scratch) {
    scratch.rules.lock().unwrap().clear();
}

fn within<T>(what: &str, f: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let found = f();
    assert!(began.elapsed() < PROMPT_MAX, "{what} took {:?}", began.elapsed());
    found
}

/// Waits until the condition is true.
fn until(what: &str, is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PROMPT_MAX, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn read(client: &LocalClient, offset: u64, length: u64) -> Result<Vec<u8>, Errno> {
    client.read(offset, length).map(|request| request.data.as_slice().to_vec())
}

type Ends = Arc<Mutex<Vec<Result<(), Errno>>>>;

/// Submits many requests of each kind to volume 1 at the same time; returns their results.
fn flood(engine: &Arc<Engine>) -> (Vec<JoinHandle<()>>, Ends) {
    let ends = Ends::default();
    let threads = (0..ROUNDS as u64).map(|number| {
        let (engine, ends) = (Arc::clone(engine), Arc::clone(&ends));
        std::thread::spawn(move || {
            let client = client(&engine, 1);
            let offset = number % 4 * MIB + number / 4 * 8 * BLOCK as u64;
            let result = match number % 8 {
                0 => client.write(offset, &[1; BLOCK], false),
                1 => client.write(offset, &[1; 300 << 10], true),
                2 => client.read(offset, 8192).map(|_| ()),
                3 => client.range(Verb::Trim, offset, 1 << 16, false),
                4 => client.range(Verb::Zero { no_hole: true, fast: false }, offset, 8192, false),
                5 => client.range(Verb::Cache, offset, 8192, false),
                6 => client.block_status(offset, 1 << 16).map(|_| ()),
                _ => client.write(offset, &[1; 100], false),
            };
            ends.lock().unwrap().push(result);
        })
    });
    (threads.collect(), ends)
}

#[test]
fn requests_to_a_device_that_hangs_end_with_eio_and_block_no_other_volume() {
    let (scratch, engine) = begin();
    client(&engine, 1).write(0, &[9; 4 * MIB as usize], true).unwrap();
    hang(&scratch, "base1");
    let (threads, ends) = flood(&engine);
    let other = client(&engine, 2);
    for number in 0..50 {
        let offset = number % 4 * MIB + number * BLOCK as u64;
        within("a write", || other.write(offset, &[7; BLOCK], number % 9 == 0).unwrap());
        assert_eq!(within("a read", || read(&other, offset, 4096)), Ok(vec![7; BLOCK]));
    }
    within("a flush", || other.flush().unwrap());
    let epoch = within("a cut", || engine.cut(&[(2, Default::default())]).unwrap().epochs[0].1);
    within("settling", || engine.settle(2, epoch).unwrap());
    within("statuses", || other.block_status(0, MIB).unwrap());
    within("states", || engine.device_states());
    for thread in threads {
        within("a request to a device that hangs", || thread.join().unwrap());
    }
    let ends = ends.lock().unwrap();
    assert_eq!(ends.len(), ROUNDS);
    assert!(ends.iter().all(|end| *end == Err(EIO)), "{ends:?}");
    until("there is an event that it hangs", || {
        engine.device_states().iter().any(|state| state.device.id == 1 && state.silent.is_some())
    });
    end_hang(&scratch);
    until("there is an event that it answers", || {
        engine.device_states().iter().all(|state| state.silent.is_none())
    });
    let one = client(&engine, 1);
    until("it works", || one.write(0, &[3; BLOCK], true).is_ok());
    assert_eq!(read(&one, 0, 4096), Ok(vec![3; BLOCK]));
    drop((one, other));
    engine.stop().unwrap();
}

#[test]
fn a_snapshot_is_taken_of_a_volume_whose_device_is_slow() {
    let (scratch, engine) = begin();
    engine.set_io_timeout(Duration::from_secs(30));
    let one = client(&engine, 1);
    one.write(0, &[1; MIB as usize], true).unwrap();
    hang(&scratch, "base1");
    let writes = Arc::clone(&engine);
    let slow = std::thread::spawn(move || client(&writes, 1).write(0, &[2; BLOCK], false));
    until("it does not answer", || engine.device_states()[0].silent.is_some());
    let epoch = within("a cut", || engine.cut(&[(1, Default::default())]).unwrap().epochs[0].1);
    let asked = Arc::clone(&engine);
    let settled = std::thread::spawn(move || asked.settle(1, epoch));
    within("a write after the cut", || one.write(MIB, &[3; BLOCK], false).unwrap());
    end_hang(&scratch);
    slow.join().unwrap().unwrap();
    settled.join().unwrap().unwrap();
    engine.export("v1@s", "", 1, Some(epoch)).unwrap();
    let snapshot = LocalClient::new(engine.exports.attach("v1@s").unwrap());
    assert_eq!(read(&snapshot, 0, 4096), Ok(vec![2; BLOCK]), "a write before the cut");
    assert_eq!(read(&snapshot, MIB, 4096), Ok(vec![0; BLOCK]), "a write after the cut");
    drop((one, snapshot));
    engine.stop().unwrap();
}

#[test]
fn a_volume_whose_device_is_slow_is_closed_when_its_calls_have_ended() {
    let (scratch, engine) = begin();
    engine.set_io_timeout(Duration::from_secs(30));
    hang(&scratch, "base1");
    let writes = Arc::clone(&engine);
    let slow = std::thread::spawn(move || client(&writes, 1).write(0, &[2; BLOCK], false));
    until("it does not answer", || engine.device_states()[0].silent.is_some());
    let back = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(500));
        end_hang(&scratch);
        scratch
    });
    slow.join().unwrap().unwrap();
    engine.exports.remove("v1").unwrap();
    engine.remove_volume(1).unwrap();
    engine.stop().unwrap();
    drop(back.join().unwrap());
}

#[test]
fn a_write_that_was_given_up_never_overwrites_a_later_one() {
    let (scratch, engine) = begin();
    let one = client(&engine, 1);
    one.write(0, &[1; MIB as usize], true).unwrap();
    hang(&scratch, "base1");
    assert_eq!(one.write(0, &[2; BLOCK], false), Err(EIO));
    let stuck = || engine.device_states()[0].device.silence.stuck();
    assert_eq!(stuck(), 1);
    // Overlapping requests are refused as long as the kernel has the write, and so are calls that rely on it.
    let later = one.write(0, &[3; 2 * BLOCK], false);
    assert_eq!(later, Err(EIO));
    assert_eq!(one.flush(), Err(EIO));
    assert!(within("a cut", || engine.cut(&[(1, Default::default())])).is_err());
    assert!(
        within("a cut of a group", || engine
            .cut(&[(2, Default::default()), (1, Default::default())]))
        .is_err()
    );
    let two = client(&engine, 2);
    within("the other of the group", || two.write(0, &[5; BLOCK], true).unwrap());
    end_hang(&scratch);
    until("it ends", || stuck() == 0);
    until("later ones are made", || one.write(0, &[4; BLOCK], false).is_ok());
    within("a flush", || one.flush().unwrap());
    assert_eq!(
        read(&one, 0, 8192),
        Ok([[4; BLOCK], [1; BLOCK]].concat()),
        "only the requested blocks"
    );
    drop((one, two));
    engine.stop().unwrap();
}

#[test]
fn a_slot_is_not_reused_before_the_write_to_it_has_ended() {
    let (scratch, engine) = begin();
    let one = client(&engine, 1);
    one.write(0, &[1; MIB as usize], true).unwrap();
    let epoch = engine.cut(&[(1, Default::default())]).unwrap().epochs[0].1;
    engine.settle(1, epoch).unwrap();
    let used = || engine.volume(1).unwrap().space.usage().used;
    hang(&scratch, "log11");
    assert_eq!(one.write(0, &[2; BLOCK], false), Err(EIO));
    let held = used();
    assert!(held > 0, "its slot is free");
    assert_eq!(read(&one, 8192, 4096), Ok(vec![1; BLOCK]), "reads of other devices continue");
    end_hang(&scratch);
    until("its slot is free", || used() < held);
    assert_eq!(read(&one, 0, 4096), Ok(vec![1; BLOCK]), "the given-up write is dropped");
    until("writes continue", || one.write(0, &[3; BLOCK], true).is_ok());
    assert_eq!(read(&one, 0, 4096), Ok(vec![3; BLOCK]));
    drop(one);
    engine.stop().unwrap();
}

#[test]
fn a_volume_whose_device_has_a_write_that_was_given_up_is_not_closed_and_its_space_not_used() {
    let (scratch, engine) = begin();
    let one = client(&engine, 1);
    hang(&scratch, "base1");
    assert_eq!(one.write(0, &[2; BLOCK], false), Err(EIO));
    drop(one);
    engine.exports.remove("v1").unwrap();
    assert!(within("closing it", || engine.remove_volume(1)).is_err());
    let mut third = spec(&scratch.path, 3);
    third.partitions = vec![(0, vec![ExtentSpec { device: 1, offset: 4 * MIB, length: MIB }])];
    (third.size, third.logs) = (MIB, Vec::new());
    assert!(within("another volume there", || engine.add_volume(third)).is_err());
    end_hang(&scratch);
    until("it is closed", || engine.remove_volume(1).is_ok());
    engine.stop().unwrap();
}

#[test]
fn a_stop_ends_while_a_device_hangs() {
    let (scratch, engine) = begin();
    let one = client(&engine, 1);
    hang(&scratch, "base1");
    assert_eq!(one.write(0, &[2; BLOCK], false), Err(EIO));
    drop(one);
    client(&engine, 2).write(0, &[8; BLOCK], false).unwrap();
    assert!(within("the stop", || engine.stop()).is_err());
    end_hang(&scratch);
}

#[test]
fn a_scrub_and_reads_of_a_snapshot_end() {
    let (scratch, engine) = begin();
    let one = client(&engine, 1);
    one.write(0, &[1; MIB as usize], true).unwrap();
    let epoch = engine.cut(&[(1, Default::default())]).unwrap().epochs[0].1;
    engine.settle(1, epoch).unwrap();
    one.write(0, &[2; BLOCK], true).unwrap();
    engine.export("v1@s", "", 1, Some(epoch)).unwrap();
    let snapshot = LocalClient::new(engine.exports.attach("v1@s").unwrap());
    hang(&scratch, "1");
    assert_eq!(snapshot.read(0, 4096).err(), Some(EIO));
    let report = within("a scrub", || engine.scrub(1, 0, Default::default(), MIB)).unwrap();
    assert_eq!(report.bad[0].errno, Some(EIO));
    end_hang(&scratch);
    until("it is read", || read(&snapshot, 0, 4096) == Ok(vec![1; BLOCK]));
    drop((one, snapshot));
    engine.stop().unwrap();
}
