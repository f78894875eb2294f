//! Direct: O_DIRECT reads of 4 KiB, by one thread that never sleeps.
//!
//! How it works      It asks the socket and the kernel's asynchronous I/O in turn, whether anything has come, all the time. What the
//!                   socket has is asked of the disk at once, `SUBMIT_MAX` reads a call; what the disk has ended is
//!                   answered, `REPLIES_PER_SEND` replies a call. So nobody is faster by much who serves reads of the disk over a
//!                   socket, and nobody should be a server like this: it keeps a core busy when nothing is asked.
//! Errors            anything but a whole read of 4 KiB ends the connection, and so does a full house.

use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::ptr::null_mut;

use super::{REPLY_MAGIC, REQUEST_BYTES, REQUEST_MAGIC, be16, be32, be64};

const BLOCK: usize = 4096;
/// Upper bound of reads in flight.
const SLOTS: usize = 256;
const SUBMIT_MAX: usize = 8;
const REPLIES_PER_SEND: usize = 4;
const INBOX_BYTES: usize = SLOTS * REQUEST_BYTES;

/// The kernel's `io_event`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Event {
    slot: u64,
    block: u64,
    result: i64,
    result2: i64,
}

/// Buffers of reads, and the cookies of their requests.
struct Slots {
    start: *mut u8,
    cookies: [[u8; 8]; SLOTS],
    free: Vec<usize>,
    context: libc::c_ulong,
}

impl Slots {
    fn new() -> io::Result<Slots> {
        let layout = Layout::from_size_align(SLOTS * BLOCK, BLOCK).expect("a multiple of a page");
        // SAFETY: the size is not 0. It is freed at the end of the process.
        let start = unsafe { alloc_zeroed(layout) };
        if start.is_null() {
            handle_alloc_error(layout);
        }
        let mut context: libc::c_ulong = 0;
        // SAFETY: the kernel writes one number, to a variable of that size.
        match unsafe { libc::syscall(libc::SYS_io_setup, SLOTS, &raw mut context) } {
            0 => Ok(Slots { start, cookies: [[0; 8]; SLOTS], free: (0..SLOTS).collect(), context }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn bytes(&self, slot: usize) -> *mut u8 {
        self.start.wrapping_add(slot * BLOCK)
    }

    /// The control block of a request's read.
    fn block(&mut self, request: &[u8], file: &File) -> io::Result<libc::iocb> {
        let head = (be32(request, 0), be16(request, 6), be32(request, 24) as usize);
        let slot = match self.free.pop() {
            Some(slot) if head == (REQUEST_MAGIC, 0, BLOCK) => slot,
            _ => return Err(ErrorKind::InvalidData.into()),
        };
        self.cookies[slot].copy_from_slice(&request[8..16]);
        // SAFETY: a struct of integers; all zeros is a valid read.
        let mut block: libc::iocb = unsafe { std::mem::zeroed() };
        block.aio_fildes = file.as_raw_fd() as u32;
        block.aio_buf = self.bytes(slot) as u64;
        block.aio_nbytes = BLOCK as u64;
        block.aio_offset = be64(request, 16).cast_signed();
        block.aio_data = slot as u64;
        Ok(block)
    }

    fn begin(&self, blocks: &mut [libc::iocb]) -> io::Result<()> {
        for some in blocks.chunks_mut(SUBMIT_MAX) {
            let mut all = [null_mut(); SUBMIT_MAX];
            all.iter_mut().zip(some.iter_mut()).for_each(|(place, block)| *place = &raw mut *block);
            // SAFETY: valid pointers to blocks; only the kernel uses a slot's bytes until the read completes.
            let submitted = unsafe {
                libc::syscall(libc::SYS_io_submit, self.context, some.len(), all.as_mut_ptr())
            };
            if usize::try_from(submitted).ok() != Some(some.len()) {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }

    /// Writes completions to `events`; returns how many.
    fn ended(&self, events: &mut [Event; SLOTS]) -> usize {
        let mut at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let (least, most) = (0 as libc::c_long, SLOTS as libc::c_long);
        let (events, at_once) = (events.as_mut_ptr(), &raw mut at_once);
        // SAFETY: `events` has space for that many.
        let found = unsafe {
            libc::syscall(libc::SYS_io_getevents, self.context, least, most, events, at_once)
        };
        usize::try_from(found).unwrap_or(0)
    }

    /// Answers some completed reads.
    fn answer(&mut self, events: &[Event], stream: &mut UnixStream) -> io::Result<()> {
        let mut out = Vec::with_capacity(REPLIES_PER_SEND * (16 + BLOCK));
        for event in events {
            if event.result != BLOCK as i64 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            let slot = event.slot as usize;
            out.extend_from_slice(&REPLY_MAGIC.to_be_bytes());
            out.extend_from_slice(&0_u32.to_be_bytes());
            out.extend_from_slice(&self.cookies[slot]);
            // SAFETY: the slot's bytes; the kernel does not use them any more.
            out.extend_from_slice(unsafe { std::slice::from_raw_parts(self.bytes(slot), BLOCK) });
            self.free.push(slot);
        }
        send(stream, &out)
    }
}

/// Sends all bytes on a nonblocking socket.
fn send(stream: &mut UnixStream, mut out: &[u8]) -> io::Result<()> {
    while !out.is_empty() {
        match stream.write(out) {
            Ok(sent) => out = &out[sent..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Serves reads until the connection ends. `file` was opened with O_DIRECT.
pub fn serve(mut stream: UnixStream, file: &File) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    let mut slots = Slots::new()?;
    let mut events = [Event::default(); SLOTS];
    let mut inbox = vec![0; INBOX_BYTES];
    let (mut filled, mut blocks) = (0, Vec::with_capacity(SLOTS));
    loop {
        let found = slots.ended(&mut events);
        for some in events[..found].chunks(REPLIES_PER_SEND) {
            slots.answer(some, &mut stream)?;
        }
        match stream.read(&mut inbox[filled..]) {
            Ok(0) => return Ok(()),
            Ok(more) => filled += more,
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        }
        let whole = filled - filled % REQUEST_BYTES;
        for request in inbox[..whole].chunks(REQUEST_BYTES) {
            blocks.push(slots.block(request, file)?);
        }
        slots.begin(&mut blocks)?;
        blocks.clear();
        inbox.copy_within(whole..filled, 0);
        filled -= whole;
    }
}
