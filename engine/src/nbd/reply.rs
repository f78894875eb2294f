//! Reply: a connection's outgoing queue, sent in batches, never blocking.
//!
//! How it works      A finished request is encoded to a short header and queued; its data stays in the request. A
//!                   kick makes its thread the sender, unless another one is: it takes the whole queue and sends it
//!                   with as few calls as fit, and again, until the queue is empty. When the peer takes no more,
//!                   the sender leaves the rest to the sender thread.
//! Invariants        P1 at most one thread sends at a time (`sending`); P2 a reply is sent whole, once, in one piece
//!                   with its data; P3 a request is released from the budget when its reply was sent or dropped.
//! Owner and locks   `state`: held for a push or a swap. `unsent`: only its sender takes it.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use rustix::net::{SendAncillaryBuffer, SendFlags, Shutdown, sendmsg, shutdown};

use super::budget::{InFlight, Pool};
use super::wire::*;
use crate::error::Errno;
use crate::volume::request::{Request, Sink, StatusExtent, Verb};

/// Replies in one call at most: two slices each, well below the system's limit of 1024.
const REPLIES_PER_CALL: usize = 128;
const HEADER_BYTES_MAX: usize = 28;

/// A reply that waits to be sent.
struct Reply {
    header: [u8; HEADER_BYTES_MAX],
    header_bytes: u8,
    body: Body,
    /// What it holds of the budget.
    budget: usize,
}

enum Body {
    Nothing,
    Data(Arc<Request>),
    Bytes(Vec<u8>),
}

impl Reply {
    fn header(&self) -> &[u8] {
        &self.header[..usize::from(self.header_bytes)]
    }

    fn body(&self) -> &[u8] {
        match &self.body {
            Body::Nothing => &[],
            Body::Data(request) => request.data.as_slice(),
            Body::Bytes(bytes) => bytes,
        }
    }

    fn length(&self) -> usize {
        self.header().len() + self.body().len()
    }

    fn simple(cookie: u64, error: u32, body: Body, budget: usize) -> Reply {
        let mut header = [0; HEADER_BYTES_MAX];
        header[0..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
        header[4..8].copy_from_slice(&error.to_be_bytes());
        header[8..16].copy_from_slice(&cookie.to_be_bytes());
        Reply { header, header_bytes: 16, body, budget }
    }

    /// The only chunk of a structured reply; `offset` is for data.
    fn chunk(
        kind: u16,
        cookie: u64,
        offset: Option<u64>,
        body: Body,
        length: usize,
        budget: usize,
    ) -> Reply {
        let mut header = [0; HEADER_BYTES_MAX];
        header[0..4].copy_from_slice(&CHUNK_MAGIC.to_be_bytes());
        header[4..6].copy_from_slice(&CHUNK_FLAG_DONE.to_be_bytes());
        header[6..8].copy_from_slice(&kind.to_be_bytes());
        header[8..16].copy_from_slice(&cookie.to_be_bytes());
        let before = if offset.is_some() { 8 } else { 0 };
        header[16..20].copy_from_slice(&((length + before) as u32).to_be_bytes());
        header[20..28].copy_from_slice(&offset.unwrap_or(0).to_be_bytes());
        Reply { header, header_bytes: 20 + before as u8, body, budget }
    }
}

#[derive(Default)]
struct State {
    queued: Vec<Reply>,
    sending: bool,
    /// Since when the peer takes nothing.
    blocked: Option<Instant>,
    dead: bool,
    in_flight: InFlight,
}

#[derive(Default)]
struct Unsent {
    replies: VecDeque<Reply>,
    /// Bytes of the first one that were sent.
    sent: usize,
}

/// Whom to tell that a peer takes nothing.
pub trait Blocked: Send + Sync {
    /// Have [`Outgoing::resume`] called when the socket can be written to.
    fn wait_for_room(&self, outgoing: &Arc<Outgoing>);
}

/// See the module's head.
pub struct Outgoing {
    /// The socket.
    pub socket: OwnedFd,
    structured: bool,
    allocation: bool,
    state: Mutex<State>,
    changed: Condvar,
    unsent: Mutex<Unsent>,
    pool: Arc<Pool>,
    blocked: Arc<dyn Blocked>,
    me: std::sync::Weak<Outgoing>,
}

impl Outgoing {
    /// An empty queue of this socket.
    pub fn new(
        socket: OwnedFd,
        structured: bool,
        allocation: bool,
        pool: Arc<Pool>,
        blocked: Arc<dyn Blocked>,
    ) -> Arc<Outgoing> {
        Arc::new_cyclic(|me| Outgoing {
            socket,
            structured,
            allocation,
            state: Mutex::default(),
            changed: Condvar::new(),
            unsent: Mutex::default(),
            pool,
            blocked,
            me: std::sync::Weak::clone(me),
        })
    }

    /// Counts a request of so many bytes as in flight if the bounds allow it now.
    pub fn try_admit(&self, bytes: usize) -> bool {
        let mut state = self.state.lock().expect("no holder panics");
        !state.in_flight.is_full(bytes) && state.in_flight.admit(bytes, &self.pool)
    }

    /// Waits until the bounds allow one more request of so many bytes; `false` if the connection has ended.
    pub fn admit(&self, bytes: usize) -> bool {
        let mut state = self.state.lock().expect("no holder panics");
        loop {
            if state.dead {
                return false;
            }
            if state.in_flight.is_full(bytes) {
                state = self.changed.wait(state).expect("no holder panics");
            } else if state.in_flight.admit(bytes, &self.pool) {
                return true;
            } else {
                drop(state);
                self.pool.wait();
                state = self.state.lock().expect("no holder panics");
            }
        }
    }

    /// Queues the refusal of a request that was admitted with `budget` bytes.
    pub fn refuse(&self, cookie: u64, verb_has_chunks: bool, errno: Errno, budget: usize) {
        self.push(self.error(cookie, verb_has_chunks, errno, budget));
    }

    fn error(&self, cookie: u64, verb_has_chunks: bool, errno: Errno, budget: usize) -> Reply {
        let number = error_number(errno);
        if !(self.structured && verb_has_chunks) {
            return Reply::simple(cookie, number, Body::Nothing, budget);
        }
        let mut bytes = number.to_be_bytes().to_vec();
        bytes.extend_from_slice(&0u16.to_be_bytes());
        let length = bytes.len();
        Reply::chunk(CHUNK_ERROR, cookie, None, Body::Bytes(bytes), length, budget)
    }

    fn push(&self, reply: Reply) {
        let mut state = self.state.lock().expect("no holder panics");
        if state.dead {
            state.in_flight.release(reply.budget, &self.pool); // P3
            drop(state);
            self.changed.notify_all();
            return;
        }
        state.queued.push(reply);
    }

    fn encode(&self, request: Arc<Request>) -> Reply {
        let (cookie, offset) = (request.cookie, request.offset);
        let budget = budget_of(request.verb, request.length);
        let chunks = matches!(request.verb, Verb::Read | Verb::BlockStatus);
        if let Err(errno) = request.result() {
            return self.error(cookie, chunks, errno, budget);
        }
        match request.verb {
            Verb::Read if self.structured => {
                let length = request.data.len();
                let body = Body::Data(request);
                Reply::chunk(CHUNK_OFFSET_DATA, cookie, Some(offset), body, length, budget)
            }
            Verb::Read => Reply::simple(cookie, 0, Body::Data(request), budget),
            Verb::BlockStatus => {
                debug_assert!(self.allocation);
                let one = request.flags & CMD_FLAG_REQ_ONE != 0;
                let bytes = encode_status(&request.take_status(), request.length, one);
                let length = bytes.len();
                let body = Body::Bytes(bytes);
                Reply::chunk(CHUNK_BLOCK_STATUS, cookie, None, body, length, budget)
            }
            _ => Reply::simple(cookie, 0, Body::Nothing, budget),
        }
    }

    /// Sends what is queued, as long as the peer takes it (P1).
    fn send(&self) {
        let mut state = self.state.lock().expect("no holder panics");
        if state.sending || state.blocked.is_some() || state.queued.is_empty() {
            return;
        }
        state.sending = true;
        loop {
            let queued = std::mem::take(&mut state.queued);
            drop(state);
            let outcome = self.send_all(queued);
            state = self.state.lock().expect("no holder panics");
            match outcome {
                Ok(true) if state.queued.is_empty() => break,
                Ok(true) => {}
                Ok(false) => {
                    state.sending = false;
                    if state.dead {
                        drop(state);
                        return self.kill();
                    }
                    state.blocked = Some(Instant::now());
                    drop(state);
                    if let Some(me) = self.me.upgrade() {
                        self.blocked.wait_for_room(&me);
                    }
                    return;
                }
                Err(_) => {
                    state.sending = false;
                    drop(state);
                    return self.kill();
                }
            }
        }
        state.sending = false;
        let dead = state.dead;
        drop(state);
        self.changed.notify_all();
        if dead {
            self.kill();
        }
    }

    /// The socket can be written to again: sends on. `true` if nothing is left.
    pub fn resume(&self) -> bool {
        let mut state = self.state.lock().expect("no holder panics");
        if state.dead || state.sending {
            return true;
        }
        state.sending = true;
        drop(state);
        let outcome = self.send_all(Vec::new());
        let mut state = self.state.lock().expect("no holder panics");
        state.sending = false;
        let left = match outcome {
            Ok(true) => {
                state.blocked = None;
                false
            }
            Ok(false) if !state.dead => {
                state.blocked = Some(Instant::now());
                true
            }
            Ok(false) | Err(_) => {
                drop(state);
                self.kill();
                return true;
            }
        };
        drop(state);
        self.changed.notify_all();
        if !left {
            self.send();
        }
        !left
    }

    /// Sends what is left and `queued`; `Ok(false)` if the peer takes no more.
    fn send_all(&self, queued: Vec<Reply>) -> Result<bool, Errno> {
        let mut unsent = self.unsent.lock().expect("no holder panics");
        unsent.replies.extend(queued);
        while !unsent.replies.is_empty() {
            let mut slices: Vec<IoSlice<'_>> = Vec::with_capacity(2 * REPLIES_PER_CALL);
            let mut skip = unsent.sent;
            for reply in unsent.replies.iter().take(REPLIES_PER_CALL) {
                for bytes in [reply.header(), reply.body()] {
                    let here = skip.min(bytes.len());
                    skip -= here;
                    if here < bytes.len() {
                        slices.push(IoSlice::new(&bytes[here..]));
                    }
                }
            }
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let sent = sendmsg(&self.socket, &slices, &mut SendAncillaryBuffer::default(), flags);
            drop(slices);
            match sent {
                Ok(sent) => self.account(&mut unsent, sent),
                Err(rustix::io::Errno::AGAIN) => return Ok(false),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(true)
    }

    /// Takes what was sent from the front.
    fn account(&self, unsent: &mut Unsent, sent: usize) {
        let mut sent = unsent.sent + sent;
        let mut gone = Vec::new();
        while let Some(first) = unsent.replies.front() {
            let length = first.length();
            if sent < length {
                break;
            }
            sent -= length;
            gone.extend(unsent.replies.pop_front());
        }
        unsent.sent = sent;
        if !gone.is_empty() {
            self.release(&gone);
        }
    }

    fn release(&self, gone: &[Reply]) {
        let mut state = self.state.lock().expect("no holder panics");
        for reply in gone {
            state.in_flight.release(reply.budget, &self.pool); // P3
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Ends the connection now: nothing more is sent or received.
    pub fn kill(&self) {
        let mut state = self.state.lock().expect("no holder panics");
        state.dead = true;
        state.blocked = None;
        let mut gone = std::mem::take(&mut state.queued);
        let sending = state.sending;
        drop(state);
        if !sending {
            let mut unsent = self.unsent.lock().expect("no holder panics");
            gone.extend(unsent.replies.drain(..));
            unsent.sent = 0;
        }
        // A socket that is closed already is as it should be.
        let _ = shutdown(&self.socket, Shutdown::Both);
        self.release(&gone);
    }

    /// Waits until every request in flight has ended and its reply was sent or dropped; at most until `deadline`.
    pub fn drain(&self, deadline: Option<Instant>) -> bool {
        let mut state = self.state.lock().expect("no holder panics");
        while !state.in_flight.is_empty() {
            match deadline {
                None => state = self.changed.wait(state).expect("no holder panics"),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return false;
                    }
                    let waited = self.changed.wait_timeout(state, left);
                    state = waited.expect("no holder panics").0;
                }
            }
        }
        true
    }

    /// Whether the peer has taken nothing since `before` while it holds some of the pool.
    pub fn is_stuck(&self, before: Instant) -> bool {
        let state = self.state.lock().expect("no holder panics");
        state.in_flight.holds_pool() && state.blocked.is_some_and(|since| since <= before)
    }

    /// The socket, for epoll.
    pub fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Sink for Outgoing {
    fn complete(&self, request: Arc<Request>) {
        self.push(self.encode(request));
    }

    fn kick(&self) {
        self.send();
    }
}

/// What a request holds of the budget.
pub fn budget_of(verb: Verb, length: u64) -> usize {
    match verb {
        Verb::Read | Verb::Write => length as usize,
        _ => 0,
    }
}

fn encode_status(extents: &[StatusExtent], limit: u64, one: bool) -> Vec<u8> {
    let mut bytes = CONTEXT_ALLOCATION_ID.to_be_bytes().to_vec();
    let mut left = limit;
    for extent in extents {
        let length = extent.length.min(left);
        if length == 0 {
            break;
        }
        left -= length;
        let hole = if extent.hole { STATE_HOLE } else { 0 };
        let zero = if extent.zero { STATE_ZERO } else { 0 };
        // A request's length has 32 bits, so an extent within it has.
        bytes.extend_from_slice(&(length as u32).to_be_bytes());
        bytes.extend_from_slice(&(hole | zero).to_be_bytes());
        if one {
            break;
        }
    }
    bytes
}
