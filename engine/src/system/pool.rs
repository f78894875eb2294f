//! Pool: threads that do what would block a processor.
//!
//! How it works      One queue; a job is a closure that reports for itself (a processor gets an event). One thread starts
//!                   with the pool, so that a job always has one; more start when a job finds none idle, up to a
//!                   limit, and stay.
//! Owner and locks   one lock over the queue, never held while a job runs.

use std::collections::VecDeque;
use std::fmt::{self, Debug};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use rustix::process::nice;

use super::{Result, Urgency};

/// What the threads of a [`Urgency::Background`] pool are nicer by: about a tenth of a core if others want it.
const BACKGROUND_NICENESS: i32 = 10;

/// What a pool does.
pub type Job = Box<dyn FnOnce() + Send>;

/// Who runs the jobs of a pool.
pub trait Runner: Send + Sync + Debug {
    /// Runs the job, soon. Jobs that were given before [`Runner::stop`] all run.
    fn run(&self, job: Job);
    /// Runs what it was given, and ends. Idempotent.
    fn stop(&self);
}

/// See the module's head.
#[derive(Clone, Debug)]
pub struct Pool(Arc<dyn Runner>);

impl Pool {
    /// A pool of this runner.
    pub fn new(runner: Arc<dyn Runner>) -> Pool {
        Pool(runner)
    }

    /// Has a thread run the job, soon. Jobs that were given before [`Pool::stop`] all run.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        self.0.run(Box::new(job));
    }

    /// Runs what is queued, and ends the threads. Idempotent.
    pub fn stop(&self) {
        self.0.stop();
    }
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    idle: usize,
    threads: Vec<JoinHandle<()>>,
    stopping: bool,
}

struct Shared {
    state: Mutex<State>,
    work: Condvar,
}

/// The runner of the real system.
pub struct Threads {
    shared: Arc<Shared>,
    name: String,
    threads_max: usize,
    urgency: Urgency,
}

impl Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Threads({}, at most {})", self.name, self.threads_max)
    }
}

impl Threads {
    /// Starts with one thread.
    pub fn start(name: &str, threads_max: usize, urgency: Urgency) -> Result<Arc<Threads>> {
        assert!(threads_max > 0, "a pool has a thread");
        let shared = Arc::new(Shared { state: Mutex::default(), work: Condvar::new() });
        let threads = Threads { shared, name: name.to_owned(), threads_max, urgency };
        let first = threads.spawn(0)?;
        threads.shared.state.lock().expect("jobs run outside the lock").threads.push(first);
        Ok(Arc::new(threads))
    }

    fn spawn(&self, number: usize) -> std::io::Result<JoinHandle<()>> {
        let number = if self.threads_max > 1 { format!("-{number}") } else { String::new() };
        let name = format!("{}{number}", self.name).chars().take(15).collect();
        let shared = Arc::clone(&self.shared);
        let urgency = self.urgency;
        std::thread::Builder::new().name(name).spawn(move || {
            if urgency == Urgency::Background {
                let _ = nice(BACKGROUND_NICENESS); // where that is refused, it is as urgent as the others
            }
            worker(&shared);
        })
    }
}

impl Runner for Threads {
    fn run(&self, job: Job) {
        let mut state = self.shared.state.lock().expect("jobs run outside the lock");
        state.jobs.push_back(job);
        if state.idle < state.jobs.len() && state.threads.len() < self.threads_max {
            // Where no more can be started, those that there are will take the job.
            let started = self.spawn(state.threads.len());
            state.threads.extend(started);
        }
        drop(state);
        self.shared.work.notify_one();
    }

    fn stop(&self) {
        let mut state = self.shared.state.lock().expect("jobs run outside the lock");
        state.stopping = true;
        let threads = std::mem::take(&mut state.threads);
        drop(state);
        self.shared.work.notify_all();
        for thread in threads {
            let _ = thread.join();
        }
    }
}

fn worker(shared: &Shared) {
    let mut state = shared.state.lock().expect("jobs run outside the lock");
    loop {
        if let Some(job) = state.jobs.pop_front() {
            drop(state);
            job();
            state = shared.state.lock().expect("jobs run outside the lock");
        } else if state.stopping {
            return;
        } else {
            state.idle += 1;
            state = shared.work.wait(state).expect("jobs run outside the lock");
            state.idle -= 1;
        }
    }
}
