//! Device: one file or disk that holds extents or slots.
//!
//! How it works      I/O at offsets, through the page cache or, as its [`Mode`] says, past it. `read_cached` answers from the
//!                   page cache or says that it would block. `sync` makes what was written durable; callers that wait at the same time share one.
//!                   The file can be changed for another while the device is in use ([`Device::reopen`]): calls that
//!                   are under way end on the old one. A device that is not there has a file whose calls all fail
//!                   ([`super::absent`]).
//! Its size          A device whose file ends before [`Mode::size`] has lost what was beyond, and a write would make the file long
//!                   again, with zeroes in between. So its size is looked at before each call that changes it (before a write
//!                   only where writing makes a file longer: a disk refuses it), at the end of each sync, for each answer about
//!                   holes, after each call that fails, and when somebody asks how it is. Once it was found short it stays
//!                   so until it is reopened, however long it is then: decision 28 says what that cannot see.
//! Invariants        D1 a write is counted after it was made and before it is acknowledged, so a sync that
//!                   starts after an acknowledgement covers it;
//!                   D2 after a failed sync the kernel may have dropped what it could not write, so no later sync
//!                   of this device succeeds until it is reopened;
//!                   D3 a write that finds its file changed under it syncs that file itself, and fails if it cannot: so
//!                   what was acknowledged is in a file that some sync covers;
//!                   D4 whenever acknowledged writes may have been lost, `losses` grows: each volume's flusher
//!                   tells its hosts once, however soon the device was reopened;
//!                   D5 once its file was found short, nothing is written to it, no sync succeeds, and what lies beyond the
//!                   shortest length that was seen is EIO, until the device is reopened with a file that is long enough.
//! Owner and locks   `syncing` is held for a sync and for a change of files, so that no sync falls between the two.
//! Errors            every failed call is counted and marks the device as faulty ([`super::fault`]).

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;

use crate::deliberate::{Bug, bug};
use crate::error::{Errno, Error, ErrorKind, Result};
use crate::io::absent::Absent;
use crate::io::fault::{Call, Fault, Faults};
use crate::system::{Cached, File, System};
use crate::units::{BLOCK_SIZE, DeviceId};

type IoResult<T> = std::result::Result<T, Errno>;

/// The file that a device has at the moment, and what it turned out not to be able to do.
#[derive(Debug)]
struct Opened {
    file: Arc<dyn File>,
    present: bool,
    /// Writing beyond its end makes it longer.
    grows: bool,
    /// The shortest length that it was found to have, if that is too short (D5), else [`WHOLE`].
    short: AtomicU64,
    no_punch: AtomicBool,
    no_zero: AtomicBool,
    no_nowait: AtomicBool,
}

/// What one call clears of a file that has data there, bytes.
const CLEARED_OF_FILE: u64 = 1 << 20;
/// What one call clears of a disk, bytes.
const CLEARED_OF_DISK: u64 = 16 << 20;

/// A file that was never found short.
const WHOLE: u64 = u64::MAX;

impl Opened {
    /// How many of its first bytes are known to be what was written.
    fn known(&self) -> u64 {
        if bug(Bug::ForgetShort) { WHOLE } else { self.short.load(Ordering::Acquire) }
    }

    fn is_short(&self) -> bool {
        self.known() != WHOLE
    }

    fn new(file: Arc<dyn File>, present: bool, sparse: bool) -> Arc<Opened> {
        Arc::new(Opened {
            grows: file.grows(),
            file,
            present,
            short: AtomicU64::new(WHOLE),
            no_punch: AtomicBool::new(!sparse || !present),
            no_zero: AtomicBool::new(!present),
            no_nowait: AtomicBool::new(false),
        })
    }
}

/// How a device is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mode {
    /// Nothing is written to it.
    pub read_only: bool,
    /// Freed space is punched out of it.
    pub sparse: bool,
    /// Whole blocks go past the page cache: whoever reads or writes waits for the disk.
    pub direct: bool,
    /// How long its file must be at least, bytes.
    pub size: u64,
}

impl Mode {
    /// A file that grows and shrinks.
    pub const SPARSE: Mode = Mode { read_only: false, sparse: true, direct: false, size: 0 };

    fn open(self, system: &dyn System, path: &Path) -> Result<Arc<dyn File>> {
        let open = if self.direct { System::open_direct } else { System::open };
        let file = open(system, path, !self.read_only).map_err(|e| cannot_open(path, e))?;
        let length = if self.size == 0 { Ok(0) } else { file.length() };
        let length = length.map_err(|e| cannot_open(path, e))?;
        if length < self.size {
            let (path, size) = (path.display(), self.size);
            let what = format!("device file {path} is {length} bytes and must be {size}");
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        Ok(file)
    }
}

#[derive(Debug)]
struct Syncing {
    /// How many writes are durable.
    synced: u64,
    /// The sync that failed (D2), and how many writes there were then.
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
    syncing: Mutex<Syncing>,
    losses: AtomicU64,
    faults: Faults,
}

impl Device {
    /// Opens a device's file or disk.
    pub fn open(system: &Arc<dyn System>, id: DeviceId, path: &Path, mode: Mode) -> Result<Device> {
        let file = mode.open(&**system, path)?;
        // Reads of hosts are random unless they say otherwise: no read-ahead of what nobody asked for is
        // decided here, the kernel's own heuristics stay on.
        let opened = Opened::new(file, true, mode.sparse);
        // What an earlier process wrote may not be durable: one write, not synced.
        Ok(Device::new(system, id, mode, opened, 0))
    }

    /// A device that is not there. `clean`: nothing that was written to it is in doubt; else its syncs fail.
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
            syncing: Mutex::new(Syncing { synced, failed: None }),
            losses: AtomicU64::new(0),
            faults: Faults::default(),
        }
    }

    /// Changes to the file at `path`, perhaps the same one, while the device is in use, and takes the marks off. What
    /// then fails at once, a small read or a sync, marks it again: [`Device::fault`] tells. On an error nothing has
    /// changed.
    pub fn reopen(&self, path: &Path) -> Result<()> {
        let mode = Mode { read_only: false, ..self.mode };
        let file = mode.open(&*self.system, path)?;
        let mut block = [0; BLOCK_SIZE as usize];
        file.read(&mut block, 0)
            .map_err(|e| Error::io(format!("device file {} cannot be read", path.display()), e))?;
        let mut syncing = self.syncing.lock().expect("no holder panics");
        let old = self.opened.swap(Opened::new(file, true, self.mode.sparse));
        // A failed sync was told of what it covered; what was written since, nobody was told of.
        let told = syncing.failed.map_or(syncing.synced, |(_, covered)| covered);
        let untold = old.present && self.writes.load(Ordering::Acquire) > told;
        if untold && old.file.sync().is_err() {
            self.losses.fetch_add(1, Ordering::AcqRel); // D4
        }
        syncing.failed = None;
        self.writes.fetch_add(1, Ordering::AcqRel); // so that the next sync is made
        drop(syncing);
        let was = self.faults.clear();
        if let Some(Fault { call: Call::Read, offset, .. }) = was {
            let _ = self.read(&mut block, offset - offset % BLOCK_SIZE);
        }
        let _ = self.sync();
        Ok(())
    }

    /// Whether somebody syncs it: a sync would have to wait for that.
    pub fn is_syncing(&self) -> bool {
        self.syncing.try_lock().is_err()
    }

    /// Whether its file is there.
    pub fn is_present(&self) -> bool {
        self.opened.load().present
    }

    /// Failed calls since it was opened first, and the last errno (0: none).
    pub fn errors(&self) -> (u64, i32) {
        self.faults.counted()
    }

    /// Why it is faulty, if it is.
    pub fn fault(&self) -> Option<Fault> {
        let opened = self.opened.load();
        if opened.present {
            let _ = self.look(&opened); // what it finds is in the mark
        }
        self.faults.mark()
    }

    /// Whether no sync succeeds, as one has failed (D2) or it was found short (D5). Not of a device that is missing.
    pub fn has_failed_sync(&self) -> bool {
        let syncing = self.syncing.lock().expect("no holder panics");
        let opened = self.opened.load();
        opened.present && (syncing.failed.is_some() || opened.is_short())
    }

    /// EIO if the file was ever found shorter than it must be, or is so now (D5).
    fn look(&self, opened: &Opened) -> IoResult<()> {
        if self.mode.size == 0 || bug(Bug::NoLook) {
            return Ok(());
        }
        let length = opened.file.length()?;
        if length == 0 && !opened.grows {
            return Err(Errno::EIO); // a disk that is gone, and may come back with all that it has
        }
        let short = length < self.mode.size;
        if short && opened.short.fetch_min(length, Ordering::AcqRel) > length {
            self.losses.fetch_add(1, Ordering::AcqRel); // D4
            self.faults.note_short(length, self.mode.size, self.system.wall_ns());
        }
        if short || opened.is_short() { Err(Errno::EIO) } else { Ok(()) }
    }

    /// EIO if these bytes are not all within what a file that was found short is known to have (D5).
    fn within(opened: &Opened, offset: u64, length: u64) -> IoResult<()> {
        let inside = offset.checked_add(length).is_some_and(|end| end <= opened.known());
        if inside { Ok(()) } else { Err(Errno::EIO) }
    }

    /// Notes a call that failed, and whether that is because the file has become shorter: then it is EIO, whatever a disk
    /// calls it.
    fn failed(&self, opened: &Opened, call: Call, offset: u64, errno: Errno) -> Errno {
        let short = opened.present && self.look(opened).is_err();
        self.note(opened, call, offset, if short { Errno::EIO } else { errno })
    }

    /// A sync has failed in an earlier process, since the machine was started (D2).
    pub fn failed_sync_before(&self) {
        let mut syncing = self.syncing.lock().expect("no holder panics");
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

    /// Of those, how many a volume that has just been taken over is still to tell its hosts of: one, if the device is
    /// missing and what was written to it is in doubt, or if a sync of it has failed.
    pub fn losses_to_tell(&self) -> u64 {
        let in_doubt = (!self.is_present() || self.has_failed_sync()) && self.losses() > 0;
        u64::from(in_doubt)
    }

    /// Fills `buffer` from `offset` if that needs no waiting; `false` if it would block.
    pub fn read_cached(&self, buffer: &mut [u8], offset: u64) -> IoResult<bool> {
        let opened = self.opened.load();
        if opened.no_nowait.load(Ordering::Relaxed) {
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
        let fits = (whole || !self.mode.direct)
            && opened.file.descriptor().is_some()
            && Device::within(&opened, offset, length).is_ok();
        fits.then(|| Arc::clone(&opened.file))
    }

    /// Stores `bytes` at `offset`.
    pub fn write(&self, bytes: &[u8], offset: u64) -> IoResult<()> {
        let opened = self.opened.load();
        let looked = if opened.grows { self.look(&opened) } else { Ok(()) };
        let result = looked.and_then(|()| opened.file.write(bytes, offset));
        self.written(&opened, Call::Write, offset, result)
    }

    /// Makes the range read as zeroes and gives its space back. `Ok(false)` if this device cannot.
    pub fn punch(&self, offset: u64, length: u64) -> IoResult<bool> {
        let opened = self.opened.load();
        // Beyond the end the system does nothing, and says that it did.
        let result = self.look(&opened).and_then(|()| opened.file.punch(offset, length));
        self.cleared(&opened, offset, result, &opened.no_punch)
    }

    /// Makes the range read as zeroes and keeps its space. `Ok(false)` if this device cannot.
    pub fn zero_range(&self, offset: u64, length: u64) -> IoResult<bool> {
        let opened = self.opened.load();
        let result = self.look(&opened).and_then(|()| opened.file.zero_range(offset, length));
        self.cleared(&opened, offset, result, &opened.no_zero)
    }

    /// How much of a range, from its beginning on, is cleared by one call: all of what is not allocated, and little of what
    /// is, as the call may lock the file for long.
    pub fn clearable_at_once(&self, offset: u64, limit: u64) -> u64 {
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

    /// Whether [`Device::punch`] is worth a try.
    pub fn can_punch(&self) -> bool {
        !self.opened.load().no_punch.load(Ordering::Relaxed)
    }

    /// Whether [`Device::zero_range`] is worth a try.
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

    /// Counts a call that has written, well or not.
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
        let mut syncing = self.syncing.lock().expect("no holder panics");
        if let Some((errno, _)) = syncing.failed {
            return Err(errno); // D2
        }
        let opened = self.opened.load();
        if opened.is_short() {
            return Err(Errno::EIO); // D5
        }
        if syncing.synced >= wanted {
            return Ok(());
        }
        let covered = self.writes.load(Ordering::Acquire);
        match opened.file.sync().and_then(|()| self.look(&opened)) {
            Ok(()) => {
                syncing.synced = covered;
                Ok(())
            }
            Err(e) => {
                if !bug(Bug::ForgetFailedSync) {
                    syncing.failed = Some((e, covered));
                    if opened.present {
                        self.losses.fetch_add(1, Ordering::AcqRel); // D4
                    }
                }
                Err(self.note(&opened, Call::Sync, 0, e))
            }
        }
    }

    /// Asks the kernel to read ahead.
    pub fn will_need(&self, offset: u64, length: u64) {
        self.opened.load().file.will_need(offset, length);
    }

    /// How many bytes from `offset`, at most `limit`, are all data or all hole, and whether they are a hole.
    /// EIO if `offset` lies beyond the end.
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
            let _ = self.look(&opened); // a write of ours may just have made it long again
        }
        Device::within(&opened, offset, 1)
            .map_err(|e| self.note(&opened, Call::Read, offset, e))?;
        Ok((length.min(opened.known() - offset), hole))
    }

    fn note(&self, opened: &Opened, call: Call, offset: u64, errno: Errno) -> Errno {
        // That a call is not possible at all is for `cleared` alone to say.
        let errno = if errno == Errno::ENOTSUP { Errno::EIO } else { errno };
        if opened.present {
            self.faults.note(call, offset, errno, self.system.wall_ns());
        } else {
            self.faults.count(errno); // that it is missing is known
        }
        errno
    }
}

fn cannot_open(path: &Path, errno: Errno) -> Error {
    Error::io(format!("device file {} cannot be opened", path.display()), errno)
}
