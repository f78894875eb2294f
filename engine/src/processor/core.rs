//! Core: who runs a processor, and when: its own thread, or one that brings it work while it is idle.
//!
//! How it works      The thread takes all events and runs them until there are no more. Who brings a small batch is let in
//!                   if nobody runs the processor: it shares it for what changes nothing ([`Queue::share`]), runs it with the
//!                   rest a few times ([`Queue::unshare`]), and leaves what is left then to the thread.
//! Invariants        Q1 to Q4 of the [queue](super::queue); checked by the models in `models/queue.rs`.

use std::sync::Arc;

use crate::processor::queue::{Control, Event, Queue};
use crate::sync::RwLock;
use crate::system::Driven;

/// Batches that a thread that was let in runs for others before it leaves the rest to the processor's own.
const RUNS_MAX: usize = if cfg!(loom) { 1 } else { 4 };

/// What a core runs: a processor, or a model's.
pub trait Runs {
    /// Serves every event of `batch`, which is left empty.
    fn run_batch(&mut self, batch: &mut Vec<Event>);
    /// Serves those events of `batch` that change nothing of it, and leaves the others there, in order.
    fn run_beside(&self, _batch: &mut Vec<Event>) {}
    /// Whether it was told to stop.
    fn stopped(&self) -> bool;
}

/// Whatever takes events.
pub trait Takes: Send + Sync {
    /// Takes an event. The caller has it run by [`Takes::help`], or somebody else does before.
    fn take(&self, event: Event);
    /// Runs what is there, here and now, if nobody does.
    fn help(&self);
}

impl<R: Runs + Send + Sync> Takes for Core<R> {
    fn take(&self, event: Event) {
        self.queue.put(event);
    }

    fn help(&self) {
        self.bring(&mut Vec::new());
    }
}

/// A processor, to be run by its thread or by one that was let in (Q3).
pub struct Core<R> {
    /// Its queue.
    pub queue: Arc<Queue>,
    /// Locked by who runs it, or by those who share it, and never by anybody else meanwhile (Q3).
    processor: RwLock<R>,
}

impl<R: Runs> Core<R> {
    /// A processor that takes what it runs from `queue`.
    pub fn new(queue: Arc<Queue>, processor: R) -> Core<R> {
        Core { queue, processor: RwLock::new(processor) }
    }

    /// Runs `batch`, which is left empty, here and now if the processor is idle; else has it run.
    pub fn run_or_push(&self, batch: &mut Vec<Event>) {
        if self.queue.share() {
            self.processor.try_read().expect("Q3, and no runner panics").run_beside(batch);
            if self.queue.unshare(batch) {
                self.run_some(batch);
            }
        } else {
            self.bring(batch);
        }
    }

    /// As [`Core::run_or_push`], for what changes the processor.
    pub fn bring(&self, batch: &mut Vec<Event>) {
        if self.queue.offer(batch) {
            self.run_some(batch);
        }
    }

    /// Runs `batch`, and what comes meanwhile, but not for long; the caller was let in.
    fn run_some(&self, batch: &mut Vec<Event>) {
        let (mut stopped, mut more) = (false, true);
        for _ in 0..RUNS_MAX {
            stopped |= self.run_once(batch);
            more = self.queue.next(batch);
            if !more {
                break;
            }
        }
        if more {
            stopped |= self.run_once(batch);
            self.queue.leave();
        }
        if stopped {
            // It is for the thread to end.
            self.queue.push(Event::Control(Box::new(Control::Stop)));
        }
    }

    /// Serves `batch` and all that comes meanwhile; says whether it was told to stop.
    fn serve(&self, batch: &mut Vec<Event>) -> bool {
        loop {
            let stopped = self.run_once(batch);
            if !self.queue.next(batch) {
                return stopped;
            }
        }
    }

    /// Serves `batch`; says whether it was told to stop.
    fn run_once(&self, batch: &mut Vec<Event>) -> bool {
        let mut processor = self.processor.try_write().expect("Q3, and no runner panics");
        processor.run_batch(batch);
        processor.stopped()
    }
}

impl<R: Runs + Send + Sync> Driven for Core<R> {
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
