//! Run: serves a batch of events: each event, then background work that is due, then kicks the sinks that received
//! something.
//!
//! How it works      Controls and finished jobs are served at once: their number is bounded. Parts are served in order
//!                   of arrival as long as the [time slice](super::time_slice) lasts. Then the rest waits in
//!                   [lanes](super::connection_lanes), one for each connection, and so do later parts while a lane is not empty.
//!                   The next turns serve a few parts of one lane after the other, and new events in between.
//! Invariants        RU1 a part waits for one turn of each other connection and for earlier parts of its own, not for
//!                   all parts of others; decision 36 lists the bound of each piece of work;
//!                   RU2 no part of a share that does not exist, or leaves, stays in a lane: another share may get its
//!                       number.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Weak};

use crate::block_map::history::Rollback;
use crate::error::{Errno, Error, Result};
use crate::mutants::{Bug, bug};
use crate::processor::cold::{Cold, DirectReader, Readers};
use crate::processor::connection_lanes::{ConnectionLanes, QUANTUM, lane_of};
use crate::processor::cut::{Cut, CutPart};
use crate::processor::inspect::{Doing, Published};
use crate::processor::messages::{Control, CutShare, Ended, Event};
use crate::processor::part::Part;
use crate::processor::queue::Queue;
use crate::processor::runner::{Handler, Runner};
use crate::processor::share::fast_path::Answered;
use crate::processor::share::reclaim::Dropping;
use crate::processor::share::{Context, Share, count};
use crate::processor::time_slice::{TimeSlice, cost};
use crate::request::Sink;
use crate::system::pool::Pool;
use crate::system::ticks::{Tick, Ticks};
use crate::system::{System, Task, TaskHandle};
use crate::units::ProcessorIndex;

/// After so many events replies are sent, so that clients and processors work in parallel.
const KICK_EVERY: usize = 8;

/// Counters of one processor, written by the threads that run or share it.
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct ProcessorStats {
    pub parts: AtomicU64,
    /// Parts that other threads than its own did.
    pub reader_parts: AtomicU64,
    pub batches: AtomicU64,
    pub slow_ios: AtomicU64,
    pub partitions: AtomicU64,
    /// A tick has something to check.
    pub watches: AtomicBool,
    pub doing: Doing,
    pub published: Published,
}

/// The engine's handle of a processor.
pub struct Handle {
    /// The processor.
    pub runner: Arc<Runner<Processor>>,
    /// Its counters.
    pub stats: Arc<ProcessorStats>,
    driving: Option<Box<dyn TaskHandle>>,
}

impl Handle {
    /// Starts a processor.
    pub fn start(
        system: &Arc<dyn System>,
        index: ProcessorIndex,
        pool: Pool,
        checkpoints: Pool,
        direct_reader: &DirectReader,
        ticks: &Arc<Ticks>,
    ) -> Result<Handle> {
        let queue = Arc::new(Queue::new(ticks));
        let stats = Arc::new(ProcessorStats::default());
        let new = |runner: &Weak<Runner<Processor>>| Processor {
            index,
            queue: Arc::clone(&queue),
            stats: Arc::clone(&stats),
            system: Arc::clone(system),
            readers: Readers::new(
                &format!("pv-read-{index}"),
                system,
                ticks,
                direct_reader,
                pool.clone(),
                Weak::clone(runner),
            ),
            pool,
            checkpoints,
            ticks: Arc::clone(ticks),
            shares: Vec::new(),
            sinks: Vec::new(),
            wall_ns: 0,
            cutting: Vec::new(),
            leaving: Vec::new(),
            rolling_back: Vec::new(),
            slow_ios: 0,
            colds: Vec::new(),
            later: ConnectionLanes::default(),
            again: false,
            stopped: false,
        };
        let runner = Arc::new_cyclic(|runner| Runner::new(Arc::clone(&queue), new(runner)));
        let ours = Arc::clone(&runner) as Arc<dyn Task>;
        let driving = system
            .drive(&format!("pv-proc-{index}"), ours)
            .map_err(|e| Error::io(format!("processor {index} cannot be started"), e))?;
        Ok(Handle { runner, stats, driving: Some(driving) })
    }

    /// The CPU time of its own thread, nanoseconds.
    pub fn cpu_ns(&self) -> u64 {
        self.driving.as_ref().map_or(0, |driving| driving.cpu_ns())
    }

    /// Ends it; its shares were removed before.
    pub fn stop(&mut self) {
        self.runner.queue.push(Event::Control(Box::new(Control::Stop)));
        if let Some(driving) = self.driving.take() {
            driving.join();
        }
    }
}

/// The sender for the share of a removal.
pub(super) type Asked = Sender<Box<Share>>;

/// See the module's head.
pub struct Processor {
    index: ProcessorIndex,
    queue: Arc<Queue>,
    stats: Arc<ProcessorStats>,
    system: Arc<dyn System>,
    pool: Pool,
    checkpoints: Pool,
    pub(super) ticks: Arc<Ticks>,
    pub(super) shares: Vec<Option<Box<Share>>>,
    sinks: Vec<Arc<dyn Sink>>,
    /// When the batch was begun, nanoseconds since 1970.
    wall_ns: u64,
    /// Shares that take part in the cut in progress.
    cutting: Vec<CutShare>,
    /// Shares to return as soon as nothing of them is in flight.
    pub(super) leaving: Vec<(u32, Tick, Option<Asked>)>,
    /// Shares to roll back to a snapshot as soon as nothing of them is in flight.
    pub(super) rolling_back: Vec<(u32, Rollback, Tick, Sender<Ended>)>,
    slow_ios: u64,
    /// Blocking I/O to start at the end of the batch.
    colds: Vec<Cold>,
    /// The threads that do blocking I/O.
    readers: Readers,
    /// Parts that wait for their turn.
    pub(super) later: ConnectionLanes<Part>,
    /// A share has more work.
    again: bool,
    /// It was asked to stop.
    stopped: bool,
}

impl Handler for Processor {
    fn run_batch(&mut self, batch: &mut Vec<Event>, own: bool) {
        let parts = batch.iter().filter(|event| matches!(event, Event::Part(_))).count();
        count(&self.stats.parts, parts as u64);
        if !own {
            count(&self.stats.reader_parts, parts as u64);
        }
        self.again = false;
        self.wall_ns = self.system.coarse_wall_ns();
        let mut turn = TimeSlice::default();
        for (number, event) in batch.drain(..).enumerate() {
            match event {
                Event::Part(part) if turn.is_over() || !self.later.is_empty() => {
                    self.later.push(lane_of(&part), part);
                    continue;
                }
                Event::Part(ref part) => turn.count(cost(part), &*self.system),
                _ => {}
            }
            self.stopped |= self.apply(event);
            if number % KICK_EVERY == KICK_EVERY - 1 {
                self.sinks.iter().for_each(|sink| sink.kick());
            }
        }
        self.serve_later(&mut turn);
        self.end_batch();
    }

    fn unfinished(&self) -> bool {
        self.again || !self.later.is_empty()
    }

    fn run_shared(&self, batch: &mut Vec<Event>) -> bool {
        let (mut answered, mut done) = (Answered::default(), 0);
        let mut turn = TimeSlice::default();
        let mut left = Vec::new();
        let wall_ns = self.system.coarse_wall_ns();
        let mut events = batch.drain(..);
        while !turn.is_over()
            && let Some(event) = events.next()
        {
            if let Event::Part(part) = &event {
                turn.count(cost(part), &*self.system);
            }
            if let Some(event) = self.apply_shared(event, wall_ns, &mut answered) {
                // Later ones are left too: a client may expect that its requests are done in order.
                left.push(event);
                break;
            }
            done += 1;
            if done % KICK_EVERY == KICK_EVERY - 1 {
                answered.kick();
            }
        }
        let more = left.is_empty() && events.len() > 0;
        left.extend(events.by_ref());
        drop(events);
        answered.kick();
        batch.append(&mut left);
        self.stats.parts.fetch_add(done as u64, Ordering::Relaxed);
        self.stats.reader_parts.fetch_add(done as u64, Ordering::Relaxed);
        more
    }

    fn stopped(&self) -> bool {
        self.stopped
    }
}

impl Processor {
    /// Its counters.
    pub(super) fn stats(&self) -> &ProcessorStats {
        &self.stats
    }

    /// Its shares, and their context.
    pub(super) fn split(&mut self) -> (&mut Vec<Option<Box<Share>>>, Context<'_>) {
        let Processor { queue, stats, system, pool, checkpoints, sinks, slow_ios, .. } = self;
        let (colds, later, again) = (&mut self.colds, &mut self.later, &mut self.again);
        let (system, ticks) = (&**system, &*self.ticks);
        let context = Context {
            queue,
            doing: &stats.doing,
            system,
            wall_ns: self.wall_ns,
            pool,
            checkpoints,
            ticks,
            sinks,
            slow_ios,
            colds,
            later,
            again,
        };
        (&mut self.shares, context)
    }

    /// Serves waiting parts, of at least one lane.
    fn serve_later(&mut self, turn: &mut TimeSlice) {
        let mut some = Vec::new();
        while !self.later.is_empty() {
            self.later.next(QUANTUM, cost, |part| some.push(part));
            for part in some.drain(..) {
                turn.count(cost(&part), &*self.system);
                self.apply(Event::Part(part));
            }
            self.sinks.iter().for_each(|sink| sink.kick());
            if turn.is_over() {
                break;
            }
        }
    }

    /// Serves one event if that changes no state; otherwise returns it.
    fn apply_shared(&self, event: Event, wall_ns: u64, answered: &mut Answered) -> Option<Event> {
        let Event::Part(mut part) = event else { return Some(event) };
        let share = self.shares.get(part.share as usize).and_then(Option::as_ref);
        let fast = |share| Share::try_fast(share, &mut part, wall_ns).map(|result| (share, result));
        match share.map(|share| &**share).and_then(fast) {
            Some((share, result)) => share.end_fast(part, result, answered),
            None => return Some(Event::Part(part)),
        }
        None
    }

    /// Serves one event; returns whether it was the last one ever.
    pub(super) fn apply(&mut self, event: Event) -> bool {
        self.stats.doing.begin(&event);
        let (shares, mut context) = self.split();
        match event {
            Event::Part(part) => {
                match shares.get_mut(part.share as usize).and_then(Option::as_mut) {
                    Some(share) => share.take(part, &mut context),
                    None => {
                        part.request.fail(Errno::ESHUTDOWN);
                        if part.request.end_part() {
                            context.complete(part.request);
                        }
                    }
                }
            }
            Event::Done(done) => {
                let share = shares.get_mut(done.share as usize).and_then(Option::as_mut);
                share
                    .expect("a share stays while one of its jobs is out")
                    .done(*done, &mut context);
            }
            Event::Control(control) => return self.control(*control),
        }
        false
    }

    fn end_batch(&mut self) {
        let (shares, mut context) = self.split();
        let mut watches = false;
        for share in shares.iter_mut().flatten() {
            share.background_work(&mut context);
            watches |= share.watches();
        }
        watches |= !self.leaving.is_empty() || !self.rolling_back.is_empty();
        if self.stats.watches.load(Ordering::Relaxed) != watches {
            self.stats.watches.store(watches, Ordering::Relaxed);
        }
        for sink in self.sinks.drain(..) {
            sink.kick();
        }
        if !self.colds.is_empty() {
            self.readers.do_all(&mut self.colds);
        }
        self.roll_back();
        self.return_idle_shares();
        self.stats.slow_ios.store(self.slow_ios, Ordering::Relaxed);
        count(&self.stats.batches, 1);
    }

    /// Calls `f` with a share, unless it was removed in the meantime.
    pub(super) fn with_share<T>(
        &mut self,
        number: u32,
        f: impl FnOnce(&mut Share, &mut Context<'_>) -> T,
    ) -> Option<T> {
        let (shares, mut context) = self.split();
        let share = shares.get_mut(number as usize).and_then(Option::as_mut);
        share.map(|share| f(share, &mut context))
    }

    fn control(&mut self, control: Control) -> bool {
        match control {
            Control::AddShare(number, share) => self.add(number, share),
            Control::RemoveShare(number, answer) => self.remove(number, answer),
            Control::CutStop(cut, shares) => self.stop_writes(&cut, shares),
            Control::CutGo(cut) => self.advance(&cut),
            Control::Drop(number, epochs, rollback, answer) => {
                let dropping =
                    self.with_share(number, |share, _| share.begin_drop(epochs, rollback, answer));
                if let Some(dropping) = dropping {
                    self.drop_more(number, dropping);
                }
            }
            Control::RollBack(number, rollback, answer) => {
                self.rolling_back.push((number, rollback, self.ticks.now(), answer));
            }
            Control::Checkpoint(number, answer) => {
                self.with_share(number, |share, context| share.checkpoint_now(answer, context));
            }
            Control::Relieve(number, answer) => {
                self.with_share(number, |share, context| share.relieve(answer, context));
            }
            Control::DropMore(number, dropping) => self.drop_more(number, *dropping),
            // A query of a removed share gets no answer: its sender is dropped.
            Control::Settle(number, epoch, answer) => {
                self.with_share(number, |share, context| share.settle(epoch, answer, context));
            }
            Control::Release { share: number, result } => {
                self.with_share(number, |share, context| share.release(result, context));
            }
            Control::ReleaseMore(number) => {
                self.with_share(number, |share, context| share.release_more(context));
            }
            Control::TryAgain(number) => {
                self.with_share(number, |share, context| share.retry_without_space(context));
            }
            Control::LogRules(number, rules, answer) => {
                self.with_share(number, |share, _| share.set_log_rules(rules));
                let _ = answer.send(());
            }
            Control::Grow(number, growth) => {
                self.with_share(number, |share, _| share.grow(*growth));
                self.count_partitions();
            }
            Control::DeviceBack(number) => {
                self.with_share(number, |share, _| share.device_back());
            }
            Control::RenewJournal(number) => {
                self.with_share(number, |share, context| share.renew_journal(context));
            }
            Control::SegmentPrepared(number, prepared) => {
                self.with_share(number, |share, context| share.segment_prepared(prepared, context));
            }
            Control::CheckpointDone(number, ended, of) => {
                self.with_share(number, |share, context| share.checkpoint_done(ended, of, context));
            }
            Control::Tick => self.tick(),
            Control::Stop => return true,
            question => self.answer(question),
        }
        false
    }

    /// Answers queries, and does what nobody waits for.
    fn answer(&mut self, question: Control) {
        match question {
            Control::Scrub(number, question) => {
                self.with_share(number, |share, _| share.answer(question));
            }
            Control::History(number, answer) => {
                self.with_share(number, |share, _| answer.send(share.lineage()));
            }
            Control::HasSnapshot(number, epoch, answer) => {
                self.with_share(number, |share, _| answer.send(share.has_snapshot(epoch)));
            }
            Control::Compare(number, since, until, answer) => {
                self.with_share(number, |share, _| answer.send(share.pairs(since, until)));
            }
            Control::Versions(number, partitions, answer) => {
                self.with_share(number, |share, _| answer.send(share.clone_versions(partitions)));
            }
            Control::Inspect(answer) => {
                let _ = answer.send(self.look()); // the caller may have gone
            }
            Control::Relocate(number, kind, blocks, answer) => {
                self.with_share(number, |share, context| {
                    share.relocate(kind, blocks, answer, context);
                });
            }
            Control::GiveBack(number) => {
                self.with_share(number, |share, context| share.punch_backed(0, context));
            }
            _ => unreachable!("`control` does the others"),
        }
    }

    fn add(&mut self, number: u32, share: Box<Share>) {
        let number = number as usize;
        if self.shares.len() <= number {
            self.shares.resize_with(number + 1, || None);
        }
        assert!(self.shares[number].is_none(), "a share's number is unique");
        self.shares[number] = Some(share);
        self.count_partitions();
    }

    pub(super) fn count_partitions(&self) {
        let count = self.shares.iter().flatten().map(|share| share.partitions() as u64).sum();
        self.stats.partitions.store(count, Ordering::Relaxed);
    }

    fn stop_writes(&mut self, cut: &Arc<Cut>, mut shares: Vec<CutShare>) {
        shares.retain(|part| {
            self.with_share(part.share, |share, context| share.stop_writes(context)).is_some()
        });
        self.cutting = shares;
        if bug(Bug::EarlyAdvance) {
            self.advance_shares(cut);
        }
        cut.arrive();
    }

    fn advance(&mut self, cut: &Arc<Cut>) {
        let part = self.advance_shares(cut);
        cut.resumed(part);
    }

    /// Makes the shares of the cut start writes again; the stall of the processor is their longest one.
    fn advance_shares(&mut self, cut: &Arc<Cut>) -> CutPart {
        let instant_ns = cut.instant_ns();
        let mut made = CutPart { processor: self.index, stall_ns: 0, partitions: Vec::new() };
        for part in std::mem::take(&mut self.cutting) {
            self.with_share(part.share, |share, context| {
                made.partitions.push((part.share, share.partitions() as u32));
                let stall_ns = share.advance(part.rules, instant_ns, context);
                made.stall_ns = made.stall_ns.max(stall_ns);
            });
        }
        made
    }

    fn drop_more(&mut self, number: u32, dropping: Dropping) {
        let left = self.with_share(number, |share, context| share.drop_more(dropping, context));
        if let Some(left) = left.flatten() {
            let control = Control::DropMore(number, Box::new(left));
            self.queue.push(Event::Control(Box::new(control)));
        }
    }
}
