//! Beside: what several threads do of one processor's work at the same time, while nobody runs it.
//!
//! How it works      Reads of what the page cache has, and writes of whole blocks that are all overwritten at their base
//!                   places, change nothing of a processor. A connection's reader does those of its own batch itself, with
//!                   the processor shared, and leaves the rest of the batch to whoever runs the processor alone.
//! Invariants        FP1 nothing of the processor changes while it is shared (the queue's Q3): no cut begins, no map moves, no
//!                      slot is freed, so what a map says of a block holds until the block was read or written;
//!                   FP2 what waits, is reserved, or is to wait for a cut, is none of these: it is left (H1, C2);
//!                   FP3 reads and writes of the same blocks that are done so are ordered by the file system, as on any disk:
//!                      neither has a checksum, or moves.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::Errno;
use crate::mutants::{Bug, bug};
use crate::processor::queue::Part;
use crate::processor::share::Share;
use crate::processor::{read, write};
use crate::volume::flusher::Waiter;
use crate::volume::request::{Request, Sink, Verb};

/// What was answered and not sent yet.
#[derive(Default)]
pub(super) struct Answered {
    /// Almost always one for a whole batch.
    sink: Option<Arc<dyn Sink>>,
}

impl Answered {
    /// Gives a request to its sink, which is kicked by and by.
    fn complete(&mut self, request: Arc<Request>) {
        if !self.sink.as_ref().is_some_and(|sink| Arc::ptr_eq(sink, request.sink())) {
            self.kick();
            self.sink = Some(Arc::clone(request.sink()));
        }
        request.complete();
    }

    /// Has what was answered sent.
    pub(super) fn kick(&self) {
        if let Some(sink) = &self.sink {
            sink.kick();
        }
    }
}

impl Share {
    /// Does a part if that changes nothing of the share, and says how it ended; `None`: it was not done. A read that would
    /// have to wait is marked so.
    pub(super) fn try_fast(&self, part: &mut Part) -> Option<Result<(), Errno>> {
        if self.leaving || self.blocked(part, self.waiting.len()) {
            return None; // FP2
        }
        let result = match part.request.verb {
            Verb::Read if part.length <= read::INLINE_BYTES_MAX => match self.read_now(part) {
                Ok(false) => {
                    part.cold = true;
                    return None;
                }
                result => result.map(|_| ()),
            },
            Verb::Write if part.length <= write::INLINE_BYTES_MAX => self.write_fast(part)?,
            _ => return None,
        };
        let (parts, bytes) = match part.request.verb {
            Verb::Read => (&self.stats.reads, &self.stats.read_bytes),
            _ => (&self.stats.writes, &self.stats.write_bytes),
        };
        parts.fetch_add(1, Ordering::Relaxed);
        bytes.fetch_add(u64::from(part.length), Ordering::Relaxed);
        Some(result)
    }

    fn write_fast(&self, part: &Part) -> Option<Result<(), Errno>> {
        let versions = &self.locals[part.local as usize].versions;
        let frozen = bug(Bug::NoFreeze)
            || versions.is_frozen_before(self.epoch, self.history.retained_epochs());
        if self.direct || self.stopped_at.is_some() || !frozen {
            return None; // FP2
        }
        if !self.is_overwritten(part) {
            return None;
        }
        // What is written in part is written again by who runs the processor.
        match self.overwrite_now(part) {
            Ok(false) => None,
            result => Some(result.map(|_| ())),
        }
    }

    /// Ends a part that was done so; the last one ends its request.
    pub(super) fn end_fast(&self, part: Part, result: Result<(), Errno>, answered: &mut Answered) {
        let request = part.request;
        if let Err(errno) = result {
            self.stats.errors.fetch_add(1, Ordering::Relaxed);
            request.fail(errno);
        }
        if !request.end_part() {
            return;
        }
        if request.fua && request.verb.is_write() && request.result().is_ok() {
            self.flusher.push(Waiter::Request(request));
        } else {
            answered.complete(request);
        }
    }
}
