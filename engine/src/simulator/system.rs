//! System: the simulated machine as an engine sees it: the disk, a clock, and the scheduler in place of threads.
//!
//! Owner and locks   one [`Simulated`] for each engine; consecutive engines share the disk. The disk's lock is held for
//!                   one operation and never while others have a turn.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use super::contents::{Memory, PAGE};
use super::disk::Disk;
use super::random::Random;
use super::scheduler::{Scheduler, Turn};
use crate::error::Errno;
use crate::system::mapping::{Mapping, Pages};
use crate::system::pool::{Job, Lane, Pool, Runner};
use crate::system::{Cached, File, Result, System, Task, TaskHandle, Urgency};

/// See the module's head.
#[derive(Debug)]
pub struct Simulated {
    disk: Shelf,
    /// Chooses the next turn.
    pub scheduler: Scheduler,
    clock_ns: AtomicU64,
    /// Its engine was dropped.
    gone: AtomicBool,
    /// Advances the clock by a tick.
    tick: Mutex<Option<Tick>>,
    this: Weak<Simulated>,
}

/// A function that does the work of one tick.
#[derive(Clone)]
struct Tick(Arc<dyn Fn() + Send + Sync>);

impl std::fmt::Debug for Tick {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tick")
    }
}

/// A disk that consecutive engines share.
#[derive(Clone)]
pub struct Shelf(Arc<Mutex<Disk>>);

impl std::fmt::Debug for Shelf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Disk")
    }
}

impl Shelf {
    /// Wraps a disk.
    pub fn new(disk: Disk) -> Shelf {
        Shelf(Arc::new(Mutex::new(disk)))
    }

    /// The disk.
    pub fn lock(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().expect("no operation panics")
    }
}

impl Simulated {
    /// A machine, or a process on it, after its start.
    pub fn new(disk: Shelf, random: Random) -> Arc<Simulated> {
        Arc::new_cyclic(|this| Simulated {
            disk,
            scheduler: Scheduler::new(random),
            clock_ns: AtomicU64::new(1_000_000_000),
            gone: AtomicBool::new(false),
            tick: Mutex::default(),
            this: this.clone(),
        })
    }

    /// Whether nothing runs any more.
    pub fn is_dead(&self) -> bool {
        self.gone.load(Ordering::Relaxed) || self.disk.lock().dead
    }

    /// Drops all work.
    pub fn end(&self) {
        self.gone.store(true, Ordering::Relaxed);
        self.scheduler.clear();
        let tick = self.lock_tick().take();
        drop(tick);
    }

    fn lock_tick(&self) -> MutexGuard<'_, Option<Tick>> {
        self.tick.lock().expect("no holder panics")
    }

    /// Sets the function that does the work of one tick.
    pub fn set_tick(&self, tick: Arc<dyn Fn() + Send + Sync>) {
        *self.lock_tick() = Some(Tick(tick));
    }

    /// Advances the clock by a tick.
    pub fn tick(&self) {
        let tick = self.lock_tick().clone();
        if let Some(Tick(tick)) = tick {
            tick();
        }
    }

    /// Advances the clock by a tick, if devices may hang: otherwise nothing times out.
    pub fn tick_if_due(&self) {
        let due = self.disk.lock().may_hang();
        if due && self.disk.lock().number().is_multiple_of(8) {
            self.tick();
        }
    }

    /// Waits while an operation on a file hangs: others have turns, and time passes.
    fn hang(&self, inode: usize, sync: bool) {
        while !self.is_dead() && self.disk.lock().hangs(inode) {
            let ticks = self.disk.lock().number() % 4;
            let others = self.disk.lock().number() % 8;
            if ticks == 0 {
                self.tick();
            }
            if others > 0 && !self.scheduler.give(Turn::Hanging(sync)) && ticks > 0 {
                self.disk.lock().end_hang();
            }
        }
    }

    /// Gives a thread a turn; `false` if none has work.
    pub fn turn(&self) -> bool {
        !self.is_dead() && self.scheduler.give(Turn::Waiting)
    }

    /// Runs an operation on the disk, perhaps with turns of others before and after it.
    fn operate<T>(&self, f: impl FnOnce(&mut Disk) -> Result<T>) -> Result<T> {
        self.operate_as(Turn::Between, f)
    }

    fn operate_as<T>(&self, turn: Turn, f: impl FnOnce(&mut Disk) -> Result<T>) -> Result<T> {
        self.pause(turn);
        if self.gone.load(Ordering::Relaxed) {
            return Err(Errno::EIO);
        }
        let result = f(&mut self.disk.lock());
        self.pause(turn);
        result
    }

    fn pause(&self, turn: Turn) {
        if !self.gone.load(Ordering::Relaxed) && self.disk.lock().pauses() {
            self.scheduler.give(turn);
        }
    }

    /// Runs an operation without turns of others: locks may be held.
    fn at_once<T>(&self, f: impl FnOnce(&mut Disk) -> Result<T>) -> Result<T> {
        if self.gone.load(Ordering::Relaxed) {
            return Err(Errno::EIO);
        }
        f(&mut self.disk.lock())
    }

    fn this(&self) -> Arc<Simulated> {
        self.this.upgrade().expect("it is being used")
    }

    fn file(&self, inode: usize) -> Arc<dyn File> {
        Arc::new(SimulatedFile { system: self.this(), inode })
    }
}

#[derive(Debug)]
struct SimulatedFile {
    system: Arc<Simulated>,
    inode: usize,
}

impl File for SimulatedFile {
    fn read_cached(&self, buffer: &mut [u8], offset: u64) -> Result<Cached> {
        self.system.operate(|disk| disk.read_cached(self.inode, buffer, offset))
    }

    fn never_waits(&self) -> bool {
        !self.system.disk.lock().rates.waits
    }

    fn can_write_nowait(&self) -> bool {
        self.never_waits()
    }

    fn write_cached(&self, bytes: &[u8], offset: u64) -> Result<Cached> {
        self.write(bytes, offset).map(|()| Cached::Done)
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.system.hang(self.inode, false);
        self.system.operate(|disk| disk.read(self.inode, buffer, offset))
    }

    fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.system.hang(self.inode, false);
        // A manifest is written with its lock held, before it is synced (SC2).
        self.system.operate_as(Turn::Syncing, |disk| disk.write(self.inode, bytes, offset))
    }

    fn punch(&self, offset: u64, length: u64) -> Result<()> {
        self.system.hang(self.inode, false);
        self.system.operate(|disk| disk.clear(self.inode, offset, length, true))
    }

    fn zero_range(&self, offset: u64, length: u64) -> Result<()> {
        self.system.hang(self.inode, false);
        self.system.operate(|disk| disk.clear(self.inode, offset, length, false))
    }

    fn sync(&self) -> Result<()> {
        self.system.hang(self.inode, true);
        self.system.operate_as(Turn::Syncing, |disk| disk.sync(self.inode))
    }

    fn will_need(&self, _: u64, _: u64) {}

    fn allocation(&self, offset: u64, limit: u64) -> Result<(u64, bool)> {
        self.system.disk.lock().allocation(self.inode, offset, limit)
    }

    fn length(&self) -> Result<u64> {
        self.system.at_once(|disk| disk.length(self.inode))
    }

    fn map(&self, length: usize) -> Result<Mapping> {
        let memory = self.system.operate(|disk| disk.map(self.inode, length))?;
        let (system, inode) = (self.system.clone(), self.inode);
        Ok(Mapping::new(Box::new(Shared { system, inode, memory })))
    }
}

/// A mapping's reference to its memory.
#[derive(Debug)]
struct Shared {
    system: Arc<Simulated>,
    inode: usize,
    memory: Arc<Memory>,
}

impl Pages for Shared {
    fn length(&self) -> usize {
        self.memory.length()
    }

    unsafe fn store(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            if !self.system.at_once(|disk| Ok(disk.has_page(self.inode)))? {
                return Err(Errno::ENOSPC);
            }
            let in_page = (PAGE - (offset + done) % PAGE).min(bytes.len() - done);
            self.memory.store(offset + done, &bytes[done..done + in_page]);
            done += in_page;
        }
        Ok(())
    }
}

/// A pool's place in the scheduler.
#[derive(Debug)]
struct Jobs {
    system: Weak<Simulated>,
    number: usize,
}

impl Runner for Jobs {
    fn run(&self, _: Lane, job: Job) {
        match self.system.upgrade().filter(|system| !system.gone.load(Ordering::Relaxed)) {
            Some(system) => system.scheduler.add_job(self.number, job),
            None => drop(job),
        }
    }

    fn stop(&self, _: &dyn Fn(Lane) -> bool) {
        let Some(system) = self.system.upgrade() else { return };
        while !system.is_dead() && !system.scheduler.is_idle(self.number) {
            if !system.scheduler.run_job(self.number) && !system.turn() {
                break;
            }
        }
    }
}

struct Registered {
    system: Weak<Simulated>,
    driven: Arc<dyn Task>,
    number: usize,
}

impl TaskHandle for Registered {
    fn join(self: Box<Self>) {
        let Some(system) = self.system.upgrade() else { return };
        while !system.is_dead() && self.driven.step() {}
        if !system.gone.load(Ordering::Relaxed) {
            system.scheduler.remove_driven(self.number);
        }
    }
}

impl System for Simulated {
    fn open(&self, path: &Path, _: bool) -> Result<Arc<dyn File>> {
        Ok(self.file(self.at_once(|disk| disk.open(path))?))
    }

    fn create(&self, path: &Path) -> Result<Arc<dyn File>> {
        Ok(self.file(self.operate(|disk| disk.create(path))?))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.operate(|disk| disk.rename(from, to))
    }

    fn remove(&self, path: &Path) -> Result<()> {
        self.operate(|disk| disk.remove(path))
    }

    // Without turns of others, and it never fails: a kill between a failed sync and its record is not simulated.
    fn remember(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        self.at_once(|disk| disk.remember(path, bytes))
    }

    fn recall(&self, path: &Path) -> Result<Option<Vec<u8>>> {
        self.at_once(|disk| Ok(disk.recall(path)))
    }

    fn forget(&self, path: &Path) {
        let _ = self.at_once(|disk| disk.forget(path));
    }

    fn list(&self, directory: &Path) -> Result<Vec<PathBuf>> {
        self.operate(|disk| disk.list(directory))
    }

    fn make_directory(&self, path: &Path) -> Result<()> {
        self.at_once(|disk| disk.make_directory(path))
    }

    fn sync_directory(&self, _: &Path) -> Result<()> {
        self.operate(Disk::sync_directory)
    }

    fn boot_id(&self) -> Result<[u8; 16]> {
        Ok(u128::from(self.disk.lock().boots).to_be_bytes())
    }

    fn random(&self) -> Result<u64> {
        self.at_once(|disk| Ok(disk.number()))
    }

    fn monotonic_ns(&self) -> u64 {
        let step = self.disk.lock().number() % 600_000;
        self.clock_ns.fetch_add(step, Ordering::Relaxed) + step
    }

    fn wall_ns(&self) -> u64 {
        1_700_000_000_000_000_000 + self.clock_ns.load(Ordering::Relaxed)
    }

    fn pool(&self, name: &str, threads_max: usize, _urgency: Urgency) -> Result<Pool> {
        let number = self.scheduler.add_pool(name, threads_max);
        Ok(Pool::new(Arc::new(Jobs { system: self.this.clone(), number })))
    }

    fn drive(&self, _: &str, driven: Arc<dyn Task>) -> Result<Box<dyn TaskHandle>> {
        let number = self.scheduler.add_driven(Arc::clone(&driven));
        Ok(Box::new(Registered { system: self.this.clone(), driven, number }))
    }

    fn threaded(&self) -> bool {
        false
    }

    fn run_others(&self) -> bool {
        self.turn()
    }

    fn yield_point(&self) {
        while !self.is_dead() && !self.disk.lock().number().is_multiple_of(5) {
            if !self.scheduler.give(Turn::Between) {
                break;
            }
        }
    }
}
