//! Ring: reads that wait for a disk, many at a time on one thread, with io_uring.
//!
//! How it works      The thread takes all queued reads, submits them with one call, and waits in the same call for a
//!                   completion or for an eventfd that signals new reads; a caller writes to the eventfd only if the
//!                   thread waits. Completions are returned in batches. The ring only reports whether a buffer is full:
//!                   if it is not, the caller repeats the read in the ordinary way, and gets the error there. There is
//!                   no ring if the kernel has no io_uring, or a sandbox refuses it.
//! Invariants        RG1 a read's buffer and file stay valid until the kernel is done with it: `in_flight` holds their
//!                   owners, and is leaked, not dropped, if the thread panics;
//!                   RG2 a thread that submits while the ring's thread waits, or is about to, finds `asleep` set,
//!                       unless reads already wait for others to end; and the read of the eventfd is in flight.
//! Owner and locks   the thread owns the ring; `state`'s lock is held for a push or a take.

use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, types};
use rustix::event::{EventfdFlags, eventfd};

use super::File;
use crate::log::{Level, Line, log};

/// Reads in flight in a ring; more are refused, because they would wait for those of another disk.
const DEPTH: u32 = 512;

/// How long after the end of their user reads are waited for; then they are left to the kernel.
pub const ABANDON_AFTER: Duration = Duration::from_secs(2);

/// User data of the eventfd's read: not an index of a read.
const WAKE: u64 = u64::MAX;

/// A read: the file, the range and the buffer.
pub struct Read {
    /// A file that has a descriptor.
    pub file: Arc<dyn File>,
    /// Offset of the first byte.
    pub offset: u64,
    /// The buffer.
    pub start: NonNull<u8>,
    /// Bytes.
    pub length: u32,
}

// SAFETY: a buffer that only the kernel touches until the read has ended, as callers of `Ring::read` promise.
unsafe impl Send for Read {}

struct State<T> {
    reads: Vec<(Read, T)>,
    /// Reads that were queued and not returned yet.
    held: usize,
    asleep: bool,
    stopping: bool,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    wake: OwnedFd,
}

impl<T> Shared<T> {
    fn change(&self, change: impl FnOnce(&mut State<T>)) {
        let mut state = self.state.lock().expect("no holder panics");
        change(&mut state);
        let wake = std::mem::take(&mut state.asleep);
        drop(state);
        if wake {
            #[allow(clippy::disallowed_methods)] // an integer for the kernel
            let one = 1_u64.to_ne_bytes();
            let written = rustix::io::write(&self.wake, &one);
            assert_eq!(written, Ok(one.len()), "the counter does not overflow");
        }
    }
}

/// See the module's head. `T` owns a read's buffer, and is returned with its completion.
pub struct Ring<T> {
    shared: Arc<Shared<T>>,
    thread: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> Ring<T> {
    /// Starts a ring whose thread calls `ended` with completed reads, each with whether its buffer is full. `None` if
    /// io_uring is not available.
    pub fn start(name: &str, ended: impl Fn(Vec<(T, bool)>) + Send + 'static) -> Option<Ring<T>> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC).ok()?;
        let state = State { reads: Vec::new(), held: 0, asleep: false, stopping: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), wake });
        let (made, is_made) = channel();
        let ours = Arc::clone(&shared);
        let name = name.chars().take(15).collect();
        let run = move || run(&ours, &made, &ended);
        let thread = std::thread::Builder::new().name(name).spawn(run).ok()?;
        let ring = Ring { shared, thread: Some(thread) };
        is_made.recv().unwrap_or(false).then_some(ring)
    }

    /// Queues these reads; returns those for which there is no space.
    ///
    /// # Safety
    /// The `T` of a read owns its buffer: until it is returned, the buffer stays valid and no other thread touches it.
    pub unsafe fn read(&self, mut reads: Vec<(Read, T)>) -> Vec<(Read, T)> {
        let mut refused = Vec::new();
        self.shared.change(|state| {
            let room = (DEPTH as usize).saturating_sub(state.held).min(reads.len());
            refused = reads.split_off(room);
            state.held += reads.len();
            state.reads.extend(reads);
        });
        refused
    }
}

impl<T> Drop for Ring<T> {
    /// Ends the thread, after all reads; if these do not end, the thread and its reads are abandoned.
    fn drop(&mut self) {
        self.shared.change(|state| state.stopping = true);
        let thread = self.thread.take().expect("dropped once");
        let until = Instant::now() + ABANDON_AFTER;
        while self.shared.state.lock().is_ok_and(|state| state.held > 0) && !thread.is_finished() {
            if Instant::now() > until {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        // The last owner may be dropped in `ended`, on the ring's thread.
        if thread.thread().id() != std::thread::current().id() {
            let _ = thread.join(); // it panicked, and the panic was already reported
        }
    }
}

fn run<T>(shared: &Shared<T>, made: &Sender<bool>, ended: &dyn Fn(Vec<(T, bool)>)) {
    let ring = new_ring();
    let _ = made.send(ring.is_some()); // `start` waits for this
    let Some(ring) = ring else { return };
    let in_flight = ManuallyDrop::new((0..DEPTH).map(|_| None).collect()); // RG1
    let free = (0..DEPTH).collect();
    let mut reader = Reader { ring, in_flight, free, woken: ManuallyDrop::new(Box::new(0)) };
    reader.wait_for_wake(shared);
    let mut waiting = Vec::new();
    loop {
        let mut state = shared.state.lock().expect("no holder panics");
        waiting.append(&mut state.reads);
        let idle = waiting.is_empty();
        if idle && state.stopping && reader.free.len() == DEPTH as usize {
            return;
        }
        state.asleep = waiting.len() <= reader.free.len() && !state.stopping; // RG2
        drop(state);
        reader.begin(&mut waiting);
        // Reads that do not fit wait for completions.
        let (all, woken) = reader.wait();
        if woken {
            reader.wait_for_wake(shared);
        }
        if !all.is_empty() {
            shared.state.lock().expect("no holder panics").held -= all.len();
            ended(all);
        }
    }
}

/// A ring for a single submitting thread if the kernel supports that, else an ordinary one, else none.
fn new_ring() -> Option<IoUring> {
    let mut builder = IoUring::builder();
    builder.setup_single_issuer().setup_defer_taskrun().setup_cqsize(4 * DEPTH);
    let ring = match builder.build(2 * DEPTH).or_else(|_| IoUring::new(2 * DEPTH)) {
        Ok(ring) => ring,
        Err(error) => {
            let text = format!("no io_uring can be had ({error}): threads do cold reads instead");
            let errno = error.raw_os_error().unwrap_or(0);
            log(Line::new(Level::Info, "no-io-uring", text).with(errno));
            return None;
        }
    };
    // Operations that would wait run on kernel threads: one device must not occupy all of these. An older kernel does
    // not have this call.
    let _ = ring.submitter().register_iowq_max_workers(&mut [DEPTH, 0]);
    Some(ring)
}

/// The thread's own state.
struct Reader<T> {
    ring: IoUring,
    in_flight: ManuallyDrop<Vec<Option<(Read, T)>>>,
    free: Vec<u32>,
    /// Destination of the eventfd's read.
    woken: ManuallyDrop<Box<u64>>,
}

impl<T> Reader<T> {
    fn push(&mut self, entry: &io_uring::squeue::Entry) {
        // SAFETY: buffers and files stay valid until the entry has completed: RG1, `woken`, and the eventfd, which
        // `run` borrows.
        let pushed = unsafe { self.ring.submission().push(entry) };
        pushed.expect("there are twice as many entries as reads");
    }

    fn wait_for_wake(&mut self, shared: &Shared<T>) {
        let (fd, into) = (types::Fd(shared.wake.as_raw_fd()), &raw mut **self.woken);
        self.push(&opcode::Read::new(fd, into.cast(), 8).build().user_data(WAKE));
    }

    /// Prepares as many of `waiting` as there is space for; the next wait submits them.
    fn begin(&mut self, waiting: &mut Vec<(Read, T)>) {
        let some = waiting.len().min(self.free.len());
        for (read, what) in waiting.drain(..some) {
            let index = self.free.pop().expect("there is room for these");
            let descriptor = read.file.descriptor().expect("a file that has one").as_raw_fd();
            let entry = opcode::Read::new(types::Fd(descriptor), read.start.as_ptr(), read.length);
            let entry = entry.offset(read.offset).build().user_data(u64::from(index));
            self.in_flight[index as usize] = Some((read, what));
            self.push(&entry);
        }
    }

    /// Waits for a completion; returns all completed reads, and whether there was a wake-up.
    fn wait(&mut self) -> (Vec<(T, bool)>, bool) {
        if let Err(error) = self.ring.submit_and_wait(1)
            && error.kind() != std::io::ErrorKind::Interrupted
        {
            // The kernel has no memory now: entries that it did not accept stay queued for the next call.
            std::thread::sleep(Duration::from_millis(1));
        }
        let (mut ended, mut woken) = (Vec::new(), false);
        for entry in self.ring.completion() {
            if entry.user_data() == WAKE {
                woken = true;
                continue;
            }
            let index = entry.user_data() as u32;
            let (read, what) = self.in_flight[index as usize].take().expect("it completes once");
            self.free.push(index);
            ended.push((what, entry.result() == read.length as i32));
        }
        (ended, woken)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;
    use crate::system::System;
    use crate::system::linux::Linux;

    const BLOCK: usize = 4096;

    /// A buffer, and where its contents should come from.
    struct Wanted {
        bytes: Box<[u8]>,
        block: u64,
    }

    type Ended = Receiver<Vec<(Wanted, bool)>>;

    /// A file whose every block is filled with its number's lowest byte, a ring, and the ring's results. `None` if
    /// io_uring is not available.
    fn ring(name: &str) -> Option<(Arc<dyn File>, Ring<Wanted>, Ended)> {
        let path = std::env::temp_dir().join(format!("polyvol-{name}-{}", std::process::id()));
        let file = Linux.create(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        for block in 0..100 {
            file.write(&[block; BLOCK], u64::from(block) * BLOCK as u64).unwrap();
        }
        let (sender, ended) = channel();
        let ring = Ring::start(name, move |all| sender.send(all).unwrap())?;
        Some((file, ring, ended))
    }

    fn read(ring: &Ring<Wanted>, file: &Arc<dyn File>, blocks: impl Iterator<Item = u64>) {
        let reads = blocks.map(|block| {
            let mut bytes = vec![255; BLOCK].into_boxed_slice();
            let start = NonNull::from(&mut bytes[..]).cast();
            let (file, offset) = (Arc::clone(file), block * BLOCK as u64);
            (Read { file, offset, start, length: BLOCK as u32 }, Wanted { bytes, block })
        });
        // SAFETY: a `Wanted` owns its buffer, and no thread touches it before it is returned.
        let mut refused = unsafe { ring.read(reads.collect()) };
        while !refused.is_empty() {
            std::thread::yield_now();
            // SAFETY: as above.
            refused = unsafe { ring.read(refused) };
        }
    }

    fn checked(all: Vec<(Wanted, bool)>) -> usize {
        for (Wanted { bytes, block }, full) in &all {
            assert_eq!(*full, *block < 100, "block {block}");
            assert!(!full || bytes.iter().all(|byte| u64::from(*byte) == *block), "block {block}");
        }
        all.len()
    }

    #[test]
    fn more_reads_than_fit_from_several_threads_all_complete_with_their_bytes() {
        let Some((file, ring, ended)) = ring("ring-many") else { return };
        let (threads, each) = (4, 3 * u64::from(DEPTH));
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let (ring, file) = (&ring, &file);
                scope.spawn(move || {
                    read(ring, file, (0..each).map(|number| (number * 7 + thread) % 110));
                    (0..each).for_each(|number| read(ring, file, std::iter::once(number % 110)));
                });
            }
        });
        drop(ring); // it completes all reads
        let found: usize = ended.into_iter().map(checked).sum();
        assert_eq!(found as u64, threads * each * 2);
    }

    #[test]
    fn a_ring_that_waits_is_woken_by_each_read() {
        let Some((file, ring, ended)) = ring("ring-one") else { return };
        for block in 0..100 {
            read(&ring, &file, std::iter::once(block));
            let all = ended.recv_timeout(Duration::from_secs(10)).expect("it was woken");
            assert_eq!(checked(all), 1);
        }
    }
}
