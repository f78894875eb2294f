//! Driver: one simulation from its seed: starts, load, cuts, deletions, crashes, and the final check.
//!
//! How it works      An engine runs until it crashes, or is stopped; then another one starts on the same disk. The
//!                   driver does the daemon's part, in its order: a cut is made, settled, flushed, then committed to
//!                   the catalog; a deletion is committed first. The catalog changes at once, durably.
//! Errors            the first error ends the simulation, with a sentence.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::Options;
use super::contents::SECTOR;
use super::counts::Counts;
use super::disk::{Disk, Plan};
use super::faults::Rates;
use super::host::Host;
use super::random::Random;
use super::shape::{Shape, VOLUME};
use super::system::{Shelf, Simulated};
use super::tamper::Older;
use crate::change_log::log_rules::LogRules;
use crate::engine::Engine;
use crate::engine::partitions::PartitionSnapshot;
use crate::error::ErrorKind;
use crate::events::Event;
use crate::system::System;
use crate::units::{DeviceId, Epoch, PartitionIndex};

type Failure = String;
pub(super) type Result<T> = std::result::Result<T, Failure>;

/// Upper bound of consecutive failed starts.
const STARTS_MAX: u32 = 30;

/// The durable state in addition to the engine's files.
#[derive(Clone, Debug)]
pub(super) struct Catalog {
    pub(super) snapshots: Vec<(Epoch, LogRules)>,
    pub(super) next_epoch: Epoch,
    /// The volume was served before.
    pub(super) served: bool,
    /// Snapshots that were deleted: an older copy has them, in every third start.
    pub(super) deleted: BTreeMap<Epoch, LogRules>,
}

/// State of an engine's run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Crashed,
    Running,
}

/// A running engine.
pub(super) struct Running {
    pub(super) engine: Engine,
    pub(super) system: Arc<Simulated>,
}

/// See the module's head.
pub struct Simulation {
    pub(super) random: Random,
    pub(super) disk: Shelf,
    pub(super) shape: Shape,
    pub(super) host: Arc<Host>,
    pub(super) catalog: Catalog,
    boots_seen: u64,
    /// Devices that have ever become shorter: they are missing from the next start on.
    pub(super) lost: BTreeSet<DeviceId>,
    pub(super) older: Older,
    /// The partition snapshots of each snapshot, which never change.
    pub(super) states: BTreeMap<Epoch, Vec<PartitionSnapshot>>,
    /// Counts of what happened.
    pub counts: Counts,
}

impl Simulation {
    /// The simulation of a seed.
    pub fn new(options: &Options) -> Simulation {
        let mut random = Random::new(options.seed);
        let shape = Shape::choose(&mut random);
        let rates = Rates::choose(&mut random, options.kind);
        let mut disk = Disk::new(random.fork(), rates);
        disk.verbose = options.trace;
        shape.make(&mut disk);
        if options.trace {
            println!("{shape:#?}\n{:#?}", disk.rates);
        }
        let disk = Shelf::new(disk);
        let host = Arc::new(Host::new(random.fork(), disk.clone(), &shape));
        let deleted = BTreeMap::new();
        let catalog = Catalog { snapshots: Vec::new(), next_epoch: 1, served: false, deleted };
        let (counts, boots_seen, lost) = (Counts::default(), 1, BTreeSet::new());
        let (older, states) = (Older::default(), BTreeMap::new());
        Simulation { random, disk, shape, host, catalog, boots_seen, lost, older, states, counts }
    }

    /// Runs it to its end.
    pub fn run(&mut self) -> Result<()> {
        let result = self.run_all();
        let disk = self.disk.lock();
        self.counts.operations = disk.operations;
        self.counts.faults = disk.injected.errors + disk.injected.damage;
        self.counts.requests = self.host.lock().requests;
        result
    }

    /// A hash of all that happened.
    pub fn trace(&self) -> u64 {
        self.disk.lock().trace
    }

    fn run_all(&mut self) -> Result<()> {
        for _ in 0..self.random.within(2, 6) {
            self.disk.lock().failing = true;
            let Some(running) = self.start(true)? else { return Ok(()) };
            self.load(&running)?;
            self.stop(running)?;
        }
        self.final_check()
    }

    // Starting and stopping.

    fn plan_crash(&mut self) {
        let soon = self.random.below(3) == 0;
        let within = if soon { self.random.within(1, 60) } else { self.random.within(1, 1500) };
        let power = self.random.coin();
        let mut disk = self.disk.lock();
        disk.plan = Some(Plan { at: disk.operations + within, power });
    }

    /// Starts engines until one serves the volume.
    pub(super) fn start(&mut self, crashing: bool) -> Result<Option<Running>> {
        let mut tampered = if crashing { self.tamper() } else { None };
        for attempt in 0..STARTS_MAX {
            if crashing && tampered.is_none() && (attempt == 0 || self.random.below(4) == 0) {
                self.plan_crash();
            }
            let before = self.disk.lock().injected;
            self.host.begin_run();
            let system = Simulated::new(self.disk.clone(), self.random.fork());
            self.counts.starts += 1;
            let shared = Arc::clone(&system) as Arc<dyn System>;
            let engine = Engine::with_system(shared, self.shape.processors);
            let engine = engine.map_err(|e| format!("an engine does not start: {e}"))?;
            engine.set_io_timeout(std::time::Duration::from_secs(2));
            system.set_tick(engine.ticker());
            let older = tampered.is_none() && self.counts.starts.is_multiple_of(3);
            let result = self.serve(&engine, older);
            let running = Running { engine, system };
            if self.disk.lock().dead {
                self.crashed(&running);
                continue;
            }
            let Err(error) = result else { return self.served(running, crashing).map(Some) };
            if let Some(before) = tampered.take_if(|_| error.kind == ErrorKind::Corrupt) {
                self.refused(before)?;
                self.disk.lock().crash(false);
                self.crashed(&running);
                continue;
            }
            let after = self.disk.lock().injected;
            if after.errors == before.errors {
                return Err(format!("the volume is refused: {error}"));
            }
            self.disk.lock().failing = false;
            self.disk.lock().crash(false);
            self.crashed(&running);
        }
        Err("it does not start".to_owned())
    }

    /// Enables faults if the run has crashes: recovered maps are synced only now.
    fn served(&mut self, running: Running, failing: bool) -> Result<Running> {
        self.disk.lock().failing = failing;
        self.catalog.served = true;
        self.older.run_boots = self.disk.lock().boots;
        self.older.clean = false;
        let volume = running.engine.volume(VOLUME).map_err(|e| e.to_string())?;
        let asks = running.engine.ask_when_full(VOLUME, self.random.coin());
        asks.map_err(|e| e.to_string())?;
        if !self.sync_failed() {
            self.host.lock().model.restarted(); // otherwise it is served as far as possible
        }
        self.host.attach(volume);
        self.note_rules();
        running.system.scheduler.set_host(Some(Arc::clone(&self.host) as _));
        if self.random.coin() {
            self.verify_all(&running)?;
        }
        Ok(running)
    }

    pub(super) fn end(&self, running: &Running) {
        self.host.detach();
        running.system.end();
        // Events left in the queues may refer to the queues.
        let processors = running.engine.processors.lock().expect("no holder panics");
        processors.iter().for_each(|processor| processor.runner.queue.close());
    }

    /// Ends a crashed engine, so that the next one may start.
    pub(super) fn crashed(&mut self, running: &Running) {
        self.counts.crashes += 1;
        self.end(running);
        self.start_again();
    }

    /// Restarts the machine or the process after a crash.
    pub(super) fn start_again(&mut self) {
        let mut disk = self.disk.lock();
        let mut host = self.host.lock();
        if disk.boots > self.boots_seen {
            self.boots_seen = disk.boots;
            host.holes_before = disk.injected.holes;
            host.model.power_lost();
        }
        disk.start();
    }

    /// Ends a run: it has crashed, or is stopped, or is killed while it is idle.
    fn stop(&mut self, running: Running) -> Result<()> {
        if !self.disk.lock().dead && self.random.below(3) == 0 {
            self.stop_cleanly(&running)?;
        }
        if !self.disk.lock().dead {
            let power = self.random.coin();
            self.disk.lock().crash(power);
        }
        self.crashed(&running);
        Ok(())
    }

    pub(super) fn stop_cleanly(&mut self, running: &Running) -> Result<()> {
        self.host.lock().budget = 0;
        self.drain(running)?;
        let before = self.disk.lock().injected;
        let time = self.host.now();
        let result = running.engine.remove_volume(VOLUME);
        if self.disk.lock().dead {
            return Ok(());
        }
        let after = self.disk.lock().injected;
        match result {
            Ok(()) => {
                self.older.clean = true;
                self.host.lock().model.flushed(time, None);
            }
            Err(_) if after.hangs > 0 => return Ok(()),
            Err(_) if after.errors > before.errors || self.sync_failed() => {}
            Err(e) => return Err(format!("the volume cannot be closed: {e}")),
        }
        running.engine.stop().map_err(|e| format!("the engine cannot be stopped: {e}"))
    }

    fn sync_failed(&self) -> bool {
        let (disk, host) = (self.disk.lock(), self.host.lock());
        disk.injected.syncs > host.began.syncs
            || disk.injected.holes > host.holes_before
            || disk.injected.short > 0
    }

    /// Makes a device shorter; or checks one that became shorter, and makes it long again.
    fn change_size(&mut self, running: &Running) -> Result<()> {
        let chosen = self.random.below(self.shape.devices.len() as u64) as usize;
        let device = self.shape.devices[chosen].clone();
        if !self.lost.insert(device.id) {
            running.engine.device_fault(device.id).map_err(|e| e.to_string())?;
            self.disk.lock().set_device_length(&device.path, device.length);
            return Ok(());
        }
        let length = self.random.below(device.length / SECTOR as u64) * SECTOR as u64;
        self.disk.lock().set_device_length(&device.path, length);
        Ok(())
    }

    // What happens while it runs.

    fn load(&mut self, running: &Running) -> Result<()> {
        self.host.lock().budget = self.random.within(10, 400);
        while self.run_state()? == End::Running {
            let acts = self.random.below(40) == 0;
            running.system.tick_if_due();
            if acts {
                self.control(running)?;
            } else if !running.system.turn() && !self.free_space(running)? {
                self.expect_nothing_in_flight()?;
                if self.host.lock().budget == 0 {
                    break;
                }
            }
        }
        Ok(())
    }

    pub(super) fn run_state(&self) -> Result<End> {
        if let Some(failure) = &self.host.lock().failure {
            return Err(failure.clone());
        }
        Ok(if self.disk.lock().dead { End::Crashed } else { End::Running })
    }

    fn expect_nothing_in_flight(&self) -> Result<()> {
        if !self.host.settle() && !self.disk.lock().dead {
            return Err(format!("requests never end: {}", self.host.lock().stuck()));
        }
        self.run_state().map(|_| ())
    }

    pub(super) fn drain(&mut self, running: &Running) -> Result<()> {
        while running.system.turn() || self.free_space(running)? {}
        self.expect_nothing_in_flight()
    }

    /// Does what the daemon does when the log areas are full: deletes the oldest snapshot, adds a log, or makes
    /// writes fail. `false` if there is no event for it.
    pub(super) fn free_space(&mut self, running: &Running) -> Result<bool> {
        let mut events = std::iter::from_fn(|| running.engine.events.next(Duration::ZERO));
        if !events.any(|event| matches!(event, Event::LogFull(_))) {
            return Ok(false);
        }
        if self.disk.lock().dead {
            return Ok(false);
        }
        self.disk.lock().note("full", 0, 0, 0);
        let oldest = self.catalog.snapshots.first().map(|(epoch, _)| *epoch);
        let answered = match oldest {
            Some(epoch) if self.random.below(8) > 0 => {
                self.delete(running, epoch)?;
                running.engine.try_again(VOLUME)
            }
            _ => running.engine.ask_when_full(VOLUME, false),
        };
        answered.map_err(|e| e.to_string())?;
        Ok(true)
    }

    fn control(&mut self, running: &Running) -> Result<()> {
        if self.disk.lock().changes_size() {
            return self.change_size(running);
        }
        match self.random.below(17) {
            0..=3 => self.take_snapshot(running),
            4..=5 => self.delete_snapshot(running),
            6..=7 => self.flush(running).map(|_| ()),
            8 => self.verify_all(running),
            9 => {
                self.host.lock().budget += self.random.within(0, 30);
                Ok(())
            }
            10 => {
                let states = running.engine.partitions(VOLUME, 0..PartitionIndex::MAX);
                if states.is_err() && !self.disk.lock().dead {
                    return Err("the partitions' states are not known".to_owned());
                }
                Ok(())
            }
            11..=13 => self.relocate(running),
            14..=15 => self.give_back(running),
            _ => {
                let budget = std::mem::take(&mut self.host.lock().budget);
                self.drain(running)?;
                self.host.lock().budget = budget;
                Ok(())
            }
        }
    }

    fn flush(&mut self, running: &Running) -> Result<bool> {
        self.host.settle();
        let time = self.host.now();
        let before = self.disk.lock().injected;
        let result = running.engine.flush(VOLUME);
        if self.disk.lock().dead {
            return Ok(false);
        }
        self.host.settle();
        if result.is_ok() {
            self.host.lock().model.flushed(time, None);
        } else if !self.sync_failed() && !self.disk.lock().went_wrong(before) {
            return Err("a flush failed".to_owned());
        }
        Ok(result.is_ok())
    }

    fn take_snapshot(&mut self, running: &Running) -> Result<()> {
        let hangs = running.engine.volume(VOLUME).is_ok_and(|volume| volume.has_given_up());
        if self.catalog.snapshots.len() >= 6 || hangs {
            return self.delete_snapshot(running);
        }
        let rules = self.shape.snapshot_rules(&mut self.random);
        self.host.settle();
        {
            let mut state = self.host.lock();
            let in_flight = state.writes_in_flight();
            state.model.begin_cut(in_flight.into_iter());
        }
        let before = self.disk.lock().injected.errors;
        self.note_cut(running, rules.clone())?;
        let report = running.engine.cut(&[(VOLUME, rules.clone())]);
        if self.disk.lock().dead {
            return Ok(());
        }
        let epoch = report.map_err(|e| format!("a cut failed: {e}"))?.epochs[0].1;
        self.host.settle();
        let Some(snapshot) = self.host.lock().model.end_cut(epoch, rules.clone()) else {
            return Ok(());
        };
        let settled = running.engine.settle(VOLUME, epoch);
        if self.disk.lock().dead {
            return Ok(());
        }
        let refused = settled.is_err();
        let injected = self.disk.lock().injected.errors > before;
        if !injected && !self.disk.lock().may_hang() {
            settled.map_err(|e| format!("a cut does not settle: {e}"))?;
        }
        if refused || !self.flush(running)? {
            self.note_rules();
            if !self.disk.lock().dead {
                let _ = running.engine.drop_snapshot(VOLUME, epoch);
            }
            return Ok(());
        }
        self.disk.lock().maybe_crash();
        if self.disk.lock().dead {
            return Ok(());
        }
        self.catalog.snapshots.push((epoch, rules));
        self.catalog.next_epoch = epoch + 1;
        self.host.lock().snapshots.insert(epoch, snapshot);
        self.counts.snapshots += 1;
        self.disk.lock().note("snapshot", epoch, 0, 0);
        self.note_states(running, epoch)?;
        self.disk.lock().maybe_crash();
        if self.random.below(3) == 0 {
            self.verify(running, Some(epoch))?;
        }
        Ok(())
    }

    pub(super) fn delete_snapshot(&mut self, running: &Running) -> Result<()> {
        let count = self.catalog.snapshots.len() as u64;
        if count == 0 || self.disk.lock().dead {
            return Ok(());
        }
        let (epoch, _) = self.catalog.snapshots[self.random.below(count) as usize];
        self.delete(running, epoch)
    }

    fn delete(&mut self, running: &Running, epoch: Epoch) -> Result<()> {
        let snapshot = self.host.lock().snapshots.remove(&epoch);
        while self.host.lock().is_read(epoch) && running.system.turn() {
            self.host.settle();
        }
        if self.run_state()? == End::Crashed {
            snapshot.into_iter().for_each(|snapshot| self.host.lock().keep(epoch, snapshot));
            return Ok(());
        }
        let rules = self.catalog.snapshots.iter().find(|(other, _)| *other == epoch);
        let rules = rules.map(|(_, rules)| rules.clone()).unwrap_or_default();
        self.catalog.snapshots.retain(|(other, _)| *other != epoch);
        self.disk.lock().note("delete", epoch, 0, 0);
        self.host.lock().sample();
        self.note_rules();
        self.disk.lock().maybe_crash();
        if !self.disk.lock().dead {
            let dropped = running.engine.drop_snapshot(VOLUME, epoch);
            if dropped.is_err() && !self.disk.lock().dead {
                return Err("a snapshot cannot be dropped".to_owned());
            }
            if !self.disk.lock().dead && !self.sync_failed() {
                self.catalog.deleted.insert(epoch, rules);
            }
        }
        Ok(())
    }
}
