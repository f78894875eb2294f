//! Scheduler: chooses the next turn in a simulation: a processor, a job of a pool, or the host.
//!
//! How it works      Everything runs on the calling thread, one turn at a time. A turn is a processor's batch, a
//!                   complete job, or some requests of the host. Code that waits for others ([`Turn::Waiting`]) gives
//!                   them turns; an operation on the disk sometimes does so too ([`Turn::Between`]), so that others run
//!                   between two operations of one job.
//! Invariants        SC1 a pool runs no more jobs at a time than it has threads, and begins them in order as its
//!                   threads would; SC2 within a sync no job begins that syncs: the lock that it needs may be held
//!                   below it on the stack.

use std::collections::VecDeque;
use std::fmt::{self, Debug};
use std::sync::{Arc, Mutex};

use super::random::Random;
use crate::system::Task;
use crate::system::pool::Job;

/// Upper bound of nested turns.
const DEPTH_MAX: u32 = 4;

/// Upper bound of hanging operations at which jobs of pools still begin.
const HANGING_MAX: u32 = 5;

/// Why a turn is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// A thread waits.
    Waiting,
    /// Between two operations of a thread.
    Between,
    /// Within a sync.
    Syncing,
    /// A thread's operation hangs; `true`: it is a sync.
    Hanging(bool),
}

/// The host, which makes requests.
pub trait Host: Send + Sync {
    /// Does some work; `false` if there is none, or it is already in a turn.
    fn turn(&self) -> bool;
}

struct PoolState {
    jobs: VecDeque<Job>,
    running: usize,
    threads: usize,
    /// Its jobs sync, with locks held.
    syncs: bool,
}

struct State {
    random: Random,
    pools: Vec<PoolState>,
    driven: Vec<Option<Arc<dyn Task>>>,
    host: Option<Arc<dyn Host>>,
    depth: u32,
    /// Number of nested turns within syncs.
    syncing: u32,
    /// Number of operations that hang.
    hanging: u32,
}

/// See the module's head.
pub struct Scheduler(Mutex<State>);

impl Debug for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scheduler")
    }
}

enum Candidate {
    Host(Arc<dyn Host>),
    Task(Arc<dyn Task>),
    Pool(usize),
}

impl Scheduler {
    /// A scheduler without work.
    pub fn new(random: Random) -> Scheduler {
        let (pools, driven) = (Vec::new(), Vec::new());
        Scheduler(Mutex::new(State {
            random,
            pools,
            driven,
            host: None,
            depth: 0,
            syncing: 0,
            hanging: 0,
        }))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().expect("no holder panics")
    }

    /// Adds a pool.
    pub fn add_pool(&self, name: &str, threads: usize) -> usize {
        let mut state = self.lock();
        let syncs = ["pv-checkpt", "pv-flush"].iter().any(|begin| name.starts_with(begin));
        state.pools.push(PoolState { jobs: VecDeque::new(), running: 0, threads, syncs });
        state.pools.len() - 1
    }

    /// Adds a job to a pool.
    pub fn add_job(&self, pool: usize, job: Job) {
        self.lock().pools[pool].jobs.push_back(job);
    }

    /// Adds a processor.
    pub fn add_driven(&self, driven: Arc<dyn Task>) -> usize {
        let mut state = self.lock();
        state.driven.push(Some(driven));
        state.driven.len() - 1
    }

    /// Removes a processor that has stopped.
    pub fn remove_driven(&self, number: usize) {
        let gone = self.lock().driven[number].take();
        drop(gone);
    }

    /// Sets the host.
    pub fn set_host(&self, host: Option<Arc<dyn Host>>) {
        let before = std::mem::replace(&mut self.lock().host, host);
        drop(before);
    }

    /// Drops all work.
    pub fn clear(&self) {
        let mut state = self.lock();
        let pools: Vec<_> =
            state.pools.iter_mut().map(|pool| std::mem::take(&mut pool.jobs)).collect();
        let gone = (pools, std::mem::take(&mut state.driven), state.host.take());
        drop(state);
        drop(gone);
    }

    /// Whether a pool has no work.
    pub fn is_idle(&self, pool: usize) -> bool {
        let state = self.lock();
        state.pools[pool].jobs.is_empty() && state.pools[pool].running == 0
    }

    fn candidates(state: &State) -> Vec<Candidate> {
        let mut candidates = Vec::new();
        candidates.extend(state.host.clone().map(Candidate::Host));
        candidates.extend(state.driven.iter().flatten().cloned().map(Candidate::Task));
        for (number, pool) in state.pools.iter().enumerate() {
            let may = (state.syncing == 0 || !pool.syncs) && state.hanging < HANGING_MAX; // SC2
            if may && !pool.jobs.is_empty() && pool.running < pool.threads {
                candidates.push(Candidate::Pool(number));
            }
        }
        candidates
    }

    /// Gives a thread a turn; `false` if none has work.
    pub fn give(&self, turn: Turn) -> bool {
        let mut state = self.lock();
        let hangs = matches!(turn, Turn::Hanging(_));
        if turn != Turn::Waiting && !hangs && state.depth >= DEPTH_MAX {
            return false;
        }
        let syncing = u32::from(matches!(turn, Turn::Syncing | Turn::Hanging(true)));
        state.depth += 1;
        state.syncing += syncing;
        state.hanging += u32::from(hangs);
        let mut candidates = Self::candidates(&state);
        let mut done = false;
        while !done && !candidates.is_empty() {
            let chosen = state.random.below(candidates.len() as u64) as usize;
            let candidate = candidates.swap_remove(chosen);
            drop(state);
            done = match candidate {
                Candidate::Host(host) => host.turn(),
                Candidate::Task(driven) => driven.step(),
                Candidate::Pool(number) => self.run_job(number),
            };
            state = self.lock();
        }
        state.depth -= 1;
        state.syncing -= syncing;
        state.hanging -= u32::from(hangs);
        done
    }

    /// Runs a job of a pool.
    pub fn run_job(&self, number: usize) -> bool {
        let mut state = self.lock();
        let State { random, pools, .. } = &mut *state;
        let pool = &mut pools[number];
        let first = pool.threads.saturating_sub(pool.running).min(pool.jobs.len()); // SC1
        if first == 0 {
            return false;
        }
        let chosen = random.below(first as u64) as usize;
        let Some(job) = pool.jobs.remove(chosen) else { return false };
        pool.running += 1;
        drop(state);
        job();
        self.lock().pools[number].running -= 1;
        true
    }
}
