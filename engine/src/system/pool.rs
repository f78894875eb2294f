//! Pool: threads for calls that would block a processor, with a lane for each thing that can hang.
//!
//! How it works      A job is a closure that reports its own result (a processor gets an event). It belongs to a
//!                   [`Lane`]: for example, the device that it waits for. Each lane has its own queue, and at most
//!                   [`LANE_THREADS`] threads run its jobs at a time. An idle thread takes the next job of any lane
//!                   that may run one. A new thread starts when no thread is idle, up to a limit for the whole pool;
//!                   beyond the limit each lane still gets one thread. So a device that hangs blocks its own lane, and
//!                   no other.
//! Invariants        PO1 a lane that has jobs and fewer threads than it may have is in `ready`, once;
//!                   PO2 if a lane is in `ready`, a thread is awake that will check `ready`, or is being started, or as
//!                       many threads as allowed run jobs; and a lane without a thread always gets one.
//! Owner and locks   one lock over the lanes, never held while a job runs.

use std::collections::{HashMap, VecDeque};
use std::fmt::{self, Debug};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

use rustix::process::nice;

use super::{Result, Urgency};
use crate::log::{Level, Line, log};
use crate::units::DeviceId;

/// Niceness of the threads of a [`Urgency::Background`] pool: they get about a tenth of a core if others need it.
const BACKGROUND_NICENESS: i32 = 10;
/// Upper bound of threads that run jobs of one lane at a time.
pub const LANE_THREADS: usize = 8;

/// A pool's unit of work.
pub type Job = Box<dyn FnOnce() + Send>;

/// What a job waits for. Jobs of one lane may delay each other; jobs of different lanes never do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// One device.
    Device(DeviceId),
    /// Several devices of one volume, by the number of its shares.
    Share(u32),
    /// Calls that probe a device, or replace its file: they must not occupy the threads of hosts' requests.
    Probe(DeviceId),
    /// The files of a volume in the state directory, and jobs that sync its devices with them.
    Files(u32),
}

/// What a pool has: its threads, the idle ones of them, and for each lane the jobs that wait and those that run.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct PoolLook {
    pub threads: usize,
    pub idle: usize,
    pub lanes: Vec<(Lane, usize, usize)>,
}

/// The threads that run the jobs of a pool.
pub trait Runner: Send + Sync + Debug {
    /// Queues the job. Jobs that were queued before [`Runner::stop`] all run, with the exception described there.
    fn run(&self, lane: Lane, job: Job);
    /// What it has.
    fn look(&self) -> PoolLook {
        PoolLook::default()
    }
    /// Runs all queued jobs, and ends. The queued jobs of a lane for which `hangs` returns true are dropped, and its
    /// threads are abandoned. Idempotent.
    fn stop(&self, hangs: &dyn Fn(Lane) -> bool);
}

/// See the module's head.
#[derive(Clone, Debug)]
pub struct Pool(Arc<dyn Runner>);

impl Pool {
    /// A pool of this runner.
    pub fn new(runner: Arc<dyn Runner>) -> Pool {
        Pool(runner)
    }

    /// Queues the job for a thread. Jobs that were queued before [`Pool::stop`] all run.
    pub fn run(&self, lane: Lane, job: impl FnOnce() + Send + 'static) {
        self.0.run(lane, Box::new(job));
    }

    /// What it has.
    pub fn look(&self) -> PoolLook {
        self.0.look()
    }

    /// Runs all queued jobs, and ends the threads. Idempotent.
    pub fn stop(&self) {
        self.0.stop(&|_| false);
    }

    /// Like [`Pool::stop`], except for lanes that hang: see [`Runner::stop`].
    pub fn stop_except(&self, hangs: &dyn Fn(Lane) -> bool) {
        self.0.stop(hangs);
    }
}

#[derive(Default)]
struct Queued {
    jobs: VecDeque<Job>,
    /// Threads that run its jobs.
    running: usize,
    /// It is in `ready`.
    ready: bool,
}

#[derive(Default)]
struct State {
    lanes: HashMap<Lane, Queued>,
    /// Lanes from which a thread may take a job (PO1).
    ready: VecDeque<Lane>,
    idle: usize,
    /// Threads, idle ones included, and the next one's number.
    threads: usize,
    next: usize,
    handles: Vec<(JoinHandle<()>, usize)>,
    /// The lane whose job each thread runs.
    at: HashMap<usize, Lane>,
    stopping: bool,
}

impl State {
    /// Adds a lane to `ready`, if it belongs there (PO1).
    fn make_ready(&mut self, lane: Lane) {
        let Some(queued) = self.lanes.get_mut(&lane) else { return };
        if !queued.ready && !queued.jobs.is_empty() && queued.running < LANE_THREADS {
            queued.ready = true;
            self.ready.push_back(lane);
        }
    }

    /// The next job of a lane that may run one.
    fn take(&mut self, thread: usize) -> Option<(Lane, Job)> {
        let lane = self.ready.pop_front()?;
        let queued = self.lanes.get_mut(&lane).expect("PO1");
        queued.ready = false;
        queued.running += 1;
        let job = queued.jobs.pop_front().expect("PO1");
        self.at.insert(thread, lane);
        self.make_ready(lane);
        Some((lane, job))
    }

    /// Notes that a thread has finished a job of this lane.
    fn done(&mut self, thread: usize, lane: Lane) {
        self.at.remove(&thread);
        // `stop` removes lanes.
        if let Some(queued) = self.lanes.get_mut(&lane) {
            queued.running -= 1;
            if queued.running == 0 && queued.jobs.is_empty() {
                self.lanes.remove(&lane);
            }
        }
        self.make_ready(lane);
    }

    /// Whether to start one more thread: no idle thread will take what is ready, and the limit is not reached or the
    /// lane has no thread (PO2).
    fn needs_thread(&self, threads_max: usize) -> bool {
        let lacks = |lane: &Lane| self.lanes.get(lane).is_some_and(|queued| queued.running == 0);
        self.idle < self.ready.len() && (self.threads < threads_max || self.ready.iter().any(lacks))
    }
}

struct Shared {
    state: Mutex<State>,
    work: Condvar,
    name: String,
    threads_max: usize,
    urgency: Urgency,
}

/// The runner of the real system.
pub struct Threads(Arc<Shared>);

impl Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Threads({}, at most {})", self.0.name, self.0.threads_max)
    }
}

impl Threads {
    /// Starts a pool with one thread.
    pub fn start(name: &str, threads_max: usize, urgency: Urgency) -> Result<Arc<Threads>> {
        assert!(threads_max > 0, "a pool has a thread");
        let (state, work) = (Mutex::default(), Condvar::new());
        let name = name.to_owned();
        let shared = Arc::new(Shared { state, work, name, threads_max, urgency });
        spawn(&shared, &mut shared.lock())?;
        Ok(Arc::new(Threads(shared)))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("jobs run outside the lock")
    }
}

/// Starts one more thread.
fn spawn(shared: &Arc<Shared>, state: &mut State) -> std::io::Result<()> {
    let number = state.next;
    let suffix = if shared.threads_max > 1 { format!("-{number}") } else { String::new() };
    let name = format!("{}{suffix}", shared.name).chars().take(15).collect();
    let ours = Arc::clone(shared);
    let handle = std::thread::Builder::new().name(name).spawn(move || {
        if ours.urgency == Urgency::Background {
            let _ = nice(BACKGROUND_NICENESS); // if that is refused, it runs at normal priority
        }
        worker(&ours, number);
    })?;
    state.handles.retain(|(handle, _)| !handle.is_finished());
    state.handles.push((handle, number));
    state.threads += 1;
    state.next += 1;
    Ok(())
}

/// As [`spawn`]; where no more can be started, those that there are do the jobs.
fn spawn_or_log(shared: &Arc<Shared>, state: &mut State) {
    if let Err(error) = spawn(shared, state) {
        let text = format!(
            "no more threads can be started for {}, which has {}: {error}",
            shared.name, state.threads
        );
        let errno = error.raw_os_error().unwrap_or(0);
        log(Line::new(Level::Warning, "no-thread", text).with(errno));
    }
}

impl Runner for Threads {
    fn run(&self, lane: Lane, job: Job) {
        let mut state = self.0.lock();
        state.lanes.entry(lane).or_default().jobs.push_back(job);
        state.make_ready(lane);
        if state.needs_thread(self.0.threads_max) {
            spawn_or_log(&self.0, &mut state);
        }
        drop(state);
        self.0.work.notify_one();
    }

    fn look(&self) -> PoolLook {
        let state = self.0.lock();
        let lanes = state.lanes.iter().map(|(lane, each)| (*lane, each.jobs.len(), each.running));
        let mut lanes: Vec<_> = lanes.collect();
        lanes.sort_unstable();
        PoolLook { threads: state.threads, idle: state.idle, lanes }
    }

    fn stop(&self, hangs: &dyn Fn(Lane) -> bool) {
        let mut state = self.0.lock();
        state.stopping = true;
        let hanging: Vec<Lane> = state.lanes.keys().copied().filter(|lane| hangs(*lane)).collect();
        let mut dropped = Vec::new();
        for lane in &hanging {
            dropped.extend(state.lanes.remove(lane).map(|queued| queued.jobs));
            state.ready.retain(|other| other != lane);
        }
        let left = |number: &usize| state.at.get(number).is_some_and(|lane| hanging.contains(lane));
        let stuck: Vec<usize> =
            state.handles.iter().map(|(_, number)| *number).filter(left).collect();
        let handles = std::mem::take(&mut state.handles);
        drop(state);
        drop(dropped);
        self.0.work.notify_all();
        for (handle, number) in handles {
            if !stuck.contains(&number) {
                let _ = handle.join();
            }
        }
    }
}

fn worker(shared: &Arc<Shared>, number: usize) {
    let mut state = shared.lock();
    loop {
        if let Some((lane, job)) = state.take(number) {
            if state.needs_thread(shared.threads_max) {
                spawn_or_log(shared, &mut state);
            }
            drop(state);
            job();
            state = shared.lock();
            state.done(number, lane);
        } else if state.stopping || (state.threads > shared.threads_max && state.idle > 0) {
            state.threads -= 1;
            return;
        } else {
            state.idle += 1;
            state = shared.work.wait(state).expect("jobs run outside the lock");
            state.idle -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn lanes_that_hang_block_no_other_lane() {
        let threads = Threads::start("lanes", 4, Urgency::Prompt).unwrap();
        let pool = Pool::new(threads);
        let (hold, held) = (Arc::new(Mutex::new(())), Arc::new(Mutex::new(0)));
        let holding = hold.lock().unwrap();
        for number in 0..600 {
            let (hold, held) = (Arc::clone(&hold), Arc::clone(&held));
            pool.run(Lane::Device(number % 6), move || {
                drop(hold.lock().unwrap());
                *held.lock().unwrap() += 1;
            });
        }
        let (sender, done) = channel();
        for number in 0..100 {
            let sender = sender.clone();
            pool.run(Lane::Device(100 + number % 3), move || sender.send(number).unwrap());
        }
        assert!((0..100).all(|_| done.recv_timeout(LONG).is_ok()), "another lane was blocked");
        assert_eq!(*held.lock().unwrap(), 0);
        drop(holding);
        pool.stop();
        assert_eq!(*held.lock().unwrap(), 600, "a job was lost");
    }

    #[test]
    fn a_stop_abandons_jobs_that_hang_and_nothing_else() {
        let pool = Pool::new(Threads::start("stop", 2, Urgency::Prompt).unwrap());
        let (hold, began) = (Arc::new(Mutex::new(())), channel());
        let holding = hold.lock().unwrap();
        let ours = Arc::clone(&hold);
        pool.run(Lane::Device(1), move || {
            began.0.send(()).unwrap();
            drop(ours.lock().unwrap());
        });
        began.1.recv_timeout(LONG).unwrap();
        let (sender, done) = channel();
        (0..50).for_each(|number| {
            let sender = sender.clone();
            pool.run(Lane::Device(2), move || sender.send(number).unwrap());
        });
        pool.stop_except(&|lane| lane == Lane::Device(1));
        assert_eq!(done.try_iter().count(), 50);
        drop(holding);
    }
}
