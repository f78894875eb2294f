//! Runner: the executor of a processor: it runs on its own thread, or to completion on a thread that submits work to it
//! while it is idle.
//!
//! How it works      The own thread takes all events and runs them until there are no more. A thread that submits a
//!                   small batch enters if the processor is idle: it does the fast path in shared mode
//!                   ([`Queue::enter_shared`]), runs the rest of the batch exclusively for a few rounds
//!                   ([`Queue::leave_shared`]), and leaves the remaining events to the own thread. A run is short: it
//!                   may leave work in the processor itself ([`Handler::unfinished`]), which the next run continues.
//! Invariants        Q1 to Q4 of the [queue](super::queue); checked by the models in `models/queue.rs`.

use std::sync::Arc;

use crate::processor::messages::{Control, Event};
use crate::processor::queue::Queue;
use crate::sync::RwLock;
use crate::system::Task;

/// Batches of other threads that a submitting thread runs before it leaves the rest to the processor's own thread.
const RUNS_MAX: usize = if cfg!(feature = "loom") { 1 } else { 4 };

/// What a runner runs: a processor, or that of a model.
pub trait Handler {
    /// Takes every event of `batch`, which is left empty, and serves them and those left by earlier runs, for a bounded
    /// time. `own`: the thread is the processor's.
    fn run_batch(&mut self, batch: &mut Vec<Event>, own: bool);
    /// Whether it has left work for the next [`Handler::run_batch`].
    fn unfinished(&self) -> bool {
        false
    }
    /// Serves those events of `batch` that change none of its state, for a bounded time, and leaves the others there,
    /// in order. `true`: there may be more of them.
    fn run_shared(&self, _batch: &mut Vec<Event>) -> bool {
        false
    }
    /// Whether it was asked to stop.
    fn stopped(&self) -> bool;
}

/// A receiver of events.
pub trait Mailbox: Send + Sync {
    /// Queues an event. The caller calls [`Mailbox::run_if_idle`] afterwards.
    fn take(&self, event: Event);
    /// Runs queued events on the calling thread, if no thread runs them.
    fn run_if_idle(&self);
}

impl<R: Handler + Send + Sync> Mailbox for Runner<R> {
    fn take(&self, event: Event) {
        self.queue.push_without_wake(event);
    }

    fn run_if_idle(&self) {
        self.submit(&mut Vec::new());
    }
}

/// A processor, run by its own thread or by one that entered (Q3).
pub struct Runner<R> {
    /// Its queue.
    pub queue: Arc<Queue>,
    /// Locked for writing by the thread that runs it, for reading by threads that share it; never contended (Q3).
    processor: RwLock<R>,
}

impl<R: Handler> Runner<R> {
    /// A processor that takes its events from `queue`.
    pub fn new(queue: Arc<Queue>, processor: R) -> Runner<R> {
        Runner { queue, processor: RwLock::new(processor) }
    }

    /// Runs `batch`, which is left empty, on the calling thread if the processor is idle; else pushes it.
    pub fn run_or_push(&self, batch: &mut Vec<Event>) {
        let mut others = Vec::new();
        while self.queue.enter_shared() {
            let more =
                self.processor.try_read().expect("Q3, and no runner panics").run_shared(batch);
            if !more {
                if self.queue.leave_shared(batch) {
                    self.run_some(batch);
                }
                return;
            }
            // A thread that wants to run it exclusively comes first.
            if self.queue.leave_shared(&mut others) {
                self.run_some(&mut others);
            }
        }
        self.submit(batch);
    }

    /// Like [`Runner::run_or_push`], for events that change the processor.
    pub fn submit(&self, batch: &mut Vec<Event>) {
        if self.queue.try_enter(batch) {
            self.run_some(batch);
        }
    }

    /// Runs `batch`, and events that arrive during the run, for a bounded time; the caller has entered.
    fn run_some(&self, batch: &mut Vec<Event>) {
        let (mut stopped, mut more) = (false, true);
        for _ in 0..RUNS_MAX {
            let unfinished = self.run_once(batch, false, &mut stopped);
            more = self.queue.next(batch, unfinished);
            if !more {
                break;
            }
        }
        if more {
            let unfinished = self.run_once(batch, false, &mut stopped);
            self.queue.leave(unfinished);
        }
        if stopped {
            // Its own thread must end.
            self.queue.push(Event::Control(Box::new(Control::Stop)));
        }
    }

    /// Serves `batch` and all events that arrive during the run; returns whether it was asked to stop.
    fn serve(&self, batch: &mut Vec<Event>) -> bool {
        let mut stopped = false;
        loop {
            let unfinished = self.run_once(batch, true, &mut stopped);
            if !self.queue.next(batch, unfinished) {
                return stopped;
            }
        }
    }

    /// Serves `batch` for a bounded time; returns whether work is left in the processor, and notes whether it was asked
    /// to stop.
    fn run_once(&self, batch: &mut Vec<Event>, own: bool, stopped: &mut bool) -> bool {
        let mut processor = self.processor.try_write().expect("Q3, and no runner panics");
        processor.run_batch(batch, own);
        *stopped |= processor.stopped();
        processor.unfinished()
    }
}

impl<R: Handler + Send + Sync> Task for Runner<R> {
    fn run(&self) {
        let mut batch = Vec::new();
        loop {
            self.queue.take_all(&mut batch);
            if self.serve(&mut batch) {
                return self.queue.close();
            }
        }
    }

    fn step(&self) -> bool {
        let mut batch = Vec::new();
        let some = self.queue.try_take_all(&mut batch);
        if some && self.serve(&mut batch) {
            self.queue.close();
        }
        some
    }
}
