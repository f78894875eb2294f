//! Backlog: parts that a share has not begun, because the limit of parts in flight of their kind is reached.
//!
//! How it works      What goes to the pool's threads or to a ring is bounded for each share, by [`Kind`]; the rest waits here,
//!                   in a lane for each connection. When one has ended, the share starts the next, round robin over
//!                   the lanes. So the queues before threads and disks are short, however much one connection asks for. The few
//!                   parts that overlap with others are in [`Share::waiting`].
//!                   Parts that wait for a silent device do not count: they delay only users of that device.
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
use crate::system::ticks::Ticks;
use crate::volume::request::Verb;

/// Parts that may wait for others that they overlap with (H1).
pub(super) const WAITING_MAX: usize = 64;
/// Parts that are let in at a time, before others have their turn.
const LET_IN: usize = 8;

/// What is bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Parts that wait for others that they overlap with.
    Waiting,
    /// Reads that the page cache does not have.
    Cold,
    /// What a pool thread reads or writes.
    Job,
    /// Small writes of complete blocks that a pool thread makes, because they may block.
    Small,
    /// Clearing: one at a time, because file systems lock a file for it and writes wait for the lock.
    Clear,
    /// Looking at what is allocated, and reading ahead.
    Look,
}

const KINDS: [Kind; 6] =
    [Kind::Waiting, Kind::Cold, Kind::Job, Kind::Small, Kind::Clear, Kind::Look];

impl Kind {
    /// How many may be in flight.
    const fn most(self) -> usize {
        match self {
            Kind::Waiting => WAITING_MAX,
            Kind::Cold => 256,
            Kind::Job => 16,
            Kind::Small => 64,
            Kind::Clear | Kind::Look => 1,
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
            Kind::Look => "look",
        }
    }

    /// What a part counts as once it is handed over.
    pub(super) fn of(part: &Part) -> Kind {
        match part.request.verb {
            Verb::Read if part.cold => Kind::Cold,
            Verb::Zero { .. } | Verb::Trim => Kind::Clear,
            Verb::Cache | Verb::BlockStatus => Kind::Look,
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
    /// Whether nothing is behind.
    pub(super) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Whether as many are in flight as may be. Not of [`Kind::Waiting`].
    pub(super) fn is_full(&self, kind: Kind) -> bool {
        self.out[kind as usize] >= kind.most()
    }

    /// All parts that it keeps, with their kinds.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Kind, &Part)> {
        let kinds = KINDS.into_iter();
        kinds.flat_map(|kind| self.lanes[kind as usize].iter().map(move |part| (kind, part)))
    }

    /// One more is in flight.
    pub(super) fn begin(&mut self, kind: Kind) {
        self.out[kind as usize] += 1;
    }

    /// One has ended.
    pub(super) fn end(&mut self, kind: Kind) {
        self.out[kind as usize] -= 1;
    }

    /// Keeps a part.
    pub(super) fn push(&mut self, kind: Kind, part: Part) {
        self.length += 1;
        self.lanes[kind as usize].push(lane_of(&part), part);
    }

    /// Takes out those that have waited for too long.
    pub(super) fn take_late(&mut self, ticks: &Ticks) -> Vec<Part> {
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
    /// What a part is handed over as, if that is known before it is looked at.
    pub(super) fn handed_over_as(&self, part: &Part) -> Option<Kind> {
        let handed_over = match part.request.verb {
            Verb::Read => part.cold || part.length > read::INLINE_BYTES_MAX,
            Verb::Write => !self.writes_now || !self.is_small(part),
            _ => true,
        };
        handed_over.then(|| Kind::of(part))
    }

    /// Whether a write may be made by the processor itself, where nothing has to be waited for.
    pub(super) fn is_small(&self, part: &Part) -> bool {
        !self.direct && is_small(part)
    }

    /// Starts parts that waited for others, as far as those have ended.
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

    /// Lets in some of those that are behind, as far as there is space.
    pub(super) fn let_in(&mut self, context: &mut Context<'_>) {
        if self.backlog.is_empty() {
            return;
        }
        for kind in KINDS {
            let room = match kind {
                Kind::Waiting => WAITING_MAX.saturating_sub(self.waiting.len()),
                _ => kind.most().saturating_sub(self.backlog.out[kind as usize]),
            };
            for _ in 0..room.min(LET_IN) {
                let Some(part) = self.backlog.pop(kind) else { break };
                self.take(part, context);
            }
            let full = kind != Kind::Waiting && self.backlog.is_full(kind);
            let left = !self.backlog.lanes[kind as usize].is_empty();
            *context.again |= left && !full && room > 0; // H4
        }
    }

    /// Refuses all that is behind: the volume is being closed.
    pub(super) fn refuse_backlog(&mut self, context: &mut Context<'_>) {
        for kind in KINDS {
            while let Some(part) = self.backlog.pop(kind) {
                self.end_now(part, Err(Errno::ESHUTDOWN), context);
            }
        }
    }
}
