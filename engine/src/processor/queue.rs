//! Queue: passes work to a processor in batches: one push, at most one wake-up.
//!
//! How it works      A thread that submits a small batch to an idle processor is let in, which saves two wake-ups.
//!                   First it enters shared mode, together with others, for the [`fast_path`](super::share::fast_path).
//!                   With the rest of the batch it runs the processor exclusively if no thread does; otherwise the
//!                   thread that runs it finds the pushed events when it has finished its own batch. While events wait
//!                   for exclusive mode, no thread enters shared mode, so they do not wait long. A run of the processor
//!                   is short, and may leave work in the processor itself.
//! Invariants        Q1 an event that was pushed is taken exactly once, in the order of pushes;
//!                   Q2 whenever there are events, a thread runs the processor, or shares it and will check, or its own
//!                      thread is awake or being woken, or the thread that pushed them is about to run it; the same
//!                      holds for work that a run has left in the processor (`unfinished`);
//!                   Q3 at most one thread runs a processor at a time, and then none shares it;
//!                   Q4 an event pushed after the queue was closed is refused at once, by the thread that pushes it.
//! Owner and locks   one lock over the events, held for a push or a swap.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use crate::error::{Errno, Error, Result};
use crate::processor::inspect::QueueLook;
use crate::processor::messages::{Control, Event};
use crate::sync::{Condvar, Mutex, MutexGuard};
use crate::system::ticks::{Tick, Ticks};
use crate::system::{System, thread_id, wait};

#[derive(Default)]
struct State {
    events: Vec<Event>,
    /// The last run has left work in the processor, and no thread runs it.
    unfinished: bool,
    /// A thread runs the processor: its thread, or one that was let in.
    running: bool,
    /// Number of threads that share it.
    sharing: usize,
    sleeping: bool,
    closed: bool,
    /// When the oldest of `events` was pushed.
    first: Tick,
    /// When the batch that a thread runs was taken, or a thread last came to share the processor.
    since: Tick,
    /// That thread, and whether it is the processor's own.
    thread: u32,
    own: bool,
}

impl State {
    /// Whether there is work.
    fn has_work(&self) -> bool {
        self.unfinished || !self.events.is_empty()
    }

    /// Notes that the caller runs the processor (Q3), and takes all events.
    fn run(&mut self, batch: &mut Vec<Event>, now: Tick, own: bool) {
        self.running = true;
        (self.since, self.thread, self.own) = (now, thread_id(), own);
        self.unfinished = false;
        std::mem::swap(&mut self.events, batch);
    }

    /// Whether no thread runs the processor or shares it.
    fn idle(&self) -> bool {
        !self.running && self.sharing == 0
    }

    fn push(&mut self, batch: &mut Vec<Event>, now: Tick) {
        if self.events.is_empty() {
            self.first = now;
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
    ticks: Arc<Ticks>,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Queue")
    }
}

impl Queue {
    /// An empty queue that notes by this clock since when things wait.
    pub fn new(ticks: &Arc<Ticks>) -> Queue {
        Queue { ticks: Arc::clone(ticks), ..Queue::default() }
    }

    /// What waits in it, and who runs the processor.
    pub fn look(&self) -> QueueLook {
        let state = self.lock();
        let mut look = QueueLook::of(&state.events, state.first);
        look.running = state.running;
        look.sharing = state.sharing;
        if state.running || state.sharing > 0 {
            (look.since, look.thread, look.own) = (state.since, state.thread, state.own);
        }
        look
    }

    /// How many events wait in it.
    pub fn length(&self) -> usize {
        self.lock().events.len()
    }

    /// Whether events wait in it, or a thread runs the processor.
    pub fn is_used(&self) -> bool {
        let state = self.lock();
        !state.events.is_empty() || !state.idle()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// Wakes the thread if it sleeps and no other thread will see the pushed events (Q2).
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
            return batch.drain(..).for_each(Event::refuse);
        }
        state.push(batch, self.ticks.now());
        self.wake_if_needed(state);
    }

    /// Pushes all of `batch`, which is left empty, and wakes no thread: the caller must call [`Queue::try_enter`] soon
    /// to run it (Q2), or a tick lets a thread run it.
    pub fn push_all_without_wake(&self, batch: &mut Vec<Event>) {
        let mut state = self.lock();
        if state.closed {
            drop(state);
            return batch.drain(..).for_each(Event::refuse);
        }
        state.push(batch, self.ticks.now());
    }

    /// Pushes one event and wakes no thread: the caller must call [`Queue::try_enter`] next to run it (Q2).
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
            event.refuse();
            return None;
        }
        if state.events.is_empty() {
            state.first = self.ticks.now();
        }
        state.events.push(event);
        Some(state)
    }

    /// Lets the caller share the processor, if no thread runs it or is about to. If it returns `true`, the caller must
    /// call [`Queue::leave_shared`].
    pub fn enter_shared(&self) -> bool {
        let mut state = self.lock();
        let shared = !state.closed && !state.running && !state.has_work();
        if shared {
            state.sharing += 1; // Q3
            (state.since, state.thread, state.own) = (self.ticks.now(), thread_id(), false);
        }
        shared
    }

    /// Ends sharing, and pushes the events that the caller has left. If it returns `true`, the caller runs the
    /// processor, with `batch`: it must call [`Queue::next`] until that returns `false`, or [`Queue::leave`].
    pub fn leave_shared(&self, batch: &mut Vec<Event>) -> bool {
        let mut state = self.lock();
        state.sharing -= 1;
        self.enter(state, batch)
    }

    /// Pushes `batch`, and lets the caller run the processor, with all events, if no thread runs or shares it, like
    /// [`Queue::leave_shared`].
    pub fn try_enter(&self, batch: &mut Vec<Event>) -> bool {
        let state = self.lock();
        self.enter(state, batch)
    }

    fn enter(&self, mut state: MutexGuard<'_, State>, batch: &mut Vec<Event>) -> bool {
        if state.closed {
            drop(state);
            batch.drain(..).for_each(Event::refuse);
            return false;
        }
        state.push(batch, self.ticks.now());
        if !state.idle() || !state.has_work() {
            return false; // Q2: a thread that runs or shares it will check
        }
        state.run(batch, self.ticks.now(), false);
        true
    }

    /// For the thread that runs the processor: takes the events pushed in the meantime into `batch`, which is empty.
    /// `unfinished`: the processor has work left. Returns `false` if there is nothing to do: then the caller no longer
    /// runs it.
    pub fn next(&self, batch: &mut Vec<Event>, unfinished: bool) -> bool {
        debug_assert!(batch.is_empty());
        let mut state = self.lock();
        if state.events.is_empty() && !unfinished {
            state.running = false;
            return false;
        }
        std::mem::swap(&mut state.events, batch);
        state.since = self.ticks.now();
        true
    }

    /// For a thread that stops running the processor: leaves the rest to the processor's own thread; see
    /// [`Queue::next`].
    pub fn leave(&self, unfinished: bool) {
        let mut state = self.lock();
        state.running = false;
        state.unfinished = unfinished;
        if state.has_work() {
            self.wake_if_needed(state);
        }
    }

    /// Refuses all events in the queue, and all later ones (Q4).
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let events = std::mem::take(&mut state.events);
        drop(state);
        events.into_iter().for_each(Event::refuse);
    }

    /// Like [`Queue::take_all`], without sleeping: `false` if there are no events, or another thread runs the
    /// processor.
    pub fn try_take_all(&self, batch: &mut Vec<Event>) -> bool {
        debug_assert!(batch.is_empty());
        let mut state = self.lock();
        if !state.has_work() || !state.idle() {
            return false;
        }
        state.run(batch, self.ticks.now(), true);
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
        state.run(batch, self.ticks.now(), true);
    }
}

/// Sends a query to a processor and waits for its answer.
pub fn ask<T>(
    system: &dyn System,
    queue: &Queue,
    make: impl FnOnce(Sender<T>) -> Control,
) -> Result<T> {
    let (sender, receiver) = std::sync::mpsc::channel();
    queue.push(Event::Control(Box::new(make(sender))));
    wait(system, &receiver).map_err(|_| Error::io("the processor has stopped", Errno::ESHUTDOWN))
}
