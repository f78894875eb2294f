//! Inspect: what a processor runs, what waits in it and its shares, and since when: for `polyvol debug processors`.
//!
//! How it works      [`Control::Inspect`] has each share count its parts by the state that they are in (H2 of
//!                   [`share`](super::share)). A processor that is stuck does not answer that. What can be reported without
//!                   it: its queue and the thread that runs it ([`Queue::look`](super::queue::Queue::look)), the event that
//!                   it serves ([`Doing`]), and what its shares had at the last tick ([`Published`]).
//!                   Times are ticks, because to note one costs a load: an age is right to 250 ms.
//! Owner and locks   shares are looked at by the thread that runs their processor. [`Published`] has a lock, held for a
//!                   copy.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::processor::messages::{Control, Event};
use crate::processor::part::Part;
use crate::processor::run::Processor;
use crate::request::Verb;
use crate::system::ticks::Tick;

/// How many there are of something, and when the oldest of them came (0: there is none, or it is not known).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// How many.
    pub count: u64,
    /// When the oldest came.
    pub oldest: Tick,
}

impl Group {
    /// One more, that came at this time.
    pub fn add(&mut self, since: Tick) {
        self.count += 1;
        if since != 0 && (self.oldest == 0 || since < self.oldest) {
            self.oldest = since;
        }
    }

    pub(super) fn of<'a>(parts: impl Iterator<Item = &'a Part>) -> Group {
        let mut group = Group::default();
        parts.for_each(|part| group.add(part.since));
        group
    }
}

/// The item of a list for which `same` holds; if there is none, `new` is added.
pub(super) fn find_or_add<T>(
    list: &mut Vec<T>,
    same: impl Fn(&T) -> bool,
    new: impl FnOnce() -> T,
) -> &mut T {
    let at = list.iter().position(same).unwrap_or_else(|| {
        list.push(new());
        list.len() - 1
    });
    &mut list[at]
}

/// Where a part is that was handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// No thread has begun it.
    Queued,
    /// A thread of the pool does it.
    Pool,
    /// A ring has it: the kernel does it.
    Ring,
}

impl Place {
    /// Its name, for reports.
    pub const fn name(self) -> &'static str {
        match self {
            Place::Queued => "queued",
            Place::Pool => "pool",
            Place::Ring => "ring",
        }
    }
}

/// Parts of one kind at one place.
#[derive(Clone, Copy, Debug)]
pub struct Handed {
    /// What they are, such as 'cold-read'; 'own': work of the share's own.
    pub kind: &'static str,
    /// Where they are.
    pub place: Place,
    /// How many, and since when.
    pub group: Group,
}

/// What a share has.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct ShareLook {
    /// Its number.
    pub share: u32,
    /// Parts that wait for their turn.
    pub turn: Group,
    /// Parts that wait for others that they overlap with.
    pub overlap: Group,
    /// Parts that wait because the limit of their kind is in flight.
    pub backlog: Vec<(&'static str, Group)>,
    /// Writes that are held by a cut.
    pub held: Group,
    /// Parts that wait for slots.
    pub starved: Group,
    /// Parts whose blocks are reserved.
    pub reserved: Group,
    /// Parts whose request has ended with an error, and that the kernel still has.
    pub given_up: Group,
    /// What was handed over.
    pub handed: Vec<Handed>,
    /// Since when a cut holds its writes, as [`System::monotonic_ns`](crate::system::System::monotonic_ns) counts.
    pub cut_since_ns: Option<u64>,
    /// Snapshots that wait for its writes to end.
    pub settling: Group,
    pub checkpointing: bool,
    pub leaving: bool,
    pub rolling_back: bool,
}

impl Processor {
    /// What its shares have.
    pub(super) fn look(&self) -> Vec<ShareLook> {
        let mut looks: Vec<ShareLook> =
            self.shares.iter().flatten().map(|share| share.look()).collect();
        for part in self.later.iter() {
            // `later` may be long, and there may be many shares; they are in the order of their numbers.
            if let Ok(at) = looks.binary_search_by_key(&part.share, |look| look.share) {
                looks[at].turn.add(part.since);
            }
        }
        for (number, ..) in &self.rolling_back {
            if let Some(look) = looks.iter_mut().find(|look| look.share == *number) {
                look.rolling_back = true;
            }
        }
        looks
    }
}

/// What is in a processor's queue, and who runs the processor.
#[derive(Clone, Debug, Default)]
pub struct QueueLook {
    /// Parts of requests, the oldest with all other events.
    pub parts: Group,
    /// Ends of what was handed over, and control events.
    pub others: Group,
    /// Parts by share.
    pub by_share: Vec<(u32, u64)>,
    /// An [`Inspect`](Control::Inspect) is among them.
    pub asked: bool,
    /// A thread runs the processor.
    pub running: bool,
    /// Threads that share it.
    pub sharing: usize,
    /// When that thread took the batch that it runs, or the last of those that share it came.
    pub since: Tick,
    /// Its number in the kernel.
    pub thread: u32,
    /// Whether it is the processor's own.
    pub own: bool,
}

impl QueueLook {
    /// Of these events, the oldest of which came at this time.
    pub(super) fn of(events: &[Event], first: Tick) -> QueueLook {
        let mut look = QueueLook::default();
        for event in events {
            match event {
                Event::Part(part) => {
                    look.parts.add(first);
                    let same = |(share, _): &(u32, u64)| *share == part.share;
                    find_or_add(&mut look.by_share, same, || (part.share, 0)).1 += 1;
                }
                Event::Done(_) => look.others.add(first),
                Event::Control(control) => {
                    look.asked |= matches!(**control, Control::Inspect(_));
                    look.others.add(first);
                }
            }
        }
        look
    }
}

/// The names of what a processor does, by their numbers in [`Doing`].
const DOINGS: [&str; 14] = [
    "nothing",
    "read",
    "write",
    "zero",
    "trim",
    "cache",
    "block-status",
    "flush",
    "completion",
    "maintenance",
    "cut",
    "tick",
    "question",
    "control",
];
const COMPLETION: u64 = 8;
const MAINTENANCE: u64 = 9;

/// What a processor does, and for which share: the event that the thread that runs it exclusively has begun last. A store
/// for each event.
#[derive(Debug, Default)]
pub struct Doing(AtomicU64);

impl Doing {
    fn set(&self, what: u64, share: Option<u32>) {
        let share = share.map_or(0, |share| u64::from(share) + 1);
        self.0.store(share << 8 | what, Ordering::Relaxed);
    }

    /// It serves this event.
    pub(super) fn begin(&self, event: &Event) {
        match event {
            Event::Part(part) => self.set(verb(part.request.verb), Some(part.share)),
            Event::Done(done) => self.set(COMPLETION, Some(done.share)),
            Event::Control(control) => self.set(kind(control), None),
        }
    }

    /// It does what is due in this share.
    pub(super) fn maintain(&self, share: u32) {
        self.set(MAINTENANCE, Some(share));
    }

    /// What it does or has done last, and for which share.
    pub fn get(&self) -> (&'static str, Option<u32>) {
        let now = self.0.load(Ordering::Relaxed);
        let what = DOINGS.get((now & 0xff) as usize).copied().unwrap_or("nothing");
        (what, ((now >> 8) as u32).checked_sub(1))
    }
}

fn verb(verb: Verb) -> u64 {
    match verb {
        Verb::Read => 1,
        Verb::Write => 2,
        Verb::Zero { .. } => 3,
        Verb::Trim => 4,
        Verb::Cache => 5,
        Verb::BlockStatus => 6,
        Verb::Flush => 7,
    }
}

fn kind(control: &Control) -> u64 {
    match control {
        Control::CutStop(..) | Control::CutGo(_) => 10,
        Control::Tick => 11,
        Control::History(..)
        | Control::HasSnapshot(..)
        | Control::Compare(..)
        | Control::Versions(..)
        | Control::Inspect(_) => 12,
        _ => 13,
    }
}

/// What the shares of a processor had at the last tick that it has served. It serves none while nothing waits in it.
#[derive(Debug, Default)]
pub struct Published(Mutex<Option<(Tick, Vec<ShareLook>)>>);

impl Published {
    pub(super) fn publish(&self, now: Tick, looks: Vec<ShareLook>) {
        *self.0.lock().expect("no holder panics") = Some((now, looks));
    }

    /// The latest, if it is not from before `since`.
    pub fn since(&self, since: Tick) -> Option<(Tick, Vec<ShareLook>)> {
        self.0.lock().expect("no holder panics").clone().filter(|(at, _)| *at >= since)
    }
}
