//! Aio: the system calls of Linux asynchronous I/O that reads need.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

/// Operations in flight in one context.
pub const DEPTH: usize = 1024;
/// Reads that one call submits: the disk works on these while the next ones are prepared.
pub const SUBMIT_MAX: usize = 8;
/// Completions that one call returns.
pub const EVENTS_MAX: usize = 64;
/// The kernel's `IOCB_CMD_PREAD`.
const COMMAND_READ: u16 = 0;
/// The kernel's `IOCB_FLAG_RESFD`: the completion is signalled by an eventfd.
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

/// A kernel AIO context. It is destroyed with this value, when nothing is in flight.
pub struct Context(libc::c_ulong);

impl Context {
    /// A new one; `None` if the kernel has no AIO, or no context left.
    pub fn new() -> Option<Context> {
        let mut context: libc::c_ulong = 0;
        // SAFETY: the kernel writes one number, to a variable of that size.
        let rc = unsafe { libc::syscall(libc::SYS_io_setup, DEPTH, &raw mut context) };
        (rc == 0).then_some(Context(context))
    }

    /// Submits reads, in order; returns how many were accepted.
    ///
    /// # Safety
    /// The buffer and the file of each submitted read stay valid, and no other thread touches the buffer, until its
    /// completion is reported.
    pub unsafe fn submit(&self, blocks: &mut [libc::iocb]) -> usize {
        let mut all = [std::ptr::null_mut(); SUBMIT_MAX];
        for (place, block) in all.iter_mut().zip(blocks.iter_mut()) {
            *place = &raw mut *block;
        }
        // SAFETY: `count` pointers, each to a valid block; the kernel keeps neither.
        let rc =
            unsafe { libc::syscall(libc::SYS_io_submit, self.0, blocks.len(), all.as_mut_ptr()) };
        usize::try_from(rc).unwrap_or(0)
    }

    /// Writes unreported completions to the beginning of `events`; returns how many.
    pub fn completed(&self, events: &mut [Event; EVENTS_MAX]) -> usize {
        let mut at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let (least, most) = (0 as libc::c_long, EVENTS_MAX as libc::c_long);
        let (events, at_once) = (events.as_mut_ptr(), &raw mut at_once);
        // SAFETY: `events` has space for that many.
        let rc =
            unsafe { libc::syscall(libc::SYS_io_getevents, self.0, least, most, events, at_once) };
        usize::try_from(rc).unwrap_or(0)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: a valid context, which is not used afterwards.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.0) };
    }
}

/// The control block of a read whose completion `ended` signals. The kernel fails the read instead of waiting for space
/// in the disk's queue.
pub fn read_of(
    file: BorrowedFd<'_>,
    start: NonNull<u8>,
    length: u32,
    offset: u64,
    ended: &OwnedFd,
) -> libc::iocb {
    // SAFETY: a struct of integers; all zeros is valid.
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
