//! Inspecting: what is said of processors that work, wait and are stuck.
//!
//! Strategy          A volume on two processors, on a system whose files hang on demand: calls that threads of the pool make,
//!                   or, as a defect would have it, those that a processor makes itself.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::faulty::{Faulty, Rules};
use polyvol_engine::engine::Engine;
use polyvol_engine::engine::inspect::ProcessorLook;
use polyvol_engine::engine::spec::{ExtentSpec, Manifests, VolumeSpec};
use polyvol_engine::events::Event;
use polyvol_engine::io::device::Mode;
use polyvol_engine::processor::inspect::{Place, ShareLook};
use polyvol_engine::volume::local_client::LocalClient;

const MIB: u64 = 1 << 20;
const BLOCK: usize = 4096;
/// On any machine it takes less.
const LONG: Duration = Duration::from_secs(30);

struct Scratch {
    path: PathBuf,
    rules: Rules,
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.rules.lock().unwrap().clear();
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

fn spec(path: &Path) -> VolumeSpec {
    let extent = |device, offset, length| vec![ExtentSpec { device, offset, length }];
    VolumeSpec {
        id: 7,
        uuid: [7; 16],
        name: "data".to_owned(),
        size: 2 * MIB,
        partition_size: MIB,
        partitions: (0..2).map(|n| (n, extent(1, u64::from(n) * MIB, MIB))).collect(),
        logs: vec![(1, extent(2, 0, 8 * MIB))],
        log_rules: Default::default(),
        directory: path.join("volume"),
        manifests: Manifests::new(path.join("volume")),
        snapshots: Vec::new(),
        next_epoch: 1,
        bounds: Vec::new(),
        rollbacks: Vec::new(),
        origin: None,
    }
}

/// Processor 0 has the first MiB, processor 1 the second. Files `base` and `log`.
fn begin() -> (Scratch, Arc<Engine>) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("polyvol-inspect-{}-{number}", std::process::id());
    let path = std::env::temp_dir().join(name);
    std::fs::create_dir(&path).unwrap();
    let scratch = Scratch { path, rules: Rules::default() };
    let system = Arc::new(Faulty { rules: scratch.rules.clone() });
    let engine = Arc::new(Engine::with_system(system, 2).unwrap());
    for (id, name) in [(1, "base"), (2, "log")] {
        let path = scratch.path.join(name);
        std::fs::File::create(&path).unwrap().set_len(8 * MIB).unwrap();
        engine.open_device(id, &path, Mode { size: 8 * MIB, ..Mode::SPARSE }).unwrap();
    }
    engine.add_volume(spec(&scratch.path)).unwrap();
    engine.export("data", "", 7, None).unwrap();
    (scratch, engine)
}

fn client(engine: &Engine) -> LocalClient {
    LocalClient::new(engine.exports.attach("data").unwrap())
}

/// Looks until it is so.
fn look_until(engine: &Engine, is_so: impl Fn(&[ProcessorLook]) -> bool) -> Vec<ProcessorLook> {
    let began = Instant::now();
    loop {
        let looks = engine.inspect_processors();
        if is_so(&looks) {
            return looks;
        }
        assert!(began.elapsed() < LONG, "it never was so");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn share(look: &ProcessorLook) -> Option<&ShareLook> {
    look.shares.as_ref().and_then(|(_, shares)| shares.first())
}

#[test]
fn idle_processors_say_so() {
    let (_scratch, engine) = begin();
    client(&engine).write(0, &[1; BLOCK], false).unwrap();
    let looks = look_until(&engine, |looks| looks.iter().all(|look| !look.queue.running));
    for look in &looks {
        assert!(look.answered);
        let share = share(look).unwrap();
        assert_eq!((share.reserved.count, share.turn.count, share.held.count), (0, 0, 0));
        assert!(share.handed.is_empty());
    }
    engine.stop().unwrap();
}

#[test]
fn what_a_device_holds_is_counted_by_kind_and_place_with_its_age() {
    let (scratch, engine) = begin();
    scratch.rules.lock().unwrap().insert(("base", "hang"));
    let threads: Vec<_> = (0..3)
        .map(|number| {
            let engine = Arc::clone(&engine);
            std::thread::spawn(move || {
                let _ = client(&engine).write(number * 100, &[1; 100], false);
            })
        })
        .collect();
    // All three overlap: one has its block reserved, the others wait for it.
    let looks = look_until(&engine, |looks| {
        share(&looks[0]).is_some_and(|share| {
            let old = share.handed.first().is_some_and(|one| one.group.oldest != 0);
            share.overlap.count == 2 && old && share.handed[0].place == Place::Pool
        })
    });
    let found = share(&looks[0]).unwrap();
    assert!(looks[0].answered, "a device that hangs holds no processor");
    assert_eq!((found.share, found.reserved.count), (found.share, 1));
    assert_eq!((found.handed[0].kind, found.handed[0].group.count), ("job", 1));
    assert_eq!(share(&looks[1]).unwrap().reserved.count, 0, "the other processor has nothing");
    scratch.rules.lock().unwrap().clear();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    engine.stop().unwrap();
}

#[test]
fn a_processor_that_is_stuck_is_reported_all_the_same() {
    let (scratch, engine) = begin();
    client(&engine).write(0, &[1; 4 * BLOCK], false).unwrap();
    scratch.rules.lock().unwrap().insert(("base", "hang processor"));
    let reads = |count: u64| -> Vec<_> {
        (0..count)
            .map(|number| {
                let engine = Arc::clone(&engine);
                std::thread::spawn(move || client(&engine).read(number * 4096, 4096).map(|_| ()))
            })
            .collect()
    };
    let mut threads = reads(1);
    look_until(&engine, |looks| looks[0].queue.running || looks[0].queue.sharing > 0);
    threads.extend(reads(4));
    let began = Instant::now();
    let looks = look_until(&engine, |looks| !looks[0].answered && looks[0].queue.since != 0);
    assert!(began.elapsed() < LONG);
    let stuck = &looks[0];
    assert!(stuck.queue.running || stuck.queue.sharing > 0);
    let name = std::fs::read_to_string(format!("/proc/self/task/{}/comm", stuck.queue.thread));
    assert!(name.is_ok(), "the thread that is stuck is named");
    assert!(looks[1].answered, "the other processor answers");
    // Asking again and again leaves one question in its queue.
    (0..3).for_each(|_| drop(engine.inspect_processors()));
    assert!(engine.inspect_processors()[0].queue.others.count <= 3);
    scratch.rules.lock().unwrap().clear();
    threads.into_iter().for_each(|thread| thread.join().unwrap().unwrap());
    look_until(&engine, |looks| looks[0].answered);
    engine.stop().unwrap();
}

#[test]
fn a_checkpoint_that_fails_is_reported_and_made_again() {
    let (scratch, engine) = begin();
    let limit = &polyvol_engine::limits::CHECKPOINT_BYTES_MIN;
    limit.store(1, Ordering::Relaxed);
    scratch.rules.lock().unwrap().insert(("checkpoint.new", "create"));
    let epoch = engine.cut(&[(7, Default::default())]).unwrap().epochs[0].1;
    engine.settle(7, epoch).unwrap();
    client(&engine).write(0, &[1; BLOCK], false).unwrap();
    let event = |wanted: Event| {
        let began = Instant::now();
        while engine.events.next(Duration::from_millis(100)) != Some(wanted) {
            assert!(began.elapsed() < LONG, "no {wanted:?}");
        }
    };
    event(Event::CheckpointFailed(7));
    let volume = engine.volume(7).unwrap();
    let failing = || {
        let shares = volume.shares.iter();
        shares.filter(|one| one.stats.checkpoint_errno.load(Ordering::Relaxed) != 0).count()
    };
    assert!(failing() > 0);
    let failures =
        |index: usize| volume.shares[index].stats.checkpoint_failures.load(Ordering::Relaxed);
    assert!(failures(0) + failures(1) > 0);
    // Nothing is written any more: it is made again by itself.
    scratch.rules.lock().unwrap().clear();
    event(Event::CheckpointWritten(7));
    assert!(failing() <= 1);
    engine.stop().unwrap();
}
