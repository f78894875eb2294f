//! Listener: accepts sockets, does their handshakes, and starts their readers; and the server that holds it all.
//!
//! How it works      One negotiator thread waits by epoll for listening sockets and for sockets in handshake. A socket
//!                   whose handshake is done goes to a reader thread. One sender thread waits by epoll for peers that
//!                   did not take their replies.
//! Owner and locks   handshakes: the negotiator alone. Connections: one lock, held for a change of the list.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::net::{RecvFlags, SendFlags, SocketFlags, accept_with, recv, send};
use rustix::process::{Resource, getrlimit, setrlimit};

use super::budget::{CONNECTIONS_MAX, Pool, STUCK_AFTER};
use super::connection;
use super::handshake::{Handshake, INPUT_BYTES_MAX, Negotiated, Next};
use super::reply::{Blocked, Outgoing};
use crate::error::{Error, Result};
use crate::volume::export::ExportTable;

/// Sockets in handshake.
const HANDSHAKES_MAX: usize = 16_384;
/// From accept to the first request.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// Answers of a handshake that wait for the peer to take them before more is read from it, bytes.
const OUTPUT_BYTES_MAX: usize = 64 << 10;
/// How long nothing is accepted after the system had no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Sockets accepted at a time before others are looked at.
const ACCEPTS_PER_TURN: usize = 64;
const EVENTS_PER_TURN: usize = 256;
const WAKE: u64 = u64::MAX;
const LISTENER: u64 = 1 << 62;

/// See the module's head.
pub struct Server {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    exports: Arc<ExportTable>,
    pool: Arc<Pool>,
    stopping: AtomicBool,
    handshakes: AtomicUsize,
    epoll: OwnedFd,
    wake: OwnedFd,
    listeners: Mutex<Vec<Arc<OwnedFd>>>,
    connections: Mutex<Connections>,
    sender: Arc<Sender>,
}

#[derive(Default)]
struct Connections {
    next: u64,
    open: HashMap<u64, (String, Arc<Outgoing>)>,
    threads: HashMap<u64, JoinHandle<()>>,
    ended: Vec<u64>,
}

fn failed(what: &str) -> impl Fn(rustix::io::Errno) -> Error + '_ {
    move |e| Error::io(format!("the NBD server cannot be started: {what}"), e)
}

fn new_epoll() -> Result<(OwnedFd, OwnedFd)> {
    let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(failed("epoll"))?;
    let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
    let wake = wake.map_err(failed("eventfd"))?;
    let data = EventData::new_u64(WAKE);
    epoll::add(&epoll, &wake, data, EventFlags::IN).map_err(failed("epoll"))?;
    Ok((epoll, wake))
}

fn wake(fd: &OwnedFd) {
    // It can fail only when it is set already.
    let _ = rustix::io::write(fd, &1u64.to_ne_bytes_for_eventfd());
}

fn clear(fd: &OwnedFd) {
    // It can fail only when it is clear already.
    let _ = rustix::io::read(fd, &mut [0; 8]);
}

/// An eventfd counts in the host's byte order.
trait EventfdBytes {
    fn to_ne_bytes_for_eventfd(self) -> [u8; 8];
}

impl EventfdBytes for u64 {
    #[allow(clippy::disallowed_methods)]
    fn to_ne_bytes_for_eventfd(self) -> [u8; 8] {
        self.to_ne_bytes()
    }
}

impl Server {
    /// A server of these exports; it listens nowhere yet.
    pub fn new(exports: Arc<ExportTable>) -> Result<Server> {
        raise_descriptor_limit();
        let (epoll, wake) = new_epoll()?;
        let sender = Arc::new(Sender::new()?);
        let shared = Arc::new(Shared {
            exports,
            pool: Arc::default(),
            stopping: AtomicBool::new(false),
            handshakes: AtomicUsize::new(0),
            epoll,
            wake,
            listeners: Mutex::default(),
            connections: Mutex::default(),
            sender: Arc::clone(&sender),
        });
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run);
            thread.map_err(|e| Error::io("an NBD thread cannot be started", e))
        };
        let (ours, pool) = (Arc::clone(&shared), Arc::clone(&shared.pool));
        let negotiator = spawn("pv-negotiator", Box::new(move || Negotiator::new(ours).run()))?;
        let sending = spawn("pv-sender", Box::new(move || sender.run(&pool)))?;
        Ok(Server { shared, threads: Mutex::new(vec![negotiator, sending]) })
    }

    /// Serves a bound, listening stream socket.
    pub fn listen(&self, socket: OwnedFd) -> Result<()> {
        let bad = |e| Error::io("the NBD socket cannot be listened on", e);
        rustix::io::ioctl_fionbio(&socket, true).map_err(bad)?;
        let mut listeners = self.shared.listeners.lock().expect("no holder panics");
        let data = EventData::new_u64(LISTENER + listeners.len() as u64);
        epoll::add(&self.shared.epoll, &socket, data, EventFlags::IN).map_err(bad)?;
        listeners.push(Arc::new(socket));
        Ok(())
    }

    /// Connections in transmission.
    pub fn connections(&self) -> usize {
        self.shared.connections.lock().expect("no holder panics").open.len()
    }

    /// Sockets in handshake.
    pub fn handshakes(&self) -> usize {
        self.shared.handshakes.load(Ordering::Relaxed)
    }

    /// Ends everything: accepting, handshakes, connections. Idempotent.
    pub fn stop(&self) {
        self.shared.stopping.store(true, Ordering::Release);
        wake(&self.shared.wake);
        let mut threads = self.threads.lock().expect("no holder panics");
        if threads.is_empty() {
            return;
        }
        let negotiator = threads.remove(0);
        let _ = negotiator.join();
        let mut connections = self.shared.connections.lock().expect("no holder panics");
        let open: Vec<_> = connections.open.values().map(|(_, out)| Arc::clone(out)).collect();
        let readers: Vec<_> = connections.threads.drain().map(|(_, thread)| thread).collect();
        drop(connections);
        open.iter().for_each(|outgoing| outgoing.kill());
        readers.into_iter().for_each(|thread| drop(thread.join()));
        self.shared.sender.stop();
        threads.drain(..).for_each(|thread| drop(thread.join()));
        self.shared.listeners.lock().expect("no holder panics").clear();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Idle sockets cost descriptors: have as many as we may.
fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // With fewer, accepting pauses earlier.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// A socket in handshake.
struct Negotiation {
    socket: OwnedFd,
    handshake: Handshake,
    input: Vec<u8>,
    output: Vec<u8>,
    sent: usize,
    deadline: Instant,
    next: Option<Next>,
    writing: bool,
}

struct Negotiator {
    shared: Arc<Shared>,
    negotiations: HashMap<u64, Negotiation>,
    next_key: u64,
    paused_until: Option<Instant>,
    scratch: Vec<u8>,
}

impl Negotiator {
    fn new(shared: Arc<Shared>) -> Negotiator {
        let scratch = vec![0; INPUT_BYTES_MAX];
        let negotiations = HashMap::new();
        Negotiator { shared, negotiations, next_key: 0, paused_until: None, scratch }
    }

    fn run(mut self) {
        let mut events = Vec::with_capacity(EVENTS_PER_TURN);
        let mut checked = Instant::now();
        while !self.shared.stopping.load(Ordering::Acquire) {
            events.clear();
            let timeout = self.timeout();
            let buffer = rustix::buffer::spare_capacity(&mut events);
            // INTR comes again.
            let _ = epoll::wait(&self.shared.epoll, buffer, timeout.as_ref());
            for event in &events {
                match event.data.u64() {
                    WAKE => clear(&self.shared.wake),
                    key if key >= LISTENER => self.accept((key - LISTENER) as usize),
                    key => self.advance(key),
                }
            }
            self.end_pause();
            if checked.elapsed() > Duration::from_millis(250) {
                checked = Instant::now();
                self.drop_late();
                self.shared.join_ended();
            }
        }
    }

    /// Forever, when nobody is in handshake.
    fn timeout(&self) -> Option<Timespec> {
        let waits = !self.negotiations.is_empty() || self.paused_until.is_some();
        let ended = !self.shared.connections.lock().expect("no holder panics").ended.is_empty();
        (waits || ended).then_some(Timespec { tv_sec: 0, tv_nsec: 100_000_000 })
    }

    fn accept(&mut self, index: usize) {
        let listener = {
            let listeners = self.shared.listeners.lock().expect("no holder panics");
            listeners.get(index).map(Arc::clone)
        };
        let Some(listener) = listener else { return };
        for _ in 0..ACCEPTS_PER_TURN {
            if self.paused_until.is_some() {
                return;
            }
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            match accept_with(&*listener, flags) {
                Ok(socket) => self.begin(socket),
                Err(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE) => self.pause(),
                Err(rustix::io::Errno::NOBUFS | rustix::io::Errno::NOMEM) => self.pause(),
                Err(_) => return,
            }
        }
    }

    /// Stops looking at listeners for a while: they stay readable, and looking at them would spin.
    fn pause(&mut self) {
        self.paused_until = Some(Instant::now() + ACCEPT_PAUSE);
        self.watch_listeners(EventFlags::empty());
    }

    fn end_pause(&mut self) {
        if self.paused_until.is_some_and(|until| until <= Instant::now()) {
            self.paused_until = None;
            self.watch_listeners(EventFlags::IN);
        }
    }

    fn watch_listeners(&self, flags: EventFlags) {
        let listeners = self.shared.listeners.lock().expect("no holder panics");
        for (index, listener) in listeners.iter().enumerate() {
            let data = EventData::new_u64(LISTENER + index as u64);
            let _ = epoll::modify(&self.shared.epoll, &**listener, data, flags);
        }
    }

    fn begin(&mut self, socket: OwnedFd) {
        if self.negotiations.len() >= HANDSHAKES_MAX {
            return; // closed
        }
        // Not a TCP socket: then there is nothing to be switched off.
        let _ = rustix::net::sockopt::set_tcp_nodelay(&socket, true);
        let mut output = Vec::new();
        let handshake = Handshake::new(Arc::clone(&self.shared.exports), &mut output);
        self.next_key += 1;
        let key = self.next_key;
        let data = EventData::new_u64(key);
        if epoll::add(&self.shared.epoll, &socket, data, EventFlags::IN).is_err() {
            return;
        }
        let negotiation = Negotiation {
            socket,
            handshake,
            input: Vec::new(),
            output,
            sent: 0,
            deadline: Instant::now() + HANDSHAKE_TIME,
            next: None,
            writing: false,
        };
        self.negotiations.insert(key, negotiation);
        self.count();
        self.advance(key);
    }

    fn count(&self) {
        self.shared.handshakes.store(self.negotiations.len(), Ordering::Relaxed);
    }

    /// Does what can be done for one socket.
    fn advance(&mut self, key: u64) {
        let Some(negotiation) = self.negotiations.get_mut(&key) else { return };
        if negotiation.step(&mut self.scratch) {
            let wants_write = negotiation.sent < negotiation.output.len();
            if wants_write != negotiation.writing {
                negotiation.writing = wants_write;
                let flags = if wants_write { EventFlags::OUT } else { EventFlags::IN };
                let data = EventData::new_u64(key);
                let _ = epoll::modify(&self.shared.epoll, &negotiation.socket, data, flags);
            }
            return;
        }
        let Some(negotiation) = self.negotiations.remove(&key) else { return };
        self.count();
        let _ = epoll::delete(&self.shared.epoll, &negotiation.socket);
        if let Some(Next::Enter(negotiated)) = negotiation.next {
            self.shared.enter(negotiation.socket, *negotiated, negotiation.input);
        }
    }

    fn drop_late(&mut self) {
        let now = Instant::now();
        self.negotiations.retain(|_, negotiation| negotiation.deadline > now);
        self.count();
    }
}

impl Negotiation {
    /// Receives, advances and sends; `false` when the handshake has ended.
    fn step(&mut self, scratch: &mut [u8]) -> bool {
        loop {
            if !self.send() {
                self.next = None;
                return false;
            }
            let pending = self.output.len() - self.sent;
            if self.next.is_some() {
                return pending > 0; // the last answers leave first
            }
            if pending > OUTPUT_BYTES_MAX {
                return true;
            }
            let (used, next) = self.handshake.advance(&self.input, &mut self.output);
            self.input.drain(..used);
            match next {
                Next::More if used > 0 => continue,
                Next::More => {}
                ended => {
                    self.next = Some(ended);
                    continue;
                }
            }
            match recv(&self.socket, &mut *scratch, RecvFlags::DONTWAIT) {
                Ok((0, _)) => return false,
                Ok((received, _)) => self.input.extend_from_slice(&scratch[..received]),
                Err(rustix::io::Errno::AGAIN) => return true,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }

    /// Sends what the peer takes; `false` if it is gone.
    fn send(&mut self) -> bool {
        while self.sent < self.output.len() {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match send(&self.socket, &self.output[self.sent..], flags) {
                Ok(sent) => self.sent += sent,
                Err(rustix::io::Errno::AGAIN) => return true,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        self.output.clear();
        self.sent = 0;
        true
    }
}

impl Shared {
    /// Starts a reader for a socket whose handshake is done.
    fn enter(self: &Arc<Self>, socket: OwnedFd, negotiated: Negotiated, early: Vec<u8>) {
        let mut connections = self.connections.lock().expect("no holder panics");
        if connections.open.len() >= CONNECTIONS_MAX {
            return; // closed
        }
        if rustix::io::ioctl_fionbio(&socket, false).is_err() {
            return;
        }
        let blocked = Arc::clone(&self.sender) as Arc<dyn Blocked>;
        let pool = Arc::clone(&self.pool);
        let (structured, allocation) = (negotiated.structured, negotiated.allocation);
        let outgoing = Outgoing::new(socket, structured, allocation, pool, blocked);
        let name = negotiated.attachment.name.clone();
        let key = connections.next;
        connections.next += 1;
        let (shared, ours) = (Arc::clone(self), Arc::clone(&outgoing));
        let run = move || {
            connection::serve(&ours, &negotiated, &early);
            shared.sender.forget(&ours);
            drop(ours);
            drop(negotiated); // detached before it is counted as gone
            let mut connections = shared.connections.lock().expect("no holder panics");
            connections.open.remove(&key);
            connections.ended.push(key);
            drop(connections);
            wake(&shared.wake);
        };
        // Without a thread the socket is closed.
        if let Ok(thread) = std::thread::Builder::new().name("pv-conn".to_owned()).spawn(run) {
            connections.open.insert(key, (name, outgoing));
            connections.threads.insert(key, thread);
        }
    }

    /// Joins the readers that have ended.
    fn join_ended(&self) {
        let mut connections = self.connections.lock().expect("no holder panics");
        let ended = std::mem::take(&mut connections.ended);
        let threads: Vec<_> =
            ended.iter().filter_map(|key| connections.threads.remove(key)).collect();
        drop(connections);
        threads.into_iter().for_each(|thread| drop(thread.join()));
    }
}

/// Waits for peers that did not take their replies.
struct Sender {
    epoll: OwnedFd,
    wake: OwnedFd,
    waiting: Mutex<HashMap<u64, Arc<Outgoing>>>,
    stopping: AtomicBool,
}

fn key_of(outgoing: &Arc<Outgoing>) -> u64 {
    Arc::as_ptr(outgoing) as u64
}

impl Sender {
    fn new() -> Result<Sender> {
        let (epoll, wake) = new_epoll()?;
        Ok(Sender { epoll, wake, waiting: Mutex::default(), stopping: AtomicBool::new(false) })
    }

    fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        wake(&self.wake);
    }

    fn forget(&self, outgoing: &Arc<Outgoing>) {
        let mut waiting = self.waiting.lock().expect("no holder panics");
        if waiting.remove(&key_of(outgoing)).is_some() {
            let _ = epoll::delete(&self.epoll, outgoing.fd());
        }
    }

    fn run(&self, pool: &Pool) {
        let mut events = Vec::with_capacity(EVENTS_PER_TURN);
        while !self.stopping.load(Ordering::Acquire) {
            events.clear();
            let idle = self.waiting.lock().expect("no holder panics").is_empty();
            let timeout = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
            let buffer = rustix::buffer::spare_capacity(&mut events);
            let _ = epoll::wait(&self.epoll, buffer, if idle { None } else { Some(&timeout) });
            for event in &events {
                let key = event.data.u64();
                if key == WAKE {
                    clear(&self.wake);
                    continue;
                }
                let found = self.waiting.lock().expect("no holder panics").get(&key).cloned();
                let Some(outgoing) = found else { continue };
                // From here on it may come again, by its own kick.
                self.forget(&outgoing);
                if !outgoing.resume() {
                    self.wait_for_room(&outgoing);
                }
            }
            if pool.is_short() {
                self.end_stuck();
            }
        }
    }

    /// Ends connections whose peers take nothing and hold memory that others wait for.
    fn end_stuck(&self) {
        let Some(before) = Instant::now().checked_sub(STUCK_AFTER) else { return };
        let waiting: Vec<_> =
            self.waiting.lock().expect("no holder panics").values().cloned().collect();
        for outgoing in waiting.iter().filter(|outgoing| outgoing.is_stuck(before)) {
            outgoing.kill();
            self.forget(outgoing);
        }
    }
}

impl Blocked for Sender {
    fn wait_for_room(&self, outgoing: &Arc<Outgoing>) {
        let key = key_of(outgoing);
        let mut waiting = self.waiting.lock().expect("no holder panics");
        waiting.insert(key, Arc::clone(outgoing));
        let added = epoll::add(
            &self.epoll,
            outgoing.fd().as_fd(),
            EventData::new_u64(key),
            EventFlags::OUT | EventFlags::ONESHOT,
        );
        drop(waiting);
        if added.is_err() {
            outgoing.kill();
        }
        wake(&self.wake);
    }
}
