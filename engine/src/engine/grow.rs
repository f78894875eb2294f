//! Grow: makes a volume larger while it is in use.
//!
//! How it works      Everything that can fail comes first: devices are looked up, processors that had no partition of
//!                   it get a journal. Then each share grows ([`crate::processor::share::grow`]), and a new [`Volume`] with
//!                   the same shares and the new ones replaces the old one, for control calls and for connections made
//!                   from now on. Existing connections continue with the old one until a request is beyond its end: a
//!                   kernel client learns the new size while it is connected.
//! Invariants        GR1 partitions keep their processors, numbers and bytes: an older geometry is the beginning of a
//!                   newer one;
//!                   GR2 no cut is made during a growth: exactly the existing snapshots do not show the new blocks.
//! Durability        The catalog has recorded the growth before, so recovery knows the new partitions when something
//!                   was written to them.
//! Errors            on an error the volume is unchanged.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::change_log::files::{Identity, files};
use crate::engine::Engine;
use crate::engine::recovery::{SharePlan, recover_all};
use crate::engine::spec::{VolumeSpec, check};
use crate::engine::volumes::{NewShare, index_by_processor, start_journal};
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::Geometry;
use crate::io::extent::Extent;
use crate::processor::messages::{Control, Event};
use crate::processor::queue::ask;
use crate::processor::share::grow::Growth;
use crate::processor::share::{Share, ShareConfig};
use crate::processor::space_waiters::Ask;
use crate::request::Target;
use crate::units::BLOCK_SIZE;
use crate::volume::{ShareRef, View, Volume};

impl Engine {
    /// Grows a volume to the shape in `spec`.
    pub fn grow_volume(&self, mut spec: VolumeSpec) -> Result<()> {
        check(&spec)?;
        let _no_cut = self.cutting.lock().expect("no holder panics"); // GR2
        let volume = self.volume(spec.id)?;
        spec.forget(&volume.stale);
        let geometry = Arc::new(self.geometry(&spec)?);
        check_growth(&volume, &geometry)?;
        let new = geometry.partitions.iter().skip(volume.geometry.partitions.len());
        let new = new.flat_map(|partition| &partition.extents);
        self.refuse_stuck(&new.map(|extent| Arc::clone(&extent.device)).collect::<Vec<_>>())?;
        self.check_history(&volume, &spec)?;
        let (known, new): (Vec<_>, Vec<_>) = self
            .plans(&spec, &geometry)?
            .into_iter()
            .partition(|plan| share_of(&volume, plan).is_some());
        let identities: Vec<_> = new.iter().map(|plan| plan.identity.clone()).collect();
        let new_shares = self.start_journals(new, &mut spec, &geometry, &volume);
        let new_shares = new_shares.inspect_err(|_| identities.iter().for_each(remove_files))?;
        for extent in geometry.partitions.iter().flat_map(|partition| &partition.extents) {
            volume.durable.add_device(&extent.device);
        }
        for plan in &known {
            self.grow_share(&volume, plan, &geometry)?;
        }
        let grown = self.assemble(&volume, &spec, &geometry, new_shares);
        let target: Arc<dyn Target> = Arc::new(View { volume: Arc::clone(&grown), epoch: None });
        self.exports.grow(&target);
        Ok(())
    }

    /// Refuses a catalog with snapshots or rollbacks that the existing shares do not have, because the new shares would
    /// have them.
    fn check_history(&self, volume: &Volume, spec: &VolumeSpec) -> Result<()> {
        self.refuse_half_rolled_back(volume)?;
        let (ours, _) = ask(&*self.system, &volume.shares[0].queue, |answer| {
            Control::History(volume.share, answer)
        })?;
        let catalog = spec.history();
        let snapshots = catalog.snapshots().iter().all(|epoch| ours.has(*epoch)); // the shares may have more, which are about to be dropped
        if !snapshots || catalog.rollbacks() != ours.rollbacks() {
            let what =
                format!("volume {} cannot grow: its history differs from the catalog", volume.name);
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        Ok(())
    }

    /// Starts journals for processors that had no partition of the volume.
    fn start_journals(
        &self,
        new: Vec<SharePlan>,
        spec: &mut VolumeSpec,
        geometry: &Geometry,
        volume: &Volume,
    ) -> Result<Vec<NewShare>> {
        let (recovered, _) =
            recover_all(&new, spec, geometry, &volume.space, self.system.threaded())?;
        let epoch = volume.epoch.load(Ordering::Acquire);
        let begin_one = |(plan, (recovered, slots))| {
            let begun = start_journal(&plan, recovered, geometry, spec, epoch)?;
            Ok((plan, begun, slots))
        };
        new.into_iter().zip(recovered).map(begin_one).collect()
    }

    /// Sends a share its new partitions, and waits until it serves them.
    fn grow_share(
        &self,
        volume: &Volume,
        plan: &SharePlan,
        geometry: &Arc<Geometry>,
    ) -> Result<()> {
        let Some(share) = share_of(volume, plan) else { return Ok(()) };
        let before = volume.geometry.partitions.len() as u32;
        let blocks = |number: u32| (geometry.partition_bytes(number) / BLOCK_SIZE) as u32;
        let last = before - 1;
        let longer = plan.partitions.contains(&last)
            && geometry.partition_bytes(last) > volume.geometry.partition_bytes(last);
        let local = geometry.partitions[last as usize].local;
        let new = plan.partitions.iter().filter(|number| **number >= before);
        let added: Vec<_> = new.map(|number| (*number, blocks(*number))).collect();
        ask(&*self.system, &share.queue, |answer| {
            let longer = longer.then(|| (local, blocks(last)));
            let geometry = Arc::clone(geometry);
            Control::Grow(volume.share, Box::new(Growth { geometry, longer, added, answer }))
        })
    }

    /// Replaces the volume by the grown one.
    fn assemble(
        &self,
        volume: &Volume,
        spec: &VolumeSpec,
        geometry: &Arc<Geometry>,
        new_shares: Vec<NewShare>,
    ) -> Arc<Volume> {
        let epoch = volume.epoch.load(Ordering::Acquire);
        let mut shares = volume.shares.clone();
        for (plan, begun, slots) in new_shares {
            let journal = begun.journal.shared();
            volume.durable.add_journal(journal, &plan.share.queue, volume.share);
            let share = Share::new(ShareConfig {
                number: volume.share,
                geometry: Arc::clone(geometry),
                origin: volume.origin.clone(),
                space: Arc::clone(&volume.space),
                space_waiters: Arc::clone(&volume.space_waiters),
                ask: Ask { events: Arc::clone(&self.events), volume: volume.id },
                flusher: Arc::clone(&volume.flusher),
                bad: Arc::clone(&volume.bad),
                pins: Arc::clone(&volume.pins),
                stats: Arc::clone(&plan.share.stats),
                locals: begun.locals,
                journal: begun.journal,
                recorded: begun.recorded,
                slots,
                epoch,
                checkpoint_epoch: 0,
                history: spec.history(),
                rules: spec.rules(),
                processor: plan.share.processor,
                ordinal: shares.len(),
            });
            let control = Control::AddShare(volume.share, Box::new(share));
            plan.share.queue.push(Event::Control(Box::new(control)));
            shares.push(plan.share);
        }
        let mut bounds = volume.bounds.clone();
        bounds.push((epoch, volume.geometry.size));
        let grown = Arc::new(Volume {
            id: volume.id,
            name: Arc::clone(&volume.name),
            share: volume.share,
            geometry: Arc::clone(geometry),
            origin: volume.origin.clone(),
            space: Arc::clone(&volume.space),
            space_waiters: Arc::clone(&volume.space_waiters),
            durable: Arc::clone(&volume.durable),
            bad: Arc::clone(&volume.bad),
            pins: Arc::clone(&volume.pins),
            flusher: Arc::clone(&volume.flusher),
            share_of: index_by_processor(&shares),
            shares,
            flushes: Arc::clone(&volume.flushes),
            epoch: Arc::clone(&volume.epoch),
            bounds,
            usage: std::sync::Mutex::default(),
            dropping: Arc::clone(&volume.dropping),
            rolling_back: Arc::clone(&volume.rolling_back),
            stale: volume.stale.clone(),
        });
        let mut volumes = self.volumes.lock().expect("no holder panics");
        volumes.insert(grown.id, Arc::clone(&grown));
        grown
    }
}

fn share_of<'a>(volume: &'a Volume, plan: &SharePlan) -> Option<&'a ShareRef> {
    volume.shares.iter().find(|share| share.processor == plan.share.processor)
}

/// Removes the files of a failed growth.
fn remove_files(identity: &Identity) {
    for (_, path) in files(identity, ".journal").into_iter().flatten() {
        let _ = identity.system.remove(&path); // if that fails, the next growth finds an empty journal
    }
    let _ = identity.system.remove(&identity.manifest);
}

/// Refuses a geometry that is not larger, or whose beginning differs (GR1).
fn check_growth(volume: &Volume, geometry: &Geometry) -> Result<()> {
    let old = &volume.geometry;
    let wrong = |what: &str| {
        let what = format!("volume {} cannot grow: {what}", volume.name);
        Err(Error::new(ErrorKind::Invalid, what))
    };
    if geometry.size <= old.size || geometry.partition_shift != old.partition_shift {
        return wrong("it would not be larger");
    }
    let same = |a: &Extent, b: &Extent| {
        (a.device.id, a.offset, a.length) == (b.device.id, b.offset, b.length)
    };
    let begins = old.partitions.iter().zip(&geometry.partitions).all(|(was, is)| {
        was.processor == is.processor
            && was.extents.len() <= is.extents.len()
            && was.extents.iter().zip(&is.extents).all(|(a, b)| same(a, b))
    });
    if begins { Ok(()) } else { wrong("its present partitions would move") }
}
