//! Flusher: makes a volume durable, with one sync for all waiters (group commit).
//!
//! How it works      A pool of one thread for each volume: it takes all waiters and runs one sync for them, until there
//!                   are none. A sync notes each journal's watermark, syncs every device that was written to, also
//!                   after one that fails, then commits each journal up to its watermark. If a commit finds that a file
//!                   of a journal is gone (its J11), the processor rewrites what that file held, and the sync commits
//!                   again. A connection that submits nothing but a FLUSH, while no sync is in flight, not even a
//!                   checkpoint's, runs it itself if the last one was short ([`SHORT_NS`]) and no device ever waits:
//!                   passing it to the pool would take longer. The thread that reads requests must not wait for a disk.
//! Invariants        F1 each waiter is answered by a sync that began after it arrived; J3 and J6 of the change log:
//!                   a mark covers only records that were appended before the devices' sync began, and a
//!                   record is appended after its data was written.
//!                   F2 whenever a device may have lost acknowledged writes (its D4), a sync that a host asked for
//!                   fails, also after a reopening of the device or a restart of the process.
//!                   F3 one sync for waiters at a time: the thread that set `running`, until a job takes over.
//! A sync that hangs   A waiter that waits longer than a request may last is answered with EIO at the next tick
//!                   ([`Flusher::tick`]); one that arrives while the sync is overdue, at once. When the sync ends, its
//!                   result counts as usual: data is durable, or a loss is reported.
//! Owner and locks   `inline`, held by a thread that runs a sync outside of the pool, then `state`.
//! Errors            a failed sync fails all its waiters, with the device's errno.

mod answer;
mod look;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, RwLock};

use crate::change_log::failed_sync::FailedSync;
use crate::change_log::files::Identity;
use crate::change_log::journal::{self, Gone};
use crate::change_log::space::Space;
use crate::error::{Errno, Error, Result};
use crate::io::device::Device;
use crate::mutants::{Bug, bug};
use crate::processor::messages::{Control, Event};
use crate::processor::queue::Queue;
use crate::processor::space_waiters::SpaceWaiters;
use crate::sync::{Mutex, MutexGuard};
use crate::system::pool::{Lane, Pool};
use crate::system::ticks::{Tick, Ticks};
use crate::system::{System, Urgency, wait};
use crate::volume::request::Request;
use answer::answer;
pub use look::FlusherLook;

/// How often a sync has a journal's files rewritten before it fails: twice, as files may disappear during the first time.
const RENEWALS: u32 = 2;

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

/// What a sync of a volume makes durable.
#[derive(Debug, Default)]
pub struct Durable {
    devices: RwLock<Vec<Arc<Watched>>>,
    journals: RwLock<Vec<Writer>>,
    /// Syncs in flight.
    running: AtomicUsize,
    owner: Option<Owner>,
}

/// The volume that a [`Durable`] belongs to.
#[derive(Debug)]
struct Owner {
    /// The identity of any of its processors.
    identity: Identity,
    /// Held slots that a successful sync releases (SP3), and the queue of shares that wait for slots.
    space: Arc<Space>,
    space_waiters: Arc<SpaceWaiters>,
}

/// A device that holds extents or slots.
#[derive(Debug)]
struct Watched {
    device: Arc<Device>,
    /// How many of the device's losses of acknowledged writes (D4) were reported to hosts, by a flush that failed (F2).
    reported: AtomicU64,
    /// The persistent record of a failed sync.
    failed_sync: FailedSync,
}

impl Watched {
    fn sync(&self) -> std::result::Result<(), Errno> {
        let result = self.device.sync();
        if result.is_err() && self.device.has_failed_sync() {
            self.failed_sync.set();
        }
        result
    }

    /// Notes that all losses so far were reported to hosts.
    fn note_reported(&self) {
        let all_reported = || self.reported.load(Ordering::Acquire) == self.device.losses();
        self.failed_sync.forget_if(|| all_reported() && !self.device.has_failed_sync());
    }
}

/// The writer of a journal.
#[derive(Clone, Debug)]
struct Writer {
    journal: Arc<journal::Shared>,
    queue: Arc<Queue>,
    share: u32,
}

impl Durable {
    /// The empty set, for a volume with this space; `identity` is that of any of its processors.
    pub fn of(
        identity: &Identity,
        space: &Arc<Space>,
        space_waiters: &Arc<SpaceWaiters>,
    ) -> Durable {
        let (space, space_waiters) = (Arc::clone(space), Arc::clone(space_waiters));
        let owner = Some(Owner { identity: identity.clone(), space, space_waiters });
        Durable { owner, ..Durable::default() }
    }

    /// Makes everything acknowledged so far durable.
    pub fn sync(&self) -> std::result::Result<(), Errno> {
        self.syncing(|| self.sync_all())
    }

    /// Runs `f`, for which a sync would have to wait.
    pub fn syncing<T>(&self, f: impl FnOnce() -> T) -> T {
        self.running.fetch_add(1, Ordering::AcqRel);
        let result = f();
        self.running.fetch_sub(1, Ordering::AcqRel);
        result
    }

    /// Whether no call on a device ever waits.
    fn never_waits(&self) -> bool {
        let devices = self.devices.read().expect("no holder panics");
        devices.iter().all(|watched| watched.device.never_waits())
    }

    /// Whether a sync would have to wait for another one.
    fn is_syncing(&self) -> bool {
        let devices = self.devices.read().expect("no holder panics");
        let busy = devices.iter().any(|watched| watched.device.is_syncing());
        busy || self.running.load(Ordering::Acquire) > 0
    }

    fn sync_all(&self) -> std::result::Result<(), Errno> {
        let journals = self.journals.read().expect("no holder panics").clone();
        let begin = |writer: &Writer| writer.journal.watermark.begin_commit();
        let reached: Vec<u64> = journals.iter().map(begin).collect();
        self.sync_devices()?;
        let mut result = Ok(());
        let mut controls = Vec::new();
        for (Writer { journal, queue, share }, seq) in journals.iter().zip(reached) {
            let seq = if bug(Bug::MarkTooFar) { journal.appended() } else { seq };
            let mut committed = journal.commit(seq);
            for _ in 0..RENEWALS {
                if committed.is_err() && journal.lacks_a_file() && self.renew(queue, *share) {
                    committed = journal.commit(seq);
                }
            }
            if let Err(errno) = committed {
                if journal.has_failed() {
                    controls.push((queue, Control::RenewJournal(*share)));
                }
                result = Err(errno);
                break;
            }
            if journal.take_expecting() {
                controls.push((queue, Control::Release { share: *share, result: Ok(()) }));
            }
        }
        if let Some(Owner { space, space_waiters, .. }) = &self.owner
            && result.is_ok()
            && space.release_held()
        {
            space_waiters.wake_all();
        }
        for (queue, control) in controls {
            queue.push(Event::Control(Box::new(control)));
        }
        result
    }

    /// Has a processor rewrite the missing file of its journal, and waits for it; returns whether that succeeded.
    fn renew(&self, queue: &Queue, share: u32) -> bool {
        let Some(owner) = &self.owner else { return false };
        let (sender, receiver) = channel();
        queue.push(Event::Control(Box::new(Control::RenewJournal(share))));
        queue.push(Event::Control(Box::new(Control::Checkpoint(share, sender))));
        wait(&*owner.identity.system, &receiver).unwrap_or(false)
    }

    /// Has the files that a start would read and that are not at their paths rewritten. Returns these, for each journal.
    pub fn renew_missing_files(&self) -> Vec<Gone> {
        let journals = self.journals.read().expect("no holder panics").clone();
        let mut found = Vec::new();
        for Writer { journal, queue, share } in &journals {
            let gone = journal.find_missing_files();
            if gone.now.is_some() {
                queue.push(Event::Control(Box::new(Control::RenewJournal(*share))));
            }
            found.push(gone);
        }
        found
    }

    /// Makes what was written to devices durable, as far as possible; returns the first error.
    pub fn sync_devices(&self) -> std::result::Result<(), Errno> {
        let devices = self.devices.read().expect("no holder panics").clone();
        let mut result = Ok(());
        for watched in devices.iter().filter(|_| !bug(Bug::NoDeviceSync)) {
            result = result.and(watched.sync());
        }
        result
    }

    /// An error if a device may have lost acknowledged writes, once for each such loss (F2).
    fn report_losses(&self) -> std::result::Result<(), Errno> {
        let devices = self.devices.read().expect("no holder panics").clone();
        let mut result = Ok(());
        for watched in devices {
            let losses = watched.device.losses();
            if watched.reported.swap(losses, Ordering::AcqRel) != losses {
                result = Err(Errno::EIO);
            }
        }
        result
    }

    /// Notes that the result of [`Durable::report_losses`] was sent to hosts.
    fn note_all_reported(&self) {
        let devices = self.devices.read().expect("no holder panics");
        devices.iter().for_each(|watched| watched.note_reported());
    }

    /// Adds a journal, with its processor's queue and the number of the volume's share there.
    pub fn add_journal(&self, journal: &Arc<journal::Shared>, queue: &Arc<Queue>, share: u32) {
        let (journal, queue) = (Arc::clone(journal), Arc::clone(queue));
        let mut journals = self.journals.write().expect("no holder panics");
        journals.push(Writer { journal, queue, share });
    }

    /// How far each journal was appended to, and how much of it is durable.
    pub fn watermarks(&self) -> Vec<(u64, u64)> {
        let journals = self.journals.read().expect("no holder panics");
        journals.iter().map(|one| (one.journal.appended(), one.journal.committed())).collect()
    }

    /// Adds a device, if it is not already there.
    pub fn add_device(&self, device: &Arc<Device>) {
        let identity = &self.owner.as_ref().expect("only a volume has devices").identity;
        let mut devices = self.devices.write().expect("no holder panics");
        if !devices.iter().any(|other| other.device.id == device.id) {
            let failed_sync = FailedSync::of_device(identity, device.id);
            if failed_sync.is_set() {
                device.note_earlier_failed_sync();
            }
            let reported = AtomicU64::new(device.losses() - device.losses_to_report());
            devices.push(Arc::new(Watched { device: Arc::clone(device), reported, failed_sync }));
        }
    }
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
    #[cfg(all(test, loom))]
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
