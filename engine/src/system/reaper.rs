//! Reaper: takes completions of the kernel's asynchronous I/O, in a helper (any thread that waits anyway) or in the
//! keeper (a fallback thread).
//!
//! How it works      An eventfd signals each completion. A thread that would block on something else, such as a
//!                   connection's reader on its socket, can become the helper: it waits for both and reaps completions
//!                   itself. This saves two wake-ups for each read.
//!
//!                   | helper | the keeper | a completion is reaped |
//!                   |---|---|---|
//!                   | none | blocks on the eventfd | at once, by the keeper |
//!                   | polls or blocks | checks every [`TICK`] that it still makes rounds | at once, by the helper |
//!                   | busy for a tick, or gone | reaps | after at most two ticks, by the keeper |
//!                   | calls [`Reaper::leave`] | is woken, reaps | at once, by the keeper |
//!
//!                   Without a helper the keeper blocks again, so there are no wake-ups while nothing is read. A read
//!                   by a thread that never helps may also wait two ticks, if the last helper has just found nothing in
//!                   flight.
//! Invariants        Z1 a thread that clears `ended` reaps afterwards: each completion is signalled, or about to be
//!                   reaped;
//!                   Z2 a helper that takes the turn while the keeper sleeps wakes it: each publishes its own state
//!                      (`helped`, `keeper_sleeps`) before it reads that of the other;
//!                   Z3 no helper sleeps while nothing is in flight: it publishes `helper_sleeps` before it checks, and
//!                      the thread that takes the last completion wakes it.
//! Owner and locks   any thread reaps; one thread has the turn at a time. No lock.

use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::Thread;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use super::aio::{Context, EVENTS_MAX, Event};
use super::signal;

/// A completion waits at most two of these while a helper is busy with something else.
const TICK: Duration = Duration::from_millis(2);

/// Upper bound of `io_getevents` calls per reap.
const PASSES: usize = 2;

/// The handler of completions.
type OnCompletions = Box<dyn Fn(&[Event]) + Send + Sync>;

/// See the module's head.
pub struct Reaper {
    pub(super) context: Context,
    /// Signalled by the kernel for each completion.
    pub(super) ended: OwnedFd,
    /// Wakes the keeper.
    wake_keeper: OwnedFd,
    in_flight: AtomicUsize,
    /// A helper has the turn.
    helped: AtomicBool,
    /// It sleeps, and a completion wakes it.
    helper_sleeps: AtomicBool,
    /// Number of rounds of helpers.
    rounds: AtomicU64,
    /// A helper has left to do something else.
    left: AtomicBool,
    keeper: OnceLock<Thread>,
    /// It sleeps, and a completion wakes it.
    keeper_sleeps: AtomicBool,
    stopping: AtomicBool,
    on_completions: OnCompletions,
}

/// The right to wait for completions.
pub struct Turn<'a>(&'a Reaper);

impl Reaper {
    /// A reaper that calls `on_completions`. `None` where the kernel has no asynchronous I/O, or no context is left.
    pub fn new(on_completions: impl Fn(&[Event]) + Send + Sync + 'static) -> Option<Reaper> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Some(Reaper {
            context: Context::new()?,
            ended: eventfd(0, flags).ok()?,
            wake_keeper: eventfd(0, flags).ok()?,
            in_flight: AtomicUsize::new(0),
            helped: AtomicBool::new(false),
            helper_sleeps: AtomicBool::new(false),
            rounds: AtomicU64::new(0),
            left: AtomicBool::new(false),
            keeper: OnceLock::new(),
            keeper_sleeps: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            on_completions: Box::new(on_completions),
        })
    }

    /// Reads that the kernel has, or whose completions were not reaped yet.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// Counts reads that are about to be submitted.
    pub(super) fn count(&self, more: usize) {
        self.in_flight.fetch_add(more, Ordering::SeqCst);
    }

    /// Removes reads from the count that were not accepted, or have completed.
    pub(super) fn uncount(&self, fewer: usize) {
        let before = self.in_flight.fetch_sub(fewer, Ordering::SeqCst);
        if before == fewer && self.helper_sleeps.load(Ordering::SeqCst) {
            signal(&self.ended); // Z3
        }
    }

    /// The turn, if reads are in flight and no thread has it.
    pub fn turn(&self) -> Option<Turn<'_>> {
        if self.in_flight() == 0 || self.helped.swap(true, Ordering::SeqCst) {
            return None;
        }
        if self.keeper_sleeps.load(Ordering::SeqCst) {
            signal(&self.wake_keeper); // Z2
        }
        Some(Turn(self))
    }

    /// Notes that the helper leaves for a long time: if no other thread helps, the keeper reaps.
    pub fn leave(&self) {
        let supervised =
            [&self.helped, &self.keeper_sleeps].iter().any(|is| is.load(Ordering::SeqCst));
        if self.in_flight() > 0 && !supervised {
            self.left.store(true, Ordering::SeqCst);
            self.keeper.get().inspect(|keeper| keeper.unpark());
        }
    }

    /// The keeper's loop, until it is asked to stop.
    pub(super) fn keep(&self) {
        let _ = self.keeper.set(std::thread::current());
        while !self.stopping.load(Ordering::Acquire) {
            self.keeper_sleeps.store(true, Ordering::SeqCst);
            if !self.helped.load(Ordering::SeqCst)
                && sleep_until([&self.ended, &self.wake_keeper])[1]
            {
                clear(&self.wake_keeper);
            }
            self.keeper_sleeps.store(false, Ordering::SeqCst);
            if self.helped.load(Ordering::SeqCst) {
                self.supervise_helpers();
            } else {
                self.clear_and_reap();
            }
        }
    }

    /// Checks the rounds of helpers until there is no helper.
    fn supervise_helpers(&self) {
        let mut seen = self.rounds.load(Ordering::Relaxed);
        while !self.stopping.load(Ordering::Acquire) {
            std::thread::park_timeout(TICK);
            let now = self.rounds.load(Ordering::Relaxed);
            let left = self.left.swap(false, Ordering::SeqCst);
            if left || (now == seen && !self.helper_sleeps.load(Ordering::Acquire)) {
                self.clear_and_reap();
                if !self.helped.load(Ordering::SeqCst) {
                    return;
                }
            }
            seen = now;
        }
    }

    /// Asks the keeper to stop.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        signal(&self.wake_keeper);
    }

    fn clear_and_reap(&self) -> usize {
        clear(&self.ended);
        self.reap() // Z1
    }

    /// Reaps completions; returns how many.
    fn reap(&self) -> usize {
        let mut events = [Event::default(); EVENTS_MAX];
        let mut all = 0;
        for _ in 0..PASSES {
            let found = self.context.completed(&mut events);
            if found > 0 {
                self.uncount(found);
                (self.on_completions)(&events[..found]);
                all += found;
            }
            if found < EVENTS_MAX {
                return all;
            }
        }
        signal(&self.ended); // Z1: there may be more
        all
    }
}

impl Turn<'_> {
    /// Reaps completions; returns how many.
    pub fn reap(&self) -> usize {
        self.0.rounds.fetch_add(1, Ordering::Relaxed);
        self.0.reap()
    }

    /// Sleeps until a read completes or one of `files` is readable, unless none is in flight, and holds the result of
    /// `asleep` while it sleeps. Then reaps completions; returns how many.
    pub fn sleep<G>(&self, files: [&OwnedFd; 2], asleep: impl FnOnce() -> G) -> usize {
        let before = self.0.clear_and_reap();
        if before > 0 {
            return before;
        }
        self.0.helper_sleeps.store(true, Ordering::SeqCst);
        if self.left() > 0 {
            let asleep = asleep(); // Z3
            sleep_until([&self.0.ended, files[0], files[1]]);
            drop(asleep);
        }
        self.0.helper_sleeps.store(false, Ordering::SeqCst);
        self.reap()
    }

    /// Reads in flight.
    pub fn left(&self) -> usize {
        self.0.in_flight()
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.helped.store(false, Ordering::SeqCst);
    }
}

/// Access to the reaper of reads past the page cache.
pub trait Reaping: Send + Sync {
    /// The reaper; `None` before the first such read.
    fn reaper(&self) -> Option<&Reaper>;
}

/// No such reads.
impl Reaping for () {
    fn reaper(&self) -> Option<&Reaper> {
        None
    }
}

/// Sleeps until one of these is readable; returns which are.
fn sleep_until<const N: usize>(readable: [&OwnedFd; N]) -> [bool; N] {
    let mut all = readable.map(|file| PollFd::new(file, PollFlags::IN));
    // It fails only with EINTR: a shorter wait does no harm.
    let _ = poll(&mut all, None);
    all.map(|file| !file.revents().is_empty())
}

fn clear(file: &OwnedFd) {
    // It fails only if there is nothing to clear.
    let _ = rustix::io::read(file, &mut [0; 8]);
}
