//! The reader: a connection's own thread, from the first request to the last.
//!
//! How it works      It receives what the socket has into its inbox, turns every complete request in it
//!                   into a [`Request`], and submits them as one batch. Payloads up to
//!                   [`INBOX_PAYLOAD_MAX`] share the inbox; a larger one gets a buffer of its own, into which the rest
//!                   of it is received ([`payload`]). The cost of a request is reserved before the request is made, so
//!                   the reader of a connection that holds too much waits. When the connection freezes, the reader
//!                   stops where it would wait, lets its requests end, and returns its [`ResumePoint`], from which
//!                   another reader of the same bytes continues.
//! Invariants        RQ1 bytes before `at` are handled; RQ2 the reader never waits with requests in `batch`;
//!                   RQ3 the payload of a refused request is consumed; RQ4 a resume point has every received byte from
//!                       which no request was made.
//! Errors            a peer that breaks the protocol's framing ends its own connection.

mod payload;
mod prefetch;
mod source;

use std::sync::Arc;
use std::time::Duration;

use crate::buffer::{Buffer, Inbox};
use crate::error::Errno;
use crate::limits::REQUEST_BYTES_MAX;
use crate::nbd::budget::{
    INBOX_BYTES, INBOX_PAYLOAD_MAX, REQUEST_OVERHEAD_BYTES, cost_with, examined_max, lock,
};
use crate::nbd::connection::{Connection, QuiesceTimeouts};
use crate::nbd::reader::prefetch::Prefetch;
use crate::nbd::reader::source::Source;
use crate::nbd::reply::Reply;
use crate::nbd::request::{Agreed, Command, Parsed, check, extents_max};
use crate::nbd::wire::{REQUEST_HEADER_BYTES, RequestHeader, command, parse_request};
use crate::request::{Request, Sink, Target, Verb};
use crate::volume::export::{Attachment, ExportTable};

/// Least free space for a receive, bytes.
const RECEIVE_BYTES_MIN: usize = 16 << 10;
/// Memory that is reserved at once for a batch, if available, bytes.
const CREDIT_BYTES: u64 = 1 << 20;
/// Requests whose cost is reserved at once for a batch.
const CREDIT_REQUESTS: u32 = 64;
/// How much of an overlong payload is discarded before the connection is closed, bytes.
pub const OVERLONG_DRAINED_BYTES: u64 = 1 << 20;
/// How long sending the replies may take after the last request.
const LINGER: Duration = Duration::from_secs(2);

/// How long what is in flight may take to end when the connection freezes.
pub const QUIESCE_TIMEOUTS: QuiesceTimeouts =
    QuiesceTimeouts { total: Duration::from_secs(10), stalled: Duration::from_secs(2) };

const _: () = assert!(RECEIVE_BYTES_MIN < INBOX_BYTES / 4);

/// A refused request whose payload is not discarded yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Whether it is answered with a chunk.
    pub structured: bool,
    /// The peer's cookie for it.
    pub cookie: u64,
    /// Why it was refused.
    pub errno: Errno,
}

/// Where a reader stopped in the byte stream of its peer, and another one resumes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResumePoint {
    /// Received bytes from which no request was made.
    pub bytes: Vec<u8>,
    /// How many bytes are still to be discarded, beginning with `bytes`.
    pub skip: u64,
    /// The connection ends when `skip` is 0.
    pub last: bool,
    /// The refused request that is answered when `skip` is 0.
    pub refusal: Option<Refusal>,
}

/// How reading ended.
pub enum Ended {
    /// The connection is over.
    Over,
    /// It froze, and can be resumed from here.
    Frozen(ResumePoint),
    /// It was to freeze, but requests in flight did not end in time: it is over.
    TooLate,
}

/// Why reading ended.
enum End {
    /// The peer disconnected, or its stream ended: replies are still sent.
    Disconnected,
    /// The connection failed.
    Broken,
    /// It freezes.
    Frozen,
}

/// What the next step is.
enum Next {
    /// Look at the next request.
    Parse,
    /// Receive: at least that many bytes from `at` are needed.
    Receive(usize),
}

struct Reader<'a> {
    connection: &'a Arc<Connection>,
    source: Source<'a>,
    sink: Arc<dyn Sink>,
    /// The table of exports; the export's target, which is replaced when the export has grown.
    exports: &'a ExportTable,
    target: Arc<dyn Target>,
    agreed: Agreed,
    inbox: Option<Inbox>,
    at: usize,
    batch: Vec<Arc<Request>>,
    /// Reserved and not used yet.
    credit_bytes: u64,
    credit_requests: u32,
    /// Bytes of a refused payload that are still to be discarded.
    skip: u64,
    /// The last request was a large write: the inbox then receives no more than is needed, because the next large
    /// payload would have to be copied from it.
    large_write: bool,
    /// What was received speculatively.
    prefetch: Prefetch,
    /// Received bytes that are not counted as moved yet.
    received: u64,
    /// The connection ends when `skip` is 0.
    last: bool,
    /// The refused request whose payload is not discarded yet.
    refusal: Option<Refusal>,
    /// A refusal was queued, and the connection was not kicked yet.
    refused: bool,
    /// Bytes of an incomplete payload, before those at `at`, when the wait for the rest ended early.
    incomplete: Vec<u8>,
}

/// Serves one connection from `from` until it ends or freezes. A peer that disconnected has all its replies then, and
/// its socket is still open: the caller releases the attachment first, and then evicts the connection.
pub fn run(
    connection: &Arc<Connection>,
    exports: &ExportTable,
    attachment: &Attachment,
    from: ResumePoint,
) -> Ended {
    let mut reader = Reader {
        connection,
        source: Source { connection, first: from.bytes, used: 0 },
        sink: Arc::clone(connection) as Arc<dyn Sink>,
        exports,
        target: Arc::clone(&attachment.target),
        agreed: connection.agreed,
        inbox: Some(Inbox::new(INBOX_BYTES)),
        at: 0,
        batch: Vec::new(),
        credit_bytes: 0,
        credit_requests: 0,
        skip: from.skip,
        large_write: false,
        prefetch: Prefetch::default(),
        received: 0,
        last: from.last,
        refusal: from.refusal,
        refused: false,
        incomplete: Vec::new(),
    };
    let mut end = reader.resume().err();
    while end.is_none() {
        end = reader.round().err();
    }
    reader.submit();
    reader.put_credit_back();
    reader.prefetch.give_back(connection, 0);
    let freezes = matches!(end, Some(End::Frozen));
    if freezes && connection.quiesce(QUIESCE_TIMEOUTS) {
        return Ended::Frozen(reader.resume_point());
    }
    if let Some(refusal) = reader.refusal.take() {
        connection.push(refusal.reply()); // what it holds is released with it
    }
    if !matches!(end, Some(End::Disconnected)) {
        connection.abort();
    }
    connection.drain(LINGER);
    if freezes { Ended::TooLate } else { Ended::Over }
}

impl Refusal {
    fn reply(self) -> Reply {
        Reply::error(self.structured, self.cookie, self.errno, REQUEST_OVERHEAD_BYTES)
    }
}

impl Reader<'_> {
    /// Reserves again what an unanswered refusal held.
    fn resume(&mut self) -> Result<(), End> {
        if self.refusal.is_some() { self.reserve(REQUEST_OVERHEAD_BYTES) } else { Ok(()) }
    }

    /// The resume point (RQ4), after a step that ended with [`End::Frozen`].
    fn resume_point(mut self) -> ResumePoint {
        let mut bytes = std::mem::take(&mut self.incomplete);
        assert!(self.prefetch.is_empty(), "PF2");
        bytes.extend_from_slice(self.bytes());
        bytes.extend_from_slice(&self.source.first[self.source.used..]);
        ResumePoint { bytes, skip: self.skip, last: self.last, refusal: self.refusal }
    }

    /// Why a wait was interrupted by the connection.
    fn cut_short(&self) -> End {
        if self.connection.is_freezing() { End::Frozen } else { End::Broken }
    }

    /// Handles all complete requests, then receives once.
    fn round(&mut self) -> Result<(), End> {
        let needed = loop {
            if let Next::Receive(needed) = self.next()? {
                break needed;
            }
        };
        self.submit();
        self.put_credit_back();
        if self.large_write && self.bytes().is_empty() && self.receive_and_prefetch(&mut [])? > 0 {
            return Ok(());
        }
        self.ensure_space(needed)?;
        let missing = needed - self.bytes().len();
        let inbox = self.inbox.as_mut().ok_or(End::Broken)?;
        let space = inbox.space();
        let length = if self.large_write { missing } else { space.len() };
        let received = self.source.receive(&mut space[..length])?;
        inbox.advance(received);
        self.received += received as u64;
        Ok(())
    }

    fn bytes(&self) -> &[u8] {
        self.bytes_from(self.at)
    }

    fn bytes_from(&self, at: usize) -> &[u8] {
        self.inbox.as_ref().map_or(&[], |inbox| inbox.bytes(at))
    }

    /// Handles the bytes at `at`.
    fn next(&mut self) -> Result<Next, End> {
        let here = self.bytes().len();
        if self.skip > 0 {
            let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(here);
            self.at += skipped;
            self.skip -= skipped as u64;
            if self.skip > 0 {
                return Ok(Next::Receive(1));
            }
        }
        if let Some(refusal) = self.refusal.take() {
            self.connection.push(refusal.reply());
            self.refused = true;
        }
        if self.last {
            return Err(End::Disconnected);
        }
        if !self.prefetch.is_empty() {
            assert!(self.bytes().is_empty(), "PF1");
            return self.next_prefetched();
        }
        let Some(header) = self.bytes().first_chunk::<REQUEST_HEADER_BYTES>() else {
            return Ok(Next::Receive(REQUEST_HEADER_BYTES));
        };
        let header = parse_request(header).ok_or(End::Broken)?;
        let parsed = match check(&header, &self.agreed) {
            Parsed::Refused { .. } if self.has_grown() => check(&header, &self.agreed),
            parsed => parsed,
        };
        match parsed {
            Parsed::Disconnect => {
                self.connection.note_disconnect();
                Err(End::Disconnected)
            }
            Parsed::Refused { payload, errno } => {
                self.refuse(&header, payload, errno)?;
                Ok(Next::Parse)
            }
            Parsed::Command(command) => self.command(&header, command),
        }
    }

    /// Whether the export is larger than this connection knew, because its volume has grown; updates the size. (A
    /// kernel client learns the new size outside of its connections.)
    fn has_grown(&mut self) -> bool {
        let Some(export) = self.exports.find(&self.connection.export) else { return false };
        let ours = self.target.instant();
        let grown = export.target.size() > self.agreed.size;
        if !grown || ours.is_none() || export.target.instant() != ours {
            return false;
        }
        self.agreed.size = export.target.size();
        self.submit();
        self.target = Arc::clone(&export.target);
        true
    }

    fn refuse(&mut self, header: &RequestHeader, payload: u32, errno: Errno) -> Result<(), End> {
        self.reserve(REQUEST_OVERHEAD_BYTES)?;
        self.at += REQUEST_HEADER_BYTES;
        // The payload is discarded: a speculative receive, or one without a copy, would be useless.
        self.large_write = false;
        self.prefetch.note(0);
        let structured = self.connection.agreed.structured
            && matches!(header.command, command::READ | command::BLOCK_STATUS);
        // It is sent after the payload: a client may read replies only after it has sent its request.
        self.refusal = Some(Refusal { structured, cookie: header.cookie, errno });
        self.skip = u64::from(payload); // RQ3
        if self.skip > REQUEST_BYTES_MAX {
            self.skip = OVERLONG_DRAINED_BYTES;
            self.last = true;
        }
        Ok(())
    }

    fn command(&mut self, header: &RequestHeader, command: Command) -> Result<Next, End> {
        let length = header.length as usize;
        let writes = command.verb == Verb::Write;
        let shared = writes && length <= INBOX_PAYLOAD_MAX;
        self.large_write = writes && !shared;
        self.prefetch.note(if self.large_write { length } else { 0 });
        if shared && self.bytes().len() < REQUEST_HEADER_BYTES + length {
            return Ok(Next::Receive(REQUEST_HEADER_BYTES + length));
        }
        let (examined, cost) = self.examined(command.verb, u64::from(header.length));
        self.reserve(cost)?;
        let start = self.at + REQUEST_HEADER_BYTES;
        self.at = start;
        let data = match command.verb {
            Verb::Read => {
                let spare = self.connection.common.buffers.take(length);
                spare.unwrap_or_else(|| Buffer::uninit(length))
            }
            Verb::Write if shared => {
                self.at += length;
                self.inbox.as_ref().ok_or(End::Broken)?.share(start, length)
            }
            Verb::Write => self.receive_payload(length)?,
            _ => Buffer::empty(),
        };
        self.begin(header, command, examined, data);
        Ok(Next::Parse)
    }

    /// Puts a request into the batch.
    fn begin(&mut self, header: &RequestHeader, command: Command, examined: u64, data: Buffer) {
        let sink = Arc::clone(&self.sink);
        let mut request = Request::new(command.verb, header.offset, examined, data, sink);
        request.cookie = header.cookie;
        request.flags = header.flags;
        request.fua = command.fua;
        request.extents_max = extents_max(header.flags);
        request.contexts.clone_from(&self.connection.contexts);
        self.batch.push(Arc::new(request));
    }

    /// How much of a request's range is examined, bytes, and what the request costs. A BLOCK_STATUS with several
    /// selected contexts examines less.
    fn examined(&self, verb: Verb, length: u64) -> (u64, u64) {
        let contexts = self.connection.contexts.as_deref().filter(|_| verb == Verb::BlockStatus);
        let times = contexts.map_or(1, |contexts| contexts.times());
        let examined = length.min(examined_max(verb) / times);
        (examined, cost_with(contexts, verb, examined))
    }

    /// Reserves what one request costs, from the credit or from the account.
    fn reserve(&mut self, bytes: u64) -> Result<(), End> {
        if self.credit_bytes < bytes || self.credit_requests == 0 {
            self.put_credit_back();
            let wanted = bytes.max(CREDIT_BYTES);
            let quick = self.connection.try_reserve(bytes, wanted, CREDIT_REQUESTS);
            let (bytes, requests) = match quick {
                Some(taken) => taken,
                None => {
                    self.submit(); // RQ2
                    let taken = self.connection.reserve(bytes, wanted, 1);
                    (taken.ok_or_else(|| self.cut_short())?, 1)
                }
            };
            self.credit_bytes = bytes;
            self.credit_requests = requests;
        }
        self.credit_bytes -= bytes;
        self.credit_requests -= 1;
        Ok(())
    }

    fn put_credit_back(&mut self) {
        if self.credit_bytes > 0 || self.credit_requests > 0 {
            self.connection.release_unused(self.credit_bytes, self.credit_requests);
            self.credit_bytes = 0;
            self.credit_requests = 0;
        }
    }

    /// Submits the batch, and sends refusals.
    fn submit(&mut self) {
        if !self.batch.is_empty() {
            let mut state = lock(&self.connection.state);
            state.submitted += self.batch.len();
            state.count_received(std::mem::take(&mut self.received));
            drop(state);
            self.target.submit(&mut self.batch);
            self.batch.clear();
        }
        if std::mem::take(&mut self.refused) {
            self.connection.send_queued();
        }
    }

    /// Makes room for `needed` bytes from `at` on, and for at least [`RECEIVE_BYTES_MIN`].
    fn ensure_space(&mut self, needed: usize) -> Result<(), End> {
        let mut inbox = self.inbox.take().ok_or(End::Broken)?;
        let rest = inbox.filled() - self.at;
        if rest == 0 && inbox.clear() {
            self.at = 0;
        }
        let room = inbox.space().len();
        if room >= RECEIVE_BYTES_MIN && room + rest >= needed {
            self.inbox = Some(inbox);
            return Ok(());
        }
        let moved = inbox.bytes(self.at).to_vec();
        let Some(mut inbox) = self.connection.change_inbox(inbox) else {
            self.incomplete = moved;
            return Err(self.cut_short());
        };
        inbox.clear();
        inbox.space()[..moved.len()].copy_from_slice(&moved);
        inbox.advance(moved.len());
        self.inbox = Some(inbox);
        self.at = 0;
        Ok(())
    }
}
