//! Snapshots: the control calls that make a cut, wait until the writes before it have ended, and drop snapshots.
//!
//! How it works      A cut is made by all processors that own partitions of the chosen volumes:
//!                   [`crate::processor::cut`] has the proof that it is one instant. A drop is done by each share: it frees what only the dropped
//!                   snapshot sees ([`crate::processor::share::reclaim`], also for when that space is reused). Which
//!                   snapshots exist is decided by Python, in the catalog.
//! Owner and locks   `cutting`: held for a whole cut. A volume's `dropping`, held for a whole drop, then `origins`,
//!                   until the drop has begun: so no clone is made of a snapshot that is being dropped.
//! Errors            NotFound if a volume is not served or has no such log area; Busy for a snapshot that is exported
//!                   or has clones; an I/O error if writes before a cut do not end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, channel};

use crate::change_log::log_rules::LogRules;
use crate::engine::{Engine, watch};
use crate::error::{Errno, Error, ErrorKind, Result};
use crate::processor::cut::{Cut, CutPart, Report};
use crate::processor::messages::{Control, CutShare, Event};
use crate::processor::queue::ask;
use crate::processor::runner::Mailbox;
use crate::system::wait;
use crate::units::{Epoch, VolumeId};
use crate::volume::Volume;

/// A cut that was made.
#[derive(Debug)]
pub struct CutReport {
    /// The epoch that it ended, by volume.
    pub epochs: Vec<(VolumeId, Epoch)>,
    /// Nanoseconds since 1970.
    pub instant_ns: u64,
    /// What each processor has done.
    pub parts: Vec<CutPart>,
    /// The volumes that were cut, by the number of their shares.
    pub volumes: BTreeMap<u32, VolumeId>,
}

impl Engine {
    /// Makes one cut over these volumes, each with the log rules for what is written after it. See
    /// [`crate::processor::cut`].
    pub fn cut(&self, volumes: &[(VolumeId, LogRules)]) -> Result<CutReport> {
        let _one_at_a_time = self.cutting.lock().expect("no holder panics");
        let mut taking_part: BTreeMap<u32, (Arc<dyn Mailbox>, Vec<CutShare>)> = BTreeMap::new();
        let mut chosen: Vec<Arc<Volume>> = Vec::new();
        for (id, rules) in volumes {
            let volume = self.volume(*id)?;
            if chosen.iter().any(|other| other.id == *id) {
                let what = format!("volume {} is named twice", volume.name);
                return Err(Error::new(ErrorKind::Invalid, what));
            }
            self.refuse_half_rolled_back(&volume)?;
            self.refuse_given_up(&volume, "cannot be cut now")?;
            refuse_wrong(&volume, rules.wrong(|number| volume.space.log(number).is_some()))?;
            for share in &volume.shares {
                let entry = taking_part.entry(share.processor);
                let runner = Arc::clone(&share.runner) as Arc<dyn Mailbox>;
                let (_, shares) = entry.or_insert_with(|| (runner, Vec::new()));
                shares.push(CutShare { share: volume.share, rules: rules.clone() });
            }
            chosen.push(volume);
        }
        if chosen.is_empty() {
            return Err(Error::new(ErrorKind::Invalid, "a cut needs at least 1 volume"));
        }
        let (sender, receiver) = channel();
        let runners = taking_part.values().map(|(runner, _)| Arc::clone(runner)).collect();
        let cut = Arc::new(Cut::new(Arc::clone(&self.system), runners, sender));
        let mut shares = taking_part.into_values().map(|(_, shares)| shares);
        cut.send(|| {
            let its = shares.next().expect("as many as there are processors");
            Control::CutStop(Arc::clone(&cut), its)
        });
        drop(cut); // if a processor has stopped for good, no thread has the cut now, and no answer will come
        let stopped = |_| Error::io("the processors have stopped", Errno::ESHUTDOWN);
        let Report { instant_ns, parts } = wait(&*self.system, &receiver).map_err(stopped)?;
        let ended = |volume: &Arc<Volume>| (volume.id, volume.epoch.fetch_add(1, Ordering::AcqRel));
        let epochs = chosen.iter().map(ended).collect();
        let volumes = chosen.iter().map(|volume| (volume.share, volume.id)).collect();
        Ok(CutReport { epochs, instant_ns, parts, volumes })
    }

    /// Waits until every write of `epoch`, which a cut has ended, is complete, and the journals have the cut.
    pub fn settle(&self, volume: VolumeId, epoch: Epoch) -> Result<()> {
        let volume = self.volume(volume)?;
        if epoch >= volume.epoch.load(Ordering::Acquire) {
            let what = format!("volume {}: no cut has ended epoch {epoch}", volume.name);
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        for share in &volume.shares {
            let settled = ask(&*self.system, &share.queue, |answer| {
                Control::Settle(volume.share, epoch, answer)
            })?;
            settled.map_err(|errno| match errno {
                Errno::EIO => watch::hangs(&volume.name, "has writes that do not end"),
                _ => {
                    Error::io(format!("the journal of volume {} has no space", volume.name), errno)
                }
            })?;
        }
        Ok(())
    }

    /// Drops a snapshot; returns the bytes that only it could see.
    pub fn drop_snapshot(&self, volume: VolumeId, epoch: Epoch) -> Result<u64> {
        self.drop_snapshots(volume, &[epoch])
    }

    /// Drops several snapshots, which costs one sync; returns the bytes that only they could see.
    pub fn drop_snapshots(&self, volume: VolumeId, epochs: &[Epoch]) -> Result<u64> {
        self.drop_of(&*self.volume(volume)?, epochs)
    }

    fn drop_of(&self, volume: &Volume, epochs: &[Epoch]) -> Result<u64> {
        // One after the other: a drop relies on the history that the snapshots were part of.
        let _one_at_a_time = volume.dropping.lock().expect("no holder panics");
        let origins = self.origins.lock().expect("no holder panics");
        self.refuse_origins(&origins, volume, |epoch| epochs.contains(&epoch))?;
        for epoch in epochs {
            if let Some(export) = self.exports.shows(volume.id, Some(*epoch)) {
                let what = format!("export {export} still shows a snapshot that is to be dropped");
                return Err(Error::new(ErrorKind::Busy, what));
            }
        }
        let receiver = self.begin_drop(volume, epochs, None);
        drop(origins);
        Ok(self.end_drop(&receiver))
    }

    /// Makes all shares drop snapshots, and forget the rollback at an epoch, if one is given.
    pub(super) fn begin_drop(
        &self,
        volume: &Volume,
        epochs: &[Epoch],
        rollback: Option<Epoch>,
    ) -> Receiver<u64> {
        let (sender, receiver) = channel();
        for share in &volume.shares {
            let control = Control::Drop(volume.share, epochs.to_vec(), rollback, sender.clone());
            share.queue.push(Event::Control(Box::new(control)));
        }
        receiver
    }

    /// Waits until they have done so; returns the bytes that were freed.
    pub(super) fn end_drop(&self, receiver: &Receiver<u64>) -> u64 {
        let mut freed = 0;
        while let Ok(bytes) = wait(&*self.system, receiver) {
            freed += bytes;
        }
        freed
    }
}

/// Refuses log rules that a volume cannot use: `wrong` says why.
pub(super) fn refuse_wrong(volume: &Volume, wrong: Option<String>) -> Result<()> {
    let refused = |what| Error::new(ErrorKind::NotFound, format!("volume {}: {what}", volume.name));
    wrong.map_or(Ok(()), |what| Err(refused(what)))
}
