//! Rollback: makes a volume show what a snapshot shows, and forgets a rollback that no longer has any effect.
//!
//! How it works      Each share in turn does a rollback, after all of them were checked for being able to. It is
//!                   forgotten in three steps: checkpoints cover the journals before it; the catalog forgets it; the
//!                   shares forget it.
//! Invariants        RL1 a rollback is offered for forgetting, and forgotten, only if nothing needs it and every share
//!                   has a durable checkpoint of a later epoch: journals that recovery could read do not have it any
//!                   more;
//!                   RL2 a rollback that may be forgotten stays so: later snapshots and rollbacks are of later epochs;
//!                       only forgetting another one may change that, so they are forgotten one by one;
//!                   RL3 while some shares have rolled back and others have not, there is no cut and no export of the
//!                       live volume: this state ends when the rollback is repeated, or the volume is closed.
//! Owner and locks   `dropping` of the volume, then `cutting`: a rollback is forgotten by all shares or by none,
//!                   including those of a growth.
//! Errors            Busy for what may not be done now: nothing has changed. Io if a journal has no space for the
//!                   record: some shares have rolled back, see RL3.

use std::sync::atomic::Ordering;

use crate::block_map::history::{History, Rollback};
use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::mutants::{Bug, bug};
use crate::processor::messages::Control;
use crate::processor::queue::ask;
use crate::units::{Epoch, VolumeId};
use crate::volume::Volume;

impl Engine {
    /// Does a rollback that the catalog has recorded. The epoch of writes was `at` until now, and the live volume has
    /// no export. It may be called again after an error.
    pub fn roll_back(&self, volume: VolumeId, rollback: Rollback) -> Result<()> {
        let _no_cut = self.cutting.lock().expect("no holder panics");
        let volume = self.volume(volume)?;
        let Rollback { at, to } = rollback;
        let refused = |kind, why: &str| {
            let what = format!("volume {} cannot be rolled back to epoch {to}: {why}", volume.name);
            Err(Error::new(kind, what))
        };
        if self.exports.shows(volume.id, None).is_some() {
            return refused(ErrorKind::Busy, "it is exported");
        }
        if volume.epoch.load(Ordering::Acquire) != at {
            return refused(ErrorKind::Invalid, "its epoch differs");
        }
        if !self.lineages(&volume)?.iter().all(|(history, _)| history.has(to)) {
            return refused(ErrorKind::Invalid, "it has no snapshot of this epoch");
        }
        volume.rolling_back.store(true, Ordering::Release);
        for share in &volume.shares {
            let done = ask(&*self.system, &share.queue, |answer| {
                Control::RollBack(volume.share, rollback, answer)
            })?;
            done.map_err(|errno| {
                Error::io(format!("volume {} cannot be rolled back now", volume.name), errno)
            })?;
        }
        volume.epoch.fetch_add(1, Ordering::AcqRel);
        volume.rolling_back.store(false, Ordering::Release);
        Ok(())
    }

    /// Refuses a call while some shares have rolled back and others have not (RL3).
    pub(super) fn refuse_half_rolled_back(&self, volume: &Volume) -> Result<()> {
        if volume.rolling_back.load(Ordering::Acquire) {
            let what = format!("volume {}: its rollback is not done yet", volume.name);
            return Err(Error::new(ErrorKind::Busy, what));
        }
        Ok(())
    }

    /// Each share's snapshots and rollbacks, and the epoch of its newest durable checkpoint.
    fn lineages(&self, volume: &Volume) -> Result<Vec<(History, Epoch)>> {
        let ask_one = |share: &crate::volume::ShareRef| {
            ask(&*self.system, &share.queue, |answer| Control::History(volume.share, answer))
        };
        volume.shares.iter().map(ask_one).collect()
    }

    /// The rollbacks that nothing needs, each with whether checkpoints of all shares cover it.
    fn unneeded(&self, volume: &Volume) -> Result<Vec<(Epoch, bool)>> {
        self.refuse_half_rolled_back(volume)?;
        let lineages = self.lineages(volume)?;
        let covered = lineages.iter().map(|(_, epoch)| *epoch).min().unwrap_or(0);
        let unneeded = |at: &Epoch| lineages.iter().all(|(history, _)| history.is_unneeded(*at));
        let rollbacks = lineages[0].0.rollbacks().iter().map(|rollback| rollback.at);
        let early = bug(Bug::EarlyForget);
        Ok(rollbacks.filter(unneeded).map(|at| (at, covered > at || early)).collect())
    }

    /// Writes checkpoints if they do not cover a rollback that nothing needs, and waits for them.
    pub fn cover_rollbacks(&self, volume: VolumeId) -> Result<()> {
        let covered = |(_, covered): &(Epoch, bool)| *covered;
        match self.unneeded(&*self.volume(volume)?)?.iter().all(covered) {
            true => Ok(()),
            false => self.checkpoint(volume),
        }
    }

    /// The `at` of a rollback that may be forgotten (RL1): no snapshot exists between its target and it, or none after
    /// it, and checkpoints cover it.
    pub fn unneeded_rollback(&self, volume: VolumeId) -> Result<Option<Epoch>> {
        let volume = self.volume(volume)?;
        let unneeded = self.unneeded(&volume)?;
        Ok(unneeded.into_iter().find(|(_, covered)| *covered).map(|(at, _)| at))
    }

    /// Forgets a rollback that the catalog has forgotten, if RL1 allows that. Returns the bytes that were freed.
    pub fn forget_rollback(&self, volume: VolumeId, at: Epoch) -> Result<u64> {
        let dropping = std::sync::Arc::clone(&self.volume(volume)?.dropping);
        let one_at_a_time = dropping.lock().expect("no holder panics");
        let no_cut = self.cutting.lock().expect("no holder panics");
        let volume = self.volume(volume)?;
        let unneeded = self.unneeded(&volume)?;
        let refused = |why: &str| {
            let what = format!(
                "the rollback of volume {} at epoch {at} cannot be forgotten: {why}",
                volume.name
            );
            Err(Error::new(ErrorKind::Busy, what))
        };
        match unneeded.iter().find(|(other, _)| *other == at) {
            None => return refused("it is needed, or unknown"),
            Some((_, false)) => return refused("no checkpoint covers it"),
            Some((_, true)) => {}
        }
        let receiver = self.begin_drop(&volume, &[], Some(at));
        drop(no_cut);
        let freed = self.end_drop(&receiver);
        drop(one_at_a_time);
        Ok(freed)
    }
}
