//! Watch: the thread that advances time-outs, so that no thread has to read a clock for each request; and the bounded
//! wait of control calls for a device.
//!
//! How it works      At each tick it calls those processors that have something to check
//!                   ([`Share::tick`](crate::processor::share::Share::tick)), then every flusher
//!                   ([`Flusher::tick`](crate::processor::flusher::Flusher::tick)), then every device
//!                   ([`crate::io::silence`]); an event tells Python when a device stops answering, and when it answers
//!                   again. It never blocks, and sleeps while nothing is in flight ([`Ticks::wait`]). A control call that uses a device does so on a thread of the pool, and
//!                   waits for that no longer than a request would.
//! Owner and locks   the engine's, each for a look-up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::engine::Engine;
use crate::error::{Errno, Error, ErrorKind, Result};
use crate::events::{Event as EngineEvent, Events};
use crate::io::device::Device;
use crate::io::fault::Fault;
use crate::io::silence::SilenceChange;
use crate::processor::messages::{Control, Event};
use crate::system::pool::{Lane, Pool};
use crate::system::ticks::{TICK, Ticks};
use crate::system::wait;
use crate::units::DeviceId;
use crate::volume::Volume;
use crate::volume::name::VolumeName;

/// How long a check of a device waits for its answer.
const PROBE_WAIT: Duration = Duration::from_secs(1);
/// An engine that is being stopped waits for a device no longer than this.
const STOPPING: Duration = Duration::from_secs(5);

/// The watch thread; it ends when this is dropped.
pub(super) struct Watch {
    ticks: Arc<Ticks>,
    thread: Option<JoinHandle<()>>,
}

/// What it checks.
#[derive(Clone)]
pub(super) struct Watched {
    pub(super) ticks: Arc<Ticks>,
    pub(super) processors: super::Processors,
    pub(super) volumes: super::Volumes,
    pub(super) devices: super::Devices,
    pub(super) events: Arc<Events>,
}

impl Watch {
    pub(super) fn start(watched: Watched) -> std::io::Result<Watch> {
        let ticks = Arc::clone(&watched.ticks);
        let run = move || {
            while watched.ticks.wait(watched.is_busy()) {
                watched.tick();
            }
        };
        let thread = std::thread::Builder::new().name("pv-watch".to_owned()).spawn(run)?;
        Ok(Watch { ticks, thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.ticks.end();
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Watched {
    /// Whether something is in flight, which may time out or for which a report says how long it has lasted.
    fn is_busy(&self) -> bool {
        let processors = self.processors.lock().expect("no holder panics");
        let watches = |handle: &super::Handle| handle.stats.watches.load(Ordering::Relaxed);
        if processors.iter().any(|handle| watches(handle) || handle.runner.queue.is_used()) {
            return true;
        }
        drop(processors);
        self.volumes.lock().expect("no holder panics").values().any(|it| it.flusher.is_running())
            || self.devices.lock().expect("no holder panics").values().any(|it| it.is_watched())
    }

    /// Does the work of one tick.
    pub(super) fn tick(&self) {
        self.ticks.advance();
        for handle in self.processors.lock().expect("no holder panics").iter() {
            if handle.stats.watches.load(Ordering::Relaxed) {
                handle.runner.queue.push(Event::Control(Box::new(Control::Tick)));
            }
        }
        let volumes: Vec<Arc<Volume>> =
            self.volumes.lock().expect("no holder panics").values().cloned().collect();
        volumes.iter().for_each(|volume| volume.flusher.tick());
        for (id, device) in self.devices.lock().expect("no holder panics").iter() {
            let reported = match device.check_silence(&self.ticks) {
                Some(SilenceChange::Silent) => EngineEvent::DeviceSilent(*id),
                Some(SilenceChange::Answering) => EngineEvent::DeviceAnswers(*id),
                None => continue,
            };
            self.events.push(reported);
        }
    }
}

/// State of a device.
pub struct DeviceState {
    /// The device.
    pub device: Arc<Device>,
    /// Why it is faulty, as far as is known, if it is.
    pub fault: Option<Fault>,
    /// How long it has not answered, if it does not.
    pub silent: Option<Duration>,
}

impl Volume {
    /// The devices of a volume.
    pub fn devices(&self) -> Vec<Arc<Device>> {
        let logs = self.space.logs();
        let all = self.geometry.devices().chain(logs.iter().flat_map(|log| log.devices()));
        let mut found: Vec<Arc<Device>> = Vec::new();
        for device in all {
            if !found.iter().any(|other| other.id == device.id) {
                found.push(Arc::clone(device));
            }
        }
        found
    }

    /// Whether a call of it took longer than a request may: a device has a write that was given up, or its sync is
    /// overdue.
    pub fn has_given_up(&self) -> bool {
        self.flusher.is_overdue() || self.devices().iter().any(|device| device.silence.stuck() > 0)
    }

    /// Whether its calls may never end: it has given something up, or a device of it does not answer. A device that is
    /// only slow looks the same until the time-out, so a caller that can wait does so.
    pub fn hangs(&self) -> bool {
        self.flusher.is_overdue() || self.devices().iter().any(|device| device.silence.hangs())
    }
}

impl Engine {
    /// A function that does the work of one tick, for a system without threads.
    #[cfg(feature = "simulator")]
    pub fn ticker(&self) -> Arc<dyn Fn() + Send + Sync> {
        let watched = self.watched();
        Arc::new(move || watched.tick())
    }

    /// Sets how long a request may wait for a device; zero: without limit.
    pub fn set_io_timeout(&self, timeout: Duration) {
        self.ticks.set_timeout(timeout);
    }

    /// Shortens all waits for devices, because the engine is about to be stopped.
    pub fn hurry(&self) {
        let timeout = self.ticks.timeout().map_or(STOPPING, |timeout| timeout.min(STOPPING));
        self.ticks.set_timeout(timeout);
    }

    /// Why a device is faulty, if it is. If a probe gives no answer soon, the result is what was known before.
    pub fn device_fault(&self, id: DeviceId) -> Result<Option<Fault>> {
        let device = self.device(id)?;
        Ok(self.probe(&[device]).remove(0).fault)
    }

    /// State of all devices.
    pub fn device_states(&self) -> Vec<DeviceState> {
        let devices: Vec<_> =
            self.devices.lock().expect("no holder panics").values().cloned().collect();
        self.probe(&devices)
    }

    /// Checks all devices at the same time, and waits a moment. A device with a check in progress is not checked again.
    fn probe(&self, devices: &[Arc<Device>]) -> Vec<DeviceState> {
        let (sender, receiver) = channel();
        for device in devices {
            if device.never_waits() || !self.system.threaded() {
                device.fault();
            } else if device.silence.begin_probe(self.ticks.now()) {
                let (asked, sender) = (Arc::clone(device), sender.clone());
                self.pool.run(Lane::Probe(device.id), move || {
                    asked.fault();
                    asked.silence.end_probe();
                    drop(sender);
                });
            }
        }
        drop(sender);
        let _: std::result::Result<(), _> = receiver.recv_timeout(PROBE_WAIT);
        let state = |device: &Arc<Device>| DeviceState {
            device: Arc::clone(device),
            fault: device.known_fault(),
            silent: device.silence.since().map(|since| self.ticks.lasted(since)),
        };
        devices.iter().map(state).collect()
    }

    /// Waits a short time for volumes that hang, before a stop.
    pub(super) fn wait_for_answers(&self) {
        let hangs = || {
            let volumes = self.volumes.lock().expect("no holder panics");
            volumes.values().any(|volume| volume.hangs())
        };
        let mut left = if self.system.threaded() { STOPPING } else { Duration::ZERO };
        while !left.is_zero() && hangs() {
            std::thread::sleep(TICK);
            left = left.saturating_sub(TICK);
        }
    }

    /// Runs `f` on a thread of `pool`, because it uses one or more devices, and waits for it as long as a request
    /// would. The argument of `f` says whether the caller still waits. `None`: it has not ended.
    pub(super) fn bounded<T: Send + 'static>(
        &self,
        pool: &Pool,
        lane: Lane,
        device: Option<&Device>,
        f: impl FnOnce(&dyn Fn() -> bool) -> T + Send + 'static,
    ) -> Option<T> {
        let (sender, receiver) = channel();
        let (wanted, began) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU32::new(0)));
        let (theirs, ticks, begins) =
            (Arc::clone(&wanted), Arc::clone(&self.ticks), Arc::clone(&began));
        pool.run(lane, move || {
            begins.store(ticks.now(), Ordering::Relaxed);
            let is_wanted = || theirs.load(Ordering::Acquire);
            if is_wanted() {
                let _ = sender.send(f(&is_wanted)); // the caller may wait no longer
            }
        });
        if !self.system.threaded() {
            return wait(&*self.system, &receiver).ok();
        }
        let since = self.ticks.now();
        loop {
            match receiver.recv_timeout(TICK) {
                Ok(found) => return Some(found),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => {}
            }
            let began = began.load(Ordering::Relaxed);
            if let Some(device) = device.filter(|_| began != 0 && self.ticks.is_silent(began)) {
                device.silence.report(began, self.ticks.now());
            }
            if self.ticks.is_over(since) {
                wanted.store(false, Ordering::Release);
                return None;
            }
        }
    }

    /// Refuses a call that relies on writes of a volume, or on its space, while it has given something up.
    pub(super) fn refuse_given_up(&self, volume: &Volume, what: &str) -> Result<()> {
        if volume.has_given_up() {
            return Err(hangs(&volume.name, what));
        }
        Ok(())
    }

    /// Waits for a volume whose devices are slow, as long as a request would; refuses one that hangs.
    pub(super) fn wait_or_refuse(&self, volume: &Volume, what: &str) -> Result<()> {
        let since = self.ticks.now();
        while volume.hangs() {
            if volume.has_given_up() || self.ticks.is_over(since) || !self.system.threaded() {
                return Err(hangs(&volume.name, what));
            }
            std::thread::sleep(TICK);
        }
        Ok(())
    }

    /// Refuses to place something on a device that has a write that was given up: it may belong to another volume, and
    /// reach the disk later.
    pub(super) fn refuse_stuck(&self, devices: &[Arc<Device>]) -> Result<()> {
        let Some(device) = devices.iter().find(|device| device.silence.stuck() > 0) else {
            return Ok(());
        };
        let what = format!("device {} has not ended writes that were given up", device.id);
        Err(Error::new(ErrorKind::Busy, what))
    }
}

/// The error for a volume that hangs.
pub(super) fn hangs(volume: &VolumeName, what: &str) -> Error {
    Error::io(format!("volume {volume} {what}: a device of it does not answer"), Errno::EIO)
}
