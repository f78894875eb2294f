//! Durable: what a sync of a volume makes durable: its devices, then its journals.
//!
//! How it works      A sync notes each journal's watermark, syncs every device that was written to, also after one that fails,
//!                   then commits each journal up to its watermark. If a commit finds that a file of a journal is gone
//!                   (its J11), the processor rewrites what that file held, and the sync commits again.
//! Invariants        see F2 of the [flusher](super::flusher); J3 and J6 of the change log: a mark covers only records that
//!                   were appended before the devices' sync began, and a record is appended after its data was written.
//! Owner and locks   a lock over each list, held to read or change it, never across a sync.
//! Errors            the first device's or journal's errno; what comes after a device that fails is synced all the same.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, RwLock};

use crate::change_log::failed_sync::FailedSync;
use crate::change_log::files::Identity;
use crate::change_log::journal::{self, Gone};
use crate::change_log::space::Space;
use crate::error::Errno;
use crate::io::device::Device;
use crate::mutants::{Bug, bug};
use crate::processor::messages::{Control, Event};
use crate::processor::queue::Queue;
use crate::processor::space_waiters::SpaceWaiters;
use crate::system::wait;

/// How often a sync has a journal's files rewritten before it fails: twice, as files may disappear during the first time.
const RENEWALS: u32 = 2;

/// What a sync of a volume makes durable.
#[derive(Debug, Default)]
pub struct Durable {
    devices: RwLock<Vec<Arc<Watched>>>,
    journals: RwLock<Vec<Writer>>,
    /// Syncs in flight.
    running: AtomicUsize,
    owner: Option<Owner>,
}

/// The volume that a [`Durable`] belongs to.
#[derive(Debug)]
struct Owner {
    /// The identity of any of its processors.
    identity: Identity,
    /// Held slots that a successful sync releases (SP3), and the queue of shares that wait for slots.
    space: Arc<Space>,
    space_waiters: Arc<SpaceWaiters>,
}

/// A device that holds extents or slots.
#[derive(Debug)]
struct Watched {
    device: Arc<Device>,
    /// How many of the device's losses of acknowledged writes (D4) were reported to hosts, by a flush that failed (F2).
    reported: AtomicU64,
    /// The persistent record of a failed sync.
    failed_sync: FailedSync,
}

impl Watched {
    fn sync(&self) -> std::result::Result<(), Errno> {
        let result = self.device.sync();
        if result.is_err() && self.device.has_failed_sync() {
            self.failed_sync.set();
        }
        result
    }

    /// Notes that all losses so far were reported to hosts.
    fn note_reported(&self) {
        let all_reported = || self.reported.load(Ordering::Acquire) == self.device.losses();
        self.failed_sync.forget_if(|| all_reported() && !self.device.has_failed_sync());
    }
}

/// The writer of a journal.
#[derive(Clone, Debug)]
struct Writer {
    journal: Arc<journal::SharedJournal>,
    queue: Arc<Queue>,
    share: u32,
}

impl Durable {
    /// The empty set, for a volume with this space; `identity` is that of any of its processors.
    pub fn of(
        identity: &Identity,
        space: &Arc<Space>,
        space_waiters: &Arc<SpaceWaiters>,
    ) -> Durable {
        let (space, space_waiters) = (Arc::clone(space), Arc::clone(space_waiters));
        let owner = Some(Owner { identity: identity.clone(), space, space_waiters });
        Durable { owner, ..Durable::default() }
    }

    /// Makes everything acknowledged so far durable.
    pub fn sync(&self) -> std::result::Result<(), Errno> {
        self.syncing(|| self.sync_all())
    }

    /// Runs `f`, for which a sync would have to wait.
    pub fn syncing<T>(&self, f: impl FnOnce() -> T) -> T {
        self.running.fetch_add(1, Ordering::AcqRel);
        let result = f();
        self.running.fetch_sub(1, Ordering::AcqRel);
        result
    }

    /// Whether no call on a device ever waits.
    pub(super) fn never_waits(&self) -> bool {
        let devices = self.devices.read().expect("no holder panics");
        devices.iter().all(|watched| watched.device.never_waits())
    }

    /// Whether a sync would have to wait for another one.
    pub(super) fn is_syncing(&self) -> bool {
        let devices = self.devices.read().expect("no holder panics");
        let busy = devices.iter().any(|watched| watched.device.is_syncing());
        busy || self.running.load(Ordering::Acquire) > 0
    }

    fn sync_all(&self) -> std::result::Result<(), Errno> {
        let journals = self.journals.read().expect("no holder panics").clone();
        let begin = |writer: &Writer| writer.journal.watermark.begin_commit();
        let reached: Vec<u64> = journals.iter().map(begin).collect();
        self.sync_devices()?;
        let mut result = Ok(());
        let mut controls = Vec::new();
        for (Writer { journal, queue, share }, seq) in journals.iter().zip(reached) {
            let seq = if bug(Bug::MarkTooFar) { journal.appended() } else { seq };
            let mut committed = journal.commit(seq);
            for _ in 0..RENEWALS {
                if committed.is_err() && journal.has_missing_file() && self.renew(queue, *share) {
                    committed = journal.commit(seq);
                }
            }
            if let Err(errno) = committed {
                if journal.has_failed() {
                    controls.push((queue, Control::RenewJournal(*share)));
                }
                result = Err(errno);
                break;
            }
            if journal.take_expecting() {
                controls.push((queue, Control::Release { share: *share, result: Ok(()) }));
            }
        }
        if let Some(Owner { space, space_waiters, .. }) = &self.owner
            && result.is_ok()
            && space.release_held()
        {
            space_waiters.wake_all();
        }
        for (queue, control) in controls {
            queue.push(Event::Control(Box::new(control)));
        }
        result
    }

    /// Has a processor rewrite the missing file of its journal, and waits for it; returns whether that succeeded.
    fn renew(&self, queue: &Queue, share: u32) -> bool {
        let Some(owner) = &self.owner else { return false };
        let (sender, receiver) = channel();
        queue.push(Event::Control(Box::new(Control::RenewJournal(share))));
        queue.push(Event::Control(Box::new(Control::Checkpoint(share, sender))));
        wait(&*owner.identity.system, &receiver).unwrap_or(false)
    }

    /// Has the files that a start would read and that are not at their paths rewritten. Returns these, for each journal.
    pub fn renew_missing_files(&self) -> Vec<Gone> {
        let journals = self.journals.read().expect("no holder panics").clone();
        let mut found = Vec::new();
        for Writer { journal, queue, share } in &journals {
            let gone = journal.find_missing_files();
            if gone.now.is_some() {
                queue.push(Event::Control(Box::new(Control::RenewJournal(*share))));
            }
            found.push(gone);
        }
        found
    }

    /// Makes what was written to devices durable, as far as possible; returns the first error.
    pub fn sync_devices(&self) -> std::result::Result<(), Errno> {
        let devices = self.devices.read().expect("no holder panics").clone();
        let mut result = Ok(());
        for watched in devices.iter().filter(|_| !bug(Bug::NoDeviceSync)) {
            result = result.and(watched.sync());
        }
        result
    }

    /// An error if a device may have lost acknowledged writes, once for each such loss (F2).
    pub(super) fn report_losses(&self) -> std::result::Result<(), Errno> {
        let devices = self.devices.read().expect("no holder panics").clone();
        let mut result = Ok(());
        for watched in devices {
            let losses = watched.device.losses();
            if watched.reported.swap(losses, Ordering::AcqRel) != losses {
                result = Err(Errno::EIO);
            }
        }
        result
    }

    /// Notes that the result of [`Durable::report_losses`] was sent to hosts.
    pub(super) fn note_all_reported(&self) {
        let devices = self.devices.read().expect("no holder panics");
        devices.iter().for_each(|watched| watched.note_reported());
    }

    /// Adds a journal, with its processor's queue and the number of the volume's share there.
    pub fn add_journal(
        &self,
        journal: &Arc<journal::SharedJournal>,
        queue: &Arc<Queue>,
        share: u32,
    ) {
        let (journal, queue) = (Arc::clone(journal), Arc::clone(queue));
        let mut journals = self.journals.write().expect("no holder panics");
        journals.push(Writer { journal, queue, share });
    }

    /// How far each journal was appended to, and how much of it is durable.
    pub fn watermarks(&self) -> Vec<(u64, u64)> {
        let journals = self.journals.read().expect("no holder panics");
        journals.iter().map(|one| (one.journal.appended(), one.journal.committed())).collect()
    }

    /// Adds a device, if it is not already there.
    pub fn add_device(&self, device: &Arc<Device>) {
        let identity = &self.owner.as_ref().expect("only a volume has devices").identity;
        let mut devices = self.devices.write().expect("no holder panics");
        if !devices.iter().any(|other| other.device.id == device.id) {
            let failed_sync = FailedSync::of_device(identity, device.id);
            if failed_sync.is_set() {
                device.note_earlier_failed_sync();
            }
            let reported = AtomicU64::new(device.losses() - device.losses_to_report());
            devices.push(Arc::new(Watched { device: Arc::clone(device), reported, failed_sync }));
        }
    }
}
