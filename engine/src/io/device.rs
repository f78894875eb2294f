//! Device: one file or disk that holds extents or slots.
//!
//! How it works      I/O at offsets, through the page cache or past it, depending on its [`Mode`]. `read_cached`
//!                   answers from the page cache or returns that it would block. `sync` makes what was written durable;
//!                   callers that wait at the same time share one. The file can be replaced while the device is in use
//!                   ([`Device::reopen`]): calls in flight end on the old file. A device that is not there has a file
//!                   whose calls all fail ([`super::absent`]).
//! Its size          A device whose file ends before [`Mode::size`] has lost what was beyond, and a write would extend
//!                   the file again, with zeroes in between. So its size is checked before each call that changes it
//!                   (before a write only if writes extend the file: a disk refuses them), at the end of each sync, for
//!                   each answer about holes, after each call that fails, and when its state is queried. Once it was
//!                   found short it counts as short until it is reopened, even if it is longer then: decision 28 says
//!                   what that cannot detect.
//! Invariants        D1 a write is counted after it was made and before it is acknowledged, so a sync that
//!                   starts after an acknowledgement covers it;
//!                   D2 after a failed sync the kernel may have dropped what it could not write, so no later sync
//!                   of this device succeeds until it is reopened;
//!                   D3 a write that finds that its file was replaced during the write syncs that file itself, and
//!                      fails if it cannot: so each acknowledged write is in a file that some sync covers;
//!                   D4 whenever acknowledged writes may have been lost, `losses` grows: each volume's flusher reports
//!                      it to its hosts once, even if the device was reopened soon;
//!                   D5 once its file was found short, nothing is written to it, no sync succeeds, and access beyond
//!                      the shortest length seen is EIO, until the device is reopened with a file that is long enough.
//!                   D6 whether a device answers is known without a call on it ([`super::silence`]); while the kernel
//!                      has a write that was given up, no sync succeeds.
//! Owner and locks   `turn` is held for a sync and for a change of files, so that they exclude each other; a thread
//!                   that only reads does not take it, because its holder may hang. `syncing` is held for a read or a
//!                   change of its fields.
//! Errors            every failed call is counted and marks the device as faulty ([`super::fault`]).

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use arc_swap::ArcSwap;

use crate::error::{Errno, Error, Result};
use crate::io::absent::Absent;
use crate::io::fault::{Call, Fault, Faults};
pub use crate::io::opened::Mode;
use crate::io::opened::{Opened, cannot_open};
use crate::io::silence::{Silence, SilenceChange};
use crate::mutants::{Bug, bug};
use crate::system::ticks::Ticks;
use crate::system::{Cached, File, System};
use crate::units::{BLOCK_SIZE, DeviceId};

type IoResult<T> = std::result::Result<T, Errno>;

/// How much allocated data one call clears in a file, bytes.
const CLEARED_OF_FILE: u64 = 1 << 20;
/// How much one call clears on a disk, bytes.
const CLEARED_OF_DISK: u64 = 16 << 20;

#[derive(Clone, Copy, Debug)]
struct Syncing {
    /// How many writes are durable.
    synced: u64,
    /// The sync that failed (D2), and how many writes there were at that time.
    failed: Option<(Errno, u64)>,
}

/// See the module's head.
#[derive(Debug)]
pub struct Device {
    /// The catalog's number for it.
    pub id: DeviceId,
    /// How it is used.
    pub mode: Mode,
    system: Arc<dyn System>,
    opened: ArcSwap<Opened>,
    writes: AtomicU64,
    turn: Mutex<()>,
    syncing: Mutex<Syncing>,
    /// Number of syncs started.
    syncs: AtomicU64,
    losses: AtomicU64,
    faults: Faults,
    /// Whether it answers.
    pub silence: Silence,
}

impl Device {
    /// Opens a device's file or disk.
    pub fn open(system: &Arc<dyn System>, id: DeviceId, path: &Path, mode: Mode) -> Result<Device> {
        let file = mode.open(&**system, path)?;
        // Read-ahead is not changed here; the kernel's own heuristics stay on.
        let opened = Opened::new(file, true, mode.sparse);
        // What an earlier process wrote may not be durable: it counts as one write that is not synced.
        Ok(Device::new(system, id, mode, opened, 0))
    }

    /// A missing device. `clean`: everything that was written to it is durable; else its syncs fail.
    pub fn absent(system: &Arc<dyn System>, id: DeviceId, mode: Mode, clean: bool) -> Device {
        let opened = Opened::new(Arc::new(Absent), false, mode.sparse);
        let device = Device::new(system, id, mode, opened, u64::from(clean));
        if !clean {
            device.losses.store(1, Ordering::Release); // D4
        }
        device
    }

    fn new(
        system: &Arc<dyn System>,
        id: DeviceId,
        mode: Mode,
        opened: Arc<Opened>,
        synced: u64,
    ) -> Device {
        Device {
            id,
            mode,
            system: Arc::clone(system),
            opened: ArcSwap::new(opened),
            writes: AtomicU64::new(1),
            turn: Mutex::default(),
            syncing: Mutex::new(Syncing { synced, failed: None }),
            syncs: AtomicU64::new(0),
            losses: AtomicU64::new(0),
            faults: Faults::default(),
            silence: Silence::default(),
        }
    }

    /// Changes to the file at `path`, perhaps the same one, while the device is in use, and clears its fault. A small
    /// read or a sync that then fails at once marks it as faulty again: see [`Device::fault`]. Nothing has changed on
    /// an error, nor if `is_wanted` returns at the end that no caller waits any more.
    pub fn reopen(&self, path: &Path, is_wanted: &dyn Fn() -> bool) -> Result<()> {
        let mode = Mode { read_only: false, ..self.mode };
        let file = mode.open(&*self.system, path)?;
        let mut block = [0; BLOCK_SIZE as usize];
        file.read(&mut block, 0)
            .map_err(|e| Error::io(format!("device file {} cannot be read", path.display()), e))?;
        let turn = self.turn.lock().expect("no holder panics");
        if !is_wanted() {
            return Err(cannot_open(path, Errno::EIO));
        }
        let old = self.opened.swap(Opened::new(file, true, self.mode.sparse));
        // A failed sync was reported for what it covered; writes since then were not reported.
        let syncing = self.lock_syncing();
        let reported = syncing.failed.map_or(syncing.synced, |(_, covered)| covered);
        drop(syncing);
        let unreported = old.present && self.writes.load(Ordering::Acquire) > reported;
        if unreported && old.file.sync().is_err() {
            self.losses.fetch_add(1, Ordering::AcqRel); // D4
        }
        self.lock_syncing().failed = None;
        self.writes.fetch_add(1, Ordering::AcqRel); // so that the next sync is made
        drop(turn);
        let was = self.faults.clear();
        if let Some(Fault { call: Call::Read, offset, .. }) = was {
            let _ = self.read(&mut block, offset - offset % BLOCK_SIZE);
        }
        let _ = self.sync();
        Ok(())
    }

    fn lock_syncing(&self) -> MutexGuard<'_, Syncing> {
        self.syncing.lock().expect("no holder panics")
    }

    /// Whether a sync is in flight: another one would wait for it.
    pub fn is_syncing(&self) -> bool {
        self.turn.try_lock().is_err()
    }

    /// Checks whether it answers, once each tick.
    pub fn check_silence(&self, ticks: &Ticks) -> Option<SilenceChange> {
        let sync = self.is_syncing().then(|| self.syncs.load(Ordering::Relaxed));
        self.silence.check(ticks, sync)
    }

    /// Whether a tick has something to check: it may not answer, or has not ended something.
    pub fn is_watched(&self) -> bool {
        self.is_syncing() || self.silence.is_watched()
    }

    /// Whether [`Device::write_now`] is supported.
    pub fn can_write_nowait(&self) -> bool {
        !self.opened.load().no_write_nowait.load(Ordering::Relaxed)
    }

    /// Whether no call on its file ever waits for a disk.
    pub fn never_waits(&self) -> bool {
        let opened = self.opened.load();
        !opened.present || opened.file.never_waits()
    }

    /// Whether its file is there.
    pub fn is_present(&self) -> bool {
        self.opened.load().present
    }

    /// Failed calls since it was opened first, and the last errno (0: none).
    pub fn errors(&self) -> (u64, i32) {
        self.faults.counted()
    }

    /// Why it is faulty, as far as is known without a call on it.
    pub fn known_fault(&self) -> Option<Fault> {
        self.faults.mark()
    }

    /// Why it is faulty, if it is. Its size is checked, which may wait for the device.
    pub fn fault(&self) -> Option<Fault> {
        let opened = self.opened.load();
        if opened.present && !self.silence.is_silent() {
            let _ = self.check_size(&opened); // the result is in the fault
        }
        self.faults.mark()
    }

    /// Whether no sync succeeds, because one has failed (D2) or it was found short (D5). False for a missing device.
    pub fn has_failed_sync(&self) -> bool {
        let syncing = self.lock_syncing();
        let opened = self.opened.load();
        opened.present && (syncing.failed.is_some() || opened.is_short())
    }

    /// EIO if the file was ever found shorter than it must be, or is so now (D5).
    fn check_size(&self, opened: &Opened) -> IoResult<()> {
        if self.mode.size == 0 || bug(Bug::NoSizeCheck) {
            return Ok(());
        }
        let length = opened.file.length()?;
        if length == 0 && !opened.grows {
            return Err(Errno::EIO); // a disk that is gone, and may return with all its data
        }
        let short = length < self.mode.size;
        if short && opened.short.fetch_min(length, Ordering::AcqRel) > length {
            self.losses.fetch_add(1, Ordering::AcqRel); // D4
            self.faults.note_short(length, self.mode.size, self.system.wall_ns());
        }
        if short || opened.is_short() { Err(Errno::EIO) } else { Ok(()) }
    }

    /// EIO if some of these bytes are beyond the known length of a file that was found short (D5).
    fn within(opened: &Opened, offset: u64, length: u64) -> IoResult<()> {
        let inside = offset.checked_add(length).is_some_and(|end| end <= opened.known());
        if inside { Ok(()) } else { Err(Errno::EIO) }
    }

    /// Notes a call that failed, and whether the cause is that the file became shorter: then it is EIO, whatever errno
    /// the system returned.
    fn failed(&self, opened: &Opened, call: Call, offset: u64, errno: Errno) -> Errno {
        let short = opened.present && self.check_size(opened).is_err();
        self.note(opened, call, offset, if short { Errno::EIO } else { errno })
    }

    /// Notes that a sync failed in an earlier process, since the machine was started (D2).
    pub fn note_earlier_failed_sync(&self) {
        let mut syncing = self.lock_syncing();
        if self.is_present() && syncing.failed.is_none() {
            syncing.failed = Some((Errno::EIO, 0));
            self.losses.fetch_add(1, Ordering::AcqRel); // D4
            self.faults.note(Call::Sync, 0, Errno::EIO, self.system.wall_ns());
        }
    }

    /// How many times acknowledged writes may have been lost (D4).
    pub fn losses(&self) -> u64 {
        self.losses.load(Ordering::Acquire)
    }

    /// Of those, how many a volume that was just opened still has to report to its hosts: one, if the device is missing
    /// and what was written to it may not be durable, or if a sync of it has failed.
    pub fn losses_to_report(&self) -> u64 {
        let in_doubt = (!self.is_present() || self.has_failed_sync()) && self.losses() > 0;
        u64::from(in_doubt)
    }

    /// Fills `buffer` from `offset` if that needs no waiting; `false` if it would block.
    pub fn read_cached(&self, buffer: &mut [u8], offset: u64) -> IoResult<bool> {
        let opened = self.opened.load();
        if opened.no_nowait.load(Ordering::Relaxed) || self.silence.is_silent() {
            return Ok(false);
        }
        let inside = Device::within(&opened, offset, buffer.len() as u64);
        match inside.and_then(|()| opened.file.read_cached(buffer, offset)) {
            Ok(Cached::Done) => Ok(true),
            Ok(Cached::WouldWait) => Ok(false),
            Ok(Cached::Unsupported) => {
                opened.no_nowait.store(true, Ordering::Relaxed);
                Ok(false)
            }
            Err(e) => Err(self.failed(&opened, Call::Read, offset, e)),
        }
    }

    /// Fills `buffer` from `offset`, waiting for the disk.
    pub fn read(&self, buffer: &mut [u8], offset: u64) -> IoResult<()> {
        let opened = self.opened.load();
        // A device that ends early reads as an error, not as zeroes.
        Device::within(&opened, offset, buffer.len() as u64)
            .and_then(|()| opened.file.read(buffer, offset))
            .map_err(|e| self.failed(&opened, Call::Read, offset, e))
    }

    /// Its file, if a ring can read these bytes of it.
    pub fn ring_file(&self, offset: u64, length: u64) -> Option<Arc<dyn File>> {
        let opened = self.opened.load();
        let whole = (offset | length).is_multiple_of(BLOCK_SIZE);
        // Reads of files without RWF_NOWAIT run on kernel threads, which all reads of the ring share.
        let tells = self.mode.direct || !opened.no_nowait.load(Ordering::Relaxed);
        let fits = (whole || !self.mode.direct)
            && tells
            && opened.file.descriptor().is_some()
            && Device::within(&opened, offset, length).is_ok();
        fits.then(|| Arc::clone(&opened.file))
    }

    /// Writes `bytes` at `offset` if that needs no waiting; `false` if it would wait, and some of them may be written.
    pub fn write_now(&self, bytes: &[u8], offset: u64) -> IoResult<bool> {
        let opened = self.opened.load();
        if opened.no_write_nowait.load(Ordering::Relaxed) || self.silence.is_silent() {
            return Ok(false);
        }
        let checked = if opened.grows { self.check_size(&opened) } else { Ok(()) };
        match checked.and_then(|()| opened.file.write_cached(bytes, offset)) {
            Ok(done @ (Cached::Done | Cached::WouldWait)) => {
                self.writes.fetch_add(1, Ordering::Release); // D1
                Ok(done == Cached::Done && Arc::ptr_eq(&opened, &self.opened.load())) // D3
            }
            Ok(Cached::Unsupported) => {
                opened.no_write_nowait.store(true, Ordering::Relaxed);
                Ok(false)
            }
            Err(e) => self.written(&opened, Call::Write, offset, Err(e)).map(|()| true),
        }
    }

    /// Writes `bytes` at `offset`.
    pub fn write(&self, bytes: &[u8], offset: u64) -> IoResult<()> {
        let opened = self.opened.load();
        let checked = if opened.grows { self.check_size(&opened) } else { Ok(()) };
        let result = checked.and_then(|()| opened.file.write(bytes, offset));
        self.written(&opened, Call::Write, offset, result)
    }

    /// Makes the range read as zeroes and releases its space. `Ok(false)` if this device cannot do that.
    pub fn punch(&self, offset: u64, length: u64) -> IoResult<bool> {
        let opened = self.opened.load();
        // Beyond the end the system does nothing, and returns success.
        let result = self.check_size(&opened).and_then(|()| opened.file.punch(offset, length));
        self.cleared(&opened, offset, result, &opened.no_punch)
    }

    /// Makes the range read as zeroes and keeps its space allocated. `Ok(false)` if this device cannot do that.
    pub fn zero_range(&self, offset: u64, length: u64) -> IoResult<bool> {
        let opened = self.opened.load();
        let result = self.check_size(&opened).and_then(|()| opened.file.zero_range(offset, length));
        self.cleared(&opened, offset, result, &opened.no_zero)
    }

    /// How much of a range one call clears, from its beginning on, bytes: the whole of an unallocated run, and little
    /// of an allocated one, because the call may lock the file for long.
    pub fn clearable_in_one_call(&self, offset: u64, limit: u64) -> u64 {
        let opened = self.opened.load();
        if !opened.grows {
            return limit.min(CLEARED_OF_DISK);
        }
        match opened.file.allocation(offset, limit) {
            Ok((run, true)) => run,
            _ => limit.min(CLEARED_OF_FILE),
        }
    }

    /// The system's clock: nanoseconds since some instant.
    pub fn now_ns(&self) -> u64 {
        self.system.monotonic_ns()
    }

    /// Whether [`Device::punch`] may be supported.
    pub fn can_punch(&self) -> bool {
        !self.opened.load().no_punch.load(Ordering::Relaxed)
    }

    /// Whether [`Device::allocation`] says which of its bytes have space: it is a file.
    pub fn knows_holes(&self) -> bool {
        self.opened.load().grows
    }

    /// Whether [`Device::zero_range`] may be supported.
    pub fn can_zero(&self) -> bool {
        !self.opened.load().no_zero.load(Ordering::Relaxed)
    }

    fn cleared(
        &self,
        opened: &Arc<Opened>,
        offset: u64,
        result: IoResult<()>,
        cannot: &AtomicBool,
    ) -> IoResult<bool> {
        if result == Err(Errno::ENOTSUP) {
            cannot.store(true, Ordering::Relaxed);
            return Ok(false);
        }
        self.written(opened, Call::Clear, offset, result).map(|()| true)
    }

    /// Counts a call that has written, successfully or not.
    fn written(
        &self,
        opened: &Arc<Opened>,
        call: Call,
        offset: u64,
        mut result: IoResult<()>,
    ) -> IoResult<()> {
        if opened.present {
            self.writes.fetch_add(1, Ordering::Release); // D1: even a failed one may have written
            if result.is_ok() && !Arc::ptr_eq(opened, &self.opened.load()) {
                result = opened.file.sync(); // D3
            }
        }
        result.map_err(|e| self.failed(opened, call, offset, e))
    }

    /// Makes every write counted so far durable.
    pub fn sync(&self) -> IoResult<()> {
        let wanted = self.writes.load(Ordering::Acquire);
        let _turn = self.turn.lock().expect("no holder panics");
        self.syncs.fetch_add(1, Ordering::Relaxed);
        let Syncing { synced, failed } = *self.lock_syncing();
        if let Some((errno, _)) = failed {
            return Err(errno); // D2
        }
        let opened = self.opened.load();
        if opened.is_short() || self.silence.stuck() > 0 {
            return Err(Errno::EIO); // D5, D6
        }
        if synced >= wanted {
            return Ok(());
        }
        let covered = self.writes.load(Ordering::Acquire);
        match opened.file.sync().and_then(|()| self.check_size(&opened)) {
            Ok(()) => {
                self.lock_syncing().synced = covered;
                Ok(())
            }
            Err(e) => {
                if !bug(Bug::ForgetFailedSync) {
                    self.lock_syncing().failed = Some((e, covered));
                    if opened.present {
                        self.losses.fetch_add(1, Ordering::AcqRel); // D4
                    }
                }
                Err(self.note(&opened, Call::Sync, 0, e))
            }
        }
    }

    /// Requests read-ahead from the kernel.
    pub fn will_need(&self, offset: u64, length: u64) {
        self.opened.load().file.will_need(offset, length);
    }

    /// Length of the run from `offset`, at most `limit` bytes, that is all data or all hole, and whether it is a hole.
    /// EIO if `offset` is beyond the end.
    pub fn allocation(&self, offset: u64, limit: u64) -> IoResult<(u64, bool)> {
        let opened = self.opened.load();
        let found = Device::within(&opened, offset, 1)
            .and_then(|()| opened.file.allocation(offset, limit))
            .map_err(|e| self.failed(&opened, Call::Read, offset, e));
        if found.is_err() && bug(Bug::EndIsHole) {
            return Ok((limit, true));
        }
        let (length, hole) = found?;
        if hole {
            let _ = self.check_size(&opened); // a write of this process may just have extended it again
        }
        Device::within(&opened, offset, 1)
            .map_err(|e| self.note(&opened, Call::Read, offset, e))?;
        Ok((length.min(opened.known() - offset), hole))
    }

    fn note(&self, opened: &Opened, call: Call, offset: u64, errno: Errno) -> Errno {
        // Only `cleared` handles a call that is not supported at all.
        let errno = if errno == Errno::ENOTSUP { Errno::EIO } else { errno };
        if opened.present {
            self.faults.note(call, offset, errno, self.system.wall_ns());
        } else {
            self.faults.count(errno); // that it is missing is known
        }
        errno
    }
}
