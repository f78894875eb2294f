//! Queue: how work is handed to a processor, by batch: push all, wake once.
//!
//! How it works      A thread that submits a small batch to an idle processor is let in, which saves two wake-ups. First it
//!                   enters shared mode, together with others, for the [`fast_path`](super::share::fast_path). With the rest of the
//!                   batch it runs the processor exclusively if no thread does; else the thread that runs it finds what was
//!                   pushed when it has finished its own batch. While events wait for exclusive mode, no thread enters
//!                   shared mode, so they do not wait long. A run of the processor is short, and may leave work in the
//!                   processor itself.
//! Invariants        Q1 an event that was pushed is taken exactly once, in the order of pushes;
//!                   Q2 whenever events are there, a thread runs the processor, or shares it and will check, or its own thread is
//!                      awake or being woken, or the thread that pushed them is about to run it; the same holds for work
//!                      that a run has left in the processor (`unfinished`);
//!                   Q3 at most one thread runs a processor at a time, and then none shares it;
//!                   Q4 what is pushed after the queue was closed is refused at once, by the thread that pushes it.
//! Owner and locks   one lock over the events, held for a push or a swap.

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use crate::block_map::history::{History, Rollback};
use crate::change_log::segment::Prepared;
use crate::error::{Errno, Result};
use crate::processor::cut::Cut;
use crate::processor::io_job::Done;
use crate::processor::share::Share;
use crate::processor::share::compare::{HandedOut, Pair};
use crate::processor::share::grow::Growth;
use crate::processor::share::reclaim::Dropping;
use crate::processor::share::scrub::Question;
use crate::processor::share::stats::PartitionState;
use crate::sync::{Condvar, Mutex, MutexGuard};
use crate::system::ticks::Tick;
use crate::system::{System, wait};
use crate::units::Epoch;
use crate::volume::request::Request;

/// The part of a request that lies in one partition.
pub struct Part {
    /// The request.
    pub request: Arc<Request>,
    /// The snapshot's epoch, or 0 for the live volume.
    pub view: Epoch,
    /// The volume's share on the processor.
    pub share: u32,
    /// The partition's number on the share.
    pub local: u32,
    /// First byte within the partition.
    pub offset: u32,
    /// Length in bytes, at least 1.
    pub length: u32,
    /// How many bytes of the partition come behind it that are done when it is done (see [`walk`](super::share::pieces)).
    pub rest: u32,
    /// Where the part begins in the request, bytes.
    pub at: u64,
    /// How many slots it was given that could not be written.
    pub tried: u8,
    /// It reads what the page cache does not have.
    pub cold: bool,
    /// In which tick its processor took it first; 0: not yet.
    pub since: Tick,
}

/// The result of something that a processor was asked to do.
pub type Ended = std::result::Result<(), Errno>;

/// A control event from the engine.
pub enum Control {
    /// Serve a volume.
    AddShare(u32, Box<Share>),
    /// Stop serving it, and give its share back when nothing of it is in flight.
    RemoveShare(u32, Sender<Box<Share>>),
    /// First step of a cut: stop starting writes of these shares.
    CutStop(Arc<Cut>, Vec<CutShare>),
    /// Last step of a cut: advance the epoch and start writes again.
    CutGo(Arc<Cut>),
    /// Say when the writes of this epoch and earlier ones have landed, and whether the journal has its end.
    Settle(u32, Epoch, Sender<Ended>),
    /// Forget the snapshots of these epochs, and the rollback at an epoch, if one is named; answer with the bytes that only
    /// they could see.
    Drop(u32, Vec<Epoch>, Option<Epoch>, Sender<u64>),
    /// Answer with the snapshots and rollbacks, and the epoch of the newest durable checkpoint (0: there is none).
    History(u32, Sender<(History, Epoch)>),
    /// Answer whether there is a snapshot of this epoch.
    HasSnapshot(u32, Epoch, Sender<bool>),
    /// Go back to a snapshot, as soon as nothing is in flight; answer whether that was done.
    RollBack(u32, Rollback, Sender<Ended>),
    /// Write a checkpoint of now, and say whether that was done.
    Checkpoint(u32, Sender<bool>),
    /// Make journal segments removable, where there is little space, and say whether that was done.
    Relieve(u32, Sender<bool>),
    /// Continue a `Drop`.
    DropMore(u32, Box<Dropping>),
    /// A sync ended that a share had asked for.
    Release {
        /// The share.
        share: u32,
        /// How it ended.
        result: Ended,
    },
    /// Continue a `Release`.
    ReleaseMore(u32),
    /// So many empty chunks of a share are back in their logs.
    ChunksReturned(u32, u64),
    /// Answer a share's question of a scrub.
    Scrub(u32, Question),
    /// A device was reopened.
    DeviceBack(u32),
    /// A tick has gone by: what has lasted for too long ends.
    Tick,
    /// There may be room for the parts that wait for slots.
    TryAgain(u32),
    /// Redirected writes use one more log, where none is named if it is a default one. Answer when that is so.
    LogAdded(u32, u16, bool, Sender<()>),
    /// A share's volume has grown. Answer when the share serves what is new of it.
    Grow(u32, Box<Growth>),
    /// A share's journal could not be synced: make it so that what it lost is not needed.
    RenewJournal(u32),
    /// A share's next journal segment was prepared, or could not be.
    SegmentPrepared(u32, Option<Prepared>),
    /// A checkpoint was written, of so many bytes, or failed (0); the epoch in which it was taken.
    CheckpointDone(u32, u64, Epoch),
    /// Answer with the partitions' states, now (0) or at an epoch.
    States(u32, Epoch, Sender<Vec<PartitionState>>),
    /// Answer with the maps, at two epochs (the second 0: now), of the partitions in which they differ.
    Compare(u32, Epoch, Epoch, Sender<Option<Vec<Pair>>>),
    /// Answer with clones of these partitions' versions, by their numbers on the share.
    Versions(u32, Range<u32>, Sender<HandedOut>),
    /// Answer with the blocks mapped.
    Use(u32, Sender<u64>),
    /// End the thread.
    Stop,
}

/// One share's part of a cut.
#[derive(Clone, Copy, Debug)]
pub struct CutShare {
    /// The share.
    pub share: u32,
    /// The log for what is written after the cut, if one was named.
    pub log: Option<u16>,
}

/// What a queue holds.
pub enum Event {
    /// Work of a host.
    Part(Part),
    /// A pool thread is done with a part, or with work of the share's own.
    Done(Box<Done>),
    /// Work of the engine.
    Control(Box<Control>),
}

#[derive(Default)]
struct State {
    events: Vec<Event>,
    /// The last run has left work in it, and no thread runs it.
    unfinished: bool,
    /// A thread runs the processor: its thread, or one that was let in.
    running: bool,
    /// How many share it.
    sharing: usize,
    sleeping: bool,
    closed: bool,
}

impl State {
    /// There is something to be done.
    fn has_work(&self) -> bool {
        self.unfinished || !self.events.is_empty()
    }

    /// The caller runs the processor (Q3), with all that there is.
    fn run(&mut self, batch: &mut Vec<Event>) {
        self.running = true;
        self.unfinished = false;
        std::mem::swap(&mut self.events, batch);
    }

    /// No thread runs the processor or shares it.
    fn idle(&self) -> bool {
        !self.running && self.sharing == 0
    }

    fn push(&mut self, batch: &mut Vec<Event>) {
        if self.events.is_empty() {
            std::mem::swap(&mut self.events, batch);
        } else {
            self.events.append(batch);
        }
    }
}

/// See the module's head.
#[derive(Default)]
pub struct Queue {
    state: Mutex<State>,
    wake: Condvar,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Queue")
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// Wakes the thread if it sleeps and nobody else will see what was pushed (Q2).
    fn wake_if_needed(&self, mut state: MutexGuard<'_, State>) {
        let wake = state.idle() && std::mem::take(&mut state.sleeping);
        drop(state);
        if wake {
            self.wake.notify_one();
        }
    }

    /// Pushes every event of `batch`, which is left empty, and wakes the processor at most once.
    pub fn push_all(&self, batch: &mut Vec<Event>) {
        let mut state = self.lock();
        if state.closed {
            drop(state);
            return refuse(batch.drain(..));
        }
        state.push(batch);
        self.wake_if_needed(state);
    }

    /// Pushes all of `batch`, which is left empty, and wakes no thread: the caller is to [`Queue::try_enter`] to run it soon (Q2), or
    /// a tick brings a thread to it.
    pub fn push_all_without_wake(&self, batch: &mut Vec<Event>) {
        let mut state = self.lock();
        if state.closed {
            drop(state);
            return refuse(batch.drain(..));
        }
        state.push(batch);
    }

    /// Pushes one event and wakes no thread: the caller is to [`Queue::try_enter`] to run it next (Q2).
    pub fn push_without_wake(&self, event: Event) {
        self.add(event);
    }

    /// Pushes one event.
    pub fn push(&self, event: Event) {
        if let Some(state) = self.add(event) {
            self.wake_if_needed(state);
        }
    }

    /// Adds an event, unless the queue is closed: then it is refused (Q4).
    fn add(&self, event: Event) -> Option<MutexGuard<'_, State>> {
        let mut state = self.lock();
        if state.closed {
            drop(state);
            refuse([event]);
            return None;
        }
        state.events.push(event);
        Some(state)
    }

    /// Lets the caller share the processor, if no thread runs it or is about to. A caller that was let in must call
    /// [`Queue::leave_shared`].
    pub fn enter_shared(&self) -> bool {
        let mut state = self.lock();
        let shared = !state.closed && !state.running && !state.has_work();
        state.sharing += usize::from(shared); // Q3
        shared
    }

    /// The caller shares the processor no longer, and pushes what it has left to do. `true` lets it run the processor, with
    /// `batch`: it must call [`Queue::next`] until that says that there is no more, or [`Queue::leave`].
    pub fn leave_shared(&self, batch: &mut Vec<Event>) -> bool {
        let mut state = self.lock();
        state.sharing -= 1;
        self.enter(state, batch)
    }

    /// Pushes `batch`, and lets the caller run the processor, with all there is, if no thread runs or shares it: as
    /// [`Queue::leave_shared`] does.
    pub fn try_enter(&self, batch: &mut Vec<Event>) -> bool {
        let state = self.lock();
        self.enter(state, batch)
    }

    fn enter(&self, mut state: MutexGuard<'_, State>, batch: &mut Vec<Event>) -> bool {
        if state.closed {
            drop(state);
            refuse(batch.drain(..));
            return false;
        }
        state.push(batch);
        if !state.idle() || !state.has_work() {
            return false; // Q2: who runs or shares it will look
        }
        state.run(batch);
        true
    }

    /// For the thread that runs the processor: what was pushed in the meantime, into `batch`, which is empty. `unfinished`: something is
    /// left in the processor to be done. `false` if there is nothing to do: then the caller no longer runs it.
    pub fn next(&self, batch: &mut Vec<Event>, unfinished: bool) -> bool {
        debug_assert!(batch.is_empty());
        let mut state = self.lock();
        if state.events.is_empty() && !unfinished {
            state.running = false;
            return false;
        }
        std::mem::swap(&mut state.events, batch);
        true
    }

    /// For the thread that runs the processor and has other things to do: leaves the rest to its thread; see [`Queue::next`].
    pub fn leave(&self, unfinished: bool) {
        let mut state = self.lock();
        state.running = false;
        state.unfinished = unfinished;
        if state.has_work() {
            self.wake_if_needed(state);
        }
    }

    /// Refuses what is in the queue, and all that will be pushed (Q4).
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let events = std::mem::take(&mut state.events);
        drop(state);
        refuse(events);
    }

    /// As [`Queue::take_all`], but without sleeping: `false` if there is nothing to take, or another thread runs the
    /// processor.
    pub fn try_take_all(&self, batch: &mut Vec<Event>) -> bool {
        debug_assert!(batch.is_empty());
        let mut state = self.lock();
        if !state.has_work() || !state.idle() {
            return false;
        }
        state.run(batch);
        true
    }

    /// For the processor's thread: takes all events into `batch`, which is empty, and runs the processor. Sleeps
    /// until there is one and no other thread runs it.
    pub fn take_all(&self, batch: &mut Vec<Event>) {
        debug_assert!(batch.is_empty());
        let mut state = self.lock();
        while !state.has_work() || !state.idle() {
            state.sleeping = true; // Q2
            state = self.wake.wait(state).expect("no holder panics");
        }
        state.sleeping = false;
        state.run(batch);
    }
}

/// Refuses events that no processor will take: parts fail, and questions get no answer.
fn refuse(events: impl IntoIterator<Item = Event>) {
    for event in events {
        if let Event::Part(part) = event {
            part.request.fail(Errno::ESHUTDOWN);
            if part.request.end_part() {
                let sink = Arc::clone(part.request.sink());
                part.request.complete();
                sink.kick();
            }
        }
    }
}

/// Asks a processor and waits for its answer.
pub fn ask<T>(
    system: &dyn System,
    queue: &Queue,
    make: impl FnOnce(Sender<T>) -> Control,
) -> Result<T> {
    let (sender, receiver) = std::sync::mpsc::channel();
    queue.push(Event::Control(Box::new(make(sender))));
    wait(system, &receiver)
        .map_err(|_| crate::error::Error::io("the processor has stopped", Errno::ESHUTDOWN))
}
