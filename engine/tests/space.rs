//! Full log areas: which writes wait, which are refused, and that nothing else is affected.
//!
//! Strategy          A volume on 3 processors whose log has fewer slots than the volume has blocks. Writers that wait
//!                   are threads; each test is bounded in time and states what would be lost or hang.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use polyvol_engine::engine::Engine;
use polyvol_engine::engine::spec::{ExtentSpec, Manifests, VolumeSpec};
use polyvol_engine::error::Errno;
use polyvol_engine::events::Event;
use polyvol_engine::io::device::Mode;
use polyvol_engine::request::Verb;
use polyvol_engine::volume::local_client::LocalClient;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 12 * MIB;
const BLOCKS: u64 = SIZE / 4096;
const LOG_BLOCKS: u64 = 1024;
const PROMPT_MAX: Duration = Duration::from_secs(20);

struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Volume 1 of 12 MiB on 3 processors with a log of 4 MiB, written once.
struct Full {
    engine: Arc<Engine>,
    client: Arc<LocalClient>,
    live: Vec<u8>,
    scratch: Scratch,
}

fn block(seed: u64) -> Vec<u8> {
    (0..4096u64).map(|at| (at * 3 + seed * 7 + at / 256 + seed / 251) as u8).collect()
}

impl Full {
    fn new() -> Full {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("polyvol-space-{}-{number}", std::process::id());
        let scratch = Scratch(std::env::temp_dir().join(name));
        std::fs::create_dir(&scratch.0).unwrap();
        let engine = Arc::new(Engine::new(3).unwrap());
        for (id, name, size) in [(1, "base", SIZE), (2, "log", 4 * MIB), (3, "more", 16 * MIB)] {
            let path = scratch.0.join(name);
            std::fs::File::create(&path).unwrap().set_len(size).unwrap();
            engine.open_device(id, &path, Mode::SPARSE).unwrap();
        }
        let part = |n: u64| (n as u32 % 3, vec![extent(1, n * MIB, MIB)]);
        engine
            .add_volume(VolumeSpec {
                id: 1,
                uuid: [1; 16],
                name: "v".to_owned(),
                size: SIZE,
                partition_size: MIB,
                partitions: (0..12).map(part).collect(),
                logs: vec![(1, vec![extent(2, 0, 4 * MIB)])],
                log_rules: Default::default(),
                directory: scratch.0.join("volume"),
                manifests: Manifests::new(scratch.0.join("volume")),
                snapshots: Vec::new(),
                next_epoch: 1,
                bounds: Vec::new(),
                rollbacks: Vec::new(),
                origin: None,
            })
            .unwrap();
        engine.export("v", "", 1, None).unwrap();
        let client = Arc::new(LocalClient::new(engine.exports.attach("v").unwrap()));
        let live: Vec<u8> = (0..BLOCKS).flat_map(block).collect();
        client.write(0, &live, false).unwrap();
        Full { engine, client, live, scratch }
    }

    fn cut(&self) -> u64 {
        let epoch = self.engine.cut(&[(1, Default::default())]).unwrap().epochs[0].1;
        self.engine.settle(1, epoch).unwrap();
        self.engine.flush(1).unwrap();
        self.engine.export(&format!("v@{epoch}"), "", 1, Some(epoch)).unwrap();
        epoch
    }

    fn drop_snapshot(&self, epoch: u64) {
        self.engine.exports.remove(&format!("v@{epoch}")).unwrap();
        self.engine.drop_snapshot(1, epoch).unwrap();
    }

    fn write(&mut self, number: u64, seed: u64) -> Result<(), Errno> {
        let bytes = block(seed);
        let result = self.client.write(number * 4096, &bytes, false);
        if result.is_ok() {
            self.live[number as usize * 4096..][..4096].copy_from_slice(&bytes);
        }
        result
    }

    /// Redirects as many blocks as the log has slots.
    fn fill(&mut self) {
        for number in 0..LOG_BLOCKS {
            assert_eq!(self.write(number, number + 5000), Ok(()), "block {number} finds a slot");
        }
        assert_eq!(self.engine.volume(1).unwrap().space.free(), 0);
    }

    /// Writes these blocks, each on a thread of its own; they wait.
    fn wait_for_space(
        &mut self,
        numbers: std::ops::Range<u64>,
    ) -> Vec<JoinHandle<Result<(), Errno>>> {
        let begin = |number: u64| {
            let (client, bytes) = (Arc::clone(&self.client), block(number + 9000));
            self.live[number as usize * 4096..][..4096].copy_from_slice(&bytes);
            std::thread::spawn(move || client.write(number * 4096, &bytes, false))
        };
        let writers: Vec<_> = numbers.map(begin).collect();
        assert_eq!(self.engine.events.next(PROMPT_MAX), Some(Event::LogFull(1)));
        writers
    }

    fn check(&self) {
        let read = self.client.read(0, SIZE).unwrap();
        assert!(read.data.as_slice() == self.live);
    }

    fn stop(self) {
        let Full { engine, client, scratch, .. } = self;
        drop(client);
        engine.stop().unwrap();
        drop(scratch);
    }
}

fn extent(device: u64, offset: u64, length: u64) -> ExtentSpec {
    ExtentSpec { device, offset, length }
}

fn ends(writers: Vec<JoinHandle<Result<(), Errno>>>) -> Vec<Result<(), Errno>> {
    writers.into_iter().map(|writer| writer.join().unwrap()).collect()
}

#[test]
fn every_slot_is_used_by_the_processor_that_needs_it_and_then_writes_are_refused() {
    let mut full = Full::new();
    full.cut();
    full.fill();
    for number in LOG_BLOCKS..LOG_BLOCKS + 12 {
        assert_eq!(full.write(number, 1), Err(Errno::ENOSPC));
    }
    // All of one processor's blocks, so that only it redirects.
    full.check();
    full.stop();
    let mut full = Full::new();
    full.cut();
    let mine = (0..BLOCKS).filter(|number| number / 256 % 3 == 1);
    let done = mine.map(|number| full.write(number, number + 1)).filter(Result::is_ok).count();
    assert_eq!(done as u64, LOG_BLOCKS);
    full.check();
    full.stop();
}

#[test]
fn a_log_that_is_added_lets_the_writes_continue_that_wait_for_slots() {
    let mut full = Full::new();
    full.engine.ask_when_full(1, true).unwrap();
    full.cut();
    full.fill();
    let writers = full.wait_for_space(LOG_BLOCKS..LOG_BLOCKS + 9);
    assert_eq!(full.engine.events.next(Duration::from_millis(100)), None, "asked once");
    assert!(writers.iter().all(|writer| !writer.is_finished()));
    full.engine.add_log(1, 2, &[extent(3, 0, 16 * MIB)], &Default::default()).unwrap();
    assert!(ends(writers).iter().all(Result::is_ok));
    for number in LOG_BLOCKS + 9..BLOCKS {
        assert_eq!(full.write(number, number), Ok(()));
    }
    full.check();
    let use_now = full.engine.volume(1).unwrap().space.usage();
    assert_eq!((use_now.used, use_now.size), (BLOCKS, 5 * LOG_BLOCKS));
    full.stop();
}

#[test]
fn while_writes_wait_everything_else_continues_and_without_space_they_are_refused() {
    let mut full = Full::new();
    full.engine.ask_when_full(1, true).unwrap();
    let first = full.cut();
    full.fill();
    let before = full.live.clone();
    let writers = full.wait_for_space(2000..2006);
    // A complete cut, reads, a trim, a flush; a deletion that frees nothing.
    let second = full.cut();
    full.client.read(0, MIB).unwrap();
    full.client.range(Verb::Trim, 2500 * 4096, 4096, false).unwrap();
    full.live[2500 * 4096..2501 * 4096].fill(0);
    full.client.flush().unwrap();
    let third = full.cut();
    full.drop_snapshot(second);
    assert!(writers.iter().all(|writer| !writer.is_finished()));
    full.engine.ask_when_full(1, false).unwrap();
    assert!(ends(writers).iter().all(|result| *result == Err(Errno::ENOSPC)));
    full.live[2000 * 4096..2006 * 4096].copy_from_slice(&before[2000 * 4096..2006 * 4096]);
    assert_eq!(full.write(2000, 1), Err(Errno::ENOSPC), "at once");
    full.check();
    full.drop_snapshot(third);
    full.drop_snapshot(first);
    assert_eq!(full.write(2000, 2), Ok(()));
    full.check();
    full.stop();
}

#[test]
fn space_that_is_freed_in_steps_is_requested_until_it_is_enough() {
    let mut full = Full::new();
    full.engine.ask_when_full(1, true).unwrap();
    let first = full.cut();
    for number in 0..10 {
        full.write(number, number + 70).unwrap();
    }
    let second = full.cut();
    for number in 10..LOG_BLOCKS {
        full.write(number, number + 80).unwrap();
    }
    let writers = full.wait_for_space(1500..1501);
    full.drop_snapshot(first); // the second one sees all that it saw, except ten base blocks
    full.engine.try_again(1).unwrap();
    assert_eq!(full.engine.events.next(PROMPT_MAX), Some(Event::LogFull(1)));
    assert!(writers.iter().all(|writer| !writer.is_finished()));
    full.drop_snapshot(second);
    assert!(ends(writers).iter().all(Result::is_ok));
    full.engine.try_again(1).unwrap();
    assert_eq!(full.engine.events.next(Duration::from_millis(100)), None);
    full.check();
    full.stop();
}

#[test]
fn a_stop_ends_the_writes_that_wait() {
    let mut full = Full::new();
    full.engine.ask_when_full(1, true).unwrap();
    full.cut();
    full.fill();
    let writers = full.wait_for_space(2000..2010);
    let engine = Arc::clone(&full.engine);
    std::thread::spawn(move || engine.stop()).join().unwrap().unwrap();
    assert!(ends(writers).iter().all(Result::is_err));
    assert_eq!(full.engine.events.next(PROMPT_MAX), None);
    full.stop();
}

#[test]
fn large_writes_that_wait_together_leave_no_slot_unused() {
    let mut full = Full::new();
    full.engine.ask_when_full(1, true).unwrap();
    let epoch = full.cut();
    for number in 0..LOG_BLOCKS - 200 {
        full.write(number, number + 5).unwrap();
    }
    // Each needs more than the 200 slots that are left.
    let large = |number: u64| {
        let (client, bytes) = (Arc::clone(&full.client), vec![number as u8; MIB as usize]);
        std::thread::spawn(move || client.write(number * MIB, &bytes, false))
    };
    let writers: Vec<_> = [6, 7, 8].map(large).into();
    assert_eq!(full.engine.events.next(PROMPT_MAX), Some(Event::LogFull(1)));
    // Small writes still fit.
    let bytes = block(3);
    full.client.write(11 * MIB, &bytes, false).unwrap();
    full.drop_snapshot(epoch);
    assert!(ends(writers).iter().all(Result::is_ok));
    for number in 6..9u64 {
        full.live[(number * MIB) as usize..][..MIB as usize].fill(number as u8);
    }
    for number in 0..LOG_BLOCKS - 200 {
        full.live[number as usize * 4096..][..4096].copy_from_slice(&block(number + 5));
    }
    full.live[11 * MIB as usize..][..4096].copy_from_slice(&bytes);
    full.check();
    full.stop();
}

/// Overwrites blocks of its own range, `rounds` times one to forty of them.
fn overwrite(client: &LocalClient, blocks: std::ops::Range<u64>, rounds: u64) -> Vec<u64> {
    let count = blocks.end - blocks.start;
    let mut seeds = vec![u64::MAX; count as usize];
    for round in 0..rounds {
        let first = (round * 31 + blocks.start) % count;
        let length = if round % 9 == 0 { 40.min(count - first) } else { 1 };
        let seed = round * 13 + blocks.start;
        let bytes: Vec<u8> = (first..first + length).flat_map(|n| block(seed + n)).collect();
        client.write((blocks.start + first) * 4096, &bytes, false).unwrap();
        (first..first + length).for_each(|n| seeds[n as usize] = seed + n);
    }
    seeds
}

#[test]
fn writers_that_always_lack_slots_all_get_through() {
    let mut full = Full::new();
    full.engine.ask_when_full(1, true).unwrap();
    full.cut();
    let ended = Arc::new(std::sync::atomic::AtomicBool::new(false));
    // They use 744 slots at most, and 280 are left for redirected blocks: slots always become free.
    let asked = {
        let (engine, ended) = (Arc::clone(&full.engine), Arc::clone(&ended));
        std::thread::spawn(move || {
            let mut asked = 0;
            while !ended.load(Ordering::Acquire) {
                if engine.events.next(Duration::from_millis(20)).is_some() {
                    asked += 1;
                    engine.try_again(1).unwrap();
                }
            }
            asked
        })
    };
    let begin = |n: u64| {
        let client = Arc::clone(&full.client);
        let blocks = n * 512 + 100..n * 512 + 100 + 124;
        std::thread::spawn(move || (blocks.clone(), overwrite(&client, blocks, 1500)))
    };
    let writers: Vec<_> = (0..6).map(begin).collect();
    for writer in writers {
        let (blocks, seeds) = writer.join().unwrap();
        for (number, seed) in blocks.zip(seeds).filter(|(_, seed)| *seed != u64::MAX) {
            full.live[number as usize * 4096..][..4096].copy_from_slice(&block(seed));
        }
    }
    ended.store(true, Ordering::Release);
    let asked = asked.join().unwrap();
    assert!(asked < 20, "{asked} events, although slots were about to become free");
    full.check();
    full.stop();
}
