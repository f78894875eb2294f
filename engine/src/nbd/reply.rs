//! Reply: a finished request as bytes, and the replies that are being sent.
//!
//! How it works      A reply has a head of a few bytes, and perhaps a body: the buffer of its request, which is sent from where
//!                   it is. An [`Outbox`] sends the parts of many replies in one call.
//! Owner and locks   the sending thread (RP1 of [`sending`](super::sending)).

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;

use rustix::io::Errno as SystemErrno;

use crate::error::Errno;
use crate::nbd::block_status;
use crate::nbd::budget;
use crate::nbd::buffer_pool::BufferPool;
use crate::nbd::peer::Peer;
use crate::nbd::wire::{
    CHUNK_HEADER_BYTES, SIMPLE_REPLY_BYTES, chunk, error, only_chunk, simple_reply,
};
use crate::request::{Request, Verb};

/// Replies in one `sendmsg`.
const REPLIES_PER_SEND: usize = 128;
/// Up to so many replies use the shorter list of parts.
const FEW_REPLIES: usize = 8;
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
    pub cost: u64,
    /// How many requests it answers.
    pub requests: u32,
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
            Verb::BlockStatus => Reply::new(&[], Body::Bytes(block_status::chunks(&request)), cost),
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
    /// In order; the first may be sent in part.
    pub replies: VecDeque<Reply>,
    /// How much of the first reply was sent, bytes.
    first_sent: usize,
}

/// What sent replies held, and is not released yet.
#[derive(Default)]
pub struct Finished {
    /// Bytes to release (RP2).
    pub cost: u64,
    /// Requests that were answered.
    pub requests: u32,
    /// Bytes sent.
    pub bytes: usize,
}

impl Finished {
    /// Counts a reply that was sent or dropped.
    pub fn count(&mut self, reply: &Reply) {
        self.cost += reply.cost;
        self.requests += reply.requests;
    }
}

impl Outbox {
    /// Sends as much as the socket accepts in one call.
    pub fn send(&self, peer: &dyn Peer) -> Result<usize, SystemErrno> {
        match self.replies.len() {
            0..=FEW_REPLIES => self.send_by::<{ 2 * FEW_REPLIES }>(peer),
            _ => self.send_by::<{ 2 * REPLIES_PER_SEND }>(peer),
        }
    }

    fn send_by<const PARTS: usize>(&self, peer: &dyn Peer) -> Result<usize, SystemErrno> {
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
        peer.send(&parts[..used])
    }

    /// Drops the replies that `sent` bytes completed.
    pub fn advance(&mut self, sent: usize, finished: &mut Finished, buffers: &BufferPool) {
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

    /// Drops all replies.
    pub fn clear(&mut self, finished: &mut Finished) {
        for reply in self.replies.drain(..) {
            finished.count(&reply);
        }
        self.first_sent = 0;
    }
}
