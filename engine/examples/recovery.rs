//! recovery: measures how long a volume with millions of redirected blocks takes to be served again, and the memory of
//! its maps.
//!
//! How it works      `recovery DIRECTORY [--blocks N] [--volume-gib N] [--sequential]` makes a volume over sparse files
//!                   in DIRECTORY, cuts it, and redirects N blocks in single writes of 4 KiB, at random or in order, in
//!                   a process of its own, which it then kills. It starts the volume again twice, each time in a new
//!                   process: after the kill, and after a clean stop. Each prints its times. The files are removed at
//!                   the end.
//! What is not real  the data: the blocks written to slots are zeroes, and are not written; a sparse file
//!                   reads as zeroes, so all reads are right. Everything else is the same as for a host's writes.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

#[path = "../tests/hollow/mod.rs"]
mod hollow;

use hollow::{Hollow, shuffled};

use polyvol_engine::engine::Engine;
use polyvol_engine::engine::spec::{ExtentSpec, Manifests, VolumeSpec};
use polyvol_engine::io::device::Mode;
use polyvol_engine::system::linux::Linux;
use polyvol_engine::volume::local_client::LocalClient;

const BLOCK: u64 = 4096;
const PARTITION: u64 = 64 << 20;
const PROCESSORS: u64 = 2;
const CHUNK: u64 = 4 << 20;

/// The arguments.
#[derive(Clone)]
struct Wanted {
    directory: PathBuf,
    blocks: u64,
    volume: u64,
    sequential: bool,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut wanted = Wanted {
        directory: PathBuf::new(),
        blocks: 25_000_000,
        volume: 100 << 30,
        sequential: false,
    };
    let mut role = None;
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let mut number = || words.next().and_then(|n| n.parse::<u64>().ok());
        match word.as_str() {
            "--blocks" => wanted.blocks = number().unwrap_or(0),
            "--volume-gib" => wanted.volume = number().unwrap_or(0) << 30,
            "--sequential" => wanted.sequential = true,
            "--fill" | "--start" => role = Some(word.clone()),
            path => wanted.directory = PathBuf::from(path),
        }
    }
    let fits = wanted.blocks > 0 && wanted.blocks <= wanted.volume / BLOCK;
    if wanted.directory.as_os_str().is_empty() || !fits {
        eprintln!("usage: recovery DIRECTORY [--blocks N] [--volume-gib N] [--sequential]");
        std::process::exit(2);
    }
    match role.as_deref() {
        Some("--fill") => fill(&wanted),
        Some(_) => start(&wanted),
        None => conduct(&wanted, &arguments),
    }
}

/// Runs the child processes, one after the other.
fn conduct(wanted: &Wanted, arguments: &[String]) {
    fs::create_dir(&wanted.directory).expect("DIRECTORY must not exist");
    let log =
        (wanted.blocks * BLOCK + wanted.blocks * BLOCK / 10).next_multiple_of(CHUNK) + CHUNK * 16;
    for (name, size) in [("base", wanted.volume), ("log", log)] {
        let file = fs::File::create(wanted.directory.join(name)).expect("a file can be made");
        file.set_len(size).expect("it can be sparse");
    }
    println!("{} blocks of a volume of {} GiB", wanted.blocks, wanted.volume >> 30);
    let run = |role: &str| -> Child {
        let itself = std::env::current_exe().expect("this program has a path");
        let mut command = Command::new(itself);
        command.args(arguments).arg(role).stdout(Stdio::piped());
        command.spawn().expect("a process can be started")
    };
    let mut child = run("--fill");
    follow(&mut child, true);
    child.kill().expect("it can be killed");
    child.wait().expect("it has ended");
    println!("killed; state directory {}", mib(directory_bytes(&wanted.directory.join("volume"))));
    for what in ["after the kill", "after a clean stop"] {
        println!("{what}:");
        let mut child = run("--start");
        follow(&mut child, false);
        assert!(child.wait().expect("it has ended").success(), "the volume was started");
    }
    fs::remove_dir_all(&wanted.directory).expect("the files can be removed");
}

/// Copies a child's output, to its end or until it is ready.
fn follow(child: &mut Child, until_ready: bool) {
    let out = child.stdout.take().expect("it was piped");
    for line in BufReader::new(out).lines() {
        let line = line.expect("lines are text");
        if until_ready && line == "ready" {
            return;
        }
        println!("{line}");
    }
    assert!(!until_ready, "it has ended early");
}

fn engine(wanted: &Wanted) -> Engine {
    let engine =
        Engine::with_system(Arc::new(Hollow(Linux)), PROCESSORS as u32).expect("an engine");
    for (id, name) in [(1, "base"), (2, "log")] {
        engine.open_device(id, &wanted.directory.join(name), Mode::SPARSE).expect("a device");
    }
    engine
}

fn spec(wanted: &Wanted, snapshots: Vec<u64>) -> VolumeSpec {
    let part = |number: u64| {
        let length = PARTITION.min(wanted.volume - number * PARTITION);
        let extent = ExtentSpec { device: 1, offset: number * PARTITION, length };
        ((number % PROCESSORS) as u32, vec![extent])
    };
    let log = fs::metadata(wanted.directory.join("log")).expect("it was made").len();
    VolumeSpec {
        id: 1,
        uuid: [7; 16],
        name: "v".to_owned(),
        size: wanted.volume,
        partition_size: PARTITION,
        partitions: (0..wanted.volume.div_ceil(PARTITION)).map(part).collect(),
        logs: vec![(1, vec![ExtentSpec { device: 2, offset: 0, length: log }])],
        log_rules: Default::default(),
        directory: wanted.directory.join("volume"),
        manifests: Manifests::new(wanted.directory.join("manifests")),
        next_epoch: snapshots.last().map_or(1, |last| last + 1),
        bounds: Vec::new(),
        rollbacks: Vec::new(),
        origin: None,
        snapshots: snapshots.into_iter().map(|epoch| (epoch, Default::default())).collect(),
    }
}

/// The blocks to redirect that belong to one processor, in order.
fn blocks(wanted: &Wanted, processor: u64) -> impl Iterator<Item = u64> {
    let all = wanted.volume / BLOCK;
    let bits = all.next_power_of_two().trailing_zeros().max(2);
    let (sequential, count) = (wanted.sequential, wanted.blocks);
    (0..1u64 << bits)
        .map(move |n| if sequential { n } else { shuffled(n, bits) })
        .filter(move |block| *block < all)
        .take(count as usize)
        .filter(move |block| block * BLOCK / PARTITION % PROCESSORS == processor)
}

fn fill(wanted: &Wanted) {
    let engine = engine(wanted);
    engine.add_volume(spec(wanted, Vec::new())).expect("a volume");
    engine.export("v", "", 1, None).expect("an export");
    let (before, _, _) = memory();
    let epoch = engine.cut(&[(1, Default::default())]).expect("a cut").epochs[0].1;
    engine.settle(1, epoch).expect("it settles");
    engine.flush(1).expect("it is flushed");
    let began = Instant::now();
    let slowest = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for processor in 0..PROCESSORS {
            let client = LocalClient::new(engine.exports.attach("v").expect("an export"));
            let slowest = &slowest;
            scope.spawn(move || {
                for block in blocks(wanted, processor) {
                    let began = Instant::now();
                    client.write(block * BLOCK, &[0; BLOCK as usize], false).expect("a write");
                    slowest.fetch_max(began.elapsed().as_micros() as u64, Ordering::Relaxed);
                }
            });
        }
    });
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "  redirected in {seconds:.1} s, {:.2} us of computing each; the slowest write took {} us",
        computed() * 1e6 / wanted.blocks as f64,
        slowest.load(Ordering::Relaxed)
    );
    print_memory(wanted, before);
    println!("  state directory {}", mib(directory_bytes(&wanted.directory.join("volume"))));
    println!("ready");
    loop {
        std::thread::park();
    }
}

fn start(wanted: &Wanted) {
    let engine = engine(wanted);
    let (before, _, _) = memory();
    let began = Instant::now();
    engine.add_volume(spec(wanted, vec![1])).expect("a volume");
    engine.export("v", "", 1, None).expect("an export");
    let (served, cost) = (began.elapsed(), computed());
    let client = LocalClient::new(engine.exports.attach("v").expect("an export"));
    let block = blocks(wanted, 0).next().expect("there is one");
    let read = client.read(block * BLOCK, BLOCK).expect("it reads");
    assert!(read.data.as_slice().iter().all(|byte| *byte == 0));
    println!(
        "  served after {:.3} s ({cost:.3} s of computing), first read after {:.3} s",
        served.as_secs_f64(),
        began.elapsed().as_secs_f64()
    );
    client.write(block * BLOCK, &[0; BLOCK as usize], false).expect("a write");
    println!("  first redirected write after {:.3} s", began.elapsed().as_secs_f64());
    print_memory(wanted, before);
    let mapped: u64 = engine
        .partitions(1, 0..u32::MAX)
        .expect("partitions")
        .iter()
        .map(|one| u64::from(one.places.slots + one.places.zeroes))
        .sum();
    assert_eq!(mapped, wanted.blocks, "every block that was redirected");
    // Random reads, whose cost is mostly the look-up and the call.
    let before = computed();
    let reads = 200_000;
    for block in blocks(wanted, 0).chain(blocks(wanted, 1)).take(reads) {
        client.read(block * BLOCK, BLOCK).expect("it reads");
    }
    println!("  a random read computes {:.2} us", (computed() - before) * 1e6 / reads as f64);
    drop(client);
    let began = Instant::now();
    engine.stop().expect("a clean stop");
    println!("  stopped in {:.3} s", began.elapsed().as_secs_f64());
    println!("  state directory {}", mib(directory_bytes(&wanted.directory.join("volume"))));
}

/// CPU time of this process, in all its threads and in the kernel, seconds. Elapsed time would depend on other load of
/// the machine.
fn computed() -> f64 {
    let usage = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    usage.tv_sec as f64 + usage.tv_nsec as f64 / 1e9
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64)
}

fn directory_bytes(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).expect("it is there");
    entries.map(|entry| entry.and_then(|e| e.metadata()).map_or(0, |found| found.len())).sum()
}

/// Bytes of memory: anonymous now, the peak, and all that is resident.
fn memory() -> (u64, u64, u64) {
    let status = fs::read_to_string("/proc/self/status").expect("Linux says so");
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).expect("it has the field");
        let number: String = line.chars().filter(char::is_ascii_digit).collect();
        number.parse::<u64>().expect("a number") << 10
    };
    (field("RssAnon:"), field("VmHWM:"), field("VmRSS:"))
}

fn print_memory(wanted: &Wanted, before: u64) {
    let (own, most, resident) = memory();
    println!(
        "  memory {} of its own, {} more than before: {:.2} bytes for each block; resident {}, at most {}",
        mib(own),
        mib(own - before),
        (own - before) as f64 / wanted.blocks as f64,
        mib(resident),
        mib(most)
    );
}
