//! Backlog: parts that a share has not started, because the limit of parts in flight of their kind is reached.
//!
//! How it works      The number of parts on the pool's threads or in a ring is bounded for each share, by [`Kind`]; the
//!                   rest waits here, in a lane for each connection. When one has ended, the share starts the next,
//!                   round robin over the lanes. So the queues of threads and disks are short, even if one connection
//!                   submits many requests. The few parts that overlap with others are in [`Share::waiting`]. Parts
//!                   that wait for a silent device do not count: they delay only users of that device.
//! Invariants        H4 while the backlog has parts of a kind, the limit of that kind is in flight, or the share starts
//!                      more before its processor sleeps (`again`);
//!                   H5 a part in the backlog holds no reservation and no slots.
//! Owner and locks   the share's processor.

use crate::error::Errno;
use crate::processor::lanes::{Lanes, lane_of};
use crate::processor::part::Part;
use crate::processor::share::read;
use crate::processor::share::write;
use crate::processor::share::{Context, Share};
use crate::request::Verb;
use crate::system::ticks::Ticks;

/// Upper bound of parts that wait for others with which they overlap (H1).
pub(super) const WAITING_MAX: usize = 64;
/// Parts that are admitted at a time, before other work has its turn.
const ADMITTED_MAX: usize = 8;

/// The kinds of bounded parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Parts that wait for others with which they overlap.
    Waiting,
    /// Reads of data that the page cache does not have.
    Cold,
    /// Reads and writes on a pool thread.
    Job,
    /// Small writes of complete blocks on a pool thread, because they may block.
    Small,
    /// Clearing: one at a time, because file systems lock a file for it and writes wait for the lock.
    Clear,
    /// Queries of allocation, and read-ahead.
    Query,
}

const KINDS: [Kind; 6] =
    [Kind::Waiting, Kind::Cold, Kind::Job, Kind::Small, Kind::Clear, Kind::Query];

impl Kind {
    /// The limit of parts in flight.
    const fn most(self) -> usize {
        match self {
            Kind::Waiting => WAITING_MAX,
            Kind::Cold => 256,
            Kind::Job => 16,
            Kind::Small => 64,
            Kind::Clear | Kind::Query => 1,
        }
    }

    /// Its name, for reports.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Kind::Waiting => "overlap",
            Kind::Cold => "cold-read",
            Kind::Job => "job",
            Kind::Small => "small-write",
            Kind::Clear => "clear",
            Kind::Query => "query",
        }
    }

    /// The kind of a part when it is passed to other threads.
    pub(super) fn of(part: &Part) -> Kind {
        match part.request.verb {
            Verb::Read if part.cold => Kind::Cold,
            Verb::Zero { .. } | Verb::Trim => Kind::Clear,
            Verb::Cache | Verb::BlockStatus => Kind::Query,
            Verb::Write if is_small(part) => Kind::Small,
            Verb::Read | Verb::Write | Verb::Flush => Kind::Job,
        }
    }
}

fn is_small(part: &Part) -> bool {
    write::is_aligned(part) && part.length <= write::INLINE_BYTES_MAX
}

/// See the module's head.
#[derive(Default)]
pub(super) struct Backlog {
    lanes: [Lanes<Part>; KINDS.len()],
    out: [usize; KINDS.len()],
    length: usize,
}

impl Backlog {
    /// Whether the backlog is empty.
    pub(super) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Whether the limit of a kind is reached. Not for [`Kind::Waiting`].
    pub(super) fn is_full(&self, kind: Kind) -> bool {
        self.out[kind as usize] >= kind.most()
    }

    /// All its parts, with their kinds.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Kind, &Part)> {
        let kinds = KINDS.into_iter();
        kinds.flat_map(|kind| self.lanes[kind as usize].iter().map(move |part| (kind, part)))
    }

    /// Counts one more in flight.
    pub(super) fn begin(&mut self, kind: Kind) {
        self.out[kind as usize] += 1;
    }

    /// Counts one as ended.
    pub(super) fn end(&mut self, kind: Kind) {
        self.out[kind as usize] -= 1;
    }

    /// Adds a part.
    pub(super) fn push(&mut self, kind: Kind, part: Part) {
        self.length += 1;
        self.lanes[kind as usize].push(lane_of(&part), part);
    }

    /// Removes the parts that have waited too long.
    pub(super) fn take_overdue(&mut self, ticks: &Ticks) -> Vec<Part> {
        let late = |part: &Part| ticks.is_over(part.since);
        let found: Vec<Part> =
            self.lanes.iter_mut().flat_map(|lanes| lanes.take_if(late)).collect();
        self.length -= found.len();
        found
    }

    fn pop(&mut self, kind: Kind) -> Option<Part> {
        let part = self.lanes[kind as usize].pop();
        self.length -= usize::from(part.is_some());
        part
    }
}

impl Share {
    /// The kind of a part, if that is known before it is planned.
    pub(super) fn handed_over_as(&self, part: &Part) -> Option<Kind> {
        let handed_over = match part.request.verb {
            Verb::Read => part.cold || part.length > read::INLINE_BYTES_MAX,
            Verb::Write => !self.writes_now || !self.is_small(part),
            _ => true,
        };
        handed_over.then(|| Kind::of(part))
    }

    /// Whether the processor may make a write itself, if that does not wait.
    pub(super) fn is_small(&self, part: &Part) -> bool {
        !self.direct && is_small(part)
    }

    /// Starts parts that waited for others which have ended.
    pub(super) fn resume_waiting(&mut self, context: &mut Context<'_>) {
        let mut index = 0;
        while index < self.waiting.len() {
            if self.blocked(&self.waiting[index], index) {
                index += 1;
                continue;
            }
            let Some(part) = self.waiting.remove(index) else { break };
            if self.stopped_at.is_some() && part.view == 0 && part.request.verb.is_write() {
                self.hold(part, context);
            } else {
                self.start(part, context);
            }
        }
    }

    /// Starts some parts of the backlog, as far as the limits allow.
    pub(super) fn admit(&mut self, context: &mut Context<'_>) {
        if self.backlog.is_empty() {
            return;
        }
        for kind in KINDS {
            let room = match kind {
                Kind::Waiting => WAITING_MAX.saturating_sub(self.waiting.len()),
                _ => kind.most().saturating_sub(self.backlog.out[kind as usize]),
            };
            for _ in 0..room.min(ADMITTED_MAX) {
                let Some(part) = self.backlog.pop(kind) else { break };
                self.take(part, context);
            }
            let full = kind != Kind::Waiting && self.backlog.is_full(kind);
            let left = !self.backlog.lanes[kind as usize].is_empty();
            *context.again |= left && !full && room > 0; // H4
        }
    }

    /// Refuses all parts of the backlog: the volume is being closed.
    pub(super) fn refuse_backlog(&mut self, context: &mut Context<'_>) {
        for kind in KINDS {
            while let Some(part) = self.backlog.pop(kind) {
                self.end_now(part, Err(Errno::ESHUTDOWN), context);
            }
        }
    }
}
