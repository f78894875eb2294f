//! Transmission: any bytes from a peer as requests, through the real reader, replies and budget.
//!
//! How it works      The input's first byte says what was agreed on; then come the sizes of pieces that are received
//!                   and sent at once, and the number of pieces after which the connection is repeatedly handed over,
//!                   as from one process to the next; the rest is what the peer sends. The target is a volume in memory
//!                   that ends each request synchronously, so one thread does everything. [`expected`] computes the
//!                   correct replies in a few lines, independently of the reader.
//! Promises          R1, R2, RQ3, RP2: each request is answered once and correctly; refused payloads are consumed; the
//!                   volume receives nothing invalid, and has the expected contents at the end; the budget has
//!                   everything back; HO2: hand-overs change nothing of that.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use rustix::io::Errno as SystemErrno;

use super::Target as Fuzzed;
use super::memory::{Memory, contents};
use super::random::Choices;
use crate::limits::REQUEST_BYTES_MAX;
use crate::nbd::budget::{POOL_BYTES, Pool, lock};
use crate::nbd::connection::{Common, Connection};
use crate::nbd::hand_over::State;
use crate::nbd::peer::Peer;
use crate::nbd::reader::{self, Ended, ResumePoint};
use crate::nbd::request::Agreed;
use crate::nbd::wire::{
    REQUEST_HEADER_BYTES, REQUEST_MAGIC, RequestHeader, command, command_flag, error, parse_request,
};
use crate::request::{Contexts, Target};
use crate::sync::Mutex;
use crate::volume::export::{Attachment, ExportTable};

/// See the module's head.
pub const TARGET: Fuzzed = Fuzzed { name: "transmission", run, seeds, bytes_max: 8192 };

/// The name of the volume under test.
pub const VOLUME: &str = "v";
/// Its size, bytes: an odd number of sectors.
const SIZE: usize = 33 << 9;

/// A peer whose bytes are all given in advance.
struct Scripted {
    /// Its connection, on which it calls `send_on`.
    connection: OnceLock<Weak<Connection>>,
    state: Mutex<Script>,
    /// It accepts no more bytes now.
    full: AtomicBool,
    /// Its connection wants to continue sending.
    armed: AtomicBool,
}

struct Script {
    input: Vec<u8>,
    received: usize,
    output: Vec<u8>,
    /// How much is received at once, and how much is sent before a send would block; 0: without limit.
    receives: usize,
    sends: usize,
    /// Sends and receives are not limited any more: the connection freezes or ends.
    flows: bool,
    /// Pieces until the next hand-over; `None`: there is none.
    freeze_after: Option<usize>,
}

/// A connection's reference to its scripted peer.
struct Handle(Arc<Scripted>);

impl Peer for Handle {
    fn receive(&self, space: &mut [u8], _: bool) -> Result<usize, SystemErrno> {
        self.0.full.store(false, Ordering::Relaxed);
        let connection = self.0.connection.get().and_then(Weak::upgrade);
        let mut script = lock(&self.0.state);
        let freezes = script.freeze_after == Some(0);
        script.flows |= freezes;
        script.freeze_after = script.freeze_after.map(|pieces| pieces.saturating_sub(1));
        drop(script);
        if let Some(connection) = connection {
            if freezes {
                connection.freeze();
            }
            if self.0.armed.swap(false, Ordering::Relaxed) {
                connection.send_on();
            }
            if freezes {
                return Err(SystemErrno::AGAIN);
            }
        }
        let mut script = lock(&self.0.state);
        let here = script.received;
        let length = space.len().min(script.receives).min(script.input.len() - here);
        space[..length].copy_from_slice(&script.input[here..here + length]);
        script.received += length;
        if script.received == script.input.len() {
            script.flows = true; // no thread would send the rest later
        }
        Ok(length)
    }

    fn receive_now(&self, spaces: &mut [IoSliceMut<'_>]) -> Result<usize, SystemErrno> {
        if lock(&self.0.state).received % 7 == 3 {
            return Err(SystemErrno::AGAIN); // the bytes arrive a little later
        }
        let length = spaces.iter().map(|space| space.len()).sum();
        let mut bytes = vec![0; length];
        let received = self.receive(&mut bytes, true)?;
        let mut rest = &bytes[..received];
        for space in spaces {
            let here = rest.len().min(space.len());
            space[..here].copy_from_slice(&rest[..here]);
            rest = &rest[here..];
        }
        Ok(received)
    }

    fn send(&self, parts: &[IoSlice<'_>]) -> Result<usize, SystemErrno> {
        assert!(!parts.is_empty(), "nothing to send");
        let mut script = lock(&self.0.state);
        let limited = script.sends > 0 && !script.flows;
        if self.0.full.swap(limited, Ordering::Relaxed) && limited {
            return Err(SystemErrno::AGAIN);
        }
        let most = if limited { script.sends } else { usize::MAX };
        let mut sent = 0;
        for part in parts {
            let length = part.len().min(most - sent);
            script.output.extend_from_slice(&part[..length]);
            sent += length;
        }
        Ok(sent)
    }

    fn send_later(&self) -> Result<(), SystemErrno> {
        self.0.armed.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn shut_down(&self) {}

    fn release(&self) -> Option<OwnedFd> {
        None
    }
}

fn run(bytes: &[u8]) {
    let mut choices = Choices(bytes);
    let marks = choices.byte();
    let receives = 1 + usize::from(choices.pair());
    let sends = usize::from(choices.byte()) * 16;
    let freeze_every = usize::from(choices.byte());
    let agreed = Agreed {
        size: SIZE as u64,
        read_only: marks & 1 != 0,
        structured: marks & 2 != 0,
        status: marks & 4 != 0,
    };
    let mut input = choices.0.to_vec();
    let expected = expected(&mut input, &agreed);
    // A connection that does not end with its stream sends nothing later.
    let sends = if expected.to_the_end { sends } else { 0 };
    let script = Script {
        input,
        received: 0,
        output: Vec::new(),
        receives,
        sends,
        flows: false,
        freeze_after: freeze_every.checked_sub(1),
    };
    let since = if marks & 16 != 0 { vec![1, 2, 3] } else { vec![] };
    let contexts = Contexts { allocation: since.is_empty() || marks & 32 != 0, since };
    let chunks = if agreed.status { contexts.times() } else { 1 };
    let (output, held) = serve(agreed, agreed.status.then_some(contexts), script);
    assert!(held == expected.held, "the volume has other contents than were written");
    let mut found = parse(&output, &agreed, chunks, &expected.replies);
    found.sort();
    assert_eq!(found, expected.replies, "R1: not the replies that belong to the requests");
}

/// Runs a connection to its end, from process to process; returns what it sent, and the volume's contents.
fn serve(agreed: Agreed, contexts: Option<Contexts>, mut script: Script) -> (Vec<u8>, Vec<u8>) {
    let table = ExportTable::default();
    let memory = Arc::new(Memory::new(SIZE, agreed.read_only));
    table.add(VOLUME, "", Arc::clone(&memory) as Arc<dyn Target>).expect("the only one");
    let attachment = table.attach(VOLUME).expect("just added");
    let mut freeze_after = script.freeze_after;
    let mut from = ResumePoint::default();
    // Every other process hands over before it has done anything.
    for at_once in [false, true].into_iter().cycle() {
        let at_once = at_once && freeze_after.is_some();
        let ended;
        (script, ended) = serve_once(agreed, contexts.clone(), script, &attachment, from, at_once);
        let Ended::Frozen(resume_point) = ended else {
            assert!(matches!(ended, Ended::Over), "not in time");
            break;
        };
        let size = SIZE as u64;
        let contexts = contexts.clone();
        let state = State { agreed, contexts, size, transmission_flags: 1, moved: 0, resume_point };
        let back = State::decode(&state.encode()).expect("just encoded");
        assert!(back.encode() == state.encode(), "another state");
        from = back.resume_point;
        script.flows = false;
        // More pieces for each process than for the one before, so that the test ends soon.
        freeze_after = freeze_after.map(|pieces| 2 * pieces + 1);
        script.freeze_after = freeze_after;
    }
    let held = std::mem::take(&mut *memory.bytes.lock().expect("no holder panics"));
    (script.output, held)
}

/// Runs a connection until it ends or is handed over.
fn serve_once(
    agreed: Agreed,
    contexts: Option<Contexts>,
    script: Script,
    attachment: &Attachment,
    from: ResumePoint,
    at_once: bool,
) -> (Script, Ended) {
    let common =
        Common { pool: Pool::new(), buffers: Default::default(), watch_peers: Box::new(|| {}) };
    let common = Arc::new(common);
    let peer = Scripted {
        connection: OnceLock::new(),
        state: Mutex::new(script),
        full: AtomicBool::new(false),
        armed: AtomicBool::new(false),
    };
    let peer = Arc::new(peer);
    let handle = Box::new(Handle(Arc::clone(&peer)));
    let contexts = contexts.map(Arc::new);
    let connection =
        Connection::new(handle, VOLUME.to_owned(), agreed, contexts, Arc::clone(&common));
    let connection = Arc::new(connection);
    let _ = peer.connection.set(Arc::downgrade(&connection));
    if at_once {
        connection.freeze();
    }
    let ended = reader::run(&connection, &ExportTable::default(), attachment, from);
    connection.evict();
    assert_eq!(Arc::strong_count(&connection), 1, "a request was leaked");
    drop(connection);
    assert_eq!(common.pool.free(), POOL_BYTES, "RP2: something was not released");
    let script = Arc::into_inner(peer).expect("the connection's peer is gone with it").state;
    (script.into_inner().expect("no holder panics"), ended)
}

/// A reply: cookie, error, and the data of a read.
type Answer = (u64, u32, Vec<u8>);

/// The expected result of a stream.
struct Expected {
    /// In order of cookies.
    replies: Vec<Answer>,
    /// The volume's contents at the end.
    held: Vec<u8>,
    /// The stream was valid to its end.
    to_the_end: bool,
}

/// Interprets the stream by the protocol, and gives each request a cookie of its own: its number.
fn expected(input: &mut [u8], agreed: &Agreed) -> Expected {
    let mut found = Expected { replies: Vec::new(), held: contents(SIZE), to_the_end: true };
    let mut at = 0;
    while let Some(bytes) = input[at..].first_chunk_mut::<REQUEST_HEADER_BYTES>() {
        let cookie = found.replies.len() as u64;
        bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
        let header = parse_request(bytes).filter(|header| header.command != command::DISC);
        let Some(header) = header else {
            found.to_the_end = false;
            break;
        };
        at += REQUEST_HEADER_BYTES;
        let error = error_of(&header, agreed);
        let length = if header.command == command::WRITE { header.length as usize } else { 0 };
        let whole = length <= input.len() - at;
        if error != 0 || whole {
            let data = apply_request(&header, error, &input[at..], &mut found.held);
            found.replies.push((cookie, error, data));
        }
        if !whole || length as u64 > REQUEST_BYTES_MAX {
            break; // every input is shorter than what is discarded of such a payload
        }
        at += length;
    }
    found
}

fn apply_request(header: &RequestHeader, error: u32, payload: &[u8], held: &mut [u8]) -> Vec<u8> {
    let from = usize::try_from(header.offset).unwrap_or(usize::MAX);
    let length = header.length as usize;
    match header.command {
        _ if error != 0 => {}
        command::READ => return held[from..from + length].to_vec(),
        command::WRITE => held[from..from + length].copy_from_slice(&payload[..length]),
        command::WRITE_ZEROES => held[from..from + length].fill(0),
        _ => {}
    }
    Vec::new()
}

/// The error of one request, by the protocol and docs/nbd.md.
fn error_of(header: &RequestHeader, agreed: &Agreed) -> u32 {
    use command_flag::{DF, FAST_ZERO, FUA, NO_HOLE, REQ_ONE};
    let writes = [command::WRITE, command::TRIM, command::WRITE_ZEROES].contains(&header.command);
    let flags = match header.command {
        command::READ if agreed.structured => DF,
        command::WRITE_ZEROES => NO_HOLE | FAST_ZERO,
        command::BLOCK_STATUS => REQ_ONE,
        _ => 0,
    };
    let known = header.command <= command::BLOCK_STATUS;
    let status = header.command == command::BLOCK_STATUS;
    if !known || header.flags & !(flags | FUA) != 0 {
        return error::EINVAL;
    }
    if writes && agreed.read_only {
        return error::EPERM;
    }
    if status && !(agreed.structured && agreed.status) {
        return error::EINVAL;
    }
    if header.command == command::FLUSH {
        return if header.offset == 0 && header.length == 0 { 0 } else { error::EINVAL };
    }
    let data = [command::READ, command::WRITE].contains(&header.command);
    if header.length == 0 || (data && u64::from(header.length) > REQUEST_BYTES_MAX) {
        return error::EINVAL;
    }
    let end = u128::from(header.offset) + u128::from(header.length);
    match header.command {
        _ if end <= agreed.size.into() => 0,
        command::WRITE | command::WRITE_ZEROES => error::ENOSPC,
        _ => error::EINVAL,
    }
}

/// Parses the stream like a client; an answer to BLOCK_STATUS is checked separately.
fn parse(mut output: &[u8], agreed: &Agreed, chunks: u64, expected: &[Answer]) -> Vec<Answer> {
    use crate::nbd::wire::{CHUNK_MAGIC, SIMPLE_REPLY_MAGIC, chunk};
    use crate::nbd::wire::{take_string, take_u16, take_u32, take_u64};
    let mut found = Vec::new();
    let mut statuses = 0;
    while !output.is_empty() {
        let magic = take_u32(&mut output).expect("a magic");
        if magic == SIMPLE_REPLY_MAGIC {
            let error = take_u32(&mut output).expect("an error");
            let cookie = take_u64(&mut output).expect("a cookie");
            // The length of the data is known only from the request.
            let request = usize::try_from(cookie).ok().and_then(|number| expected.get(number));
            let length = request.expect("R1: an answer to nothing").2.len();
            let length = if error == 0 { length } else { 0 };
            assert!(length == 0 || !agreed.structured, "a read is answered with chunks");
            let (data, rest) = output.split_at(length);
            output = rest;
            found.push((cookie, error, data.to_vec()));
            continue;
        }
        assert_eq!(magic, CHUNK_MAGIC);
        assert!(agreed.structured, "a chunk that was not agreed on");
        let flags = take_u16(&mut output).expect("flags");
        let kind = take_u16(&mut output).expect("a kind");
        let cookie = take_u64(&mut output).expect("a cookie");
        let mut payload = take_string(&mut output).expect("a complete chunk");
        if kind == chunk::BLOCK_STATUS {
            statuses += 1;
            assert_eq!(flags == chunk::DONE, statuses == chunks, "one chunk for each context");
            assert!(payload.len() > 4 && payload.len() % 8 == 4);
            if statuses < chunks {
                continue;
            }
            statuses = 0;
        }
        assert_eq!(flags, chunk::DONE);
        let (mut error, mut data) = (0, Vec::new());
        match kind {
            chunk::OFFSET_DATA => {
                take_u64(&mut payload).expect("an offset");
                data = payload.to_vec();
            }
            chunk::BLOCK_STATUS => {}
            chunk::ERROR => {
                error = take_u32(&mut payload).expect("an error");
                assert!(error != 0 && payload == [0, 0]);
            }
            other => panic!("chunk {other}"),
        }
        found.push((cookie, error, data));
    }
    found
}

/// A request's header.
fn request_bytes(flags: u16, command: u16, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend([0; 8]);
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

fn seeds() -> Vec<Vec<u8>> {
    let size = SIZE as u64;
    let requests = [
        request_bytes(0, command::READ, 0, 600),
        request_bytes(command_flag::DF, command::READ, size - 1, 1),
        [request_bytes(1, command::WRITE, 1000, 90), vec![0xaa; 90]].concat(),
        [request_bytes(0, command::WRITE, size - 5, 6), vec![0xbb; 6]].concat(),
        request_bytes(0, command::WRITE, 0, 40 << 20),
        [request_bytes(0, command::WRITE, 0, 16000), vec![0xcc; 3000]].concat(),
        request_bytes(0, command::FLUSH, 0, 0),
        request_bytes(0, command::TRIM, 512, 4096),
        request_bytes(2, command::WRITE_ZEROES, 700, 700),
        request_bytes(16, command::WRITE_ZEROES, 0, 1),
        request_bytes(0, command::CACHE, 0, u32::MAX),
        request_bytes(8, command::BLOCK_STATUS, 0, 16896),
        request_bytes(0x8000, 99, u64::MAX, u32::MAX),
        request_bytes(0, command::DISC, 0, 0),
    ];
    let mut seeds = Vec::new();
    for (number, request) in requests.iter().enumerate() {
        let read = request_bytes(0, command::READ, 1000, 100);
        let freeze_every = number as u8 % 3;
        seeds.push([&[number as u8 & 7, 0, 19, 0, freeze_every][..], request, &read].concat());
    }
    for marks in 0..8 {
        let good = requests.iter().enumerate().filter(|(number, _)| ![4, 5, 13].contains(number));
        let stream: Vec<u8> = good.flat_map(|(_, request)| request.clone()).collect();
        seeds.push([&[marks, 0, marks * 9, marks & 3, marks][..], &stream].concat());
    }
    // Large writes of one length (for fuzzing), which are prefetched, and other requests between them.
    let refused = |length| {
        let header = request_bytes(0, command::WRITE, size, length);
        [header, vec![0xdd; length as usize]].concat()
    };
    let others = [refused(1100), refused(2400), refused(1110)];
    let good = requests.iter().enumerate().filter(|(number, _)| ![4, 5].contains(number));
    for (number, between) in good.map(|(_, request)| request).chain(&others).enumerate() {
        let write = |seed: u8| {
            let header = request_bytes(0, command::WRITE, 99 * u64::from(seed), 1100);
            [header, (0..1100).map(|at| (at % 250) as u8 ^ seed).collect()].concat()
        };
        let like: Vec<u8> = (0..3).flat_map(write).collect();
        let [kind, from, freeze] =
            [number % 4 * 6, number * 19, number % 5].map(|value| value as u8);
        let start = [2, kind, from, 0, freeze];
        seeds.push([&start[..], &like, between, &write(9), &write(10)].concat());
    }
    seeds
}
