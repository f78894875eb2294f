//! Share: one processor's part of one volume: its partitions' versions, its journal, its slots.
//!
//! How it works      A part that certainly does not block is done at once; the others are passed to other threads with
//!                   their blocks reserved, and return ([`in_flight`]). A part that overlaps a reservation, or a part
//!                   that waits for one, waits too. The number of parts in flight, or waiting, is [bounded](backlog),
//!                   and long requests are done in [pieces](pieces).
//! Invariants        H1 two parts of the live volume that overlap, one of them a write, are never in flight together,
//!                      except on the [`fast_path`];
//!                   H2 a part is in exactly one state: in flight, waiting, in the backlog, held for a cut, without
//!                      space, in the processor's lanes, or ended. A share that is leaving adds none;
//!                   H3 `epoch` is above all of `history`.
//! Owner and locks   only its processor.

mod apply;
mod backlog;
mod block_status;
mod checkpoint;
mod claims;
mod clearing;
pub mod compare;
mod counting;
mod cut;
pub(super) mod fast_path;
pub mod grow;
pub(super) mod in_flight;
mod inspect;
mod job_devices;
mod log_orders;
mod pieces;
pub mod read;
pub mod reclaim;
pub mod relocate;
mod relocate_away;
mod roll_back;
pub mod scrub;
mod slot_retry;
pub mod stats;
pub mod write;
mod zero;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::mpsc::Sender;

use crate::block_map::history::History;
use crate::block_map::versions::Versions;
use crate::change_log::claim::Claim;
use crate::change_log::journal::Journal;
use crate::change_log::log_rules::{LogRules, VolumeRules};
use crate::change_log::past::RecordedCut;
use crate::change_log::slots::Slots;
use crate::change_log::space::Space;
use crate::error::Errno;
use crate::geometry::Geometry;
use crate::geometry::bad_blocks::BadBlocks;
use crate::geometry::origin::Origin;
use crate::geometry::pins::Pins;
use crate::processor::cold::Cold;
use crate::processor::connection_lanes::{ConnectionLanes, lane_of};
use crate::processor::flusher::{Flusher, Waiter};
use crate::processor::inspect::Doing;
use crate::processor::messages::Ended;
use crate::processor::part::Part;
use crate::processor::queue::Queue;
use crate::processor::share::backlog::{Backlog, Kind, WAITING_MAX};
use crate::processor::share::checkpoint::FailedCheckpoint;
use crate::processor::share::counting::Touched;
use crate::processor::share::in_flight::InFlight;
use crate::processor::share::log_orders::LogOrders;
use crate::processor::share::reclaim::{Dropped, FreedBase};
use crate::processor::share::relocate::Relocation;
use crate::processor::share::slot_retry::SlotRetry;
use crate::processor::space_waiters::{Ask, SpaceWaiters};
use crate::request::{Request, Sink, Verb};
use crate::system::System;
use crate::system::pool::Pool;
use crate::system::ticks::{Tick, Ticks};
use crate::units::{Epoch, ProcessorIndex};

/// Pending-free slots at which the share requests a sync, if they are also more than an eighth of the free slots:
/// 256 MiB. Their freeing is not durable yet.
const PENDING_FREE_SLOTS_MAX: u64 = 65_536;

/// Counters of one share, written by the threads that run or share its processor.
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct ShareStats {
    pub reads: AtomicU64,
    pub writes: AtomicU64,
    pub read_bytes: AtomicU64,
    pub write_bytes: AtomicU64,
    pub zeroes: AtomicU64,
    pub trims: AtomicU64,
    pub redirected_blocks: AtomicU64,
    /// Drops of snapshots that have ended.
    pub drops: AtomicU64,
    pub errors: AtomicU64,
    pub checkpoint_failures: AtomicU64,
    /// Why the last checkpoint failed; 0: it did not.
    pub checkpoint_errno: AtomicI32,
}

/// Adds to a counter that no other thread writes.
pub fn count(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Ordering::Relaxed) + n, Ordering::Relaxed);
}

/// A partition on its share.
pub struct Local {
    /// Its number within the volume.
    pub partition: u32,
    /// Its maps.
    pub versions: Versions,
    /// The latest record that moved blocks back to their base places, of this run.
    pub moved_back: u64,
}

/// What shares use of their processor.
pub struct Context<'a> {
    /// The processor's queue.
    pub queue: &'a Arc<Queue>,
    /// What the processor is doing.
    pub doing: &'a Doing,
    /// The system, for its clock.
    pub system: &'a dyn System,
    /// When this batch was begun, nanoseconds since 1970, by a coarse clock.
    pub wall_ns: u64,
    /// Threads that may block.
    pub pool: &'a Pool,
    /// Threads that write checkpoints, which may take seconds; hosts wait for the other pool.
    pub checkpoints: &'a Pool,
    /// The clock of time-outs.
    pub ticks: &'a Ticks,
    /// Sinks that received something since the last kick.
    pub sinks: &'a mut Vec<Arc<dyn Sink>>,
    /// Number of jobs passed to other threads.
    pub slow_ios: &'a mut u64,
    /// Blocking I/O to start at the end of the batch.
    pub colds: &'a mut Vec<Cold>,
    /// Parts that wait for their turn.
    pub later: &'a mut ConnectionLanes<Part>,
    /// A share has more work after others have had their turn.
    pub again: &'a mut bool,
}

impl Context<'_> {
    /// Passes a request to its sink, which is kicked at the end of the batch.
    pub fn complete(&mut self, request: Arc<Request>) {
        if !self.sinks.iter().any(|sink| Arc::ptr_eq(sink, request.sink())) {
            self.sinks.push(Arc::clone(request.sink()));
        }
        request.complete();
    }
}

/// What a share has recorded of its snapshots' cuts.
#[derive(Clone, Debug, Default)]
pub struct RecordedCuts {
    /// The cuts, in order; some of snapshots that were dropped.
    pub cuts: Vec<RecordedCut>,
    /// The epoch in which the partitions' counters began to count; 0: with the partitions.
    pub counted_from: Epoch,
}

/// The configuration of a new share.
pub struct ShareConfig {
    /// Its number on its processor.
    pub number: u32,
    /// The volume's shape.
    pub geometry: Arc<Geometry>,
    /// The volume's origin, if it is a clone.
    pub origin: Option<Arc<Origin>>,
    /// The volume's log areas.
    pub space: Arc<Space>,
    /// The queue of shares without free slots.
    pub space_waiters: Arc<SpaceWaiters>,
    /// Destination of the event of a journal without space.
    pub ask: Ask,
    /// The volume's flusher.
    pub flusher: Arc<Flusher>,
    /// The volume's bad blocks.
    pub bad: Arc<BadBlocks>,
    /// The snapshots whose maps clones of the volume have.
    pub pins: Arc<Pins>,
    /// Counters.
    pub stats: Arc<ShareStats>,
    /// Its partitions.
    pub locals: Vec<Local>,
    /// Its journal.
    pub journal: Journal,
    /// Its slots.
    pub slots: Slots,
    /// The epoch of new writes.
    pub epoch: Epoch,
    /// The epoch of the checkpoint that recovery read; 0: there was none.
    pub checkpoint_epoch: Epoch,
    /// The recorded cuts of its snapshots, and the epoch from which its partitions' counters count.
    pub recorded: RecordedCuts,
    /// The catalog's snapshots and rollbacks.
    pub history: History,
    /// The log rules.
    pub rules: VolumeRules,
    /// Its processor.
    pub processor: ProcessorIndex,
    /// Its index among the volume's shares.
    pub ordinal: usize,
}

/// See the module's head.
pub struct Share {
    number: u32,
    geometry: Arc<Geometry>,
    origin: Option<Arc<Origin>>,
    space: Arc<Space>,
    space_waiters: Arc<SpaceWaiters>,
    ask: Ask,
    /// The log areas of new slots.
    log_orders: LogOrders,
    /// The rules that these follow.
    ordered_by: LogRules,
    claim: Claim,
    slot_retry: SlotRetry,
    flusher: Arc<Flusher>,
    bad: Arc<BadBlocks>,
    relocation: Relocation,
    stats: Arc<ShareStats>,
    locals: Vec<Local>,
    journal: Journal,
    slots: Slots,
    epoch: Epoch,
    history: History,
    rules: VolumeRules,
    processor: ProcessorIndex,
    ordinal: usize,
    /// Jobs in flight.
    out: InFlight,
    waiting: VecDeque<Part>,
    backlog: Backlog,
    held: Vec<Part>,
    without_space: Vec<Part>,
    /// When it stopped for a cut, as [`System::monotonic_ns`] counts.
    stopped_at: Option<u64>,
    /// Waiters for the writes of an epoch, and when they began to wait.
    settling: Vec<(Epoch, Tick, Sender<Ended>)>,
    /// The last cut, if its record could not be appended yet.
    unrecorded_cut: Option<RecordedCut>,
    /// The cuts of its snapshots, and the epoch from which its partitions' counters count.
    recorded: RecordedCuts,
    /// Partitions that were written since their last record of a state.
    touched: Touched,
    /// The epoch whose states are being recorded, and the partition of the share with which that continues.
    recording: Option<(Epoch, usize)>,
    /// The epoch of the newest checkpoint that the manifest names; 0: there is none.
    checkpoint_epoch: Epoch,
    freed_bases: VecDeque<FreedBase>,
    dropped: Vec<Dropped>,
    punching: bool,
    leaving: bool,
    release_asked: bool,
    /// The last requested sync failed: another one is requested only for a part that needs it.
    release_failed: bool,
    /// Empty chunks that a pool thread is returning to their logs.
    returning: u64,
    checkpointing: bool,
    failed_checkpoint: Option<FailedCheckpoint>,
    /// Waiters for the checkpoint in progress, and for the one after it.
    checkpoint_waiters: [Vec<(Tick, Sender<bool>)>; 2],
    checkpoint_bytes: u64,
    /// Waiters for journal segments to become removable.
    relieving: Vec<(Tick, Sender<bool>)>,
    /// The segment in preparation may be a small one.
    preparing_small: bool,
    /// One of its devices uses O_DIRECT: a write waits for the disk, so only the pool's threads make it.
    direct: bool,
    /// No call on any of its devices ever waits: they are in memory.
    inline: bool,
    /// All of its devices support writes that do not wait.
    writes_now: bool,
    /// Buffer for the checksums of a write.
    sums: Vec<u32>,
}

impl Share {
    /// Makes a share.
    pub fn new(config: ShareConfig) -> Share {
        let newest = config.history.retained_epochs().last();
        let left = config.history.rollbacks().last().map(|rollback| &rollback.at);
        assert!(newest.max(left).is_none_or(|last| *last < config.epoch), "H3");
        let mut share = Share {
            number: config.number,
            geometry: config.geometry,
            origin: config.origin,
            log_orders: LogOrders::default(),
            ordered_by: LogRules::default(),
            claim: Claim::default(),
            slot_retry: SlotRetry::default(),
            space: config.space,
            space_waiters: config.space_waiters,
            ask: config.ask,
            flusher: config.flusher,
            bad: config.bad,
            relocation: Relocation::new(config.pins, &config.locals),
            stats: config.stats,
            touched: Touched::new(config.locals.len()),
            locals: config.locals,
            journal: config.journal,
            slots: config.slots,
            epoch: config.epoch,
            history: config.history,
            rules: config.rules,
            processor: config.processor,
            ordinal: config.ordinal,
            out: InFlight::default(),
            waiting: VecDeque::new(),
            backlog: Backlog::default(),
            held: Vec::new(),
            without_space: Vec::new(),
            stopped_at: None,
            settling: Vec::new(),
            unrecorded_cut: None,
            recorded: config.recorded,
            recording: None,
            checkpoint_epoch: config.checkpoint_epoch,
            freed_bases: VecDeque::new(),
            dropped: Vec::new(),
            release_asked: false,
            release_failed: false,
            returning: 0,
            punching: false,
            leaving: false,
            checkpointing: false,
            failed_checkpoint: None,
            checkpoint_waiters: Default::default(),
            checkpoint_bytes: 0,
            relieving: Vec::new(),
            preparing_small: false,
            direct: false,
            inline: false,
            writes_now: false,
            sums: Vec::new(),
        };
        share.order_logs();
        share.refresh_devices();
        share.expect_release();
        share
    }

    /// Updates what depends on the volume's devices. They may be many, so a cut, which sorts the logs again, does not
    /// do this.
    fn refresh_devices(&mut self) {
        let logs = self.space.logs();
        let all = || self.geometry.devices().chain(logs.iter().flat_map(|log| log.devices()));
        self.direct = all().any(|device| device.mode.direct);
        self.inline = all().all(|device| device.never_waits());
        self.writes_now = self.inline || all().all(|device| device.can_write_nowait());
    }

    /// Takes a part that has just arrived, or whose turn it is.
    pub fn take(&mut self, mut part: Part, context: &mut Context<'_>) {
        if part.since == 0 {
            part.since = context.ticks.now();
        }
        if self.leaving {
            self.end_now(part, Err(Errno::ESHUTDOWN), context);
        } else if self.stopped_at.is_some() && part.view == 0 && part.request.verb.is_write() {
            self.hold(part, context);
        } else if let Some(kind) = self.handed_over_as(&part)
            && self.backlog.is_full(kind)
        {
            self.backlog.push(kind, part);
        } else if !self.blocked(&part, self.waiting.len()) {
            self.start(part, context);
        } else if self.waiting.len() < WAITING_MAX {
            self.waiting.push_back(part);
        } else {
            self.backlog.push(Kind::Waiting, part);
        }
    }

    /// Queues a part until its turn.
    fn take_later(&mut self, part: Part, context: &mut Context<'_>) {
        if self.leaving {
            self.end_now(part, Err(Errno::ESHUTDOWN), context);
        } else {
            context.later.push(lane_of(&part), part);
        }
    }

    fn start(&mut self, part: Part, context: &mut Context<'_>) {
        debug_assert!(part.length > 0 && part.local.index() < self.locals.len());
        match part.request.verb {
            Verb::Read => self.read(part, context),
            Verb::Write => self.write(part, context),
            Verb::Zero { .. } | Verb::Trim => self.clear(part, context),
            Verb::Cache => self.cache(part, context),
            Verb::BlockStatus => self.block_status(part, context),
            Verb::Flush => unreachable!("a flush has no parts"),
        }
    }

    /// Ends a part, or continues with its [next piece](self::pieces).
    fn end(&mut self, part: Part, result: Result<(), Errno>, context: &mut Context<'_>) {
        match self.next_piece(&part).filter(|_| result.is_ok()) {
            Some(next) if next.request.sink().is_gone() => {
                next.request.fail(Errno::ESHUTDOWN);
                self.end_now(next, Ok(()), context);
            }
            Some(next) => self.take_later(next, context),
            None => self.end_now(part, result, context),
        }
    }

    /// Ends a part, even if a rest of it is left; the last one ends its request.
    fn end_now(&mut self, part: Part, result: Result<(), Errno>, context: &mut Context<'_>) {
        let request = part.request;
        match request.verb {
            Verb::Write => {
                count(&self.stats.writes, 1);
                count(&self.stats.write_bytes, u64::from(part.length));
            }
            Verb::Zero { .. } => count(&self.stats.zeroes, 1),
            Verb::Trim => count(&self.stats.trims, 1),
            _ => {}
        }
        if let Err(errno) = result {
            count(&self.stats.errors, 1);
            request.fail(errno);
        }
        if request.end_part() {
            if request.fua && request.verb.is_write() && request.result().is_ok() {
                self.flusher.push(Waiter::Request(request));
            } else {
                context.complete(request);
            }
        }
    }

    /// Background work: releases slots, punches base places, prepares a segment, writes a checkpoint, when they are
    /// due.
    pub fn background_work(&mut self, context: &mut Context<'_>) {
        context.doing.maintain(self.number);
        self.admit(context);
        let waiting = self.slots.pending_free();
        let many = waiting > PENDING_FREE_SLOTS_MAX && waiting > self.space.free() / 8;
        if many && !self.release_failed {
            self.ask_release(context);
        }
        self.punch_freed_bases(context);
        self.prepare_segment(context);
        self.record_more_states(context);
        self.checkpoint_if_due(context);
    }

    /// Number of its partitions.
    pub fn partitions(&self) -> usize {
        self.locals.len()
    }

    /// Refuses parts from now on, because the volume is being closed. Parts that wait for slots, or are in the backlog,
    /// end.
    pub fn refuse_parts(&mut self, context: &mut Context<'_>) {
        self.leaving = true;
        self.refuse_backlog(context);
        self.retry_without_space(context);
    }

    /// Whether nothing is in flight or waiting.
    pub fn idle(&self) -> bool {
        self.out.len() == 0
            && !self.checkpointing
            && !self.journal.is_preparing()
            && self.returning == 0
            && self.stopped_at.is_none()
            && self.waiting.is_empty()
            && self.backlog.is_empty()
            && self.held.is_empty()
            && self.without_space.is_empty()
    }
}
