//! Listener: accepts sockets and leads them through the handshake, all on one thread that never blocks.
//!
//! How it works      Listening sockets, sockets in handshake and a wake-up are in one epoll set. A socket
//!                   whose handshake is done becomes a [`Connection`] with a reader thread of its own.
//! Invariants        LI1 a handshake has [`HANDSHAKE_TIME`] from the moment it was accepted;
//!                   LI2 at most `handshakes_max` sockets are in handshake: a new one replaces the oldest;
//!                   LI3 nothing is received from a socket whose output is not sent yet.
//! Errors            an error on a socket closes that socket. If no file descriptor is free, the oldest handshake is
//!                   closed, or accepting pauses.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::io::Errno as SystemErrno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, accept_with, recv, send, sockopt};
use rustix::time::Timespec;

use crate::log::{Level, Line, log};
use crate::nbd::budget::{CONNECTIONS_MAX, HANDSHAKES_BYTES_MAX, lock};
use crate::nbd::handshake::{Agreement, Context, FEED_BYTES_MAX, Handshake, Step};
use crate::nbd::{Shared, WAKE};

/// How long a handshake may take.
pub const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// Sockets in handshake, if the limit of file descriptors is high enough.
pub const HANDSHAKES_MAX: usize = 16384;
/// File descriptors reserved for the rest of the process.
const FILES_RESERVED: usize = 1024;
/// Marks a listening socket's number among the events.
pub const LISTENING: u64 = 1 << 63;
/// How long accepting pauses when there is no handshake to close.
const PAUSE: Duration = Duration::from_millis(50);
/// That clients cannot connect is logged once in so long.
const COMPLAINS_EVERY: Duration = Duration::from_secs(60);
/// Sockets accepted before others have their turn.
const ACCEPTS_PER_TURN: usize = 64;
/// Exchanges with one socket before others have their turn.
const EXCHANGES_PER_TURN: usize = 4;
/// What a handshake may always hold, whatever the others hold, bytes.
const HANDSHAKE_GUARANTEED_BYTES: usize = 1024;
/// Events looked at in one turn.
const EVENTS_PER_TURN: usize = 256;

const _: () = assert!((HANDSHAKES_MAX * HANDSHAKE_GUARANTEED_BYTES) as u64 <= HANDSHAKES_BYTES_MAX);

struct Negotiation {
    socket: OwnedFd,
    handshake: Handshake,
    held: usize,
    /// What epoll waits for.
    waits_for: epoll::EventFlags,
    closing: bool,
}

/// Result of an exchange with a socket.
enum Outcome {
    Waits(epoll::EventFlags),
    Close,
    Done(Agreement),
}

/// The thread's own state.
pub struct Listener {
    shared: Arc<Shared>,
    negotiations: HashMap<u64, Negotiation>,
    /// Deadlines in the order of acceptance; some are of handshakes that have ended.
    deadlines: VecDeque<(Instant, u64)>,
    handshakes_max: usize,
    /// What all handshakes hold, bytes.
    held: usize,
    paused_until: Option<Instant>,
    scratch: Vec<u8>,
    complained_at: Option<Instant>,
}

impl Listener {
    /// A listener for a process that may open `files_max` files.
    pub fn new(shared: Arc<Shared>, files_max: u64) -> Listener {
        let files = usize::try_from(files_max).unwrap_or(usize::MAX);
        let spare = files.saturating_sub(CONNECTIONS_MAX + FILES_RESERVED);
        Listener {
            shared,
            negotiations: HashMap::new(),
            deadlines: VecDeque::new(),
            handshakes_max: spare.clamp(64, HANDSHAKES_MAX),
            held: 0,
            paused_until: None,
            scratch: vec![0; FEED_BYTES_MAX],
            complained_at: None,
        }
    }

    /// Serves until the server stops.
    pub fn run(mut self) {
        let mut events: Vec<epoll::Event> = Vec::with_capacity(EVENTS_PER_TURN);
        while !self.shared.stopping.load(Ordering::Acquire) {
            events.clear();
            let timeout = self.timeout().and_then(|time| Timespec::try_from(time).ok());
            let space = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&self.shared.listening, space, timeout.as_ref()) {
                Ok(_) | Err(SystemErrno::INTR) => {}
                Err(_) => std::thread::sleep(PAUSE),
            }
            for event in &events {
                let number = event.data.u64();
                if number & LISTENING == 0 {
                    self.exchange(number);
                    self.count(0); // a finished handshake has its connection by now
                } else if number != WAKE {
                    self.accept(number);
                }
            }
            self.expire();
            self.count(0);
        }
    }

    /// Time until the next deadline or the end of a pause, if there is any.
    fn timeout(&self) -> Option<Duration> {
        let first = self.deadlines.front().map(|(deadline, _)| *deadline);
        let next = [first, self.paused_until].into_iter().flatten().min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    fn expire(&mut self) {
        let now = Instant::now();
        while let Some(&(deadline, number)) = self.deadlines.front() {
            if deadline > now && self.negotiations.contains_key(&number) {
                break;
            }
            self.deadlines.pop_front();
            self.remove(number); // LI1
        }
        if self.paused_until.is_some_and(|until| until <= now) {
            self.paused_until = None;
            self.pause_listening(false);
        }
    }

    fn pause_listening(&self, pause: bool) {
        let listeners = lock(&self.shared.listeners);
        let none = pause || self.shared.closed.load(Ordering::Acquire);
        let wanted = if none { epoll::EventFlags::empty() } else { epoll::EventFlags::IN };
        for (index, socket) in listeners.iter().enumerate() {
            let data = epoll::EventData::new_u64(LISTENING | index as u64);
            // It fails only for a socket that is not in the set, and all are.
            let _ = epoll::modify(&self.shared.listening, socket, data, wanted);
        }
    }

    fn accept(&mut self, number: u64) {
        for _ in 0..ACCEPTS_PER_TURN {
            let listeners = lock(&self.shared.listeners);
            let index = usize::try_from(number & !LISTENING).unwrap_or(usize::MAX);
            let Some(listening) = listeners.get(index) else { return };
            if self.shared.closed.load(Ordering::Acquire) {
                return;
            }
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let accepted = accept_with(listening, flags);
            if accepted.is_ok() {
                self.count(1); // before another thread can close the listeners and see no handshake
            }
            drop(listeners);
            match accepted {
                Ok(socket) => {
                    self.begin(socket);
                    self.count(0);
                }
                Err(SystemErrno::INTR | SystemErrno::CONNABORTED) => {}
                Err(
                    errno @ (SystemErrno::MFILE
                    | SystemErrno::NFILE
                    | SystemErrno::NOBUFS
                    | SystemErrno::NOMEM),
                ) => {
                    self.complain(errno);
                    if !self.close_oldest() {
                        self.pause_listening(true);
                        self.paused_until = Some(Instant::now() + PAUSE);
                    }
                    return;
                }
                Err(errno) => return self.complain(errno),
            }
        }
    }

    /// Logs that clients cannot connect, now and then.
    fn complain(&mut self, errno: SystemErrno) {
        let lately = |at: &Instant| at.elapsed() < COMPLAINS_EVERY;
        if errno == SystemErrno::AGAIN || self.complained_at.as_ref().is_some_and(lately) {
            return;
        }
        self.complained_at = Some(Instant::now());
        let text = format!("a client cannot connect: {errno}");
        log(Line::new(Level::Warning, "client-not-accepted", text).with(errno.raw_os_error()));
    }

    fn begin(&mut self, socket: OwnedFd) {
        while self.negotiations.len() >= self.handshakes_max && self.close_oldest() {} // LI2
        // Refused for unix sockets, which do not need it.
        let _ = sockopt::set_tcp_nodelay(&socket, true);
        let number = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let waits_for = epoll::EventFlags::IN;
        let data = epoll::EventData::new_u64(number);
        if epoll::add(&self.shared.listening, &socket, data, waits_for).is_err() {
            return;
        }
        let handshake = Handshake::new();
        let held = handshake.held_bytes();
        self.held += held;
        let negotiation = Negotiation { socket, handshake, held, waits_for, closing: false };
        self.negotiations.insert(number, negotiation);
        self.deadlines.push_back((Instant::now() + HANDSHAKE_TIME, number));
        self.exchange(number);
    }

    fn close_oldest(&mut self) -> bool {
        while let Some((_, number)) = self.deadlines.pop_front() {
            if self.remove(number).is_some() {
                return true;
            }
        }
        false
    }

    fn remove(&mut self, number: u64) -> Option<Negotiation> {
        let negotiation = self.negotiations.remove(&number)?;
        self.held -= negotiation.held;
        Some(negotiation)
    }

    /// Publishes how many sockets are in handshake: the known ones, and `more` that are about to be.
    fn count(&self, more: usize) {
        self.shared.handshakes.store(self.negotiations.len() + more, Ordering::SeqCst);
    }

    /// Sends to and receives from one socket as far as it is possible now.
    fn exchange(&mut self, number: u64) {
        let Some(negotiation) = self.negotiations.get_mut(&number) else { return };
        let full = lock(&self.shared.connections).len() >= CONNECTIONS_MAX;
        let context = Context { exports: &self.shared.exports, full };
        let outcome = negotiation.exchange(context, &mut self.scratch);
        let held = negotiation.handshake.held_bytes();
        self.held = self.held - negotiation.held + held;
        negotiation.held = held;
        let greedy = held > HANDSHAKE_GUARANTEED_BYTES && self.held as u64 > HANDSHAKES_BYTES_MAX;
        match outcome {
            Outcome::Done(agreement) => {
                let Some(negotiation) = self.remove(number) else { return };
                // From here on the socket belongs to the reader; a failure closes it.
                let _ = epoll::delete(&self.shared.listening, &negotiation.socket);
                let output = negotiation.handshake.output().to_vec();
                Shared::begin_transmission(
                    &self.shared,
                    negotiation.socket,
                    number,
                    agreement,
                    output,
                );
            }
            Outcome::Close => {
                self.remove(number);
            }
            Outcome::Waits(_) if greedy => {
                self.remove(number);
            }
            Outcome::Waits(wanted) if wanted == negotiation.waits_for => {}
            Outcome::Waits(wanted) => {
                negotiation.waits_for = wanted;
                let data = epoll::EventData::new_u64(number);
                let socket = &negotiation.socket;
                if epoll::modify(&self.shared.listening, socket, data, wanted).is_err() {
                    self.remove(number);
                }
            }
        }
    }
}

impl Negotiation {
    fn exchange(&mut self, context: Context, scratch: &mut [u8]) -> Outcome {
        for _ in 0..EXCHANGES_PER_TURN {
            let output = self.handshake.output();
            if !output.is_empty() {
                match send(&self.socket, output, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                    Ok(sent) => self.handshake.sent(sent),
                    Err(SystemErrno::INTR) => {}
                    Err(SystemErrno::AGAIN) => return Outcome::Waits(epoll::EventFlags::OUT),
                    Err(_) => return Outcome::Close,
                }
                if !self.handshake.output().is_empty() {
                    continue; // LI3
                }
            }
            if self.closing {
                return Outcome::Close;
            }
            // Options that waited until output was sent come first.
            let mut step = self.handshake.feed(&[], context);
            if matches!(step, Step::More) && self.handshake.output().is_empty() {
                match recv(&self.socket, &mut *scratch, RecvFlags::DONTWAIT) {
                    Ok((0, _)) => return Outcome::Close,
                    Ok((received, _)) => step = self.handshake.feed(&scratch[..received], context),
                    Err(SystemErrno::INTR) => {}
                    Err(SystemErrno::AGAIN) => return Outcome::Waits(epoll::EventFlags::IN),
                    Err(_) => return Outcome::Close,
                }
            }
            match step {
                Step::More => {}
                Step::Close => self.closing = true,
                Step::Done(agreement) => return Outcome::Done(agreement),
            }
        }
        if self.closing && self.handshake.output().is_empty() {
            return Outcome::Close;
        }
        let writes = !self.handshake.output().is_empty();
        Outcome::Waits(if writes { epoll::EventFlags::OUT } else { epoll::EventFlags::IN })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::nbd::Server;

    #[test]
    fn without_a_handshake_there_is_no_wake_up() {
        let server = Server::new(Arc::default(), Arc::new(())).unwrap();
        let mut listener = Listener::new(Arc::clone(&server.shared), 65536);
        assert_eq!(listener.timeout(), None);
        let (ours, theirs) = UnixStream::pair().unwrap();
        listener.begin(ours.into());
        assert!(listener.timeout().is_some_and(|time| time <= HANDSHAKE_TIME));
        drop(theirs);
        let number = listener.deadlines[0].1;
        listener.exchange(number);
        listener.expire();
        assert_eq!(listener.timeout(), None);
    }
}
