//! Direct: O_DIRECT reads, many at a time, submitted by the calling thread.
//!
//! How it works      The kernel's asynchronous I/O ([`super::aio`]): a read past the page cache is in the disk's queue
//!                   when `io_submit` returns, whichever thread has called it, and any thread can reap the completions
//!                   ([`super::reaper`]). With a ring ([`super::ring`]) a read begins when the ring's thread runs;
//!                   reads that arrived before then begin, end and are followed by the next ones all at once, and in
//!                   between the disk is idle. As with a ring, only whether a buffer is full is reported: the caller
//!                   reads in another way what the kernel did not accept, and what failed.
//! Invariants        DR1 a read's buffer and file stay valid until the kernel is done with it: until then the kernel
//!                   has the only pointer to their owner;
//!                   DR2 no call waits for the disk, or for space in its queue: reads that would wait are returned.
//! Owner and locks   any thread submits, any thread reaps. The context is destroyed when no read is in flight.

use std::marker::PhantomData;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::aio::{Event, SUBMIT_MAX, read_of};
use super::reaper::{Reaper, Reaping};
use super::ring::{ABANDON_AFTER, Read};

/// See the module's head. `T` owns a read's buffer, and is returned with its completion.
pub struct Direct<T> {
    reaper: Arc<Reaper>,
    keeper: Option<JoinHandle<()>>,
    what: PhantomData<fn(T)>,
}

impl<T: Send + 'static> Direct<T> {
    /// Starts the keeper. The reaping thread calls `ended` with completed reads, each with whether its buffer is full.
    /// `None` if the kernel has no AIO, or no context left.
    pub fn start(
        name: &str,
        ended: impl Fn(Vec<(T, bool)>) + Send + Sync + 'static,
    ) -> Option<Direct<T>> {
        let bring = move |events: &[Event]| {
            let all = events.iter().map(|event| {
                // SAFETY: DR1: `block` made it from a box, and the kernel returned it once.
                let (read, what) = *unsafe { Box::from_raw(event.data as *mut (Read, T)) };
                (what, event.result == i64::from(read.length))
            });
            ended(all.collect());
        };
        let reaper = Arc::new(Reaper::new(bring)?);
        let ours = Arc::clone(&reaper);
        let name = name.chars().take(15).collect();
        let keeper = std::thread::Builder::new().name(name).spawn(move || ours.keep()).ok()?;
        Some(Direct { reaper, keeper: Some(keeper), what: PhantomData })
    }

    /// Submits all of these; returns those that were not accepted.
    ///
    /// # Safety
    /// The `T` of a read owns its buffer: until it is returned, the buffer stays valid and no other thread touches it.
    pub unsafe fn read(&self, reads: Vec<(Read, T)>) -> Vec<(Read, T)> {
        let (mut reads, mut refused) = (reads.into_iter(), Vec::new());
        loop {
            let some = reads.by_ref().take(SUBMIT_MAX);
            let mut blocks: Vec<_> = some.map(|(read, what)| self.block(read, what)).collect();
            if blocks.is_empty() {
                return refused;
            }
            self.reaper.count(blocks.len());
            // SAFETY: DR1: the caller's promise, and `block` has released the owners of the buffers and files.
            let started = unsafe { self.reaper.context.submit(&mut blocks) };
            self.reaper.uncount(blocks.len() - started);
            refused.extend(blocks[started..].iter().map(|block| {
                // SAFETY: DR1: `block` made it from a box, and the kernel has not accepted it.
                *unsafe { Box::from_raw(block.aio_data as *mut (Read, T)) }
            }));
        }
    }

    /// The control block of a read; its owner also owns the box that `aio_data` points to. `read_of` ensures DR2.
    fn block(&self, read: Read, what: T) -> libc::iocb {
        let (start, length, offset) = (read.start, read.length, read.offset);
        let boxed = Box::new((read, what));
        let file = boxed.0.file.descriptor().expect("a file that has one");
        let mut block = read_of(file, start, length, offset, &self.reaper.ended);
        block.aio_data = Box::into_raw(boxed).expose_provenance() as u64;
        block
    }
}

impl<T> Drop for Direct<T> {
    /// Ends the keeper, after all reads; if these do not end, the keeper and its reads are abandoned.
    fn drop(&mut self) {
        let keeper = self.keeper.take().expect("dropped once");
        let until = Instant::now() + ABANDON_AFTER;
        while self.reaper.in_flight() > 0 && !keeper.is_finished() {
            if Instant::now() > until {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.reaper.stop();
        // The last owner may be dropped in `ended`, on the keeper's thread.
        if keeper.thread().id() != std::thread::current().id() {
            let _ = keeper.join(); // it panicked, and the panic was already reported
        }
    }
}

impl<T> Reaping for OnceLock<Option<Direct<T>>> {
    fn reaper(&self) -> Option<&Reaper> {
        self.get()?.as_ref().map(|direct| &*direct.reaper)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::path::PathBuf;
    use std::ptr::NonNull;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::{Receiver, channel};
    use std::thread::ThreadId;

    use super::*;
    use crate::system::aio::DEPTH;
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
        // A read of data that is not on the disk yet would wait (DR2).
        std::fs::File::open(&path).unwrap().sync_all().unwrap();
        let opened = Linux.open_direct(&path, true);
        std::fs::remove_file(&path).unwrap();
        Some((path, opened.ok()?))
    }

    /// Reads of these blocks.
    fn wanted(file: &Arc<dyn File>, blocks: impl Iterator<Item = u64>) -> Vec<(Read, Wanted)> {
        let read = |block| {
            let mut page = Box::new(Page([255; BLOCK]));
            let start = NonNull::from(&mut page.0).cast();
            let (file, offset) = (Arc::clone(file), block * BLOCK as u64);
            (Read { file, offset, start, length: BLOCK as u32 }, Wanted { page, block })
        };
        blocks.map(read).collect()
    }

    /// Submits reads of some blocks; returns how many.
    fn begin(direct: &Direct<Wanted>, file: &Arc<dyn File>, count: u64) -> usize {
        // SAFETY: a `Wanted` owns its buffer, and no thread touches it before it is returned.
        let refused = unsafe { direct.read(wanted(file, 0..count)) };
        count as usize - refused.len()
    }

    type WithThreads = (Direct<Wanted>, Arc<dyn File>, Receiver<ThreadId>);

    /// A `Direct` that sends the thread that reaped each read; `None` if AIO is not available.
    fn with_threads() -> Option<WithThreads> {
        let (sender, ended) = channel();
        let tell = move |all: Vec<(Wanted, bool)>| {
            all.iter().for_each(|_| sender.send(std::thread::current().id()).unwrap());
        };
        let (_, file) = file(&format!("direct-{:?}", std::thread::current().id()))?;
        Some((Direct::start("direct", tell)?, file, ended))
    }

    const LONG: Duration = Duration::from_secs(20);

    /// Waits for `count` completions.
    fn all_come(ended: &Receiver<ThreadId>, count: usize) {
        assert!((0..count).all(|_| ended.recv_timeout(LONG).is_ok()), "a read was lost");
    }

    #[test]
    fn the_thread_with_the_turn_reaps() {
        let Some((direct, file, ended)) = with_threads() else { return };
        let (socket, freeze) = UnixStream::pair().unwrap();
        let files = [&socket.into(), &freeze.into()];
        let (mut started, mut ours) = (0, 0);
        for _ in 0..200 {
            let count = begin(&direct, &file, 3);
            started += count;
            while let Some(turn) = direct.reaper.turn() {
                turn.sleep(files, || ());
            }
            ours += (0..count)
                .filter(|_| ended.recv_timeout(LONG).unwrap() == std::thread::current().id())
                .count();
        }
        // The keeper reaps until its wake-up is handled, and if this thread gets no core for two ticks.
        assert!(ours * 2 > started, "{ours} of {started}");
    }

    #[test]
    fn a_helper_that_is_busy_delays_no_completion() {
        let Some((direct, file, ended)) = with_threads() else { return };
        for _ in 0..20 {
            let mut started = begin(&direct, &file, 8);
            let turn = direct.reaper.turn();
            started += begin(&direct, &file, 8);
            all_come(&ended, started);
            drop(turn);
        }
        // A helper that leaves is not waited for at all; the test cannot measure this time, only that nothing is lost.
        let started = begin(&direct, &file, 8);
        drop(direct.reaper.turn());
        direct.reaper.leave();
        all_come(&ended, started);
    }

    #[test]
    fn helpers_that_come_and_go_lose_no_read() {
        let Some((direct, file, ended)) = with_threads() else { return };
        let started = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for number in 0..4 {
                let (direct, file, started) = (&direct, &file, &started);
                scope.spawn(move || {
                    let (socket, freeze) = UnixStream::pair().unwrap();
                    let files = [&socket.into(), &freeze.into()];
                    for round in 0..300_u64 {
                        started.fetch_add(begin(direct, file, round % 7), Ordering::Relaxed);
                        if let Some(turn) = direct.reaper.turn() {
                            match (round + number) % 4 {
                                0 => {}
                                1 => _ = turn.reap(),
                                2 => _ = turn.sleep(files, || ()),
                                _ => std::thread::sleep(Duration::from_micros(round * 20)),
                            }
                        }
                        if (round + number) % 50 == 0 {
                            std::thread::sleep(Duration::from_millis(7)); // the keeper takes over
                        }
                    }
                });
            }
        });
        all_come(&ended, started.into_inner());
        assert_eq!(direct.reaper.in_flight(), 0);
    }

    #[test]
    fn every_read_from_several_threads_completes_once_full_or_not() {
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
                    let blocks = (0..each).map(|number| (number * 7 + thread) % (BLOCKS + 10));
                    // SAFETY: a `Wanted` owns its buffer, and no thread touches it before it is returned.
                    let left = unsafe { direct.read(wanted(file, blocks)) };
                    refused
                        .send(left.into_iter().map(|(_, what)| (what, false)).collect())
                        .unwrap();
                });
            }
        });
        drop(sender_of_refused);
        drop(direct); // it completes all reads
        let (mut all, mut full) = (0, 0);
        for (Wanted { page, block }, is_full) in ended.into_iter().flatten() {
            all += 1;
            full += u64::from(is_full);
            assert!(!is_full || (block < BLOCKS && page.0 == [block as u8; BLOCK]), "{block}");
        }
        assert_eq!(all, threads * each);
        assert!(full > 0, "no read was full");
    }
}
