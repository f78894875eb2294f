//! Engine: the objects of the data plane, and the control calls on them.
//!
//! How it works      Python makes control calls, one at a time for each changed object; each looks objects up under a
//!                   short lock, then sends messages to the queues of processors.
//!                   This file has the engine itself, its devices and exports, and checkpoints on request; the other
//!                   control calls are in the files beside it, by noun.
//! Owner and locks   `devices`, `volumes`, `processors`: one lock each, held for a look-up or a change. `cutting`:
//!                   held for a whole cut, because cuts are made one after the other, and for calls that must not
//!                   overlap one. `origins`: held for a look-up or a change; the snapshots from which clones are being
//!                   made, which must not be dropped before these are complete.

pub mod check;
mod clone;
pub mod compare;
pub mod grow;
pub mod homeward;
pub mod inspect;
pub mod partitions;
mod recovered_sync;
mod recovery;
pub mod relocate;
mod rollback;
pub mod scrub;
pub mod snapshots;
pub mod spec;
mod stop;
#[cfg(test)]
mod tests;
pub mod usage;
mod versions;
pub mod volumes;
pub mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, RwLock};

use crate::change_log::journal::Gone;
use crate::checksum;
use crate::engine::watch::{Watch, Watched};
use crate::error::{Errno, Error, ErrorKind, Result};
use crate::events::Events;
use crate::io::device::{Device, Mode};
use crate::limits::PROCESSORS_MAX;
use crate::processor::cold::DirectReader;
use crate::processor::flusher::Waiter;
use crate::processor::messages::{Control, Event};
use crate::processor::queue::ask;
use crate::processor::run::Handle;
use crate::system::linux::Linux;
use crate::system::pool::{Lane, Pool};
use crate::system::reaper::Reaping;
use crate::system::ticks::Ticks;
use crate::system::{System, Urgency, wait};
use crate::units::{DeviceId, Epoch, VolumeId};
use crate::volume::export::ExportTable;
use crate::volume::{View, Volume};

/// Pool threads for blocking calls.
const POOL_THREADS: usize = 32;
/// Checkpoints that are written at the same time.
const CHECKPOINT_THREADS: usize = 2;

/// See the module's head.
pub struct Engine {
    pub(crate) system: Arc<dyn System>,
    pub(crate) processors: Processors,
    pub(crate) devices: Devices,
    pub(crate) volumes: Volumes,
    /// Share numbers in use: of volumes that are served, or are being opened or closed.
    pub(crate) share_numbers: Mutex<BTreeSet<u32>>,
    pool: Pool,
    checkpoints: Pool,
    direct_reader: DirectReader,
    /// The exports that hosts can open.
    pub exports: Arc<ExportTable>,
    /// Notifications for Python.
    pub events: Arc<Events>,
    cutting: Mutex<()>,
    origins: Mutex<Vec<(VolumeId, Epoch)>>,
    stopped: RwLock<bool>,
    /// The clock of time-outs.
    pub(crate) ticks: Arc<Ticks>,
    watch: Mutex<Option<Watch>>,
}

type Processors = Arc<Mutex<Vec<Handle>>>;
type Devices = Arc<Mutex<BTreeMap<DeviceId, Arc<Device>>>>;
type Volumes = Arc<Mutex<BTreeMap<VolumeId, Arc<Volume>>>>;

impl Engine {
    /// An engine with `processors` processors.
    pub fn new(processors: u32) -> Result<Engine> {
        checksum::check()?;
        Engine::with_system(Arc::new(Linux), processors)
    }

    /// An engine on this system.
    pub fn with_system(system: Arc<dyn System>, processors: u32) -> Result<Engine> {
        let failed = |e| Error::io("the engine's threads cannot be started", e);
        let engine = Engine {
            pool: system.pool("pv-io", POOL_THREADS, Urgency::Prompt).map_err(failed)?,
            checkpoints: system
                .pool("pv-checkpt", CHECKPOINT_THREADS, Urgency::Background)
                .map_err(failed)?,
            system,
            processors: Arc::default(),
            devices: Arc::default(),
            direct_reader: DirectReader::default(),
            volumes: Arc::default(),
            share_numbers: Mutex::default(),
            exports: Arc::default(),
            events: Arc::default(),
            cutting: Mutex::default(),
            origins: Mutex::default(),
            stopped: RwLock::new(false),
            ticks: Arc::default(),
            watch: Mutex::default(),
        };
        if processors == 0 {
            return Err(Error::new(ErrorKind::Invalid, "an engine needs at least 1 processor"));
        }
        engine.grow_processors(processors)?;
        if engine.system.threaded() {
            let watch = Watch::start(engine.watched()).map_err(|e| failed(e.into()))?;
            *engine.watch.lock().expect("no holder panics") = Some(watch);
        }
        Ok(engine)
    }

    fn watched(&self) -> Watched {
        Watched {
            ticks: Arc::clone(&self.ticks),
            processors: Arc::clone(&self.processors),
            volumes: Arc::clone(&self.volumes),
            devices: Arc::clone(&self.devices),
            events: Arc::clone(&self.events),
        }
    }

    /// Its O_DIRECT reads in flight.
    pub fn reaping(&self) -> Arc<dyn Reaping> {
        Arc::clone(&self.direct_reader) as Arc<dyn Reaping>
    }

    /// Starts processors until there are at least `processors`.
    pub fn grow_processors(&self, processors: u32) -> Result<()> {
        if processors > PROCESSORS_MAX {
            let what = format!("{processors} processors are more than {PROCESSORS_MAX}");
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        let mut handles = self.processors.lock().expect("no holder panics");
        while handles.len() < processors as usize {
            let index = handles.len() as u32;
            let pools = (self.pool.clone(), self.checkpoints.clone());
            let (system, direct_reader) = (&self.system, &self.direct_reader);
            handles.push(Handle::start(
                system,
                index,
                pools.0,
                pools.1,
                direct_reader,
                &self.ticks,
            )?);
        }
        Ok(())
    }

    /// Opens a device.
    pub fn open_device(&self, id: DeviceId, path: &Path, mode: Mode) -> Result<()> {
        // It may take long, or never end, so the lock is not held.
        let device = Device::open(&self.system, id, path, mode);
        self.register_device(id, || device)
    }

    /// Adds a missing device, so that volumes on it can be served as far as possible: its calls all fail. `clean`:
    /// everything that was ever written to it is durable.
    pub fn absent_device(&self, id: DeviceId, mode: Mode, clean: bool) -> Result<()> {
        self.register_device(id, || Ok(Device::absent(&self.system, id, mode, clean)))
    }

    fn register_device(&self, id: DeviceId, device: impl FnOnce() -> Result<Device>) -> Result<()> {
        let mut devices = self.devices.lock().expect("no holder panics");
        if devices.contains_key(&id) {
            return Err(Error::new(ErrorKind::Exists, format!("device {id} is open already")));
        }
        devices.insert(id, Arc::new(device()?));
        Ok(())
    }

    /// Reopens a device, at this path, while volumes are in use.
    pub fn reopen_device(&self, id: DeviceId, path: &Path) -> Result<()> {
        let device = self.device(id)?;
        let (ours, path) = (Arc::clone(&device), path.to_owned());
        let reopened = self.bounded(&self.pool, Lane::Probe(id), Some(&device), move |is_wanted| {
            ours.reopen(&path, is_wanted)
        });
        let what = || Error::io(format!("device {id} does not answer"), Errno::EIO);
        reopened.unwrap_or_else(|| Err(what()))?;
        let volumes: Vec<_> =
            self.volumes.lock().expect("no holder panics").values().cloned().collect();
        for volume in volumes {
            for share in &volume.shares {
                let control = Control::DeviceBack(volume.share);
                share.queue.push(Event::Control(Box::new(control)));
            }
        }
        Ok(())
    }

    /// Closes a device that no volume uses.
    pub fn close_device(&self, id: DeviceId) -> Result<()> {
        let mut devices = self.devices.lock().expect("no holder panics");
        let Some(device) = devices.get(&id) else {
            return Err(Error::new(ErrorKind::NotFound, format!("device {id} is not open")));
        };
        if Arc::strong_count(device) > 1 {
            return Err(Error::new(ErrorKind::Busy, format!("device {id} is in use")));
        }
        devices.remove(&id);
        Ok(())
    }

    pub(crate) fn device(&self, id: DeviceId) -> Result<Arc<Device>> {
        let devices = self.devices.lock().expect("no holder panics");
        let missing = || Error::new(ErrorKind::NotFound, format!("device {id} is not open"));
        devices.get(&id).cloned().ok_or_else(missing)
    }

    /// The volume of this number.
    pub fn volume(&self, id: VolumeId) -> Result<Arc<Volume>> {
        let volumes = self.volumes.lock().expect("no holder panics");
        let missing = || Error::new(ErrorKind::NotFound, format!("volume {id} is not served"));
        volumes.get(&id).cloned().ok_or_else(missing)
    }

    /// Exports a volume, or its snapshot of this epoch.
    pub fn export(
        &self,
        name: &str,
        description: &str,
        volume: VolumeId,
        epoch: Option<Epoch>,
    ) -> Result<()> {
        let volume = self.volume(volume)?;
        match epoch {
            None => self.refuse_half_rolled_back(&volume)?,
            Some(epoch) => self.refuse_unknown(&volume, epoch)?,
        }
        self.exports.add(name, description, Arc::new(View { volume, epoch }))
    }

    /// Exports a volume under a hidden name.
    pub fn export_hidden(&self, name: &str, description: &str, volume: VolumeId) -> Result<()> {
        let volume = self.volume(volume)?;
        self.refuse_half_rolled_back(&volume)?;
        self.exports.add_hidden(name, description, Arc::new(View { volume, epoch: None }))
    }

    /// Refuses a snapshot that does not exist.
    fn refuse_unknown(&self, volume: &Volume, epoch: Epoch) -> Result<()> {
        let has = |answer| Control::HasSnapshot(volume.share, epoch, answer);
        if ask(&*self.system, &volume.shares[0].queue, has)? {
            return Ok(());
        }
        let what = format!("volume {} has no snapshot of epoch {epoch}", volume.name);
        Err(Error::new(ErrorKind::NotFound, what))
    }

    /// Makes everything acknowledged so far durable.
    pub fn flush(&self, volume: VolumeId) -> Result<()> {
        let volume = self.volume(volume)?;
        let (sender, receiver) = channel();
        volume.flusher.push(Waiter::Call(sender));
        let result = wait(&*self.system, &receiver).unwrap_or(Err(Errno::ESHUTDOWN));
        result.map_err(|e| Error::io(format!("volume {} cannot be flushed", volume.name), e))
    }

    /// Checks whether the files of a volume that a start would read are at their paths, and has the missing ones
    /// rewritten. Returns the missing files of each processor's journal.
    pub fn renew_missing_files(&self, volume: VolumeId) -> Result<Vec<Gone>> {
        Ok(self.volume(volume)?.flusher.durable().renew_missing_files())
    }

    /// Writes checkpoints of a volume, so that recovery needs no earlier records.
    pub fn checkpoint(&self, volume: VolumeId) -> Result<()> {
        let volume = self.volume(volume)?;
        for share in &volume.shares {
            let done = ask(&*self.system, &share.queue, |answer| {
                Control::Checkpoint(volume.share, answer)
            })?;
            if !done {
                let what = format!("volume {}: a checkpoint cannot be written", volume.name);
                return Err(Error::io(what, Errno::EIO));
            }
        }
        Ok(())
    }

    /// Replaces journals by checkpoints, one processor after the other, so that old segments can be removed. Space for
    /// a small segment is enough.
    pub fn relieve(&self, volume: VolumeId) -> Result<()> {
        let volume = self.volume(volume)?;
        let mut all = true;
        for share in &volume.shares {
            let relieve = |answer| Control::Relieve(volume.share, answer);
            all &= ask(&*self.system, &share.queue, relieve)?;
        }
        let what =
            || format!("volume {}: a journal cannot be replaced by a checkpoint", volume.name);
        if all { Ok(()) } else { Err(Error::io(what(), Errno::ENOSPC)) }
    }

    /// Whether it has been stopped.
    pub fn is_stopped(&self) -> bool {
        *self.stopped.read().expect("no holder panics")
    }

    /// Makes writes fail that wait for slots: no space will be freed any more.
    pub fn refuse_without_space(&self) {
        for volume in self.volumes.lock().expect("no holder panics").values() {
            volume.space_waiters.set_ask(None);
        }
    }
}
