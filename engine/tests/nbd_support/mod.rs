//! A small NBD client, and targets in memory that finish requests in different ways.
#![allow(dead_code)] // Each test binary uses a part of it.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use polyvol_engine::error::Errno;
use polyvol_engine::nbd::Server;
use polyvol_engine::request::{Request, StatusExtent, Target, Verb};
use polyvol_engine::volume::export::ExportTable;

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISC: u16 = 2;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const CACHE: u16 = 5;
pub const WRITE_ZEROES: u16 = 6;
pub const BLOCK_STATUS: u16 = 7;
pub const MIB: u64 = 1 << 20;
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;

/// How a [`Memory`] finishes requests.
#[derive(Clone, Copy, PartialEq)]
pub enum Way {
    /// At once, on the thread that submits.
    Inline,
    /// On another thread, in another order.
    Later,
    /// When [`Memory::open_gate`] is called, and not before.
    Gated,
}

/// A target in memory; beyond the stored bytes it reads as zeroes.
pub struct Memory {
    pub size: u64,
    pub read_only: bool,
    pub way: Way,
    pub bytes: Mutex<Vec<u8>>,
    /// What the next requests fail with.
    pub fails: Mutex<Option<Errno>>,
    /// The verb and the FUA flag of each request received.
    pub seen: Mutex<Vec<(Verb, bool)>>,
    held: Mutex<Vec<Arc<Request>>>,
    arrived: Condvar,
    open: Mutex<bool>,
}

impl Memory {
    pub fn new(size: u64, stored: usize, way: Way) -> Arc<Memory> {
        Memory::with(size, stored, way, false)
    }

    pub fn with(size: u64, stored: usize, way: Way, read_only: bool) -> Arc<Memory> {
        let memory = Arc::new(Memory {
            size,
            read_only,
            way,
            bytes: Mutex::new(vec![0; stored]),
            fails: Mutex::new(None),
            seen: Mutex::default(),
            held: Mutex::default(),
            arrived: Condvar::new(),
            open: Mutex::new(way != Way::Gated),
        });
        if way != Way::Inline {
            let weak = Arc::downgrade(&memory);
            std::thread::spawn(move || {
                while let Some(memory) = weak.upgrade() {
                    memory.serve_held();
                }
            });
        }
        memory
    }

    pub fn open_gate(&self) {
        *self.open.lock().unwrap() = true;
        self.arrived.notify_all();
    }

    pub fn held(&self) -> usize {
        self.held.lock().unwrap().len()
    }

    fn serve_held(&self) {
        let held = self.held.lock().unwrap();
        let (mut held, _) = self.arrived.wait_timeout(held, Duration::from_millis(20)).unwrap();
        if !*self.open.lock().unwrap() {
            return;
        }
        let mut batch = std::mem::take(&mut *held);
        drop(held);
        // In another order: the second half first, each half backwards.
        batch.reverse();
        let half = batch.len() / 2;
        batch.rotate_left(half);
        self.serve_all(&mut batch);
    }

    fn serve_all(&self, batch: &mut Vec<Arc<Request>>) {
        for request in batch.drain(..) {
            self.serve(&request);
            let sink = Arc::clone(request.sink());
            request.complete();
            sink.kick();
        }
    }

    fn serve(&self, request: &Request) {
        self.seen.lock().unwrap().push((request.verb, request.fua));
        if let Some(errno) = *self.fails.lock().unwrap() {
            return request.fail(errno);
        }
        let mut bytes = self.bytes.lock().unwrap();
        let (start, length) = (request.offset as usize, request.length as usize);
        let stored_from = start.min(bytes.len());
        let stored_to = (start + length).min(bytes.len());
        let stored = stored_to - stored_from;
        match request.verb {
            Verb::Read => {
                // SAFETY: B3: the request has one part, and this thread holds it.
                let to = unsafe { request.data.part_mut(0, length) };
                to[..stored].copy_from_slice(&bytes[stored_from..stored_to]);
                to[stored..].fill(0);
            }
            Verb::Write => {
                let from = &request.data.as_slice()[..stored];
                bytes[stored_from..stored_to].copy_from_slice(from);
            }
            Verb::Zero { .. } | Verb::Trim => bytes[stored_from..stored_to].fill(0),
            Verb::BlockStatus => {
                // Blocks alternate between data and holes, and the last extends beyond the request.
                let mut offset = request.offset;
                while offset < request.offset + request.length {
                    let next = (offset / MIB + 1) * MIB;
                    let hole = (offset / MIB) % 2 == 1;
                    let length = next - offset;
                    request.add_status(&[StatusExtent { offset, length, hole, zero: hole }]);
                    offset = next;
                }
            }
            Verb::Flush | Verb::Cache => {}
        }
    }
}

impl Target for Memory {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn submit(&self, batch: &mut Vec<Arc<Request>>) {
        if self.way == Way::Inline {
            return self.serve_all(batch);
        }
        self.held.lock().unwrap().append(batch);
        self.arrived.notify_all();
    }
}

/// A server on a socket of its own, with an export `v` and any added ones.
pub struct Served {
    pub server: Server,
    pub exports: Arc<ExportTable>,
    pub path: PathBuf,
}

pub fn serve(target: Arc<dyn Target>) -> Served {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("polyvol-nbd-{}-{number}.sock", std::process::id());
    let path = std::env::temp_dir().join(name);
    let _ = std::fs::remove_file(&path);
    let exports = Arc::new(ExportTable::default());
    exports.add("v", "a volume", target).unwrap();
    let server = Server::new(Arc::clone(&exports), Arc::new(())).unwrap();
    server.listen(UnixListener::bind(&path).unwrap().into()).unwrap();
    Served { server, exports, path }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Served {
    pub fn stream(&self) -> UnixStream {
        let stream = loop {
            match UnixStream::connect(&self.path) {
                // The backlog is full for a moment.
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => std::thread::yield_now(),
                other => break other.unwrap(),
            }
        };
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// A client after the greeting.
    pub fn client(&self) -> Client {
        let mut client = Client { stream: self.stream(), structured: false };
        assert_eq!(client.take::<18>()[..8], *b"NBDMAGIC");
        client.stream.write_all(&3_u32.to_be_bytes()).unwrap();
        client
    }

    /// A client in transmission on export `v`.
    pub fn go(&self, structured: bool) -> Client {
        let mut client = self.client();
        if structured {
            assert_eq!(client.option(8, &[]), vec![(1, vec![])]);
            let replies = client.option(10, &meta_query("v", &["base:allocation"]));
            assert_eq!(replies.len(), 2);
            client.structured = true;
        }
        let replies = client.option(7, &go_data("v", &[]));
        assert_eq!(replies.last().unwrap().0, 1, "{replies:?}");
        client
    }

    /// Checks that a new client is still served.
    pub fn check_alive(&self) {
        let mut client = self.go(true);
        client.request(0, READ, 77, 0, 512);
        assert_eq!(client.reply().data.len(), 512);
    }

    /// Waits until no connection is in transmission and none is attached.
    pub fn wait_empty(&self) {
        let attached =
            || self.exports.list().iter().map(|export| export.connections()).sum::<usize>();
        wait_until("every connection has ended", || {
            self.server.connections() == 0 && attached() == 0
        });
    }
}

pub fn wait_until(what: &str, done: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < until, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub fn go_data(name: &str, items: &[u16]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(&(items.len() as u16).to_be_bytes());
    items.iter().for_each(|item| data.extend_from_slice(&item.to_be_bytes()));
    data
}

pub fn meta_query(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(&(queries.len() as u32).to_be_bytes());
    for query in queries {
        data.extend_from_slice(&(query.len() as u32).to_be_bytes());
        data.extend_from_slice(query.as_bytes());
    }
    data
}

pub fn option_bytes(number: u32, length: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend_from_slice(&number.to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

pub fn request_bytes(flags: u16, command: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend_from_slice(&flags.to_be_bytes());
    bytes.extend_from_slice(&command.to_be_bytes());
    bytes.extend_from_slice(&cookie.to_be_bytes());
    bytes.extend_from_slice(&offset.to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes
}

/// A reply to a request.
#[derive(Debug, Default, PartialEq)]
pub struct Reply {
    pub cookie: u64,
    pub error: u32,
    /// A read's bytes.
    pub data: Vec<u8>,
    /// A BLOCK_STATUS's descriptors: length and flags.
    pub extents: Vec<(u32, u32)>,
}

pub struct Client {
    pub stream: UnixStream,
    pub structured: bool,
}

impl Client {
    pub fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    pub fn take_vec(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    pub fn take_u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take())
    }

    /// Sends an option and receives its replies, up to the last: kind and payload.
    pub fn option(&mut self, number: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        self.stream.write_all(&option_bytes(number, data.len() as u32, data)).unwrap();
        self.option_replies(number)
    }

    pub fn option_replies(&mut self, number: u32) -> Vec<(u32, Vec<u8>)> {
        let mut replies = Vec::new();
        loop {
            assert_eq!(u64::from_be_bytes(self.take()), 0x0003_e889_0455_65a9);
            assert_eq!(self.take_u32(), number);
            let (kind, length) = (self.take_u32(), self.take_u32());
            replies.push((kind, self.take_vec(length as usize)));
            if kind == 1 || kind >> 31 == 1 {
                return replies;
            }
        }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn request(&mut self, flags: u16, command: u16, cookie: u64, offset: u64, length: u32) {
        let bytes = request_bytes(flags, command, cookie, offset, length);
        self.stream.write_all(&bytes).unwrap();
    }

    pub fn write(&mut self, flags: u16, cookie: u64, offset: u64, data: &[u8]) {
        let mut bytes = request_bytes(flags, WRITE, cookie, offset, data.len() as u32);
        bytes.extend_from_slice(data);
        self.stream.write_all(&bytes).unwrap();
    }

    /// A reply that carries no bytes of a read, unless it is structured.
    pub fn reply(&mut self) -> Reply {
        self.reply_of(|_| 0)
    }

    /// A reply; `expected` returns how many bytes a simple reply with this cookie carries.
    pub fn reply_of(&mut self, expected: impl Fn(u64) -> usize) -> Reply {
        let magic = self.take_u32();
        if magic == 0x6744_6698 {
            let error = self.take_u32();
            let cookie = u64::from_be_bytes(self.take());
            let length = if error == 0 { expected(cookie) } else { 0 };
            return Reply { cookie, error, data: self.take_vec(length), extents: vec![] };
        }
        assert_eq!(magic, 0x668e_33ef, "neither a simple reply nor a chunk");
        assert!(self.structured, "a chunk that was not agreed on");
        let (flags, kind) = (u16::from_be_bytes(self.take()), u16::from_be_bytes(self.take()));
        assert_eq!(flags, 1, "this server sends one chunk for each reply");
        let cookie = u64::from_be_bytes(self.take());
        let length = self.take_u32() as usize;
        let payload = self.take_vec(length);
        let word = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
        let mut reply = Reply { cookie, ..Reply::default() };
        match kind {
            1 => reply.data = payload[8..].to_vec(),
            5 => {
                let count = (length - 4) / 8;
                reply.extents = (0..count).map(|i| (word(4 + 8 * i), word(8 + 8 * i))).collect();
            }
            0x8001 => {
                reply.error = word(0);
                assert_eq!(payload[4..].len(), 2);
            }
            other => panic!("a chunk of kind {other}"),
        }
        reply
    }

    /// Whether the server has closed the connection: nothing more arrives except, perhaps, a few replies.
    pub fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => true,
            Err(e) => e.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}
