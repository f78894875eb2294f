//! Fast path: reads and in-place writes that need no exclusive access to the processor: several threads can do them at
//! the same time.
//!
//! How it works      Reads from the page cache, and writes of complete blocks that are all overwritten in place, change
//!                   no state of a processor. A connection's reader does those of its own batch itself, with the
//!                   processor in shared mode (like with a read lock), and leaves the rest of the batch to the thread
//!                   that runs the processor exclusively.
//! Invariants        FP1 nothing of the processor changes while it is shared (the queue's Q3): no cut begins, no map
//!                      moves, no slot is freed, so a block's entry in a map stays valid until the block was read or
//!                      written;
//!                   FP2 a part that waits, overlaps a reservation, or must wait for a cut does not take the fast path
//!                       (H1, C2);
//!                   FP3 the file system orders reads and writes of the same blocks, like any disk: these blocks have
//!                       no checksum and are not redirected.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::Errno;
use crate::io::fault::is_lack_of_space;
use crate::mutants::{Bug, bug};
use crate::processor::flusher::Waiter;
use crate::processor::part::Part;
use crate::processor::share::Share;
use crate::processor::share::{read, write};
use crate::request::{Request, Sink, Verb};

/// Finished requests whose replies are not sent yet.
#[derive(Default)]
pub(in crate::processor) struct Answered {
    /// Almost always the same for a whole batch.
    sink: Option<Arc<dyn Sink>>,
}

impl Answered {
    /// Passes a request to its sink, which is kicked later.
    fn complete(&mut self, request: Arc<Request>) {
        if !self.sink.as_ref().is_some_and(|sink| Arc::ptr_eq(sink, request.sink())) {
            self.kick();
            self.sink = Some(Arc::clone(request.sink()));
        }
        request.complete();
    }

    /// Sends the replies.
    pub(in crate::processor) fn kick(&self) {
        if let Some(sink) = &self.sink {
            sink.kick();
        }
    }
}

impl Share {
    /// Does a part on the fast path if that is possible, and returns its result; `None`: it was not done. A read that
    /// would wait is marked cold.
    pub(in crate::processor) fn try_fast(
        &self,
        part: &mut Part,
        wall_ns: u64,
    ) -> Option<Result<(), Errno>> {
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
        if part.request.verb == Verb::Write && result.is_ok() {
            self.count_fast(part, wall_ns);
        }
        Some(result)
    }

    fn write_fast(&self, part: &Part) -> Option<Result<(), Errno>> {
        let versions = &self.locals[part.local.index()].versions;
        let frozen = bug(Bug::NoFreeze)
            || versions.is_frozen_before(self.epoch, self.history.retained_epochs());
        if self.direct || self.stopped_at.is_some() || !frozen {
            return None; // FP2
        }
        if !self.is_overwritten(part) {
            return None;
        }
        // The thread that runs the processor rewrites a part that was written incompletely.
        match self.overwrite_now(part) {
            Ok(false) => None,
            // It is tried again, and backed slots are punched.
            Err(errno) if is_lack_of_space(errno) => None,
            result => Some(result.map(|_| ())),
        }
    }

    /// Ends a part that was done on the fast path; the last one ends its request.
    pub(in crate::processor) fn end_fast(
        &self,
        part: Part,
        result: Result<(), Errno>,
        answered: &mut Answered,
    ) {
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
