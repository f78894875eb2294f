//! Connection: the reader of one connection in transmission.
//!
//! How it works      Receives what the socket has, parses every whole request in it, submits the batch. Small payloads
//!                   stay where they were received; a large one is received straight into a buffer of its own.
//!                   Before it waits for anything, for memory or for the peer, it submits what it has.
//! Invariants        A1 a request is admitted to the budget before memory is taken for it; A2 the export stays attached
//!                   until every request has ended.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, recv};

use super::budget::INBOX_BYTES;
use super::handshake::Negotiated;
use super::reply::{Outgoing, budget_of};
use super::request::{Asked, Header, Terms};
use super::wire::*;
use crate::buffer::{Buffer, Inbox};
use crate::limits::REQUEST_BYTES_MAX;
use crate::volume::request::{Request, Sink, Target, Verb};

/// Payloads up to this stay in the inbox.
const INLINE_PAYLOAD_MAX: usize = 32 << 10;
/// Payload bytes of a refused WRITE that are read past before the connection is closed instead.
const SKIP_BYTES_MAX: usize = 64 << 20;
/// How long replies may take to leave after a DISC.
const DRAIN_TIME: Duration = Duration::from_secs(5);

const _: () = assert!(INLINE_PAYLOAD_MAX + REQUEST_BYTES <= INBOX_BYTES / 2);
const _: () = assert!(SKIP_BYTES_MAX as u64 >= REQUEST_BYTES_MAX);

/// Why a connection ends.
enum End {
    /// The peer asked for it.
    Disconnect,
    /// The peer is gone, or speaks another language.
    Lost,
}

struct Reader {
    outgoing: Arc<Outgoing>,
    sink: Arc<dyn Sink>,
    target: Arc<dyn Target>,
    terms: Terms,
    inbox: Inbox,
    /// How much of the inbox was parsed.
    parsed: usize,
    batch: Vec<Arc<Request>>,
    refused: bool,
}

/// Serves a connection until it ends. `early` is what was received behind the handshake.
pub fn serve(outgoing: &Arc<Outgoing>, negotiated: &Negotiated, early: &[u8]) {
    let target = Arc::clone(&negotiated.attachment.target);
    let terms = Terms {
        size: target.size(),
        read_only: target.read_only(),
        structured: negotiated.structured,
        allocation: negotiated.allocation,
    };
    let mut inbox = Inbox::new(INBOX_BYTES.max(2 * early.len()));
    inbox.space()[..early.len()].copy_from_slice(early);
    inbox.advance(early.len());
    let mut reader = Reader {
        outgoing: Arc::clone(outgoing),
        sink: Arc::clone(outgoing) as Arc<dyn Sink>,
        target,
        terms,
        inbox,
        parsed: 0,
        batch: Vec::new(),
        refused: false,
    };
    let end = reader.run();
    reader.submit();
    if matches!(end, End::Disconnect) {
        outgoing.drain(Some(Instant::now() + DRAIN_TIME));
    }
    outgoing.kill();
    outgoing.drain(None); // A2
}

impl Reader {
    fn run(&mut self) -> End {
        loop {
            match self.parse_all() {
                Ok(()) => {}
                Err(end) => return end,
            }
            self.submit();
            if self.receive().is_none() {
                return End::Lost;
            }
        }
    }

    fn unparsed(&self) -> usize {
        self.inbox.filled() - self.parsed
    }

    /// Receives at least a byte into the inbox; a new one takes its place when it is full.
    fn receive(&mut self) -> Option<()> {
        if self.unparsed() == 0 && self.inbox.clear() {
            self.parsed = 0;
        }
        if self.inbox.space().len() < INLINE_PAYLOAD_MAX + REQUEST_BYTES {
            let mut next = Inbox::new(INBOX_BYTES);
            let rest = self.inbox.bytes(self.parsed);
            next.space()[..rest.len()].copy_from_slice(rest);
            let length = rest.len();
            next.advance(length);
            self.inbox = next;
            self.parsed = 0;
        }
        let received = self.receive_into_inbox()?;
        self.inbox.advance(received);
        Some(())
    }

    fn receive_into_inbox(&mut self) -> Option<usize> {
        loop {
            match recv(&self.outgoing.socket, self.inbox.space(), RecvFlags::empty()) {
                Ok((0, _)) => return None,
                Ok((received, _)) => return Some(received),
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return None,
            }
        }
    }

    /// Parses every whole request in the inbox.
    fn parse_all(&mut self) -> Result<(), End> {
        while self.unparsed() >= REQUEST_BYTES {
            let header = Header::parse(self.inbox.bytes(self.parsed)).ok_or(End::Lost)?;
            let payload = header.payload();
            let inline = payload <= INLINE_PAYLOAD_MAX;
            if inline && self.unparsed() < REQUEST_BYTES + payload {
                break;
            }
            match header.validate(&self.terms) {
                Asked::Disconnect => return Err(End::Disconnect),
                Asked::Serve(verb) => {
                    self.admit(budget_of(verb, header.length.into()))?; // A1
                    self.parsed += REQUEST_BYTES;
                    let data = self.data(verb, &header, inline)?;
                    self.push(verb, &header, data);
                }
                Asked::Refuse(errno) => {
                    self.admit(0)?;
                    self.parsed += REQUEST_BYTES;
                    self.skip(payload)?;
                    let chunks = matches!(header.command, CMD_READ | CMD_BLOCK_STATUS);
                    self.outgoing.refuse(header.cookie, chunks, errno, 0);
                    self.refused = true;
                }
            }
        }
        Ok(())
    }

    fn admit(&mut self, bytes: usize) -> Result<(), End> {
        if self.outgoing.try_admit(bytes) {
            return Ok(());
        }
        // What the batch holds may be what is waited for.
        self.submit();
        if self.outgoing.admit(bytes) { Ok(()) } else { Err(End::Lost) }
    }

    fn data(&mut self, verb: Verb, header: &Header, inline: bool) -> Result<Buffer, End> {
        let length = header.length as usize;
        match verb {
            Verb::Read => Ok(Buffer::uninit(length)),
            Verb::Write if inline => {
                let data = self.inbox.share(self.parsed, length);
                self.parsed += length;
                Ok(data)
            }
            Verb::Write => self.receive_payload(length),
            _ => Ok(Buffer::empty()),
        }
    }

    /// A large payload, in a buffer of its own.
    fn receive_payload(&mut self, length: usize) -> Result<Buffer, End> {
        let mut own = Inbox::new(length);
        let here = self.unparsed().min(length);
        own.space()[..here].copy_from_slice(&self.inbox.bytes(self.parsed)[..here]);
        own.advance(here);
        self.parsed += here;
        if own.filled() < length {
            self.submit();
        }
        while own.filled() < length {
            let received = match recv(&self.outgoing.socket, own.space(), RecvFlags::empty()) {
                Ok((0, _)) => 0,
                Ok((received, _)) => received,
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => 0,
            };
            if received == 0 {
                // It was admitted, and nobody will answer it.
                self.outgoing.refuse(0, false, crate::error::Errno::EIO, length);
                return Err(End::Lost);
            }
            own.advance(received);
        }
        Ok(own.into_buffer())
    }

    /// Reads past a refused payload.
    fn skip(&mut self, length: usize) -> Result<(), End> {
        if length > SKIP_BYTES_MAX {
            return Err(End::Lost);
        }
        let mut left = length;
        loop {
            let here = self.unparsed().min(left);
            self.parsed += here;
            left -= here;
            if left == 0 {
                return Ok(());
            }
            self.submit();
            self.receive().ok_or(End::Lost)?;
        }
    }

    fn push(&mut self, verb: Verb, header: &Header, data: Buffer) {
        let length = if verb == Verb::Flush { 0 } else { u64::from(header.length) };
        let sink = Arc::clone(&self.sink);
        let mut request = Request::new(verb, header.offset, length, data, sink);
        request.cookie = header.cookie;
        request.flags = header.flags;
        request.fua = header.flags & CMD_FLAG_FUA != 0;
        self.batch.push(Arc::new(request));
    }

    fn submit(&mut self) {
        if !self.batch.is_empty() {
            self.target.submit(&mut self.batch);
        }
        if std::mem::take(&mut self.refused) {
            self.outgoing.kick();
        }
    }
}
