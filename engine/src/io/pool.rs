//! Pool: threads that do what would block a processor.
//!
//! How it works      One queue; a job is a closure that reports for itself (a processor gets an event). Threads
//!                   start when a job finds none idle, up to a limit, and stay.
//! Owner and locks   one lock over the queue, never held while a job runs.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

type Job = Box<dyn FnOnce() + Send>;

struct State {
    jobs: VecDeque<Job>,
    idle: usize,
    threads: Vec<JoinHandle<()>>,
    stopping: bool,
}

struct Shared {
    state: Mutex<State>,
    work: Condvar,
    threads_max: usize,
}

/// See the module's head.
#[derive(Clone)]
pub struct Pool(Arc<Shared>);

impl Pool {
    /// A pool of at most so many threads; none is started yet.
    pub fn new(threads_max: usize) -> Pool {
        let state = State { jobs: VecDeque::new(), idle: 0, threads: Vec::new(), stopping: false };
        Pool(Arc::new(Shared {
            state: Mutex::new(state),
            work: Condvar::new(),
            threads_max: threads_max.max(1),
        }))
    }

    /// Has a thread run the job, soon. Jobs that were given before [`Pool::stop`] all run.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        let mut state = self.0.state.lock().expect("jobs run outside the lock");
        state.jobs.push_back(Box::new(job));
        let short = state.idle < state.jobs.len() && state.threads.len() < self.0.threads_max;
        if short {
            let shared = Arc::clone(&self.0);
            let name = format!("pv-io-{}", state.threads.len());
            match std::thread::Builder::new().name(name).spawn(move || worker(&shared)) {
                Ok(thread) => state.threads.push(thread),
                // Another thread will take the job, unless there is none.
                Err(e) => assert!(!state.threads.is_empty(), "no thread can be started: {e}"),
            }
        }
        drop(state);
        self.0.work.notify_one();
    }

    /// Runs what is queued, and ends the threads. Idempotent.
    pub fn stop(&self) {
        let mut state = self.0.state.lock().expect("jobs run outside the lock");
        state.stopping = true;
        let threads = std::mem::take(&mut state.threads);
        drop(state);
        self.0.work.notify_all();
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
