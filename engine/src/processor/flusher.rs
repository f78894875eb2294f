//! Flusher: makes a volume durable, with one sync for all waiters (group commit).
//!
//! How it works      A pool of one thread for each volume: it takes all waiters and runs one sync for them, until there
//!                   are none. What a sync does is in [`Durable`]. A connection that submits nothing but a FLUSH, while no
//!                   sync is in flight, not even a checkpoint's, runs it itself if the last one was short ([`SHORT_NS`]) and
//!                   no device ever waits: passing it to the pool would take longer. The thread that reads requests must not
//!                   wait for a disk.
//! Invariants        F1 each waiter is answered by a sync that began after it arrived;
//!                   F2 whenever a device may have lost acknowledged writes (its D4), a sync that a host asked for
//!                   fails, also after a reopening of the device or a restart of the process.
//!                   F3 one sync for waiters at a time: the thread that set `running`, until a job takes over.
//! A sync that hangs   A waiter that waits longer than a request may last is answered with EIO at the next tick
//!                   ([`Flusher::tick`]); one that arrives while the sync is overdue, at once. When the sync ends, its
//!                   result counts as usual: data is durable, or a loss is reported.
//! Owner and locks   `inline`, held by a thread that runs a sync outside of the pool, then `state`.
//! Errors            a failed sync fails all its waiters, with the device's errno.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;

use crate::error::{Errno, Error, Result};
use crate::processor::durable::Durable;
use crate::processor::inspect::Group;
use crate::processor::messages::{Control, Event};
use crate::processor::queue::Queue;
use crate::request::{Request, Sink};
use crate::sync::{Mutex, MutexGuard};
use crate::system::pool::{Lane, Pool};
use crate::system::ticks::{Tick, Ticks};
use crate::system::{System, Urgency};

/// A waiter for a sync.
pub enum Waiter {
    /// A host's FLUSH, or the end of its FUA write.
    Request(Arc<Request>),
    /// A control call.
    Call(Sender<std::result::Result<(), Errno>>),
    /// A processor that needs places to become reusable.
    Release {
        /// Its queue.
        queue: Arc<Queue>,
        /// The volume's share there.
        share: u32,
    },
}

/// A waiter, and when it began to wait.
type Waiting = (Waiter, Tick);

#[derive(Default)]
struct State {
    waiting: Vec<Waiting>,
    /// Waiters of the sync in flight.
    served: Vec<Waiting>,
    /// When that sync began; 0: there is none.
    began: Tick,
    /// It has lasted longer than a request may.
    overdue: bool,
    /// A job will take the waiters.
    running: bool,
    stopping: bool,
}

struct Shared {
    state: Mutex<State>,
    durable: Arc<Durable>,
    clock: Clock,
    ticks: Arc<Ticks>,
    /// Duration of the last sync, nanoseconds.
    took_ns: AtomicU64,
}

/// Nanoseconds since some instant.
pub type Clock = Box<dyn Fn() -> u64 + Send + Sync>;

/// A sync that takes less than this runs on the calling thread: about the time to wake a thread and be woken by it.
const SHORT_NS: u64 = 300_000;

/// See the module's head.
pub struct Flusher {
    shared: Arc<Shared>,
    pool: Pool,
    inline: Mutex<()>,
}

/// The waiters of a flusher, for reports.
#[derive(Clone, Copy, Debug, Default)]
pub struct FlusherLook {
    /// Waiters for the next sync.
    pub waiting: Group,
    /// Waiters of the sync in flight.
    pub served: Group,
    /// When that began; 0: none is in flight.
    pub began: Tick,
    /// Whether it has lasted longer than a request may.
    pub overdue: bool,
}

impl Flusher {
    /// Starts the thread.
    pub fn start(
        system: &Arc<dyn System>,
        name: &str,
        durable: Arc<Durable>,
        ticks: &Arc<Ticks>,
    ) -> Result<Arc<Flusher>> {
        let pool = system
            .pool(&format!("pv-flush-{name}"), 1, Urgency::Prompt)
            .map_err(|e| Error::io("a flush thread cannot be started", e))?;
        let system = Arc::clone(system);
        let clock = Box::new(move || system.monotonic_ns());
        Ok(Arc::new(Flusher::on(pool, durable, clock, ticks)))
    }

    /// A flusher whose syncs run on this pool, which nothing else uses.
    pub fn on(pool: Pool, durable: Arc<Durable>, clock: Clock, ticks: &Arc<Ticks>) -> Flusher {
        let (took_ns, ticks) = (AtomicU64::new(u64::MAX), Arc::clone(ticks));
        let shared = Shared { state: Mutex::default(), durable, clock, ticks, took_ns };
        Flusher { shared: Arc::new(shared), pool, inline: Mutex::default() }
    }

    /// Makes it assume that the last sync was short.
    #[cfg(all(test, feature = "loom"))]
    pub fn assume_short(&self) {
        self.shared.took_ns.store(0, Ordering::Relaxed);
    }

    /// What it syncs.
    pub fn durable(&self) -> &Arc<Durable> {
        &self.shared.durable
    }

    /// Adds a waiter.
    pub fn push(&self, waiter: Waiter) {
        let mut state = self.shared.state.lock().expect("no holder panics");
        let refused = match (state.stopping, state.overdue) {
            (true, _) => Some(Errno::ESHUTDOWN),
            (_, true) => Some(Errno::EIO),
            _ => None,
        };
        if let Some(errno) = refused {
            drop(state);
            return answer(vec![waiter], Err(errno), Err(errno));
        }
        state.waiting.push((waiter, self.shared.ticks.now()));
        if !std::mem::replace(&mut state.running, true) {
            self.run_on_pool(&state);
        }
    }

    /// Like `push`, from a thread that may wait for a short sync.
    pub fn push_and_wait(&self, waiter: Waiter) {
        let took_ns = self.shared.took_ns.load(Ordering::Relaxed);
        let durable = &self.shared.durable;
        let short = took_ns < SHORT_NS && !durable.is_syncing() && durable.never_waits();
        let Some(_inline) = short.then(|| self.inline.try_lock().ok()).flatten() else {
            return self.push(waiter);
        };
        let mut state = self.shared.state.lock().expect("no holder panics");
        if state.stopping || std::mem::replace(&mut state.running, true) {
            drop(state);
            return self.push(waiter);
        }
        drop(state);
        self.shared.sync_for(vec![(waiter, self.shared.ticks.now())]); // F3
        let mut state = self.shared.state.lock().expect("no holder panics");
        if state.waiting.is_empty() {
            state.running = false;
        } else if !state.stopping {
            self.run_on_pool(&state);
        } else {
            drop(state);
            run(&self.shared);
        }
    }

    /// Queues a job that takes the waiters. Under the lock, so that `stop` finds the job or runs before the waiter is added.
    fn run_on_pool(&self, _: &MutexGuard<'_, State>) {
        let shared = Arc::clone(&self.shared);
        self.pool.run(Lane::Share(0), move || run(&shared)); // the pool's only lane
    }

    /// Answers waiters that have waited too long.
    pub fn tick(&self) {
        let ticks = &self.shared.ticks;
        let mut state = self.shared.state.lock().expect("no holder panics");
        state.overdue = state.running && state.began != 0 && ticks.is_over(state.began);
        let State { waiting, served, overdue, .. } = &mut *state;
        let mut late = Vec::new();
        for list in [waiting, served] {
            let is_late = |(_, since): &mut Waiting| *overdue || ticks.is_over(*since);
            late.extend(list.extract_if(.., is_late).map(|(waiter, _)| waiter));
        }
        drop(state);
        answer(late, Err(Errno::EIO), Err(Errno::EIO));
    }

    /// Whether a sync is in flight, or requested.
    pub fn is_running(&self) -> bool {
        self.shared.state.lock().expect("no holder panics").running
    }

    /// Whether the sync in flight has lasted longer than a request may.
    pub fn is_overdue(&self) -> bool {
        self.shared.state.lock().expect("no holder panics").overdue
    }

    /// Answers the waiters, and ends the thread; a thread whose sync is overdue is abandoned. Idempotent.
    pub fn stop(&self) {
        let mut state = self.shared.state.lock().expect("no holder panics");
        state.stopping = true;
        if state.overdue {
            let waiting = std::mem::take(&mut state.waiting);
            drop(state);
            let waiting = waiting.into_iter().map(|(waiter, _)| waiter).collect();
            return answer(waiting, Err(Errno::ESHUTDOWN), Err(Errno::ESHUTDOWN));
        }
        drop(state);
        drop(self.inline.lock());
        self.pool.stop();
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn sync_for(&self, waiting: Vec<Waiting>) {
        let mut state = self.state.lock().expect("no holder panics");
        state.served = waiting;
        state.began = self.ticks.now();
        drop(state);
        let began = (self.clock)();
        let result = self.durable.sync(); // F1
        self.took_ns.store((self.clock)().saturating_sub(began), Ordering::Relaxed);
        let mut state = self.state.lock().expect("no holder panics");
        let waiting = std::mem::take(&mut state.served);
        (state.began, state.overdue) = (0, false);
        drop(state);
        let waiting: Vec<Waiter> = waiting.into_iter().map(|(waiter, _)| waiter).collect();
        let hosts = waiting.iter().any(|waiter| matches!(waiter, Waiter::Request(_)));
        let losses = if hosts { self.durable.report_losses() } else { Ok(()) };
        answer(waiting, result, result.and(losses));
        if hosts {
            self.durable.note_all_reported();
        }
    }
}

fn run(shared: &Shared) {
    loop {
        let mut state = shared.state.lock().expect("no holder panics");
        if state.waiting.is_empty() {
            state.running = false;
            return;
        }
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        shared.sync_for(waiting);
    }
}

fn answer(
    waiting: Vec<Waiter>,
    result: std::result::Result<(), Errno>,
    for_hosts: std::result::Result<(), Errno>,
) {
    let mut sinks: Vec<Arc<dyn Sink>> = Vec::new();
    for waiter in waiting {
        match waiter {
            Waiter::Request(request) => {
                if let Err(errno) = for_hosts {
                    request.fail(errno);
                }
                if !sinks.iter().any(|sink| Arc::ptr_eq(sink, request.sink())) {
                    sinks.push(Arc::clone(request.sink()));
                }
                request.complete();
            }
            Waiter::Call(sender) => {
                let _ = sender.send(result);
            }
            Waiter::Release { queue, share } => {
                let control = Control::Release { share, result };
                queue.push(Event::Control(Box::new(control)));
            }
        }
    }
    for sink in sinks {
        sink.kick();
    }
}

impl Flusher {
    /// Its waiters, and since when they wait.
    pub fn look(&self) -> FlusherLook {
        let state = self.shared.state.lock().expect("no holder panics");
        let of = |list: &[Waiting]| {
            let mut group = Group::default();
            list.iter().for_each(|(_, since)| group.add(*since));
            group
        };
        FlusherLook {
            waiting: of(&state.waiting),
            served: of(&state.served),
            began: state.began,
            overdue: state.overdue,
        }
    }
}
