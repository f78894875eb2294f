//! NBD server: connections of hosts, from the first byte of the handshake to the last reply.
//!
//! How it works      `listener.rs` accepts sockets and runs all handshakes on one thread (`handshake.rs` is
//!                   the state machine). A handshake that ends with an export becomes a connection with a
//!                   reader thread of its own (`reader.rs`), which parses and validates requests
//!                   (`request.rs`) and submits them in batches to the export's target. The thread that finishes
//!                   requests passes them to the connection (`sending.rs`) and kicks it; a kick sends what it can and
//!                   never blocks. The sender thread sends what a socket does not accept at once. `clients.rs` lists
//!                   the connections. `hand_over.rs` stops connections between two requests, for the next process to
//!                   continue with.
//! Bounds            `budget.rs`: bytes and requests in flight, for each connection and for all together.
//! Invariants        NC1 one connection can only end itself: no peer's bytes lead to a panic or to an
//!                      unbounded wait of a thread that others need;
//!                   NC2 an export is attached to from the end of its handshake until the target has none of
//!                      its requests.
//! Owner and locks   thread               waits for                        may be stopped by
//!                   listener             epoll, at most 10 s              the wake-up
//!                   sender               epoll, 10 ms while memory is      the wake-up
//!                                        short, 250 ms while it watches
//!                   reader, for each     its socket, its budget,          a shut-down of its socket,
//!                   connection           its target's completions, and    a freeze
//!                                        any reads past the page cache
//!                   Lock order: outbox, state, pool. `connections` and `listeners` are taken alone.
//! Errors            a host sees the protocol's errors (docs/nbd.md), or a closed connection.
#![forbid(unsafe_code)]

pub(crate) mod budget;
pub(crate) mod buffer_pool;
pub mod clients;
pub(crate) mod connection;
pub mod hand_over;
pub(crate) mod handshake;
mod listener;
pub(crate) mod peer;
pub(crate) mod reader;
mod reply;
pub(crate) mod request;
mod sending;
mod status;
#[allow(missing_docs)] // The protocol's own names, explained in docs/nbd.md.
pub(crate) mod wire;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::io::Errno as SystemErrno;
use rustix::net::{AddressFamily, SocketType, sockopt};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::Timespec;

use crate::error::{Error, ErrorKind, Result};
use crate::log::{Level, Line, log};
use crate::nbd::budget::{INBOX_BYTES, Pool, SOCKET_BYTES, UNIX_SOCKET_BYTES, evict, lock};
use crate::nbd::buffer_pool::BufferPool;
use crate::nbd::connection::{Common, Connection};
use crate::nbd::hand_over::HandedOver;
use crate::nbd::handshake::{Agreement, INPUT_BYTES_MAX, Selection};
use crate::nbd::listener::{LISTENING, Listener};
use crate::nbd::peer::Socket;
use crate::nbd::reader::{Ended, ResumePoint};
use crate::nbd::reply::Reply;
use crate::nbd::request::Agreed;
use crate::sync::{Condvar, Mutex};
use crate::system::reaper::Reaping;
use crate::system::signal;
use crate::volume::export::{Attachment, ExportTable};

/// The wake-up's number among the events.
const WAKE: u64 = u64::MAX;
/// How often the sender thread looks for inboxes that are no longer needed.
const WATCH_EVERY: Duration = Duration::from_millis(250);
/// The same while the pool is short.
const SHORT_EVERY: Duration = Duration::from_millis(10);
/// How long [`Server::stop`] and [`Server::disconnect`] wait for connections to end.
const STOP_WITHIN: Duration = Duration::from_secs(4);
/// A reader's stack, bytes.
const READER_STACK_BYTES: usize = 256 << 10;
/// Events handled in one turn.
const EVENTS_PER_TURN: usize = 64;

const _: () = assert!(INPUT_BYTES_MAX <= INBOX_BYTES);

/// What the threads of a server share.
struct Shared {
    exports: Arc<ExportTable>,
    common: Arc<Common>,
    connections: Mutex<HashMap<u64, Arc<Connection>>>,
    /// A connection was taken out of `connections`; goes with its lock.
    ended: Condvar,
    listeners: Mutex<Vec<OwnedFd>>,
    /// The listener's epoll set.
    listening: OwnedFd,
    /// The sender's epoll set.
    sender: Arc<OwnedFd>,
    /// Wakes both threads.
    wake: OwnedFd,
    stopping: AtomicBool,
    /// No connection is accepted any more; changed with `listeners` locked.
    closed: AtomicBool,
    /// All connections freeze.
    freezing: AtomicBool,
    /// Wakes readers that wait for their sockets when all connections freeze.
    freeze: Arc<OwnedFd>,
    /// The result of freezing.
    handed_over: Mutex<HandedOver>,
    handshakes: AtomicUsize,
    /// The completions that readers reap while they wait.
    reaping: Arc<dyn Reaping>,
    /// The number of the next socket.
    next: AtomicU64,
    readers: Mutex<Vec<JoinHandle<()>>>,
}

/// An NBD server over a table of exports. Dropping it stops it.
pub struct Server {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Server {
    /// A server that listens nowhere yet. It raises the process's soft limit of open files to the hard one.
    ///
    /// # Errors
    /// `Io` if the system has no file descriptor or thread for it.
    pub fn new(exports: Arc<ExportTable>, reaping: Arc<dyn Reaping>) -> Result<Server> {
        let files_max = raise_files_max();
        let failed = |e: SystemErrno| Error::io("the NBD server cannot start", e);
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let sender = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed)?;
        // Wakes the sender thread once for each write to it (edge-triggered).
        let tick = eventfd(0, flags).map_err(failed)?;
        let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&sender, &tick, epoll::EventData::new_u64(WAKE), edge).map_err(failed)?;
        let watch_peers = Box::new(move || signal(&tick));
        let common = Common { pool: Pool::new(), buffers: BufferPool::default(), watch_peers };
        let shared = Arc::new(Shared {
            exports,
            common: Arc::new(common),
            connections: Mutex::default(),
            ended: Condvar::new(),
            listeners: Mutex::default(),
            listening: epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed)?,
            sender: Arc::new(sender),
            wake: eventfd(0, flags).map_err(failed)?,
            stopping: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            freezing: AtomicBool::new(false),
            freeze: Arc::new(eventfd(0, flags).map_err(failed)?),
            handed_over: Mutex::default(),
            handshakes: AtomicUsize::new(0),
            reaping,
            next: AtomicU64::new(1),
            readers: Mutex::default(),
        });
        for set in [&shared.listening, &*shared.sender] {
            let data = epoll::EventData::new_u64(WAKE);
            epoll::add(set, &shared.wake, data, epoll::EventFlags::IN).map_err(failed)?;
        }
        let server = Server { shared, threads: Mutex::default() };
        let listener = Listener::new(Arc::clone(&server.shared), files_max);
        server.start("nbd-listener", move || listener.run())?;
        let shared = Arc::clone(&server.shared);
        server.start("nbd-sender", move || shared.run_sender())?;
        Ok(server)
    }

    fn start(&self, name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
        let started = std::thread::Builder::new().name(name.to_owned()).spawn(body);
        let handle = started.map_err(|e| Error::io("the NBD server cannot start a thread", e))?;
        lock(&self.threads).push(handle);
        Ok(())
    }

    /// Accepts connections from `socket`, which must be bound and listening.
    ///
    /// # Errors
    /// `Invalid` for any other socket and for a server that was stopped; `Io` if the system refuses.
    pub fn listen(&self, socket: OwnedFd) -> Result<()> {
        let stream = sockopt::socket_type(&socket).is_ok_and(|kind| kind == SocketType::STREAM);
        if !stream || !sockopt::socket_acceptconn(&socket).unwrap_or(false) {
            let what = "the NBD server was given a socket that does not listen for streams";
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        if self.shared.is_ending() {
            return Err(Error::new(ErrorKind::Invalid, "the NBD server was stopped already"));
        }
        let failed = |e| Error::io("the NBD server cannot listen on a socket", e);
        rustix::io::ioctl_fionbio(&socket, true).map_err(failed)?;
        let mut listeners = lock(&self.shared.listeners);
        let data = epoll::EventData::new_u64(LISTENING | listeners.len() as u64);
        epoll::add(&self.shared.listening, &socket, data, epoll::EventFlags::IN).map_err(failed)?;
        listeners.push(socket);
        Ok(())
    }

    /// How many connections are in transmission.
    pub fn connections(&self) -> usize {
        lock(&self.shared.connections).len()
    }

    /// How many sockets are in handshake.
    pub fn handshakes(&self) -> usize {
        self.shared.handshakes.load(Ordering::Relaxed)
    }

    /// Closes every connection to this export, and waits until they have ended, at most 4 s.
    pub fn disconnect(&self, export_name: &str) {
        let is_ours = |connection: &Connection| connection.export == export_name;
        self.shared.abort(is_ours);
        self.shared.wait_ended(STOP_WITHIN, is_ours);
    }

    /// Stops accepting, closes every connection and joins every thread, within 5 s. A connection whose
    /// target does not finish its requests in that time is not waited for any longer. Stopping again does nothing.
    pub fn stop(&self) {
        if self.shared.stopping.swap(true, Ordering::AcqRel) {
            return;
        }
        signal(&self.shared.wake);
        let threads = std::mem::take(&mut *lock(&self.threads));
        self.shared.abort(|_| true);
        for thread in threads {
            // A thread that panicked has ended too.
            let _ = thread.join();
        }
        // Again, because a connection may have begun in the meantime.
        self.shared.abort(|_| true);
        self.shared.wait_ended(STOP_WITHIN, |_| true);
        lock(&self.shared.listeners).clear();
        let readers = std::mem::take(&mut *lock(&self.shared.readers));
        let all_ended = self.connections() == 0;
        for reader in readers.into_iter().filter(|reader| all_ended || reader.is_finished()) {
            let _ = reader.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What the handshake, or the previous process, negotiated for a connection.
struct Negotiated {
    attachment: Attachment,
    agreed: Agreed,
    selection: Option<Selection>,
    resume_point: ResumePoint,
}

impl Shared {
    /// Makes a connection from a socket whose handshake is done, and starts its reader.
    fn begin_transmission(
        shared: &Arc<Shared>,
        socket: OwnedFd,
        number: u64,
        agreement: Agreement,
        output: Vec<u8>,
    ) {
        let Agreement { attachment, structured, selection, rest } = agreement;
        let agreed = Agreed {
            size: attachment.target.size(),
            read_only: attachment.target.read_only(),
            structured,
            status: selection.is_some(),
        };
        let resume_point = ResumePoint { bytes: rest, ..ResumePoint::default() };
        let negotiated = Negotiated { attachment, agreed, selection, resume_point };
        let served = Shared::serve(shared, socket, number, negotiated, |connection| {
            connection.push(Reply::handshake(output));
            connection.send_queued();
        });
        // The socket is closed.
        if let Err(errno) = served {
            let text = format!("a client was not served, and was disconnected: {errno}");
            let line = Line::new(Level::Warning, "client-not-served", text);
            log(line.with(errno.raw_os_error()));
        }
    }

    /// Makes a connection from a socket in transmission, calls `begin` with it, and starts its reader.
    fn serve(
        shared: &Arc<Shared>,
        socket: OwnedFd,
        number: u64,
        negotiated: Negotiated,
        begin: impl FnOnce(&Connection),
    ) -> std::result::Result<(), SystemErrno> {
        let Negotiated { attachment, agreed, selection, resume_point } = negotiated;
        // The default size works too.
        let local = sockopt::socket_domain(&socket) == Ok(AddressFamily::UNIX);
        let bytes = if local { UNIX_SOCKET_BYTES } else { SOCKET_BYTES };
        let _ = sockopt::set_socket_send_buffer_size(&socket, bytes);
        let export = attachment.name.clone();
        let (sender, freeze) = (Arc::clone(&shared.sender), Arc::clone(&shared.freeze));
        let peer =
            Box::new(Socket::new(socket, number, sender, freeze, Arc::clone(&shared.reaping))?);
        let (contexts, compared) = selection.map(|one| (one.contexts, one.held)).unzip();
        let common = Arc::clone(&shared.common);
        let connection = Connection::new(peer, export, agreed, contexts, common);
        let connection = Arc::new(connection);
        lock(&shared.connections).insert(number, Arc::clone(&connection));
        if shared.freezing.load(Ordering::SeqCst) {
            connection.freeze();
        }
        begin(&connection);
        let attachment = Some(attachment);
        let ending =
            Ending { connection, number, attachment, compared, shared: Arc::clone(shared) };
        let body = move || {
            if let Some(attachment) = &ending.attachment {
                let exports = &ending.shared.exports;
                match reader::run(&ending.connection, exports, attachment, resume_point) {
                    Ended::Over => {}
                    Ended::Frozen(resume_point) => ending.hand_over(attachment, resume_point),
                    Ended::TooLate => ending.note_closed(),
                }
            }
            drop(ending);
        };
        let builder = std::thread::Builder::new().name("nbd-reader".to_owned());
        // If no thread starts, the body is dropped, and the connection with it.
        let started = builder.stack_size(READER_STACK_BYTES).spawn(body);
        let reader = started.map_err(|_| SystemErrno::AGAIN)?;
        let mut readers = lock(&shared.readers);
        readers.retain(|reader| !reader.is_finished());
        readers.push(reader);
        Ok(())
    }

    /// Whether it accepts no more connections.
    fn is_ending(&self) -> bool {
        self.stopping.load(Ordering::Acquire) || self.closed.load(Ordering::Acquire)
    }

    /// Sends what sockets did not accept at once, and watches peers that do not move.
    fn run_sender(&self) {
        let mut events: Vec<epoll::Event> = Vec::with_capacity(EVENTS_PER_TURN);
        let mut watched = Instant::now();
        let watch_every = Timespec::try_from(WATCH_EVERY).ok();
        let short_every = Timespec::try_from(SHORT_EVERY).ok();
        while !self.stopping.load(Ordering::Acquire) {
            events.clear();
            let space = rustix::buffer::spare_capacity(&mut events);
            // With nothing to watch it sleeps until `watch_peers` or a socket wakes it.
            let timeout = match () {
                () if self.common.pool.memory_waiters_bytes() > 0 => short_every.as_ref(),
                () if self.has_retired() => watch_every.as_ref(),
                () => None,
            };
            match epoll::wait(&self.sender, space, timeout) {
                Ok(_) | Err(SystemErrno::INTR) => {}
                Err(_) => std::thread::sleep(WATCH_EVERY),
            }
            for event in &events {
                let found = lock(&self.connections).get(&event.data.u64()).cloned();
                if let Some(connection) = found {
                    connection.send_on();
                }
            }
            self.free_memory();
            let now = Instant::now();
            if now.duration_since(watched) >= WATCH_EVERY {
                watched = now;
                self.matching(Connection::has_retired).iter().for_each(|one| one.sweep_retired());
            }
        }
    }

    fn has_retired(&self) -> bool {
        lock(&self.connections).values().any(|one| one.has_retired())
    }

    /// Closes peers that block others, while the pool is short.
    fn free_memory(&self) {
        let needed = self.common.pool.memory_waiters_bytes();
        if needed == 0 {
            return;
        }
        let now = Instant::now();
        let all = self.matching(|_| true);
        let held = all.iter().enumerate().filter_map(|(index, one)| {
            one.will_hold(now).map(|(long, reserved)| (long, reserved, index))
        });
        for index in evict(held.collect(), needed) {
            all[index].evict();
        }
    }

    fn matching(&self, wanted: impl Fn(&Connection) -> bool) -> Vec<Arc<Connection>> {
        lock(&self.connections).values().filter(|one| wanted(one)).cloned().collect()
    }

    fn abort(&self, wanted: impl Fn(&Connection) -> bool) {
        for connection in self.matching(wanted) {
            connection.abort();
        }
    }

    fn wait_ended(&self, within: Duration, wanted: impl Fn(&Connection) -> bool) {
        let until = Instant::now() + within;
        let mut connections = lock(&self.connections);
        while connections.values().any(|one| wanted(one)) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let woken = self.ended.wait_timeout(connections, left);
            connections = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Ends a connection when its reader ends, for any reason: the attachment first (NC2), so that a client whose
/// socket was closed no longer counts as one.
struct Ending {
    connection: Arc<Connection>,
    number: u64,
    attachment: Option<Attachment>,
    /// Attachments to the snapshots that it compares with.
    compared: Option<Vec<Attachment>>,
    shared: Arc<Shared>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.attachment = None;
        self.compared = None;
        self.connection.evict();
        lock(&self.shared.connections).remove(&self.number);
        self.shared.ended.notify_all();
    }
}

/// Raises the soft limit of open files to the hard one; returns the limit in effect.
fn raise_files_max() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let holds = if setrlimit(Resource::Nofile, raised).is_ok() { raised } else { limit };
    holds.current.unwrap_or(u64::MAX)
}
