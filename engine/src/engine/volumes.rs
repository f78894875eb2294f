//! Opening and closing a volume.
//!
//! How it works      `add_volume`: resolve devices, recover each processor's maps and mark the slots that they refer to
//!                   as used, each on a thread of its own, start new journal segments, give each processor its share,
//!                   and [make everything durable](super::recovered_sync). `remove_volume`: remove the shares from the
//!                   processors, write last checkpoints.
//! Errors            if anything cannot be read, nothing is served, and no file except leftovers is changed.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::channel;

use crate::change_log::journal::{Entry, Journal};
use crate::change_log::log_rules::VolumeRules;
use crate::change_log::past::{EpochRanges, RecordedCut, Stale};
use crate::change_log::recover::Recovered;
use crate::change_log::slots::Slots;
use crate::change_log::space::{LogArea, Space};
use crate::engine::Engine;
use crate::engine::recovered_sync::devices_to_sync;
use crate::engine::recovery::{SharePlan, recover_all};
use crate::engine::snapshots::refuse_wrong;
use crate::engine::spec::{ExtentSpec, VolumeSpec, check};
use crate::error::{Errno, Error, ErrorKind, Result};
use crate::geometry::bad_blocks::BadBlocks;
use crate::geometry::origin::Origin;
use crate::geometry::{Geometry, Partition};
use crate::io::extent::Extent;
use crate::mutants::{Bug, bug};
use crate::processor::flusher::{Flusher, Waiter};
use crate::processor::messages::{Control, Event};
use crate::processor::queue::ask;
use crate::processor::share::{Local, RecordedCuts, Share, ShareConfig};
use crate::processor::space_waiters::{Ask, SpaceWaiters};
use crate::system::pool::Lane;
use crate::units::{BLOCK_SIZE, Epoch, LocalIndex, ProcessorIndex, VolumeId};
use crate::volume::export::Export;
use crate::volume::name::VolumeName;
use crate::volume::{ShareRef, Volume};

/// A plan with its recovered state.
type RecoveredPlan = (SharePlan, (Recovered, Slots));

/// A processor's plan, and what its share begins with.
pub(super) type NewShare = (SharePlan, Begun, Slots);

/// The journal and the partitions of a share, and the recorded cuts of its snapshots.
pub(super) struct Begun {
    pub(super) journal: Journal,
    pub(super) locals: Vec<Local>,
    pub(super) recorded: RecordedCuts,
}

impl Engine {
    /// Opens a volume. Returns the epochs of snapshots that the catalog has although the journals say that they were
    /// deleted, because it is an older copy: it is open without them.
    pub fn add_volume(&self, mut spec: VolumeSpec) -> Result<Vec<Epoch>> {
        check(&spec)?;
        if self.volume(spec.id).is_ok() {
            let what = format!("volume {} is served already", spec.name);
            return Err(Error::new(ErrorKind::Exists, what));
        }
        let geometry = Arc::new(self.geometry(&spec)?);
        let _claim = self.claim_origin(&spec);
        let origin = self.origin(&spec)?;
        let space = Arc::new(Space::default());
        for (number, extents) in &spec.logs {
            space.add(self.log(*number, extents)?)?;
        }
        let logs = space.logs();
        let devices = geometry.devices().chain(logs.iter().flat_map(|log| log.devices()));
        self.refuse_stuck(&devices.cloned().collect::<Vec<_>>())?;
        let plans = self.plans(&spec, &geometry)?;
        let threads = self.system.threaded();
        let (recovered, stale) = recover_all(&plans, &mut spec, &geometry, &space, threads)?;
        let deleted = stale.snapshots.clone();
        self.make_volume_directory(&spec.directory).map_err(|e| {
            Error::io(format!("directory {} cannot be made", spec.directory.display()), e)
        })?;
        let number = self.allocate_share_number();
        let found = plans.into_iter().zip(recovered).collect();
        let served = self.serve(spec, number, (geometry, origin), (space, stale), found);
        if served.is_err() {
            self.free_share_number(number);
        }
        served.map(|()| deleted)
    }

    /// Creates it, durably: files that a flush makes durable must not be lost with the directory's name.
    fn make_volume_directory(&self, directory: &Path) -> std::result::Result<(), Errno> {
        self.system.make_directory(directory)?;
        directory.parent().map_or(Ok(()), |parent| self.system.sync_directory(parent))
    }

    /// The smallest share number that no volume has. A volume keeps its own until its last share is gone.
    fn allocate_share_number(&self) -> u32 {
        let mut taken = self.share_numbers.lock().expect("no holder panics");
        let number = (0..).find(|number| !taken.contains(number));
        let number = number.expect("there are fewer volumes than numbers");
        taken.insert(number);
        number
    }

    fn free_share_number(&self, number: u32) {
        self.share_numbers.lock().expect("no holder panics").remove(&number);
    }

    fn extents(&self, specs: &[ExtentSpec]) -> Result<Vec<Extent>> {
        let resolve = |spec: &ExtentSpec| {
            let device = self.device(spec.device)?;
            Ok(Extent { device, offset: spec.offset, length: spec.length })
        };
        specs.iter().map(resolve).collect()
    }

    fn log(&self, number: u16, extents: &[ExtentSpec]) -> Result<LogArea> {
        LogArea::new(number, self.extents(extents)?)
    }

    pub(super) fn geometry(&self, spec: &VolumeSpec) -> Result<Geometry> {
        let mut next_local: HashMap<ProcessorIndex, LocalIndex> = HashMap::new();
        let mut partitions = Vec::with_capacity(spec.partitions.len());
        for (processor, extents) in &spec.partitions {
            let local = next_local.entry(*processor).or_default();
            let extents = self.extents(extents)?;
            partitions.push(Partition { processor: *processor, local: *local, extents });
            local.0 += 1;
        }
        let partition_shift = spec.partition_size.trailing_zeros();
        Ok(Geometry { size: spec.size, partition_shift, partitions })
    }

    pub(super) fn plans(&self, spec: &VolumeSpec, geometry: &Geometry) -> Result<Vec<SharePlan>> {
        let failed = |e| Error::io("the host's boot id cannot be read", e);
        let boot_id = self.system.boot_id().map_err(failed)?;
        let processors = self.processors.lock().expect("no holder panics");
        let mut plans: Vec<SharePlan> = Vec::new();
        for (number, partition) in geometry.partitions.iter().enumerate() {
            let processor = partition.processor;
            if let Some(plan) = plans.iter_mut().find(|plan| plan.share.processor == processor) {
                plan.partitions.push(number as u32);
                continue;
            }
            let Some(handle) = processors.get(processor as usize) else {
                let what = format!("volume {} wants processor {processor}", spec.name);
                return Err(Error::new(ErrorKind::Invalid, what));
            };
            let identity = spec.identity(&self.system, processor, boot_id);
            let runner = Arc::clone(&handle.runner);
            let queue = Arc::clone(&runner.queue);
            let share = ShareRef { processor, runner, queue, stats: Arc::default() };
            plans.push(SharePlan { share, partitions: vec![number as u32], identity });
        }
        Ok(plans)
    }

    fn serve(
        &self,
        spec: VolumeSpec,
        number: u32,
        (geometry, origin): (Arc<Geometry>, Option<Arc<Origin>>),
        (space, stale): (Arc<Space>, Stale),
        found: Vec<RecoveredPlan>,
    ) -> Result<()> {
        let space_waiters = Arc::new(SpaceWaiters::default());
        let durable = devices_to_sync(&found[0].0.identity, &geometry, &space, &space_waiters);
        let (epoch, checkpoints) = epochs(&found, &spec);
        let replayed = found.iter().any(|(_, (one, _))| one.replayed > 0);
        let flusher = Flusher::start(&self.system, &spec.name, Arc::clone(&durable), &self.ticks)?;
        let new_shares = start_journals(found, &geometry, &space, &spec, epoch)?;
        let (bad, pins) = (Arc::new(BadBlocks::new(Arc::clone(&self.system))), Arc::default());
        space.logs().iter().for_each(|log| log.open(log.slots.used()));
        let made = new_shares.into_iter().enumerate().map(|(ordinal, (plan, begun, slots))| {
            durable.add_journal(begun.journal.shared(), &plan.share.queue, number);
            let share = Share::new(ShareConfig {
                number,
                geometry: Arc::clone(&geometry),
                origin: origin.clone(),
                space: Arc::clone(&space),
                space_waiters: Arc::clone(&space_waiters),
                ask: Ask { events: Arc::clone(&self.events), volume: spec.id },
                flusher: Arc::clone(&flusher),
                bad: Arc::clone(&bad),
                pins: Arc::clone(&pins),
                stats: Arc::clone(&plan.share.stats),
                locals: begun.locals,
                journal: begun.journal,
                recorded: begun.recorded,
                slots,
                epoch,
                checkpoint_epoch: checkpoints[ordinal],
                history: spec.history(),
                rules: spec.rules(),
                processor: plan.share.processor,
                ordinal,
            });
            (plan.share, share)
        });
        let (share_refs, shares): (Vec<_>, Vec<_>) = made.unzip();
        let volume = Volume {
            id: spec.id,
            name: Arc::new(VolumeName::new(&spec.name)),
            share: number,
            geometry,
            origin,
            space,
            space_waiters,
            durable,
            bad,
            pins,
            flusher,
            share_of: index_by_processor(&share_refs),
            shares: share_refs,
            flushes: Arc::default(),
            epoch: Arc::new(AtomicU64::new(epoch)),
            bounds: spec.bounds,
            usage: std::sync::Mutex::default(),
            dropping: Arc::default(),
            rolling_back: Arc::default(),
            stale,
        };
        let volume = self.publish(volume, shares)?;
        // A share that needs a held slot asks for it itself.
        replayed.then(|| volume.flusher.push(Waiter::Call(channel().0)));
        Ok(())
    }

    /// Sends the shares to their processors, and makes the volume visible.
    fn publish(&self, volume: Volume, shares: Vec<Share>) -> Result<Arc<Volume>> {
        let mut volumes = self.volumes.lock().expect("no holder panics");
        if volumes.contains_key(&volume.id) {
            let what = format!("volume {} is served already", volume.name);
            return Err(Error::new(ErrorKind::Exists, what));
        }
        for (share_ref, share) in volume.shares.iter().zip(shares) {
            let control = Control::AddShare(volume.share, Box::new(share));
            share_ref.queue.push(Event::Control(Box::new(control)));
        }
        let volume = Arc::new(volume);
        volumes.insert(volume.id, Arc::clone(&volume));
        Ok(volume)
    }

    /// Adds a log area to a volume, which has these log rules from now on, as [`Engine::set_log_rules`] has them.
    pub fn add_log(
        &self,
        volume: VolumeId,
        number: u16,
        extents: &[ExtentSpec],
        rules: &VolumeRules,
    ) -> Result<()> {
        let volume = self.volume(volume)?;
        let known = |other| other == number || volume.space.log(other).is_some();
        refuse_wrong(&volume, rules.wrong(known))?;
        let log = self.log(number, extents)?;
        self.refuse_stuck(&log.devices().cloned().collect::<Vec<_>>())?;
        log.devices().for_each(|device| volume.durable.add_device(device));
        let log = volume.space.add(log)?;
        self.send_log_rules(&volume, rules);
        log.open(0); // SP1
        volume.space_waiters.wake_all();
        Ok(())
    }

    /// Sets the log rules of a volume and of its snapshots, for blocks that are redirected from now on. A snapshot that
    /// is not named keeps its rules.
    pub fn set_log_rules(&self, volume: VolumeId, rules: &VolumeRules) -> Result<()> {
        let volume = self.volume(volume)?;
        refuse_wrong(&volume, rules.wrong(|number| volume.space.log(number).is_some()))?;
        self.send_log_rules(&volume, rules);
        volume.space_waiters.wake_all();
        Ok(())
    }

    fn send_log_rules(&self, volume: &Volume, rules: &VolumeRules) {
        for share in &volume.shares {
            let set = |answer| Control::LogRules(volume.share, rules.clone(), answer);
            // A share that is being closed needs no more logs.
            let _ = ask::<()>(&*self.system, &share.queue, set);
        }
    }

    /// Sets whether parts of the volume that find no slot wait, with an event
    /// [`Event::LogFull`](events::Event::LogFull), or are refused.
    pub fn ask_when_full(&self, volume: VolumeId, asks: bool) -> Result<()> {
        let events = Arc::clone(&self.events);
        let ask = asks.then_some(Ask { events, volume });
        self.volume(volume)?.space_waiters.set_ask(ask);
        Ok(())
    }

    /// Notes that space was freed as far as possible: parts that wait for slots try again.
    pub fn try_again(&self, volume: VolumeId) -> Result<()> {
        self.volume(volume)?.space_waiters.policy_done();
        Ok(())
    }

    /// Has messages name a volume by this name from now on.
    pub fn rename_volume(&self, volume: VolumeId, name: &str) -> Result<()> {
        self.volume(volume)?.name.set(name);
        Ok(())
    }

    /// Closes a volume, durably. It has no exports left.
    pub fn remove_volume(&self, id: VolumeId) -> Result<()> {
        let volume = self.volume(id)?;
        let shows = |export: &Arc<Export>| {
            export.target.instant().is_some_and(|(shown, _)| shown == volume.id)
        };
        let exported = self.exports.list().into_iter().find(shows);
        if let Some(export) = exported {
            let what = format!("export {} still exists", export.name);
            return Err(Error::new(ErrorKind::Busy, what));
        }
        self.wait_or_refuse(&volume, "cannot be closed now")?;
        let origins = self.origins.lock().expect("no holder panics");
        self.refuse_origins(&origins, &volume, |_| true)?;
        self.volumes.lock().expect("no holder panics").remove(&id);
        drop(origins);
        let mut result = Ok(());
        for share in &volume.shares {
            let taken = ask(&*self.system, &share.queue, |answer| {
                Control::RemoveShare(volume.share, answer)
            });
            let Ok(taken) = taken else {
                // The share ends without further calls, and frees its number, if the calls that it waits for ever end.
                result = Err(super::watch::hangs(&volume.name, "cannot be closed"));
                continue;
            };
            // A checkpoint makes all writes of the share durable.
            let (checkpoint, durable) = (taken.close(), Arc::clone(&volume.durable));
            let lane = Lane::Files(volume.share);
            let written =
                self.bounded(&self.checkpoints, lane, None, move |_| checkpoint.write(&durable));
            if let Err(e) = written.unwrap_or(Err(Errno::EIO)) {
                let what = format!("volume {}: its checkpoint was not written", volume.name);
                result = result.and(Err(Error::io(what, e)));
            }
        }
        volume.flusher.stop();
        if result.is_ok() || !volume.hangs() {
            self.free_share_number(volume.share);
        }
        result
    }
}

/// The epoch of new writes, and that of each processor's checkpoint.
fn epochs(found: &[RecoveredPlan], spec: &VolumeSpec) -> (Epoch, Vec<Epoch>) {
    let recovered = || found.iter().map(|(_, (one, _))| one);
    let epoch = recovered().map(|one| one.epoch).fold(spec.next_epoch, Epoch::max);
    (epoch, recovered().map(|one| one.checkpoint_epoch).collect())
}

/// Starts all journals; slots that an older map may refer to are held until all of this is durable (SP3).
fn start_journals(
    found: Vec<RecoveredPlan>,
    geometry: &Geometry,
    space: &Space,
    spec: &VolumeSpec,
    epoch: Epoch,
) -> Result<Vec<NewShare>> {
    let begin_one = |(plan, (mut recovered, slots)): RecoveredPlan| {
        let freed = std::mem::take(&mut recovered.freed);
        space.hold(if bug(Bug::NoRecoverySync) { Default::default() } else { freed });
        let begun = start_journal(&plan, recovered, geometry, spec, epoch)?;
        Ok((plan, begun, slots))
    };
    found.into_iter().map(begin_one).collect()
}

pub(super) fn start_journal(
    plan: &SharePlan,
    mut recovered: Recovered,
    geometry: &Geometry,
    spec: &VolumeSpec,
    epoch: Epoch,
) -> Result<Begun> {
    for path in &recovered.leftovers {
        let _ = plan.identity.system.remove(path); // if that fails, the next start removes it
    }
    let mut journal = Journal::begin(plan.identity.clone(), recovered.start())?;
    record_history(&mut journal, &recovered, spec, epoch).map_err(|e| {
        let what = format!("volume {}: its journal cannot be started", spec.name);
        Error::io(what, e)
    })?;
    let history = spec.history();
    assert_eq!(recovered.rollback_seqs.len(), history.rollbacks().len(), "all are applied");
    let local = |partition: &u32| {
        let versions = recovered.partitions.remove(partition);
        let versions = versions.unwrap_or_else(|| {
            let blocks = geometry.partition_bytes(*partition) / BLOCK_SIZE;
            let shape = spec.shape(*partition, blocks as u32);
            let mut versions = shape.fresh(&history, &recovered.rollback_seqs);
            shape.hide(&mut versions, &history, shape.blocks);
            versions
        });
        Local { partition: *partition, versions, moved_back: 0 }
    };
    let locals = plan.partitions.iter().map(local).collect();
    let (cuts, counted_from) = (recovered.past.cuts, recovered.past.counted_from);
    Ok(Begun { journal, locals, recorded: RecordedCuts { cuts, counted_from } })
}

/// Records in a journal what recovery did not find in it: rollbacks of the volume, that it is in `epoch`, which epochs
/// have no snapshot, and its size, unless the journal is new.
fn record_history(
    journal: &mut Journal,
    recovered: &Recovered,
    spec: &VolumeSpec,
    epoch: Epoch,
) -> std::result::Result<(), Errno> {
    for (rollback, size) in &spec.rollbacks[spec.rollbacks.len() - recovered.unrecorded_rollbacks..]
    {
        journal.append(Entry::rollback(*rollback, size / BLOCK_SIZE))?;
    }
    if recovered.epoch < epoch {
        let ended = RecordedCut { epoch: epoch - 1, instant_ns: 0, partitions: 0 };
        journal.append(Entry::cut(ended))?;
    }
    let gone = EpochRanges::without(spec.history().snapshots(), epoch);
    for (first, last) in gone.minus(&recovered.past.dropped) {
        journal.append(Entry::dropped(first, last))?;
    }
    let blocks = spec.size / BLOCK_SIZE;
    if recovered.next_seq > 1 && recovered.past.blocks < blocks {
        journal.append(Entry::grown(epoch, blocks))?;
    }
    Ok(())
}

/// For each processor, the index of its share; `usize::MAX` for those that have none.
pub(super) fn index_by_processor(shares: &[ShareRef]) -> Vec<usize> {
    let highest = shares.iter().map(|share| share.processor).max().unwrap_or(0) as usize;
    let mut share_of = vec![usize::MAX; highest + 1];
    for (index, share) in shares.iter().enumerate() {
        share_of[share.processor as usize] = index;
    }
    share_of
}
