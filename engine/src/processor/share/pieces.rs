//! Pieces: requests without data, whose range may be gigabytes, are done piece by piece.
//!
//! How it works      A TRIM, WRITE_ZEROES, CACHE or BLOCK_STATUS has one part on each processor that owns partitions of
//!                   its range. The part covers one partition at a time, and as much of it as is done at once: the
//!                   thread that does it makes the part shorter ([`Part::cut`]), and the range cut off is its `rest`.
//!                   After a successful piece, the next one waits for its turn among the parts of other connections. So
//!                   the work between two turns of others is bounded, and so is the memory of a request.
//! Invariants        W1 after a piece the next range of the request on this share follows, until the range ends, a
//!                   piece has failed, the request was answered in part, or its answer is no longer needed;
//!                   W2 only the current piece is reserved, waits or is held: a cut may come between two pieces, like
//!                      between two parts, because the request is not answered yet.
//! Owner and locks   the share's processor.

use crate::processor::part::Part;
use crate::processor::share::Share;
use crate::request::Verb;

impl Share {
    /// The next piece after a successful one; `None`: there is none.
    pub(super) fn next_piece(&self, part: &Part) -> Option<Part> {
        if matches!(part.request.verb, Verb::Read | Verb::Write) {
            return None;
        }
        let next = self.piece_after(part)?;
        let needed =
            next.request.verb != Verb::BlockStatus || next.request.continues_at(next.start());
        needed.then_some(next)
    }

    fn piece_after(&self, part: &Part) -> Option<Part> {
        let (request, view, share) = (part.request.clone(), part.view, part.share);
        let piece = |local, offset, length, at| Part {
            request,
            view,
            share,
            local,
            offset,
            length,
            rest: 0,
            at,
            tried: 0,
            cold: false,
            since: 0,
        };
        if part.rest > 0 {
            let (offset, at) = (part.offset + part.length, part.at + u64::from(part.length));
            return Some(piece(part.local, offset, part.rest, at));
        }
        let Self { geometry, locals, .. } = self;
        let shift = geometry.partition_shift;
        let (start, end) = (part.request.offset, part.request.offset + part.request.length);
        let this = locals[part.local.index()].partition;
        let processor = geometry.partitions[this as usize].processor;
        let last = ((end - 1) >> shift) as u32;
        let next = (this + 1..=last)
            .find(|number| geometry.partitions[*number as usize].processor == processor)?;
        let from = u64::from(next) << shift;
        let length = end.min(from + (1 << shift)) - from;
        let local = geometry.partitions[next as usize].local;
        Some(piece(local, 0, length as u32, from - start))
    }
}
