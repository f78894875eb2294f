//! Direct: reads past the page cache, many at a time, begun by whoever brings them.
//!
//! How it works      The kernel's asynchronous I/O: a read past the page cache is on its way to the disk when `io_submit`
//!                   returns, whichever thread has called it, and one thread waits in `io_getevents` for those that have
//!                   ended. With a ring ([`super::ring`]) a read begins when the ring's thread has its turn; what came
//!                   meanwhile begins, ends and is asked for anew all at once, and between two such times the disk waits.
//!                   As with a ring, all that is told is whether a buffer is full: what the kernel has not taken, and what
//!                   has failed, is read another way by who has brought it.
//! Invariants        X1 a read's buffer and file stay until the kernel is done with it: the only pointer to what they belong to
//!                   is the kernel's meanwhile;
//!                   X2 no call waits for the disk, or for room in its queue: reads that would are given back.
//! Owner and locks   anybody submits; the thread alone takes what has ended. `in_flight` counts what the kernel has, and the
//!                   context ends when that is nothing.

use std::marker::PhantomData;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::ring::Read;

/// Reads that the kernel has at a time.
const DEPTH: usize = 1024;
/// Reads that one call begins: the disk has these to do while the next ones are made ready.
const BEGUN_AT_ONCE: usize = 8;
/// Reads whose end one call tells.
const ENDED_AT_ONCE: usize = 64;
/// The kernel's `IOCB_CMD_PREAD`.
const COMMAND_READ: u16 = 0;

/// The kernel's `io_event`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Event {
    data: u64,
    block: u64,
    result: i64,
    result2: i64,
}

const _: () = assert!(size_of::<Event>() == 32 && size_of::<libc::iocb>() == 64);

/// A context of the kernel's.
struct Context(libc::c_ulong);

impl Context {
    fn new() -> Option<Context> {
        let mut context: libc::c_ulong = 0;
        // SAFETY: the kernel writes one number, and there is a place for it.
        let rc = unsafe { libc::syscall(libc::SYS_io_setup, DEPTH, &raw mut context) };
        (rc == 0).then_some(Context(context))
    }

    /// Begins reads, in order; returns how many of them.
    ///
    /// # Safety
    /// X1 for those that were begun.
    unsafe fn submit(&self, blocks: &mut [libc::iocb]) -> usize {
        let mut all = [std::ptr::null_mut(); BEGUN_AT_ONCE];
        for (place, block) in all.iter_mut().zip(blocks.iter_mut()) {
            *place = &raw mut *block;
        }
        // SAFETY: so many pointers, each to a block; the kernel keeps neither.
        let rc =
            unsafe { libc::syscall(libc::SYS_io_submit, self.0, blocks.len(), all.as_mut_ptr()) };
        usize::try_from(rc).unwrap_or(0)
    }

    /// Waits until a read has ended; `None` once the context has ended itself.
    fn wait(&self, events: &mut [Event; ENDED_AT_ONCE]) -> Option<usize> {
        let for_ever = std::ptr::null_mut::<libc::timespec>();
        loop {
            // SAFETY: there is room for so many events.
            let rc = unsafe {
                let (least, most) = (1 as libc::c_long, ENDED_AT_ONCE as libc::c_long);
                libc::syscall(
                    libc::SYS_io_getevents,
                    self.0,
                    least,
                    most,
                    events.as_mut_ptr(),
                    for_ever,
                )
            };
            match usize::try_from(rc) {
                Ok(found) => return Some(found),
                Err(_) if std::io::Error::last_os_error().raw_os_error() == Some(libc::EINTR) => {}
                Err(_) => return None,
            }
        }
    }

    fn end(&self) {
        // SAFETY: a number; whoever waits comes back with an error.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.0) };
    }
}

/// See the module's head. `T`: what a read is for.
pub struct Direct<T> {
    context: Arc<Context>,
    in_flight: Arc<AtomicUsize>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    what: PhantomData<fn(T)>,
}

impl<T: Send + 'static> Direct<T> {
    /// Starts the thread, which calls `ended` with reads that have ended, each with whether its buffer is full. `None`
    /// where the kernel has no such thing, or no more of them.
    pub fn start(name: &str, ended: impl Fn(Vec<(T, bool)>) + Send + 'static) -> Option<Direct<T>> {
        let context = Arc::new(Context::new()?);
        let in_flight = Arc::new(AtomicUsize::new(0));
        let stopping = Arc::new(AtomicBool::new(false));
        let (ours, count) = (Arc::clone(&context), Arc::clone(&in_flight));
        let is_over = Arc::clone(&stopping);
        let name = name.chars().take(15).collect();
        let run = move || {
            let mut events = [Event::default(); ENDED_AT_ONCE];
            while !is_over.load(Ordering::Acquire)
                && let Some(found) = ours.wait(&mut events)
            {
                let all = events[..found].iter().map(|event| {
                    // SAFETY: X1: `read` made it of a box, the kernel has given it back, once.
                    let (read, what) = *unsafe { Box::from_raw(event.data as *mut (Read, T)) };
                    (what, event.result == i64::from(read.length))
                });
                let all = all.collect();
                count.fetch_sub(found, Ordering::AcqRel);
                ended(all);
            }
        };
        let thread = std::thread::Builder::new().name(name).spawn(run);
        let Ok(thread) = thread else {
            context.end();
            return None;
        };
        Some(Direct { context, in_flight, stopping, thread: Some(thread), what: PhantomData })
    }

    /// Begins all of these; returns those that could not be.
    ///
    /// # Safety
    /// What a read is for owns its buffer: until it is given back, the buffer stays and nobody else touches it.
    pub unsafe fn read(&self, reads: Vec<(Read, T)>) -> Vec<(Read, T)> {
        let (mut reads, mut refused) = (reads.into_iter(), Vec::new());
        loop {
            let some = reads.by_ref().take(BEGUN_AT_ONCE);
            let mut blocks: Vec<libc::iocb> = some.map(|(read, what)| block(read, what)).collect();
            if blocks.is_empty() {
                return refused;
            }
            self.in_flight.fetch_add(blocks.len(), Ordering::AcqRel);
            // SAFETY: X1: as the caller promises, and `block` has let go of all that they belong to.
            let begun = unsafe { self.context.submit(&mut blocks) };
            self.in_flight.fetch_sub(blocks.len() - begun, Ordering::AcqRel);
            refused.extend(blocks[begun..].iter().map(|block| {
                // SAFETY: X1: `block` made it of a box, and the kernel has not taken it.
                *unsafe { Box::from_raw(block.aio_data as *mut (Read, T)) }
            }));
        }
    }
}

/// What the kernel is told of a read; who gets it owns the box behind `aio_data`.
fn block<T>(read: Read, what: T) -> libc::iocb {
    // SAFETY: numbers alone, for all of which 0 will do.
    let mut block: libc::iocb = unsafe { std::mem::zeroed() };
    block.aio_lio_opcode = COMMAND_READ;
    block.aio_rw_flags = libc::RWF_NOWAIT; // X2
    block.aio_fildes = read.file.descriptor().expect("a file that has one").as_raw_fd() as u32;
    block.aio_buf = read.start.as_ptr().addr() as u64;
    block.aio_nbytes = u64::from(read.length);
    block.aio_offset = read.offset as i64;
    block.aio_data = Box::into_raw(Box::new((read, what))).expose_provenance() as u64;
    block
}

impl<T> Drop for Direct<T> {
    /// Ends the thread, after all reads.
    fn drop(&mut self) {
        let thread = self.thread.take().expect("dropped once");
        while self.in_flight.load(Ordering::Acquire) > 0 && !thread.is_finished() {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.stopping.store(true, Ordering::Release); // the number may be another context's soon
        self.context.end();
        // `ended` may be what lets go of it.
        if thread.thread().id() != std::thread::current().id() {
            let _ = thread.join(); // it has panicked: that was said where it happened
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::ptr::NonNull;
    use std::sync::mpsc::channel;

    use super::*;
    use crate::system::linux::Linux;
    use crate::system::{File, System};

    const BLOCK: usize = 4096;
    const BLOCKS: u64 = 100;

    #[repr(align(4096))]
    struct Page([u8; BLOCK]);

    struct Wanted {
        page: Box<Page>,
        block: u64,
    }

    /// A file whose every block is filled with its number; `None`: there is no O_DIRECT here.
    fn file(name: &str) -> Option<(PathBuf, Arc<dyn File>)> {
        let path = std::env::temp_dir().join(format!("polyvol-{name}-{}", std::process::id()));
        let bytes: Vec<u8> = (0..BLOCKS as usize * BLOCK).map(|at| (at / BLOCK) as u8).collect();
        std::fs::write(&path, bytes).unwrap();
        // What is not on the disk yet would have to be waited for (X2).
        std::fs::File::open(&path).unwrap().sync_all().unwrap();
        let opened = Linux.open_direct(&path, true);
        std::fs::remove_file(&path).unwrap();
        Some((path, opened.ok()?))
    }

    #[test]
    fn every_read_from_several_threads_comes_back_once_full_or_not() {
        let Some((_, file)) = file("direct-many") else { return };
        let (sender, ended) = channel();
        let sender_of_refused = sender.clone();
        let Some(direct) = Direct::start("direct", move |all| sender.send(all).unwrap()) else {
            return;
        };
        let (threads, each) = (4, 3 * DEPTH as u64 / 2);
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let (direct, file, refused) = (&direct, &file, sender_of_refused.clone());
                scope.spawn(move || {
                    let reads = (0..each).map(|number| {
                        let block = (number * 7 + thread) % (BLOCKS + 10);
                        let mut page = Box::new(Page([255; BLOCK]));
                        let start = NonNull::from(&mut page.0).cast();
                        let (file, offset) = (Arc::clone(file), block * BLOCK as u64);
                        (Read { file, offset, start, length: BLOCK as u32 }, Wanted { page, block })
                    });
                    // SAFETY: a `Wanted` owns its buffer, and nobody looks into it before it is given back.
                    let left = unsafe { direct.read(reads.collect()) };
                    refused
                        .send(left.into_iter().map(|(_, what)| (what, false)).collect())
                        .unwrap();
                });
            }
        });
        drop(sender_of_refused);
        drop(direct); // it ends what it was given
        let (mut all, mut full) = (0, 0);
        for (Wanted { page, block }, is_full) in ended.into_iter().flatten() {
            all += 1;
            full += u64::from(is_full);
            assert!(!is_full || (block < BLOCKS && page.0 == [block as u8; BLOCK]), "{block}");
        }
        assert_eq!(all, threads * each);
        assert!(full > 0, "none was read");
    }
}
