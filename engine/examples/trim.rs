//! trim: measures how long a TRIM of a whole large volume takes when half of it is redirected, and its effect on other
//! requests.
//!
//! How it works      `trim DIRECTORY [--volume-gib N]` makes a volume over sparse files in DIRECTORY, cuts it, and
//!                   writes its first half with zeroes, 64 KiB at a time, which redirects it. Then one client trims all
//!                   of it, 1 GiB per request, while another reads single blocks of it. Prints one line of JSON: the
//!                   duration of the TRIM, how many reads were answered during it, and the longest of them. The files
//!                   are removed at the end.
//! What is not real  the data: the log area is hollow, as in `recovery`. Everything else is the same as for a host's
//!                   requests, from the export on.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

#[path = "../tests/hollow/mod.rs"]
mod hollow;

use hollow::{Hollow, shuffled};

use polyvol_engine::engine::Engine;
use polyvol_engine::engine::spec::{ExtentSpec, Manifests, VolumeSpec};
use polyvol_engine::io::device::Mode;
use polyvol_engine::request::Verb;
use polyvol_engine::system::linux::Linux;
use polyvol_engine::volume::local_client::LocalClient;

const BLOCK: u64 = 4096;
const PARTITION: u64 = 64 << 20;
const PROCESSORS: u64 = 2;
const CHUNK: u64 = 4 << 20;
const WRITE_BYTES: u64 = 64 << 10;
const TRIM_BYTES: u64 = 1 << 30;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (directory, gib) = match arguments.as_slice() {
        [directory] => (directory, Some(1024)),
        [directory, option, gib] if option == "--volume-gib" => (directory, gib.parse().ok()),
        _ => (&String::new(), None),
    };
    let Some(gib) = gib.filter(|gib: &u64| (1..=1024).contains(gib)) else {
        eprintln!("usage: trim DIRECTORY [--volume-gib N]");
        std::process::exit(2);
    };
    let directory = PathBuf::from(directory);
    measure(&directory, gib << 30);
    fs::remove_dir_all(&directory).expect("the files can be removed");
}

fn measure(directory: &Path, volume: u64) {
    let engine = serve(directory, volume);
    let client = || LocalClient::new(engine.exports.attach("v").expect("an export"));
    let began = Instant::now();
    std::thread::scope(|scope| {
        for processor in 0..PROCESSORS {
            let client = client();
            scope.spawn(move || redirect(&client, volume / 2, processor));
        }
    });
    let filled = began.elapsed();
    let (trimmer, reader, ended) = (client(), client(), AtomicBool::new(false));
    let began = Instant::now();
    let (trimmed, reads, longest) = std::thread::scope(|scope| {
        let reading = scope.spawn(|| read(&reader, volume / BLOCK, &ended));
        for offset in (0..volume).step_by(TRIM_BYTES as usize) {
            let length = TRIM_BYTES.min(volume - offset);
            trimmer.range(Verb::Trim, offset, length, false).expect("a trim");
        }
        let trimmed = began.elapsed();
        ended.store(true, Ordering::Relaxed);
        let (reads, longest) = reading.join().expect("the reader has ended");
        (trimmed, reads, longest)
    });
    println!(
        "{{\"seconds\":{:.6},\"reads\":{reads},\"longest_read_ms\":{:.3},\"redirecting_seconds\":{:.1}}}",
        trimmed.as_secs_f64(),
        longest.as_secs_f64() * 1e3,
        filled.as_secs_f64()
    );
    drop((trimmer, reader));
    engine.stop().expect("a clean stop");
}

/// Writes one processor's part of the first bytes.
fn redirect(client: &LocalClient, bytes: u64, processor: u64) {
    let zeroes = vec![0; WRITE_BYTES as usize];
    for offset in (0..bytes).step_by(WRITE_BYTES as usize) {
        if offset / PARTITION % PROCESSORS == processor {
            client.write(offset, &zeroes, false).expect("a write");
        }
    }
}

/// Reads single blocks until the end; returns how many, and the longest.
fn read(client: &LocalClient, blocks: u64, ended: &AtomicBool) -> (u64, Duration) {
    let bits = blocks.next_power_of_two().trailing_zeros();
    let (mut reads, mut longest) = (0, Duration::ZERO);
    while !ended.load(Ordering::Relaxed) {
        let block = shuffled(reads % blocks, bits) % blocks;
        let began = Instant::now();
        client.read(block * BLOCK, BLOCK).expect("a read");
        longest = longest.max(began.elapsed());
        reads += 1;
    }
    (reads, longest)
}

/// A volume that was cut, exported as `v`.
fn serve(directory: &Path, volume: u64) -> Engine {
    fs::create_dir(directory).expect("DIRECTORY must not exist");
    let log = (volume / 2 + volume / 20).next_multiple_of(CHUNK) + CHUNK * 16;
    for (name, size) in [("base", volume), ("log", log)] {
        let file = fs::File::create(directory.join(name)).expect("a file can be made");
        file.set_len(size).expect("it can be sparse");
    }
    let engine =
        Engine::with_system(Arc::new(Hollow(Linux)), PROCESSORS as u32).expect("an engine");
    for (id, name) in [(1, "base"), (2, "log")] {
        engine.open_device(id, &directory.join(name), Mode::SPARSE).expect("a device");
    }
    let part = |number: u64| {
        let length = PARTITION.min(volume - number * PARTITION);
        let extent = ExtentSpec { device: 1, offset: number * PARTITION, length };
        ((number % PROCESSORS) as u32, vec![extent])
    };
    let spec = VolumeSpec {
        id: 1,
        uuid: [7; 16],
        name: "v".to_owned(),
        size: volume,
        partition_size: PARTITION,
        partitions: (0..volume.div_ceil(PARTITION)).map(part).collect(),
        logs: vec![(1, vec![ExtentSpec { device: 2, offset: 0, length: log }])],
        log_rules: Default::default(),
        directory: directory.join("volume"),
        manifests: Manifests::new(directory.join("manifests")),
        next_epoch: 1,
        bounds: Vec::new(),
        rollbacks: Vec::new(),
        origin: None,
        snapshots: Vec::new(),
    };
    engine.add_volume(spec).expect("a volume");
    engine.export("v", "", 1, None).expect("an export");
    let epoch = engine.cut(&[(1, Default::default())]).expect("a cut").epochs[0].1;
    engine.settle(1, epoch).expect("it settles");
    engine.flush(1).expect("it is flushed");
    engine
}
