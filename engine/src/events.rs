//! Events: notifications from the engine to Python.
//!
//! How it works      A short queue. One consumer takes events from it, and sleeps while it is empty. An event that is
//!                   already queued is not added again.
//! Owner and locks   one lock over the queue, held for a push or a take.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::units::{DeviceId, VolumeId};

/// Upper bound of queued events; further ones are dropped.
const EVENTS_MAX: usize = 4096;

/// A notification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Writes of this volume wait for space in its log areas: none becomes free unless Python frees some.
    LogFull(VolumeId),
    /// A journal of this volume will soon need its next segment, and there is no space for it.
    JournalFull(VolumeId),
    /// A checkpoint of this volume failed, for the first time or for another reason than before; it is made again.
    CheckpointFailed(VolumeId),
    /// A checkpoint of this volume was written, and the one before failed.
    CheckpointWritten(VolumeId),
    /// This device does not answer; requests to it end with EIO after a while.
    DeviceSilent(DeviceId),
    /// This device answers again.
    DeviceAnswers(DeviceId),
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Event>,
    closed: bool,
}

/// See the module's head.
#[derive(Debug, Default)]
pub struct Events {
    state: Mutex<State>,
    wake: Condvar,
}

impl Events {
    /// Adds an event; `false` if it will not be delivered.
    pub fn push(&self, event: Event) -> bool {
        let mut state = self.state.lock().expect("no holder panics");
        if state.closed || state.queue.len() >= EVENTS_MAX {
            return false;
        }
        if !state.queue.contains(&event) {
            state.queue.push_back(event);
            self.wake.notify_one();
        }
        true
    }

    /// The next event; `None` after the time-out, or if the queue is closed.
    pub fn next(&self, timeout: Duration) -> Option<Event> {
        let end = Instant::now() + timeout;
        let mut state = self.state.lock().expect("no holder panics");
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let found = state.queue.pop_front();
            if found.is_some() || state.closed || left.is_zero() {
                return found;
            }
            state = self.wake.wait_timeout(state, left).expect("no holder panics").0;
        }
    }

    /// Closes the queue: there will be no more events.
    pub fn close(&self) {
        let mut state = self.state.lock().expect("no holder panics");
        state.closed = true;
        state.queue.clear();
        self.wake.notify_all();
    }
}
