//! Aio: the system calls of the kernel's asynchronous I/O, as far as reads need them.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

/// Operations that the kernel has at a time.
pub const DEPTH: usize = 1024;
/// Reads that one call begins: the disk has these to do while the next ones are made ready.
pub const BEGUN_AT_ONCE: usize = 8;
/// Reads whose end one call tells.
pub const ENDED_AT_ONCE: usize = 64;
/// The kernel's `IOCB_CMD_PREAD`.
const COMMAND_READ: u16 = 0;
/// The kernel's `IOCB_FLAG_RESFD`: the end is signalled by an eventfd.
const FLAG_SIGNALS: u32 = 1;

/// The kernel's `io_event`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Event {
    /// The block's `aio_data`.
    pub data: u64,
    block: u64,
    /// How many bytes were read, or an error, negative.
    pub result: i64,
    result2: i64,
}

const _: () = assert!(size_of::<Event>() == 32 && size_of::<libc::iocb>() == 64);

/// A context of the kernel's. It ends with this value, and nothing is in flight then.
pub struct Context(libc::c_ulong);

impl Context {
    /// A new one; `None` where the kernel has no such thing, or no more of them.
    pub fn new() -> Option<Context> {
        let mut context: libc::c_ulong = 0;
        // SAFETY: the kernel writes one number, and there is a place for it.
        let rc = unsafe { libc::syscall(libc::SYS_io_setup, DEPTH, &raw mut context) };
        (rc == 0).then_some(Context(context))
    }

    /// Begins reads, in order; returns how many of them.
    ///
    /// # Safety
    /// The buffer and the file of each that was begun stay, and no other thread touches the buffer, until its completion is reported.
    pub unsafe fn submit(&self, blocks: &mut [libc::iocb]) -> usize {
        let mut all = [std::ptr::null_mut(); BEGUN_AT_ONCE];
        for (place, block) in all.iter_mut().zip(blocks.iter_mut()) {
            *place = &raw mut *block;
        }
        // SAFETY: so many pointers, each to a block; the kernel keeps neither.
        let rc =
            unsafe { libc::syscall(libc::SYS_io_submit, self.0, blocks.len(), all.as_mut_ptr()) };
        usize::try_from(rc).unwrap_or(0)
    }

    /// How many completed operations were not reported yet, into the beginning of `events`.
    pub fn ended(&self, events: &mut [Event; ENDED_AT_ONCE]) -> usize {
        let mut at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let (least, most) = (0 as libc::c_long, ENDED_AT_ONCE as libc::c_long);
        let (events, at_once) = (events.as_mut_ptr(), &raw mut at_once);
        // SAFETY: there is space for so many events.
        let rc =
            unsafe { libc::syscall(libc::SYS_io_getevents, self.0, least, most, events, at_once) };
        usize::try_from(rc).unwrap_or(0)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: a number, which is no longer used.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.0) };
    }
}

/// What the kernel is told of a read whose end `ended` signals. It gives up rather than wait for space in the disk's queue.
pub fn read_of(
    file: BorrowedFd<'_>,
    start: NonNull<u8>,
    length: u32,
    offset: u64,
    ended: &OwnedFd,
) -> libc::iocb {
    // SAFETY: numbers alone, for all of which 0 will do.
    let mut block: libc::iocb = unsafe { std::mem::zeroed() };
    block.aio_lio_opcode = COMMAND_READ;
    block.aio_rw_flags = libc::RWF_NOWAIT;
    block.aio_fildes = file.as_raw_fd() as u32;
    block.aio_buf = start.as_ptr().addr() as u64;
    block.aio_nbytes = u64::from(length);
    block.aio_offset = offset as i64;
    block.aio_flags = FLAG_SIGNALS;
    block.aio_resfd = ended.as_raw_fd() as u32;
    block
}
