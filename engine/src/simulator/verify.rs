//! Verify: comparing everything with the model, and the final check of a simulation.

use std::sync::atomic::Ordering;

use super::contents::SECTOR;
use super::driver::{End, Result, Running, Simulation};
use super::model::Sector;
use super::shape::VOLUME;
use crate::change_log::log_rules::LogRules;
use crate::request::Verb;
use crate::units::Epoch;

/// Sectors of one read when everything is compared.
const VERIFY_SECTORS: Sector = 192;

impl Simulation {
    pub(super) fn verify_all(&mut self, running: &Running) -> Result<()> {
        let budget = std::mem::take(&mut self.host.lock().budget);
        if !self.disk.lock().dead {
            self.host.lock().rules.check(&running.engine)?;
        }
        self.verify(running, None)?;
        for (epoch, _) in self.catalog.snapshots.clone() {
            self.verify(running, Some(epoch))?;
        }
        self.host.lock().budget = budget;
        if self.disk.lock().dead { Ok(()) } else { self.check_states(running) }
    }

    /// Notes that the log rules in force may change: they are those of the catalog's newest snapshot.
    pub(super) fn note_rules(&mut self) {
        let time = self.host.now();
        self.host.lock().rules.note(time, &self.catalog.snapshots);
    }

    /// Notes that a snapshot with these log rules is about to be taken.
    pub(super) fn note_cut(&mut self, running: &Running, rules: LogRules) -> Result<()> {
        let volume = running.engine.volume(VOLUME).map_err(|e| e.to_string())?;
        let mut snapshots = self.catalog.snapshots.clone();
        snapshots.push((volume.epoch.load(Ordering::Relaxed), rules));
        let time = self.host.now();
        self.host.lock().rules.note(time, &snapshots);
        Ok(())
    }

    /// Reads all of the volume or a snapshot.
    pub(super) fn verify(&mut self, running: &Running, view: Option<Epoch>) -> Result<()> {
        let sectors = (self.shape.size / SECTOR as u64) as Sector;
        let mut from = 0;
        let errors = self.host.lock().read_errors;
        while from < sectors && !self.disk.lock().dead {
            let to = (from + VERIFY_SECTORS).min(sectors);
            self.host.read(from..to, view);
            from = to;
        }
        while self.host.lock().is_read_all(view) && running.system.turn() {
            self.host.settle();
        }
        if self.run_state()? == End::Crashed {
            return Ok(());
        }
        let host = self.host.lock();
        let whole = host.read_errors == errors;
        match view.and_then(|epoch| host.snapshots.get(&epoch)).filter(|_| whole) {
            Some(snapshot) => snapshot.is_one_instant(),
            _ => Ok(()),
        }
    }

    /// The final check, without faults: everything has the expected contents, and nothing is left after everything was
    /// deleted.
    pub(super) fn final_check(&mut self) -> Result<()> {
        self.disk.lock().failing = false;
        // After a failed sync, none succeeds before the machine is restarted.
        self.disk.lock().crash(true);
        self.start_again();
        self.disk.lock().plan = None;
        let Some(running) = self.start(false)? else { return Ok(()) };
        self.disk.lock().failing = false;
        self.verify_all(&running)?;
        if self.disk.lock().injected.short > 0 {
            self.end(&running);
            return Ok(()); // lost data can neither be deleted nor made durable
        }
        while !self.catalog.snapshots.is_empty() {
            self.delete_snapshot(&running)?;
        }
        self.host.submit_whole(Verb::Trim);
        self.drain(&running)?;
        for _ in 0..2 {
            self.host.submit_whole(Verb::Flush);
            self.drain(&running)?;
        }
        self.expect_nothing_used(&running)?;
        self.stop_cleanly(&running)?;
        self.disk.lock().crash(true);
        self.crashed(&running);
        drop(running);
        let Some(running) = self.start(false)? else { return Ok(()) };
        self.disk.lock().failing = false;
        self.verify_all(&running)?;
        self.expect_nothing_used(&running)?;
        self.end(&running);
        Ok(())
    }

    fn expect_nothing_used(&self, running: &Running) -> Result<()> {
        let volume = running.engine.volume(VOLUME).map_err(|e| e.to_string())?;
        let used = volume.space.usage();
        let claimed: u64 = volume.space.logs().iter().map(|log| log.slots.used()).sum();
        if used.used > 0 || claimed > 0 || volume.space.free() != used.size {
            return Err(format!("slots are leaked: {used:?}, {claimed} in chunks"));
        }
        Ok(())
    }
}
