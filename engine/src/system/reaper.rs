//! Reaper: takes completions of the kernel's asynchronous I/O, in a helper (any thread that waits anyway) or in the keeper
//! (a fallback thread).
//!
//! How it works      An eventfd signals each completion. A thread that would block on something else, such as a connection's
//!                   reader on its socket, can become the helper: it waits for both and reaps completions itself. This saves
//!                   two wake-ups for each read.
//!
//!                   | helper | the keeper | a completion is reaped |
//!                   |---|---|---|
//!                   | none | blocks on the eventfd | at once, by the keeper |
//!                   | polls or blocks | checks every [`TICK`] that the helper still comes round | at once, by the helper |
//!                   | busy for a tick, or gone | reaps | after at most two ticks, by the keeper |
//!                   | says that it leaves | is woken, reaps | at once, by the keeper |
//!
//!                   Without a helper the keeper blocks again, so nothing wakes up while nothing is read. A read by a thread
//!                   that never helps may also wait two ticks, if the last helper has just found nothing in flight.
//! Invariants        Z1 a thread that clears `ended` reaps afterwards: each completion is signalled, or about to be reaped;
//!                   Z2 a helper that takes the turn while the keeper sleeps wakes it: each publishes its own state
//!                      (`helped`, `keeper_sleeps`) before it reads that of the other;
//!                   Z3 no helper sleeps while nothing is in flight: it publishes `helper_sleeps` before it checks, and the
//!                      thread that takes the last completion wakes it.
//! Owner and locks   any thread reaps; one thread has the turn at a time. No lock.

use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::Thread;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use super::aio::{Context, ENDED_AT_ONCE, Event};
use super::signal;

/// A completion waits at most two of these while a helper is busy with something else.
const TICK: Duration = Duration::from_millis(2);

/// Upper bound of `io_getevents` calls per reap.
const PASSES: usize = 2;

/// What is done with completions.
type OnCompletions = Box<dyn Fn(&[Event]) + Send + Sync>;

/// See the module's head.
pub struct Reaper {
    pub(super) context: Context,
    /// Signalled by the kernel for each completion.
    pub(super) ended: OwnedFd,
    /// Wakes the keeper.
    told: OwnedFd,
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

/// The right to wait for what ends.
pub struct Turn<'a>(&'a Reaper);

impl Reaper {
    /// A reaper that calls `on_completions`. `None` where the kernel has no asynchronous I/O, or no context is left.
    pub fn new(on_completions: impl Fn(&[Event]) + Send + Sync + 'static) -> Option<Reaper> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Some(Reaper {
            context: Context::new()?,
            ended: eventfd(0, flags).ok()?,
            told: eventfd(0, flags).ok()?,
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

    /// Reads that the kernel has, or that have ended and were not taken.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// So many more are about to be begun.
    pub(super) fn count(&self, more: usize) {
        self.in_flight.fetch_add(more, Ordering::SeqCst);
    }

    /// So many were not begun after all, or have ended.
    pub(super) fn count_back(&self, fewer: usize) {
        let before = self.in_flight.fetch_sub(fewer, Ordering::SeqCst);
        if before == fewer && self.helper_sleeps.load(Ordering::SeqCst) {
            signal(&self.ended); // Z3
        }
    }

    /// The turn, if there is something to wait for and nobody has it.
    pub fn turn(&self) -> Option<Turn<'_>> {
        if self.in_flight() == 0 || self.helped.swap(true, Ordering::SeqCst) {
            return None;
        }
        if self.keeper_sleeps.load(Ordering::SeqCst) {
            signal(&self.told); // Z2
        }
        Some(Turn(self))
    }

    /// The helper leaves to do something long: if no other thread helps, the keeper reaps.
    pub fn leave(&self) {
        let kept = [&self.helped, &self.keeper_sleeps].iter().any(|is| is.load(Ordering::SeqCst));
        if self.in_flight() > 0 && !kept {
            self.left.store(true, Ordering::SeqCst);
            self.keeper.get().inspect(|keeper| keeper.unpark());
        }
    }

    /// The keeper's part, until it is asked to stop.
    pub(super) fn keep(&self) {
        let _ = self.keeper.set(std::thread::current());
        while !self.stopping.load(Ordering::Acquire) {
            self.keeper_sleeps.store(true, Ordering::SeqCst);
            if !self.helped.load(Ordering::SeqCst) && sleep_until([&self.ended, &self.told])[1] {
                clear(&self.told);
            }
            self.keeper_sleeps.store(false, Ordering::SeqCst);
            if self.helped.load(Ordering::SeqCst) {
                self.look_after_helpers();
            } else {
                self.clear_and_reap();
            }
        }
    }

    /// Until there is no helper.
    fn look_after_helpers(&self) {
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

    /// Has the keeper stop.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        signal(&self.told);
    }

    fn clear_and_reap(&self) -> usize {
        clear(&self.ended);
        self.reap() // Z1
    }

    /// Brings on what has ended, and says how many reads those were.
    fn reap(&self) -> usize {
        let mut events = [Event::default(); ENDED_AT_ONCE];
        let mut all = 0;
        for _ in 0..PASSES {
            let found = self.context.ended(&mut events);
            if found > 0 {
                self.count_back(found);
                (self.on_completions)(&events[..found]);
                all += found;
            }
            if found < ENDED_AT_ONCE {
                return all;
            }
        }
        signal(&self.ended); // Z1: there may be more
        all
    }
}

impl Turn<'_> {
    /// Brings on what has ended, and says how many reads those were.
    pub fn reap(&self) -> usize {
        self.0.rounds.fetch_add(1, Ordering::Relaxed);
        self.0.reap()
    }

    /// Sleeps until a read has ended, unless none is to end, or one of `files` is readable, and holds what `asleep` gives
    /// meanwhile; processes what has ended by then, and says how many reads those were.
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

    /// Reads that are still to end.
    pub fn left(&self) -> usize {
        self.0.in_flight()
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.helped.store(false, Ordering::SeqCst);
    }
}

/// Where reads past the page cache may be in flight.
pub trait Reaping: Send + Sync {
    /// The reaper; `None` before the first such read.
    fn reaper(&self) -> Option<&Reaper>;
}

/// Nowhere.
impl Reaping for () {
    fn reaper(&self) -> Option<&Reaper> {
        None
    }
}

/// Says which of these are.
fn sleep_until<const N: usize>(readable: [&OwnedFd; N]) -> [bool; N] {
    let mut all = readable.map(|file| PollFd::new(file, PollFlags::IN));
    // It fails only with EINTR: a wait that was too short does no harm.
    let _ = poll(&mut all, None);
    all.map(|file| !file.revents().is_empty())
}

fn clear(file: &OwnedFd) {
    // It fails only when there is nothing to clear.
    let _ = rustix::io::read(file, &mut [0; 8]);
}
