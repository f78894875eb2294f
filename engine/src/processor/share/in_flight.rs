//! In flight: the jobs that a share has passed to threads that may block, the blocks that they reserve, and their
//! time-outs.
//!
//! How it works      A job is passed on in an [`Errand`]. The thread that takes it does it, and returns it as [`Done`].
//!                   At each tick the share checks the jobs that are out. If a job was not taken for longer than a
//!                   request may last, the share takes it back: it is never done, and its request ends with EIO. A job
//!                   that was taken may be in the kernel: its request ends with EIO too, it is *given up*, but its
//!                   blocks and slots stay reserved until it returns.
//! Invariants        U1 an errand is taken once: a job that the share took back is never begun;
//!                   U2 a given-up write keeps its blocks and slots until it has ended, successfully or not: it never
//!                      overwrites a later write, or a place that was reused. Its writes to slots are dropped;
//!                   U3 while one is out, no snapshot of its epoch is complete ([`Share::settle`] fails), no sync of
//!                      its devices succeeds (SI1 of [`crate::io::silence`]), and its volume is not closed;
//!                   U4 a part's request gets its result once: when it is given up, or when it is finished.
//! Owner and locks   the share's processor; an errand has a lock, held to take it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use crate::error::Errno;
use crate::io::device::Device;
use crate::mutants::{Bug, bug};
use crate::processor::cold::Cold;
use crate::processor::inspect::Place;
use crate::processor::io_job::{Done, Job};
use crate::processor::part::Part;
use crate::processor::share::backlog::Kind;
use crate::processor::share::job_devices::Devices;
use crate::processor::share::{Context, Share, count};
use crate::request::{Request, Verb};
use crate::system::ticks::{Tick, Ticks};
use crate::units::{Epoch, LocalIndex};

/// A job, and its part, unless it is work of the share itself.
pub(in crate::processor) type Content = (Option<Part>, Job);

/// A job that waits to be taken.
pub(in crate::processor) struct Errand {
    content: Mutex<Option<Box<Content>>>,
    /// When it was taken; 0: not yet.
    taken: AtomicU32,
    /// A ring has it, not a thread.
    in_ring: AtomicBool,
    reads: bool,
}

impl Errand {
    /// An errand with this job.
    pub(super) fn new(content: Content) -> Arc<Errand> {
        let reads = content.0.as_ref().is_some_and(|part| part.request.verb == Verb::Read);
        let content = Mutex::new(Some(Box::new(content)));
        let (taken, in_ring) = (AtomicU32::new(0), AtomicBool::new(false));
        Arc::new(Errand { content, taken, in_ring, reads })
    }

    /// Whether it only reads.
    pub(in crate::processor) fn is_read(&self) -> bool {
        self.reads
    }

    /// Takes the job, to do it; `None`: it was taken back (U1).
    pub(in crate::processor) fn take(&self, ticks: &Ticks) -> Option<Content> {
        let content = self.content.lock().expect("no holder panics").take()?;
        self.taken.store(ticks.now(), Ordering::Relaxed);
        Some(*content)
    }

    /// A ring has it from now on.
    pub(in crate::processor) fn enter_ring(&self) {
        self.in_ring.store(true, Ordering::Relaxed);
    }

    /// Where it is.
    pub(in crate::processor) fn place(&self) -> Place {
        match (self.taken.load(Ordering::Relaxed), self.in_ring.load(Ordering::Relaxed)) {
            (0, _) => Place::Queued,
            (_, true) => Place::Ring,
            (_, false) => Place::Pool,
        }
    }

    /// Puts it back, to be done in another way.
    pub(in crate::processor) fn put_back(&self, content: Content) {
        self.in_ring.store(false, Ordering::Relaxed);
        *self.content.lock().expect("no holder panics") = Some(Box::new(content));
        self.taken.store(0, Ordering::Relaxed);
    }

    fn take_back(&self) -> Option<Content> {
        self.content.lock().expect("no holder panics").take().map(|content| *content)
    }
}

/// The blocks of a job.
#[derive(Clone, Copy)]
pub(super) struct Span {
    pub(super) local: LocalIndex,
    pub(super) first: u32,
    pub(super) last: u32,
    pub(super) write: bool,
}

impl Span {
    /// The blocks of a part.
    pub(super) fn of(part: &Part) -> Span {
        let (first, last) = part.blocks();
        Span { local: part.local, first, last, write: part.request.verb.is_write() }
    }

    /// Whether they have blocks in common.
    pub(super) fn overlaps(&self, other: &Span) -> bool {
        self.local == other.local && self.first <= other.last && other.first <= self.last
    }
}

/// A job that was passed to another thread.
pub(super) struct Out {
    pub(super) id: u64,
    pub(super) span: Span,
    pub(super) epoch: Epoch,
    /// When its part arrived.
    pub(super) since: Tick,
    pub(super) errand: Arc<Errand>,
    /// The kind of its part; `None`: the share's own work.
    pub(super) kind: Option<Kind>,
    /// The request to answer; `None`: there is none, or it was given up.
    request: Option<Arc<Request>>,
    devices: Devices,
    /// The kernel has had it for longer than a request may last.
    pub(super) given_up: bool,
    /// The kind under which the [backlog](super::backlog) counts it; `None`: no longer counted, because its device is
    /// silent.
    counts: Option<Kind>,
}

impl Out {
    /// Gives it up: the state of its blocks is unknown until it ends (U3).
    fn give_up(&mut self) -> Option<Arc<Request>> {
        self.given_up = true;
        if self.span.write {
            self.devices.as_slice().iter().for_each(|device| device.silence.begin_stuck());
        }
        self.request.take()
    }

    fn ended(&self) {
        if self.given_up && self.span.write {
            self.devices.as_slice().iter().for_each(|device| device.silence.end_stuck());
        }
    }

    fn is_silent(&self) -> bool {
        self.devices.as_slice().iter().any(|device| device.silence.is_silent())
    }

    /// Reports it to its devices, if they have worked on it for too long.
    fn report(&self, ticks: &Ticks) {
        let taken = self.errand.taken.load(Ordering::Relaxed);
        if taken != 0 && ticks.is_silent(taken) {
            let report = |device: &Arc<Device>| device.silence.report(taken, ticks.now());
            self.devices.as_slice().iter().for_each(report);
        }
    }
}

/// All jobs in flight: those of the live volume, whose blocks are reserved (I1), and reads of snapshots.
#[derive(Default)]
pub(super) struct InFlight {
    pub(super) reserved: Vec<Out>,
    readers: HashMap<u64, Out>,
    next_id: u64,
}

impl InFlight {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.reserved.len() + self.readers.len()
    }

    /// The number of the job that was passed on last.
    pub(super) fn last_id(&self) -> u64 {
        self.next_id
    }

    /// Whether one of these blocks is reserved.
    pub(super) fn has_reserved(&self, span: &Span) -> bool {
        self.reserved.iter().any(|out| out.span.overlaps(span))
    }

    /// Whether a snapshot is being read at one of these blocks.
    pub(super) fn reads_snapshots(&self, span: &Span) -> bool {
        self.readers.values().any(|out| out.span.overlaps(span))
    }

    /// Whether a write of this epoch or an older one is in flight; and whether one was given up.
    pub(super) fn writes_until(&self, epoch: Epoch) -> (bool, bool) {
        let mut found = (false, false);
        for out in self.reserved.iter().filter(|out| out.span.write && out.epoch <= epoch) {
            found = (true, found.1 || out.given_up);
        }
        found
    }

    fn remove(&mut self, id: u64) -> Out {
        let at = self.reserved.iter().position(|out| out.id == id);
        let found = at.map(|at| self.reserved.swap_remove(at));
        found.or_else(|| self.readers.remove(&id)).expect("a returned job was in flight")
    }

    /// All that is out, with whether its blocks are reserved.
    pub(super) fn iter(&self) -> impl Iterator<Item = (bool, &Out)> {
        let reserved = self.reserved.iter().map(|out| (true, out));
        reserved.chain(self.readers.values().map(|out| (false, out)))
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Out> {
        self.reserved.iter_mut().chain(self.readers.values_mut())
    }
}

impl Share {
    /// Whether a part must wait for a reservation, or for one of the first `among` waiting parts (H1).
    pub(super) fn blocked(&self, part: &Part, among: usize) -> bool {
        if self.out.reserved.is_empty() || part.view != 0 {
            return false;
        }
        let (first, last) = part.blocks();
        let write = part.request.verb.is_write();
        let hit = |local: LocalIndex, from: u32, to: u32, other_writes: bool| {
            local == part.local && from <= last && first <= to && (write || other_writes)
        };
        let reserved = |out: &Out| {
            let Span { local, first, last, write } = out.span;
            // The result of a read that was given up is dropped.
            let counts = !out.given_up || (out.span.write && !bug(Bug::ForgetGivenUp));
            counts && hit(local, first, last, write)
        };
        self.out.reserved.iter().any(reserved)
            || self.waiting.iter().take(among).any(|other| {
                let (from, to) = other.blocks();
                hit(other.local, from, to, other.request.verb.is_write())
            })
    }

    /// Passes a part's job to threads that may wait.
    pub(super) fn hand_over(&mut self, part: Part, job: Job, context: &mut Context<'_>) {
        let span = Span::of(&part);
        self.send(Some(part), span, job, context);
    }

    /// Passes a job to other threads, and reserves its blocks (I1); one without a part is work of the share itself.
    pub(super) fn send(
        &mut self,
        part: Option<Part>,
        span: Span,
        job: Job,
        context: &mut Context<'_>,
    ) {
        *context.slow_ios += 1;
        self.out.next_id += 1;
        let (id, epoch, now) = (self.out.next_id, self.epoch, context.ticks.now());
        let devices = job.devices();
        let lane = devices.lane(self.number);
        // A snapshot never changes, so nothing has to wait for its readers.
        let live = part.as_ref().is_none_or(|part| part.view == 0);
        let since = part.as_ref().map_or(now, |part| part.since);
        let bytes = part.as_ref().map_or(u32::MAX, |part| part.length);
        let request = part.as_ref().map(|part| Arc::clone(&part.request));
        let kind = part.as_ref().map(Kind::of);
        let errand = Errand::new((part, job));
        let (ours, given_up, counts) = (Arc::clone(&errand), false, None);
        let mut out =
            Out { id, span, epoch, since, errand: ours, kind, request, devices, given_up, counts };
        out.counts = kind.filter(|_| !out.is_silent());
        out.counts.into_iter().for_each(|kind| self.backlog.begin(kind));
        if live {
            self.out.reserved.push(out);
        } else {
            self.out.readers.insert(id, out);
        }
        context.colds.push(Cold { share: self.number, id, lane, bytes, errand });
    }

    /// Handles a finished job.
    pub fn done(&mut self, done: Done, context: &mut Context<'_>) {
        let Done { id, part, job, result, .. } = done;
        let out = self.out.remove(id);
        self.came_back(&out);
        let (epoch, given_up, span) = (out.epoch, out.given_up, out.span);
        drop(out);
        match part {
            None if self.relocation.is(id) => {
                self.relocated(&job, &span, result, given_up, context);
            }
            None => self.punching = false,
            Some(part) if given_up => self.end_unheard(&part, job, epoch), // U4
            Some(part) => self.finish(part, job, epoch, result, context),
        }
        self.answer_settled(context.ticks);
        self.resume_waiting(context);
        self.background_work(context);
    }

    fn came_back(&mut self, out: &Out) {
        out.ended();
        out.counts.into_iter().for_each(|kind| self.backlog.end(kind));
    }

    /// Drops the result of a part whose request was already answered: its slots are freed, and the map is unchanged
    /// (U2).
    fn end_unheard(&mut self, part: &Part, mut job: Job, epoch: Epoch) {
        job.request = None;
        let _ = self.settle_changes(part.local, epoch, &job.changes, &job.frees, Err(Errno::EIO));
    }

    /// Ends jobs that have lasted too long, and reports devices that do not answer.
    pub fn tick(&mut self, context: &mut Context<'_>) {
        let ticks = context.ticks;
        let mut over = Vec::new();
        for out in self.out.all() {
            out.report(ticks);
            if out.is_silent() {
                out.counts.take().into_iter().for_each(|kind| self.backlog.end(kind));
            }
            if ticks.is_over(out.since) {
                over.push(out.id);
            }
        }
        for id in over {
            self.end_overdue(id, context);
        }
        self.end_waiting(context);
        self.end_checkpoint_waits(ticks);
        self.retry_checkpoint(context);
        self.answer_settled(ticks);
        self.give_back(context);
        self.resume_waiting(context);
    }

    /// Takes a job back, or gives it up.
    fn end_overdue(&mut self, id: u64, context: &mut Context<'_>) {
        let mut all = self.out.all();
        let out = all.find(|out| out.id == id).expect("it was there");
        let own_work = out.request.is_none() && !out.given_up;
        let back = if own_work { None } else { out.errand.take_back() };
        if let Some((part, job)) = back {
            drop(all);
            let out = self.out.remove(id);
            self.came_back(&out);
            let (epoch, given_up) = (out.epoch, out.given_up);
            drop(out);
            let part = part.expect("work of the share itself is not taken back");
            self.end_unheard(&part, job, epoch);
            if !given_up {
                self.end_now(part, Err(Errno::EIO), context);
            }
        } else if !out.given_up && out.errand.taken.load(Ordering::Relaxed) != 0 {
            let request = out.give_up();
            drop(all);
            let Some(request) = request else { return };
            count(&self.stats.errors, 1);
            request.fail(Errno::EIO);
            if request.end_part() {
                context.complete(request);
            }
        }
    }

    /// Ends parts that have waited too long for others or for slots.
    fn end_waiting(&mut self, context: &mut Context<'_>) {
        let ticks = context.ticks;
        let mut over = self.backlog.take_overdue(ticks);
        let mut index = 0;
        while index < self.waiting.len() {
            if ticks.is_over(self.waiting[index].since) {
                over.extend(self.waiting.remove(index));
            } else {
                index += 1;
            }
        }
        // A part that waits only for slots may continue to wait: space may be freed soon. Not if a device that does not
        // answer keeps them.
        if !self.without_space.is_empty() && self.is_silent() {
            let parts = std::mem::take(&mut self.without_space);
            let (late, rest): (Vec<_>, _) =
                parts.into_iter().partition(|part| ticks.is_over(part.since));
            self.without_space = rest;
            over.extend(late);
        }
        for part in over {
            self.end_now(part, Err(Errno::EIO), context);
        }
    }

    /// Whether a device of its volume does not answer.
    fn is_silent(&self) -> bool {
        let logs = self.space.logs();
        let mut devices = self.geometry.devices().chain(logs.iter().flat_map(|log| log.devices()));
        devices.any(|device| device.silence.is_silent())
    }

    /// Whether a tick has something to check.
    pub fn watches(&self) -> bool {
        self.out.len() > 0
            || !self.waiting.is_empty()
            || !self.backlog.is_empty()
            || !self.without_space.is_empty()
            || !self.settling.is_empty()
            || self.failed_checkpoint.is_some()
            || self.has_to_give_back()
            || self.checkpoint_waiters.iter().any(|waiters| !waiters.is_empty())
    }
}
