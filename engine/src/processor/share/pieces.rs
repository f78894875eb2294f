//! Pieces: requests without data, which may be about gigabytes, are done piece by piece.
//!
//! How it works      A TRIM, WRITE_ZEROES, CACHE or BLOCK_STATUS has one part on each processor that owns partitions of its
//!                   range, however many those are. The part is about one partition at a time, and of that about
//!                   as much as is done in one go: the thread that does it makes the part shorter ([`Part::cut`]), and what it cuts off is
//!                   its `rest`. When a piece has ended well, the next one takes its turn among the parts of other
//!                   connections. So the work between two looks at what others want is bounded, and so is what a request
//!                   takes of memory.
//! Invariants        W1 a piece that has ended is followed by what comes next in the request's range on this share, until
//!                      that is all, one has failed, the request was answered in part, or nothing waits for the answer;
//!                   W2 only the piece at hand is reserved, waits or is held: a cut may come between two pieces, as between
//!                      two parts, since the request is not answered yet.
//! Owner and locks   the share's processor.

use crate::processor::part::Part;
use crate::processor::share::Share;
use crate::request::Verb;

impl Share {
    /// What comes after a piece that has ended well; `None`: that was all.
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
