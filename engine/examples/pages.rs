//! pages: measures how long the engine takes to describe partitions, partition snapshots and change logs.
//!
//! How it works      `pages DIRECTORY` makes a volume of a million partitions over sparse files in DIRECTORY, takes
//!                   snapshots, and writes some blocks of every 64th partition between them; then one of 16,384
//!                   partitions that are all written. Prints one line of JSON: the durations of a page of 10,000
//!                   partitions, of their partition snapshots, of their change logs, and of 16,384 partition
//!                   snapshots at once, milliseconds, each the median of nine; how long a cut with 16,384 written
//!                   partitions takes to settle; how long a write of 4 KiB in place takes on a thread of this process,
//!                   without a protocol, and how much of it is counting, nanoseconds. The files are removed at the end.
//! What is not real  the data: the log area is hollow, as in `recovery`.

use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

#[path = "../tests/hollow/mod.rs"]
#[allow(dead_code)]
mod hollow;

use hollow::Hollow;

use polyvol_engine::block_map::counters::Counters;
use polyvol_engine::block_map::versions::Versions;
use polyvol_engine::change_log::log_rules::LogRules;
use polyvol_engine::engine::Engine;
use polyvol_engine::engine::spec::{ExtentSpec, Manifests, VolumeSpec};
use polyvol_engine::io::device::Mode;
use polyvol_engine::system::System;
use polyvol_engine::system::linux::Linux;
use polyvol_engine::volume::local_client::LocalClient;

const BLOCK: u64 = 4096;
const PARTITION: u64 = 1 << 20;
const PROCESSORS: u64 = 2;
const MANY: u64 = 1_000_000;
const WRITTEN: u64 = 16_384;
const PAGE: u32 = 10_000;
const LOG: u64 = 64 << 30;
const SNAPSHOTS: u64 = 4;
const WRITES: u64 = 200_000;

fn main() {
    let Some(directory) = std::env::args().nth(1).map(PathBuf::from) else {
        eprintln!("usage: pages DIRECTORY");
        std::process::exit(2);
    };
    fs::create_dir(&directory).expect("a new directory");
    let (engine, epochs, _) = serve(&directory.join("many"), MANY, 64);
    let page = 500_000..500_000 + PAGE;
    let last = *epochs.last().expect("it has snapshots");
    let partitions = median(|| engine.partitions(1, page.clone()).expect("a page").len());
    let snapshots =
        median(|| engine.partition_snapshots(1, last, page.clone()).expect("a page").len());
    let logs = median(|| engine.change_logs(1, page.clone(), None).expect("a page").len());
    engine.stop().expect("it stops");
    let (engine, epochs, settle) = serve(&directory.join("written"), WRITTEN, 1);
    let all = 0..WRITTEN as u32;
    let written =
        median(|| engine.partition_snapshots(1, epochs[1], all.clone()).expect("all").len());
    let all_logs = median(|| engine.change_logs(1, all.clone(), None).expect("all").len());
    let (write, counting) = (write_ns(&engine), counting_ns());
    engine.stop().expect("it stops");
    println!(
        "{{\"page_partitions_ms\":{partitions:.2},\"page_snapshots_ms\":{snapshots:.2},\
         \"page_logs_ms\":{logs:.2},\"snapshots_16384_ms\":{written:.2},\
         \"logs_16384_ms\":{all_logs:.2},\"settle_16384_ms\":{settle:.2},\
         \"write_4k_ns\":{write:.0},\"counting_ns\":{counting:.1}}}"
    );
    fs::remove_dir_all(&directory).expect("the files can be removed");
}

/// The median duration of nine runs, milliseconds.
fn median(mut work: impl FnMut() -> usize) -> f64 {
    let run = |_| {
        let began = Instant::now();
        assert!(work() > 0, "there is something");
        began.elapsed().as_secs_f64() * 1e3
    };
    let mut times: Vec<f64> = (0..9).map(run).collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// The duration of a write of 4 KiB in place, nanoseconds.
fn write_ns(engine: &Engine) -> f64 {
    for epoch in engine.snapshot_use(1).expect("its snapshots").snapshots {
        engine.drop_snapshot(1, epoch.0).expect("it is dropped");
    }
    let client = LocalClient::new(engine.exports.attach("v").expect("an export"));
    let block = [0; BLOCK as usize];
    // The first writes bring redirected blocks back to their base places.
    let write = |n: u64| client.write((n % 1024) * 64 * BLOCK, &block, false).expect("a write");
    (0..2048).for_each(write);
    let began = Instant::now();
    (0..WRITES).for_each(write);
    began.elapsed().as_secs_f64() * 1e9 / WRITES as f64
}

/// How long it takes to count a write as the fast path does, nanoseconds.
fn counting_ns() -> f64 {
    let versions = Versions::new(256);
    let began = Instant::now();
    for _ in 0..WRITES * 50 {
        let now = Linux.coarse_wall_ns();
        let counted = Counters { writes: 1, written_bytes: BLOCK, last_write_ns: now };
        black_box(&versions).count_shared(black_box(counted));
    }
    began.elapsed().as_secs_f64() * 1e9 / (WRITES * 50) as f64
}

/// Serves a volume whose every nth partition was written after each of its snapshots; returns the snapshots' epochs
/// too, and how long the last one took to settle, milliseconds.
fn serve(directory: &Path, count: u64, every: usize) -> (Engine, Vec<u64>, f64) {
    fs::create_dir(directory).expect("a new directory");
    for (name, size) in [("base", count * PARTITION), ("log", LOG)] {
        let file = fs::File::create(directory.join(name)).expect("a new file");
        file.set_len(size).expect("a sparse file");
    }
    let system = Arc::new(Hollow(Linux));
    let engine = Engine::with_system(system, PROCESSORS as u32).expect("an engine");
    for (id, name) in [(1, "base"), (2, "log")] {
        engine.open_device(id, &directory.join(name), Mode::SPARSE).expect("a device");
    }
    let base = |n: u64| ExtentSpec { device: 1, offset: n * PARTITION, length: PARTITION };
    let spec = VolumeSpec {
        id: 1,
        uuid: [1; 16],
        name: "v".to_owned(),
        size: count * PARTITION,
        partition_size: PARTITION,
        partitions: (0..count).map(|n| ((n % PROCESSORS) as u32, vec![base(n)])).collect(),
        logs: vec![(1, vec![ExtentSpec { device: 2, offset: 0, length: LOG }])],
        log_rules: LogRules::default(),
        directory: directory.join("volume"),
        manifests: Manifests::new(directory.join("volume")),
        snapshots: Vec::new(),
        next_epoch: 1,
        bounds: Vec::new(),
        rollbacks: Vec::new(),
        origin: None,
    };
    engine.add_volume(spec).expect("a volume");
    engine.export("v", "", 1, None).expect("an export");
    let client = LocalClient::new(engine.exports.attach("v").expect("an export"));
    let (mut epochs, mut settle) = (Vec::new(), 0.0);
    for snapshot in 0..SNAPSHOTS {
        for partition in (0..count).step_by(every) {
            let offset = partition * PARTITION + snapshot * 7 * BLOCK;
            client.write(offset, &[0; 3 * BLOCK as usize], false).expect("a write");
        }
        let epoch = engine.cut(&[(1, LogRules::default())]).expect("a cut").epochs[0].1;
        let began = Instant::now();
        engine.settle(1, epoch).expect("it settles");
        settle = began.elapsed().as_secs_f64() * 1e3;
        epochs.push(epoch);
    }
    (engine, epochs, settle)
}
