//! Linux: the real system.
//!
//! How it works      A file that is used past the page cache is open twice. Complete blocks go through the descriptor
//!                   that has O_DIRECT, from and to aligned memory, with a copy if the caller's is not; everything
//!                   else, and what the disk refuses with O_DIRECT, goes through the other one. The kernel keeps the
//!                   two consistent, because both use system calls and nothing is mapped.
//! Errors            a call that was interrupted is repeated; a short read or write is continued.

use std::fs;
use std::fs::OpenOptions;
use std::io::{ErrorKind, IoSlice, IoSliceMut, Read};
use std::num::NonZeroU64;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::thread::JoinHandleExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{Advice, FallocateFlags, SeekFrom, fadvise, fallocate, fdatasync, seek};
use rustix::io::{ReadWriteFlags, preadv2, pwritev2};

use super::mapped::Mapped;
use super::mapping::Mapping;
use super::pool::{Pool, Threads};
use super::{Cached, File, FileStatus, Result, System, Task, TaskHandle, Urgency};
use crate::buffer::{ALIGNMENT, Buffer};
use crate::error::Errno;

/// See the module's head.
#[derive(Debug)]
pub struct Linux;

/// tmpfs and ramfs, filesystems without a disk: nothing there waits, but they do not support RWF_NOWAIT.
const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// XFS and btrfs, which support RWF_NOWAIT for buffered writes. Others refuse it, or wait for a server.
const NOWAIT_WRITES: [u64; 2] = [0x5846_5342, 0x9123_683e];

#[derive(Debug)]
struct LinuxFile {
    file: Arc<fs::File>,
    /// The same file, with O_DIRECT.
    direct: Option<fs::File>,
    in_memory: bool,
    can_write_nowait: bool,
    grows: bool,
}

impl LinuxFile {
    fn new(file: fs::File) -> LinuxFile {
        let kind = rustix::fs::fstatfs(&file).map_or(0, |found| found.f_type as u64);
        let grows = file.metadata().map_or(true, |found| !found.file_type().is_block_device());
        let in_memory = IN_MEMORY.contains(&kind);
        let can_write_nowait = in_memory || (grows && NOWAIT_WRITES.contains(&kind));
        LinuxFile { file: Arc::new(file), direct: None, in_memory, can_write_nowait, grows }
    }

    /// The descriptor with O_DIRECT, if these bytes can use it.
    fn direct(&self, offset: u64, length: usize) -> Option<&fs::File> {
        self.direct.as_ref().filter(|_| is_aligned(offset) && is_aligned(length as u64))
    }

    /// Reads with O_DIRECT; `false` if not all was read.
    fn read_direct(&self, buffer: &mut [u8], offset: u64) -> bool {
        let Some(direct) = self.direct(offset, buffer.len()) else { return false };
        let full =
            |bytes: &mut [u8]| direct.read_at(bytes, offset).is_ok_and(|read| read == bytes.len());
        if is_aligned(buffer.as_ptr().addr() as u64) {
            return full(buffer);
        }
        let copy = Buffer::zeroed(buffer.len());
        // SAFETY: no other thread has this buffer.
        let bytes = unsafe { copy.part_mut(0, buffer.len()) };
        let read = full(bytes);
        if read {
            buffer.copy_from_slice(bytes);
        }
        read
    }

    /// Writes with O_DIRECT; returns how many bytes, perhaps none.
    fn write_direct(&self, bytes: &[u8], offset: u64) -> Result<usize> {
        let Some(direct) = self.direct(offset, bytes.len()) else { return Ok(0) };
        let written = if is_aligned(bytes.as_ptr().addr() as u64) {
            direct.write_at(bytes, offset)
        } else {
            direct.write_at(Buffer::copy_of(bytes).as_slice(), offset)
        };
        match written {
            Err(e) if matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::Interrupted) => Ok(0),
            other => Ok(other?),
        }
    }
}

fn is_aligned(number: u64) -> bool {
    number.is_multiple_of(ALIGNMENT as u64)
}

impl File for LinuxFile {
    fn read_cached(&self, buffer: &mut [u8], offset: u64) -> Result<Cached> {
        if self.direct.is_some() {
            return Ok(Cached::Unsupported);
        }
        if self.in_memory {
            return self.read(buffer, offset).map(|()| Cached::Done);
        }
        let length = buffer.len();
        let mut slices = [IoSliceMut::new(buffer)];
        match preadv2(&self.file, &mut slices, offset, ReadWriteFlags::NOWAIT) {
            Ok(n) if n == length => Ok(Cached::Done),
            Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {
                Ok(Cached::WouldWait)
            }
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::INVAL) => Ok(Cached::Unsupported),
            Err(e) => Err(e.into()),
        }
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        if self.read_direct(buffer, offset) {
            return Ok(());
        }
        Ok(self.file.read_exact_at(buffer, offset)?)
    }

    fn can_write_nowait(&self) -> bool {
        self.can_write_nowait && self.direct.is_none()
    }

    fn write_cached(&self, bytes: &[u8], offset: u64) -> Result<Cached> {
        if self.in_memory {
            return self.write(bytes, offset).map(|()| Cached::Done);
        }
        match pwritev2(&self.file, &[IoSlice::new(bytes)], offset, ReadWriteFlags::NOWAIT) {
            Ok(n) if n == bytes.len() => Ok(Cached::Done),
            Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {
                Ok(Cached::WouldWait)
            }
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::INVAL) => Ok(Cached::Unsupported),
            Err(e) => Err(e.into()),
        }
    }

    fn never_waits(&self) -> bool {
        self.in_memory && self.direct.is_none()
    }

    fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let written = self.write_direct(bytes, offset)?;
        Ok(self.file.write_all_at(&bytes[written..], offset + written as u64)?)
    }

    fn punch(&self, offset: u64, length: u64) -> Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::io::retry_on_intr(|| fallocate(&self.file, flags, offset, length))?)
    }

    fn zero_range(&self, offset: u64, length: u64) -> Result<()> {
        let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::io::retry_on_intr(|| fallocate(&self.file, flags, offset, length))?)
    }

    fn sync(&self) -> Result<()> {
        Ok(fdatasync(&self.file)?)
    }

    fn will_need(&self, offset: u64, length: u64) {
        if self.direct.is_some() {
            return; // there is no page cache to read it into
        }
        let _ = fadvise(&self.file, offset, NonZeroU64::new(length), Advice::WillNeed);
    }

    fn allocation(&self, offset: u64, limit: u64) -> Result<(u64, bool)> {
        let (end, hole) = match seek(&self.file, SeekFrom::Data(offset)) {
            Ok(data) if data > offset => (data, true),
            Ok(_) => (seek(&self.file, SeekFrom::Hole(offset))?, false),
            // A hole up to the end of the file, or the end itself.
            Err(rustix::io::Errno::NXIO) => (self.length()?, true),
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => (self.length()?, false),
            Err(e) => return Err(e.into()),
        };
        if end <= offset {
            return Err(Errno::EIO);
        }
        Ok(((end - offset).min(limit), hole))
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.direct.as_ref().unwrap_or(&self.file).as_fd())
    }

    fn length(&self) -> Result<u64> {
        // Works for disks too, and takes a third of the time of fstat. Nothing uses the position.
        Ok(seek(&self.file, SeekFrom::End(0))?)
    }

    fn grows(&self) -> bool {
        self.grows
    }

    fn map(&self, length: usize) -> Result<Mapping> {
        // posix_fallocate writes zeroes if the filesystem cannot allocate; rustix has only fallocate.
        // SAFETY: a valid descriptor and plain numbers.
        let rc = unsafe { libc::posix_fallocate(self.file.as_raw_fd(), 0, length as libc::off_t) };
        if rc != 0 {
            return Err(Errno::new(rc));
        }
        Ok(Mapping::new(Box::new(Mapped::new(&self.file, length)?)))
    }
}

struct Thread(JoinHandle<()>);

impl TaskHandle for Thread {
    fn join(self: Box<Self>) {
        // It panicked, and the panic was already reported.
        let _ = self.0.join();
    }

    fn cpu_ns(&self) -> u64 {
        let mut clock = 0;
        // SAFETY: the thread is not joined yet, because its handle exists; the clock's number is written to `clock`.
        let result = unsafe { libc::pthread_getcpuclockid(self.0.as_pthread_t(), &raw mut clock) };
        if result == 0 { clock_ns(clock) } else { 0 } // it has ended
    }
}

/// The time of a clock, nanoseconds; 0 if there is no such clock.
fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes to `time` and nothing else.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    if result == 0 { time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64 } else { 0 }
}

impl System for Linux {
    fn open(&self, path: &Path, writable: bool) -> Result<Arc<dyn File>> {
        let file = OpenOptions::new().read(true).write(writable).open(path)?;
        Ok(Arc::new(LinuxFile::new(file)))
    }

    fn open_direct(&self, path: &Path, writable: bool) -> Result<Arc<dyn File>> {
        let mut options = OpenOptions::new();
        options.read(true).write(writable);
        let file = options.open(path)?;
        let direct = Some(options.custom_flags(libc::O_DIRECT).open(path)?);
        Ok(Arc::new(LinuxFile { direct, ..LinuxFile::new(file) }))
    }

    fn create(&self, path: &Path) -> Result<Arc<dyn File>> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).open(path)?;
        Ok(Arc::new(LinuxFile::new(file)))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        Ok(fs::rename(from, to)?)
    }

    fn remove(&self, path: &Path) -> Result<()> {
        Ok(fs::remove_file(path)?)
    }

    fn remember(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let new = path.with_extension("new");
        fs::write(&new, bytes)?;
        Ok(fs::rename(new, path)?)
    }

    fn recall(&self, path: &Path) -> Result<Option<Vec<u8>>> {
        match fs::read(path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn forget(&self, path: &Path) {
        let _ = fs::remove_file(path); // not there, or found again, which is harmless
    }

    fn stat(&self, path: &Path) -> Result<Option<FileStatus>> {
        match fs::metadata(path) {
            Ok(found) => Ok(Some(FileStatus {
                file: (found.dev(), found.ino()),
                length: found.len(),
                changed: (found.mtime(), found.mtime_nsec()),
            })),
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn room(&self, directory: &Path) -> u64 {
        rustix::fs::statvfs(directory)
            .map_or(u64::MAX, |found| found.f_bavail.saturating_mul(found.f_frsize))
    }

    fn list(&self, directory: &Path) -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(directory)?;
        Ok(entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?)
    }

    fn make_directory(&self, path: &Path) -> Result<()> {
        Ok(fs::create_dir_all(path)?)
    }

    fn sync_directory(&self, directory: &Path) -> Result<()> {
        Ok(fs::File::open(directory)?.sync_all()?)
    }

    fn boot_id(&self) -> Result<[u8; 16]> {
        let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
        let number = u128::from_str_radix(&digits, 16).map_err(|_| Errno::EINVAL)?;
        Ok(number.to_be_bytes())
    }

    fn random(&self) -> Result<u64> {
        let mut bytes = [0; 8];
        fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn monotonic_ns(&self) -> u64 {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
    }

    fn wall_ns(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64)
    }

    fn coarse_wall_ns(&self) -> u64 {
        clock_ns(libc::CLOCK_REALTIME_COARSE)
    }

    fn pool(&self, name: &str, threads_max: usize, urgency: Urgency) -> Result<Pool> {
        Ok(Pool::new(Threads::start(name, threads_max, urgency)?))
    }

    fn drive(&self, name: &str, driven: Arc<dyn Task>) -> Result<Box<dyn TaskHandle>> {
        let name = name.chars().take(15).collect();
        let thread = std::thread::Builder::new().name(name).spawn(move || driven.run())?;
        Ok(Box::new(Thread(thread)))
    }

    fn threaded(&self) -> bool {
        true
    }

    fn run_others(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_direct_file_holds_what_is_written_at_any_offset_from_any_memory() {
        let path = std::env::temp_dir().join(format!("polyvol-direct-{}", std::process::id()));
        let size = 64 << 10;
        fs::write(&path, vec![0; size]).unwrap();
        // Without O_DIRECT in the file system there is nothing to test.
        let Ok(file) = Linux.open_direct(&path, true) else {
            return fs::remove_file(&path).unwrap();
        };
        let mut held = vec![0_u8; size];
        let source: Vec<u8> = (0..size).map(|at| (at / 3 % 251) as u8 + 1).collect();
        let (lengths, shifts) = ([4096, 512, 8192, 100, 12_288, 5000], [0, 1, 28, 512, 4096]);
        for turn in 0..600 {
            let length = lengths[turn % lengths.len()];
            let unit = if turn % 2 == 0 { 4096 } else { 1 };
            let offset = turn * 7919 % (size - length) / unit * unit;
            let from = shifts[turn % shifts.len()];
            let bytes = &source[from..from + length];
            file.write(bytes, offset as u64).unwrap();
            held[offset..offset + length].copy_from_slice(bytes);
            let (start, shift) = (offset / 4096 * 4096, shifts[turn % 4]);
            let mut space = vec![0; 8192 + shift];
            let end = size.min(start + 8192);
            let found = &mut space[shift..shift + end - start];
            file.read(found, start as u64).unwrap();
            assert!(*found == held[start..end], "turn {turn}");
        }
        assert!(file.read(&mut [0; 4096], size as u64).is_err(), "the file ends there");
        assert!(file.read(&mut [0; 8192], size as u64 - 4096).is_err());
        file.sync().unwrap();
        assert!(fs::read(&path).unwrap() == held);
        fs::remove_file(path).unwrap();
    }
}
