//! load: NBD requests against one export, with as little overhead of its own as possible.
//!
//! How it works      `load --socket PATH --export NAME --rw PATTERN ...` keeps `--depth` requests in flight on each of
//!                   `--connections` unix-socket connections, one thread each: for the replies in one `recv` it sends
//!                   new requests with one `sendmsg`. It ends after `--seconds`, after `--requests` requests, or at the
//!                   end of its standard input with `--until-eof`, and prints one line of JSON: requests, bytes,
//!                   seconds, latencies in ns. The caller measures its CPU time. Offsets are complete blocks: in order,
//!                   or by a permutation in which no block occurs twice before all occurred once.
//! Latency           from before the `sendmsg` to after the `recv` with the complete reply. Stored in buckets less than
//!                   2 % wide. Those of `--slow-us` or more are listed, with the time of their end.
//! Errors            one sentence on stderr and exit code 1, also if the server answered a request with an error.

use std::io::{self, IoSlice, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REQUEST_BYTES: usize = 28;
const REPLY_BYTES: usize = 16;
const INBOX_BYTES: usize = 1 << 20;
const SLOW_LISTED_MAX: usize = 100_000;
const TIMEOUT: Duration = Duration::from_secs(60);
/// Each power of two of nanoseconds has this many buckets.
const BUCKETS_PER_DOUBLING: u64 = 64;

#[derive(Clone)]
struct Settings {
    socket: String,
    export: String,
    write: bool,
    random: bool,
    block: usize,
    depth: usize,
    connections: u64,
    seconds: f64,
    requests: u64,
    /// Blocks of the export that are used, from its start; 0: all.
    blocks: u64,
    seed: u64,
    slow: Duration,
    until_eof: bool,
}

/// Results of one connection.
struct Seen {
    requests: u64,
    buckets: Vec<u64>,
    longest: u64,
    /// When it ended, nanoseconds since 1970, and its latency in nanoseconds.
    slow: Vec<(u64, u64)>,
}

fn main() {
    match parse(std::env::args().skip(1)).and_then(|settings| run(&settings)) {
        Ok(()) => {}
        Err(why) => {
            eprintln!("load: {why}");
            std::process::exit(1);
        }
    }
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Settings, String> {
    let mut settings = Settings {
        socket: String::new(),
        export: String::new(),
        write: false,
        random: true,
        block: 4096,
        depth: 16,
        connections: 1,
        seconds: 1.0,
        requests: u64::MAX,
        blocks: 0,
        seed: 1,
        slow: Duration::MAX,
        until_eof: false,
    };
    while let Some(option) = arguments.next() {
        if option == "--until-eof" {
            settings.until_eof = true;
            continue;
        }
        let value = arguments.next().ok_or_else(|| format!("{option} needs a value"))?;
        let number = || value.parse::<u64>().map_err(|_| format!("{option} needs a number"));
        match option.as_str() {
            "--socket" => settings.socket = value,
            "--export" => settings.export = value,
            "--rw" => {
                settings.write = value.ends_with("write");
                settings.random = value.starts_with("rand");
            }
            "--block" => settings.block = number()?.clamp(512, 1 << 20) as usize,
            "--depth" => settings.depth = number()?.clamp(1, 1024) as usize,
            "--connections" => settings.connections = number()?.clamp(1, 64),
            "--seconds" => settings.seconds = value.parse().map_err(|_| "--seconds: no number")?,
            "--requests" => settings.requests = number()?,
            "--blocks" => settings.blocks = number()?,
            "--seed" => settings.seed = number()?,
            "--slow-us" => settings.slow = Duration::from_micros(number()?),
            _ => return Err(format!("there is no option {option}")),
        }
    }
    Ok(settings)
}

fn run(settings: &Settings) -> Result<(), String> {
    let stop = Arc::new(AtomicBool::new(false));
    if settings.until_eof {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || {
            let _ = io::copy(&mut io::stdin(), &mut io::sink());
            stop.store(true, Ordering::Relaxed);
        });
    }
    let started = Instant::now();
    let threads: Vec<_> = (0..settings.connections)
        .map(|number| {
            let (settings, stop) = (settings.clone(), Arc::clone(&stop));
            std::thread::spawn(move || Connection::open(settings, number)?.work(&stop))
        })
        .collect();
    let mut all = Seen::new();
    for thread in threads {
        let seen = thread.join().map_err(|_| "a connection's thread broke off")?;
        all.add(&seen.map_err(|error| format!("on {}: {error}", settings.socket))?);
    }
    let seconds = started.elapsed().as_secs_f64();
    let slow: Vec<String> = all.slow.iter().map(|(end, ns)| format!("[{end},{ns}]")).collect();
    println!(
        "{{\"requests\":{},\"bytes\":{},\"seconds\":{seconds:.6},\"p50_ns\":{},\"p99_ns\":{},\"p99_9_ns\":{},\
         \"longest_ns\":{},\"slow\":[{}]}}",
        all.requests,
        all.requests * settings.block as u64,
        all.percentile(0.5),
        all.percentile(0.99),
        all.percentile(0.999),
        all.longest,
        slow.join(",")
    );
    Ok(())
}

struct Connection {
    settings: Settings,
    stream: UnixStream,
    order: Order,
    /// One message for each request that can be in flight: its header, and the payload of a write.
    messages: Vec<Vec<u8>>,
    sent_at: Vec<Instant>,
    seen: Seen,
}

impl Connection {
    fn open(mut settings: Settings, number: u64) -> io::Result<Connection> {
        let mut stream = UnixStream::connect(&settings.socket)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        let size = handshake(&mut stream, &settings.export)?;
        let all = size / settings.block as u64;
        let blocks = if settings.blocks == 0 { all } else { all.min(settings.blocks) };
        if blocks == 0 {
            return Err(io::Error::other("the export is smaller than a block"));
        }
        settings.seed = settings.seed.wrapping_add(number << 32);
        let length = REQUEST_BYTES + if settings.write { settings.block } else { 0 };
        let mut message: Vec<u8> = (0..length).map(|at| (at * 131 + 7) as u8).collect();
        message[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        message[4..8].copy_from_slice(&u32::from(settings.write).to_be_bytes());
        Ok(Connection {
            order: Order::new(blocks, settings.random, settings.seed),
            messages: vec![message; settings.depth],
            sent_at: vec![Instant::now(); settings.depth],
            seen: Seen::new(),
            settings,
            stream,
        })
    }

    fn work(mut self, stop: &AtomicBool) -> io::Result<Seen> {
        let end = Instant::now() + Duration::from_secs_f64(self.settings.seconds);
        let mut free: Vec<usize> = (0..self.settings.depth).collect();
        let mut left = self.settings.requests;
        let mut inbox = vec![0; INBOX_BYTES + self.settings.block + REPLY_BYTES];
        let mut filled = 0;
        let mut now = Instant::now();
        loop {
            if now >= end || stop.load(Ordering::Relaxed) {
                left = 0;
            }
            let count = free.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            left -= count as u64;
            self.ask(&free[..count])?;
            free.drain(..count);
            if free.len() == self.settings.depth {
                // 2: DISC.
                self.messages[0][4..8].copy_from_slice(&2_u32.to_be_bytes());
                self.stream.write_all(&self.messages[0][..REQUEST_BYTES])?;
                return Ok(self.seen);
            }
            let received = self.stream.read(&mut inbox[filled..])?;
            if received == 0 {
                return Err(io::Error::other("the server has closed the connection"));
            }
            filled += received;
            now = Instant::now();
            let taken = self.take_replies(&inbox[..filled], now, &mut free)?;
            inbox.copy_within(taken..filled, 0);
            filled -= taken;
        }
    }

    /// Sends these messages, each for the next offset.
    fn ask(&mut self, which: &[usize]) -> io::Result<()> {
        if which.is_empty() {
            return Ok(());
        }
        let now = Instant::now();
        let block = self.settings.block;
        for &number in which {
            let offset = self.order.next() * block as u64;
            let head = &mut self.messages[number];
            head[8..16].copy_from_slice(&(number as u64).to_be_bytes());
            head[16..24].copy_from_slice(&offset.to_be_bytes());
            head[24..28].copy_from_slice(&(block as u32).to_be_bytes());
            self.sent_at[number] = now;
        }
        let mut slices: Vec<_> =
            which.iter().map(|&number| IoSlice::new(&self.messages[number])).collect();
        let mut rest = slices.as_mut_slice();
        while !rest.is_empty() {
            let sent = self.stream.write_vectored(rest)?;
            IoSlice::advance_slices(&mut rest, sent);
        }
        Ok(())
    }

    /// Handles every complete reply; returns their length, bytes.
    fn take_replies(
        &mut self,
        bytes: &[u8],
        now: Instant,
        free: &mut Vec<usize>,
    ) -> io::Result<usize> {
        let payload = if self.settings.write { 0 } else { self.settings.block };
        let mut at = 0;
        while bytes.len() - at >= REPLY_BYTES {
            let (magic, error) = (be32(bytes, at), be32(bytes, at + 4));
            let number = be64(bytes, at + 8) as usize;
            if magic != REPLY_MAGIC || number >= self.sent_at.len() {
                return Err(io::Error::other("the server's reply is malformed"));
            }
            if error != 0 {
                return Err(io::Error::other(format!("the server answered with error {error}")));
            }
            if bytes.len() - at < REPLY_BYTES + payload {
                break;
            }
            at += REPLY_BYTES + payload;
            self.seen.note(now - self.sent_at[number], self.settings.slow);
            free.push(number);
        }
        Ok(at)
    }
}

/// The order in which blocks are used.
struct Order {
    blocks: u64,
    random: bool,
    seed: u64,
    next: u64,
    /// The next power of two from `blocks` on, minus one.
    mask: u64,
}

impl Order {
    fn new(blocks: u64, random: bool, seed: u64) -> Order {
        Order { blocks, random, seed, next: 0, mask: blocks.next_power_of_two() - 1 }
    }

    fn next(&mut self) -> u64 {
        loop {
            let number = self.next;
            self.next += 1;
            if !self.random {
                return number % self.blocks;
            }
            // Each step is invertible below the mask, so every number occurs once in each round.
            let half = self.mask.count_ones().div_ceil(2);
            let mut mixed =
                number.wrapping_add(self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)) & self.mask;
            for factor in [0xbf58_476d_1ce4_e5b9_u64, 0x94d0_49bb_1331_11eb] {
                mixed = (mixed ^ mixed >> half).wrapping_mul(factor) & self.mask;
            }
            mixed ^= mixed >> half;
            if mixed < self.blocks {
                return mixed;
            }
        }
    }
}

impl Seen {
    fn new() -> Seen {
        let buckets = vec![0; 64 * BUCKETS_PER_DOUBLING as usize];
        Seen { requests: 0, buckets, longest: 0, slow: Vec::new() }
    }

    fn note(&mut self, latency: Duration, slow: Duration) {
        let nanoseconds = latency.as_nanos() as u64;
        self.requests += 1;
        self.buckets[bucket(nanoseconds)] += 1;
        self.longest = self.longest.max(nanoseconds);
        if latency >= slow && self.slow.len() < SLOW_LISTED_MAX {
            let end = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            self.slow.push((end.as_nanos() as u64, nanoseconds));
        }
    }

    fn add(&mut self, other: &Seen) {
        self.requests += other.requests;
        self.longest = self.longest.max(other.longest);
        self.slow.extend_from_slice(&other.slow);
        for (ours, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *ours += theirs;
        }
    }

    /// The latency that this share of the requests did not exceed, nanoseconds; 0 without requests.
    fn percentile(&self, share: f64) -> u64 {
        let wanted = (self.requests as f64 * share).ceil() as u64;
        let mut sum = 0;
        let found = self.buckets.iter().position(|count| {
            sum += count;
            sum >= wanted.max(1)
        });
        found.map_or(0, |found| upper_end(found).min(self.longest))
    }
}

fn bucket(nanoseconds: u64) -> usize {
    let doubling =
        u64::from(nanoseconds.max(BUCKETS_PER_DOUBLING).ilog2() - BUCKETS_PER_DOUBLING.ilog2());
    (doubling * BUCKETS_PER_DOUBLING + (nanoseconds >> doubling)) as usize
}

/// The largest latency that falls into a bucket.
fn upper_end(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let doubling = (bucket / BUCKETS_PER_DOUBLING).saturating_sub(1);
    ((bucket - doubling * BUCKETS_PER_DOUBLING + 1) << doubling) - 1
}

/// Enters transmission by GO, with simple replies; returns the export's size.
fn handshake(stream: &mut UnixStream, export: &str) -> io::Result<u64> {
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting)?;
    if &greeting[..8] != b"NBDMAGIC" || be64(&greeting, 8) != OPTION_MAGIC {
        return Err(io::Error::other("the server does not speak newstyle NBD"));
    }
    let mut hello = 3_u32.to_be_bytes().to_vec();
    hello.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    for word in [OPT_GO, export.len() as u32 + 6, export.len() as u32] {
        hello.extend_from_slice(&word.to_be_bytes());
    }
    hello.extend_from_slice(export.as_bytes());
    hello.extend_from_slice(&[0, 0]);
    stream.write_all(&hello)?;
    let mut size = 0;
    loop {
        let mut head = [0; 20];
        stream.read_exact(&mut head)?;
        let mut data = vec![0; be32(&head, 16).min(64 << 10) as usize];
        stream.read_exact(&mut data)?;
        match be32(&head, 12) {
            REP_INFO if data.len() >= 12 && data[..2] == [0, 0] => size = be64(&data, 2),
            REP_INFO => {}
            REP_ACK if be64(&head, 0) == OPTION_REPLY_MAGIC => return Ok(size),
            kind => {
                let why = String::from_utf8_lossy(&data);
                return Err(io::Error::other(format!(
                    "export {export:?} refused ({kind:#x}) {why}"
                )));
            }
        }
    }
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().fold(0, |sum, &byte| sum << 8 | u32::from(byte))
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte))
}
