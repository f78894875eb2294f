//! Replies: from a finished request to bytes on the socket, without ever blocking a processor.
//!
//! How it works      A finished request becomes a [`Reply`] in its connection's queue. A kick sends all that
//!                   is queued: one `sendmsg` for many replies. When the socket accepts no more, or one kick has sent
//!                   much, the connection is passed to the server's sender thread, which waits for the socket (epoll,
//!                   one shot) and continues. Until then kicks only queue.
//! Invariants        RP1 one thread sends at a time: the one that set `sending`, or, once the connection is passed to
//!                   it, the sender thread; the thread that sends checks the queue again before it stops;
//!                   RP2 what a request holds is released once, when its reply is sent or dropped.
//! Owner and locks   the outbox's lock, then the connection's state, then the pool.
//! Errors            a failed send ends the peer's own connection.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;

use rustix::io::Errno as SystemErrno;

use crate::error::Errno;
use crate::nbd::budget::{self, lock};
use crate::nbd::buffer_pool::BufferPool;
use crate::nbd::connection::{Connection, State};
use crate::nbd::status;
use crate::nbd::wire::{
    CHUNK_HEADER_BYTES, SIMPLE_REPLY_BYTES, chunk, error, only_chunk, simple_reply,
};
use crate::volume::request::{Request, Sink, Verb};

/// Replies in one `sendmsg`.
const REPLIES_PER_SEND: usize = 128;
/// Up to so many replies use the shorter list of parts.
const FEW_REPLIES: usize = 8;
/// What one kick sends before it leaves the rest to the sender thread, bytes.
const BYTES_PER_TURN: usize = 1 << 20;
/// The longest head: a data chunk's header and its offset.
const HEAD_BYTES_MAX: usize = CHUNK_HEADER_BYTES + 8;
/// The kernel's limit for parts of one message.
const IOV_MAX: usize = 1024;

const _: () = assert!(2 * REPLIES_PER_SEND <= IOV_MAX);
const _: () = assert!(SIMPLE_REPLY_BYTES <= HEAD_BYTES_MAX);

/// What follows a reply's head.
enum Body {
    Nothing,
    /// The buffer of a read.
    Read(Arc<Request>),
    Bytes(Vec<u8>),
}

/// One reply, ready to be sent.
pub struct Reply {
    head: [u8; HEAD_BYTES_MAX],
    head_bytes: usize,
    body: Body,
    /// What is released once it is sent, bytes (RP2).
    cost: u64,
    /// How many requests it answers.
    requests: u32,
}

impl Reply {
    fn new(head: &[u8], body: Body, cost: u64) -> Reply {
        let mut reply =
            Reply { head: [0; HEAD_BYTES_MAX], head_bytes: head.len(), body, cost, requests: 1 };
        reply.head[..head.len()].copy_from_slice(head);
        reply
    }

    /// Bytes of the handshake that are still to be sent; they answer no request.
    pub fn handshake(bytes: Vec<u8>) -> Reply {
        Reply { requests: 0, ..Reply::new(&[], Body::Bytes(bytes), 0) }
    }

    /// The answer to a request that was refused, or that failed.
    pub fn error(structured: bool, cookie: u64, errno: Errno, cost: u64) -> Reply {
        let code = protocol_error(errno);
        if !structured {
            return Reply::new(&simple_reply(code, cookie), Body::Nothing, cost);
        }
        let mut head = [0; CHUNK_HEADER_BYTES + 6]; // the error, and a message of no bytes
        head[..CHUNK_HEADER_BYTES].copy_from_slice(&only_chunk(chunk::ERROR, cookie, 6));
        head[CHUNK_HEADER_BYTES..CHUNK_HEADER_BYTES + 4].copy_from_slice(&code.to_be_bytes());
        Reply::new(&head, Body::Nothing, cost)
    }

    /// The answer to a finished request.
    pub fn to(request: Arc<Request>, structured: bool, buffers: &BufferPool) -> Reply {
        let cost = budget::cost_with(request.contexts.as_deref(), request.verb, request.length);
        let cookie = request.cookie;
        // Commands whose success has no chunk get a simple reply, also for a failure.
        let chunks = structured && matches!(request.verb, Verb::Read | Verb::BlockStatus);
        if let Err(errno) = request.result() {
            return Reply::error(chunks, cookie, errno, cost);
        }
        match request.verb {
            Verb::Read if chunks => {
                let length = u32::try_from(request.length + 8).unwrap_or(u32::MAX);
                let mut head = [0; HEAD_BYTES_MAX];
                let header = only_chunk(chunk::OFFSET_DATA, cookie, length);
                head[..CHUNK_HEADER_BYTES].copy_from_slice(&header);
                head[CHUNK_HEADER_BYTES..].copy_from_slice(&request.offset.to_be_bytes());
                Reply::new(&head, Body::Read(request), cost)
            }
            Verb::Read => Reply::new(&simple_reply(0, cookie), Body::Read(request), cost),
            Verb::BlockStatus => Reply::new(&[], Body::Bytes(status::chunks(&request)), cost),
            _ => {
                buffers.keep(request);
                Reply::new(&simple_reply(0, cookie), Body::Nothing, cost)
            }
        }
    }

    fn head(&self) -> &[u8] {
        &self.head[..self.head_bytes]
    }

    fn body(&self) -> &[u8] {
        match &self.body {
            Body::Nothing => &[],
            Body::Read(request) => request.data.as_slice(),
            Body::Bytes(bytes) => bytes,
        }
    }

    fn len(&self) -> usize {
        self.head_bytes + self.body().len()
    }
}

/// An errno as the protocol's error; EIO if the protocol does not have it.
fn protocol_error(errno: Errno) -> u32 {
    match errno {
        Errno::EPERM => error::EPERM,
        Errno::ENOMEM => error::ENOMEM,
        Errno::EINVAL => error::EINVAL,
        full if full.is_no_space() => error::ENOSPC,
        Errno::EOVERFLOW => error::EOVERFLOW,
        Errno::ENOTSUP => error::ENOTSUP,
        Errno::ESHUTDOWN => error::ESHUTDOWN,
        _ => error::EIO,
    }
}

/// The replies that the sending thread took from the queue.
#[derive(Default)]
pub struct Outbox {
    replies: VecDeque<Reply>,
    /// How much of the first reply was sent, bytes.
    first_sent: usize,
}

/// What sent replies held, and is not released yet.
#[derive(Default)]
struct Finished {
    cost: u64,
    requests: u32,
    bytes: usize,
}

impl Finished {
    fn count(&mut self, reply: &Reply) {
        self.cost += reply.cost;
        self.requests += reply.requests;
    }
}

impl Outbox {
    /// Sends as much as the socket accepts in one call.
    fn send(&self, connection: &Connection) -> Result<usize, SystemErrno> {
        match self.replies.len() {
            0..=FEW_REPLIES => self.send_by::<{ 2 * FEW_REPLIES }>(connection),
            _ => self.send_by::<{ 2 * REPLIES_PER_SEND }>(connection),
        }
    }

    fn send_by<const PARTS: usize>(&self, connection: &Connection) -> Result<usize, SystemErrno> {
        let mut parts = [IoSlice::new(&[]); PARTS];
        let mut used = 0;
        let mut skip = self.first_sent;
        for reply in self.replies.iter().take(PARTS / 2) {
            for part in [reply.head(), reply.body()] {
                let skipped = skip.min(part.len());
                skip -= skipped;
                if skipped < part.len() {
                    parts[used] = IoSlice::new(&part[skipped..]);
                    used += 1;
                }
            }
        }
        connection.peer.send(&parts[..used])
    }

    /// Drops the replies that `sent` bytes completed.
    fn advance(&mut self, sent: usize, finished: &mut Finished, buffers: &BufferPool) {
        finished.bytes += sent;
        self.first_sent += sent;
        while let Some(first) = self.replies.front() {
            if self.first_sent < first.len() {
                break;
            }
            self.first_sent -= first.len();
            finished.count(first);
            if let Some(Reply { body: Body::Read(request), .. }) = self.replies.pop_front() {
                buffers.keep(request);
            }
        }
    }

    fn clear(&mut self, finished: &mut Finished) {
        for reply in self.replies.drain(..) {
            finished.count(&reply);
        }
        self.first_sent = 0;
    }
}

impl Connection {
    /// Queues a reply; a kick sends it.
    pub fn push(&self, reply: Reply) {
        let mut state = lock(&self.state);
        self.push_locked(&mut state, reply);
    }

    fn push_locked(&self, state: &mut State, reply: Reply) {
        if state.broken {
            self.give_back(state, reply.cost, reply.requests);
        } else {
            state.queue.push(reply);
        }
    }

    /// Sends what is queued, unless another thread is already sending.
    pub fn send_queued(&self) {
        {
            let mut state = lock(&self.state);
            if state.sending || state.queue.is_empty() {
                return;
            }
            state.sending = true;
        }
        self.send_on();
    }

    /// Continues sending; the caller is the sending thread (RP1).
    pub fn send_on(&self) {
        let mut outbox = lock(&self.outbox);
        let mut finished = Finished::default();
        let mut turn = 0;
        loop {
            if !self.refill(&mut outbox, &mut finished) {
                return;
            }
            if turn >= BYTES_PER_TURN {
                break;
            }
            match outbox.send(self) {
                Ok(sent) => {
                    turn += sent;
                    outbox.advance(sent, &mut finished, &self.common.buffers);
                }
                Err(SystemErrno::INTR) => {}
                Err(SystemErrno::AGAIN) => break,
                Err(_) => self.abort(),
            }
        }
        lock(&self.state).begin_turn();
        // Unlocked first: the sender thread may continue before the next line has ended.
        drop(outbox);
        self.leave_to_sender();
    }

    /// Releases what was sent and takes what is queued. If nothing is queued, it ends the sending and returns false.
    fn refill(&self, outbox: &mut Outbox, finished: &mut Finished) -> bool {
        let mut state = lock(&self.state);
        if state.broken {
            outbox.clear(finished);
        }
        state.moved += finished.bytes as u64;
        self.give_back(&mut state, finished.cost, finished.requests);
        *finished = Finished::default();
        outbox.replies.extend(state.queue.drain(..));
        if outbox.replies.is_empty() {
            state.sending = false;
            state.end_turn();
            if state.reader_waits {
                self.waiter.changed.notify_all();
            }
            return false;
        }
        true
    }

    /// Leaves the rest to the sender thread.
    fn leave_to_sender(&self) {
        if self.peer.send_later().is_err() {
            // No memory for epoll: no thread would continue, so the connection ends here.
            self.abort();
            self.drop_unsent();
        }
    }

    /// Drops everything that is not sent yet, for a connection that is broken.
    pub fn drop_unsent(&self) {
        let mut finished = Finished::default();
        let mut outbox = lock(&self.outbox);
        outbox.clear(&mut finished);
        let mut state = lock(&self.state);
        state.sending = false;
        for reply in std::mem::take(&mut state.queue) {
            finished.count(&reply);
        }
        self.give_back(&mut state, finished.cost, finished.requests);
    }
}

impl Sink for Connection {
    fn complete(&self, request: Arc<Request>) {
        let reply = Reply::to(request, self.agreed.structured, &self.common.buffers);
        let mut state = lock(&self.state);
        state.submitted = state.submitted.saturating_sub(1);
        self.push_locked(&mut state, reply);
        if state.submitted == 0 && state.reader_waits {
            self.waiter.changed.notify_all();
        }
    }

    fn kick(&self) {
        self.send_queued();
    }

    fn is_gone(&self) -> bool {
        let state = lock(&self.state);
        state.broken && !state.disconnected
    }
}
