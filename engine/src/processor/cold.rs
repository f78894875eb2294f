//! Cold: the threads for I/O that may block: reads that the page cache cannot answer, many at a time on one thread, and
//! everything else on the pool's threads.
//!
//! How it works      The attempt to read from the page cache already made the kernel begin the read. The remaining
//!                   reads of a batch of events go to the processor's ring, whose thread returns completed ones to the
//!                   processor, and runs it if it is idle. O_DIRECT reads begin at once, and are reaped for all
//!                   processors together ([`Direct`]). The pool does the rest: reads of several runs, reads that failed
//!                   there, all reads if there is no ring, and everything that is not a read. There up to
//!                   [`PARTS_PER_JOB`] small parts of one lane are one job, whose thread does one after the other. So a
//!                   read costs no wake-up except the disk's, and a batch of writes one.
//! A device that hangs   delays only users of that device: a ring has at most [`RING_READS`] reads of one device, and
//!                   none of one that is silent; the pool has a lane for each device. Work that waits there can be taken
//!                   back; reads in a ring are in the kernel.
//! Owner and locks   the processor has the list, which is empty between batches.

use std::sync::{Arc, OnceLock, Weak};

use crate::error::Errno;
use crate::io::device::Device;
use crate::processor::io_job::{Done, Job};
use crate::processor::messages::Event;
use crate::processor::part::Part;
use crate::processor::run::Processor;
use crate::processor::runner::Runner;
use crate::processor::share::in_flight::Errand;
use crate::processor::share::read::INLINE_BYTES_MAX;
use crate::system::System;
use crate::system::direct::Direct;
use crate::system::pool::{Lane, Pool};
use crate::system::ring::{Read, Ring};
use crate::system::ticks::Ticks;

/// Parts of one job; more parts become more jobs, and so more threads.
const PARTS_PER_JOB: usize = 8;
/// Longer parts become jobs of their own, bytes.
const SMALL_BYTES: u32 = 64 << 10;
/// Reads of one device in a ring: fewer than a disk's queue holds, so that reads from the page cache never find it
/// full.
const RING_READS: u32 = 64;
/// A thread that has worked on parts for this time runs the processor before it does the next part, nanoseconds.
const RUN_PROCESSOR_AFTER_NS: u64 = 200_000;

/// A part, or work of the share itself, for other threads; its blocks are reserved (I1).
pub struct Cold {
    pub(super) share: u32,
    pub(super) id: u64,
    pub(super) lane: Lane,
    /// The part's length.
    pub(super) bytes: u32,
    pub(super) errand: Arc<Errand>,
}

/// The content of an errand, to be read.
pub struct Taken {
    cold: Cold,
    part: Option<Part>,
    job: Job,
    device: Arc<Device>,
}

/// The `O_DIRECT` reader shared by all processors; made when it is first needed. `None` inside: the kernel does not
/// support it.
pub type DirectReader = Arc<OnceLock<Option<Direct<Owned>>>>;

/// A part that is read for this processor.
pub type Owned = (Weak<Runner<Processor>>, Taken);

/// The threads that do a processor's blocking I/O.
pub struct Readers {
    ring: Option<Ring<Taken>>,
    direct_reader: Option<DirectReader>,
    pool: Lanes,
}

/// The pool, and the processor to which its threads return finished parts.
#[derive(Clone)]
struct Lanes {
    system: Arc<dyn System>,
    ticks: Arc<Ticks>,
    pool: Pool,
    runner: Weak<Runner<Processor>>,
}

impl Readers {
    /// With a ring if one is available and `wanted`, and then with `direct_reader`.
    pub fn new(
        name: &str,
        system: &Arc<dyn System>,
        ticks: &Arc<Ticks>,
        direct_reader: &DirectReader,
        pool: Pool,
        runner: Weak<Runner<Processor>>,
    ) -> Readers {
        let (system, ticks) = (Arc::clone(system), Arc::clone(ticks));
        let wanted = system.threaded();
        let pool = Lanes { system, ticks, pool, runner };
        let ours = pool.clone();
        let ring = wanted.then(|| Ring::start(name, move |reads| ours.ended(reads))).flatten();
        let direct_reader = wanted.then(|| Arc::clone(direct_reader));
        Readers { ring, direct_reader, pool }
    }

    /// Starts all of `colds`, which is left empty.
    pub fn do_all(&self, colds: &mut Vec<Cold>) {
        if self.ring.is_some() || self.direct_reader.is_some() {
            let (mut direct, mut reads) = (Vec::new(), Vec::with_capacity(colds.len()));
            for cold in std::mem::take(colds) {
                match cold.take_read(&self.pool.ticks) {
                    Ok((read, taken)) if taken.device.mode.direct => direct.push((read, taken)),
                    Ok(read) => reads.push(read),
                    Err(cold) => colds.push(cold),
                }
            }
            reads.extend(self.read_direct(direct));
            let refused = match &self.ring {
                // SAFETY: a part holds its request, and only it fills its range of the buffer (B3).
                Some(ring) if !reads.is_empty() => unsafe { ring.read(reads) },
                _ => reads,
            };
            colds.extend(refused.into_iter().map(|(_, taken)| taken.put_back()));
        }
        self.pool.do_all(colds);
    }

    /// Submits O_DIRECT reads; returns those that were not accepted.
    fn read_direct(&self, reads: Vec<(Read, Taken)>) -> Vec<(Read, Taken)> {
        let Some(direct_reader) = self.direct_reader.as_ref().filter(|_| !reads.is_empty()) else {
            return reads;
        };
        let start = || Direct::start("pv-direct", ended_direct(&self.pool));
        let Some(direct) = direct_reader.get_or_init(start) else { return reads };
        let runner = &self.pool.runner;
        let owned =
            reads.into_iter().map(|(read, taken)| (read, (Weak::clone(runner), taken))).collect();
        // SAFETY: a part holds its request, and only it fills its range of the buffer (B3).
        let refused = unsafe { direct.read(owned) };
        refused.into_iter().map(|(read, (_, taken))| (read, taken)).collect()
    }
}

/// Returns completed O_DIRECT reads to their processors.
fn ended_direct(pool: &Lanes) -> impl Fn(Vec<(Owned, bool)>) + Send + Sync + 'static {
    let pool = pool.clone();
    move |mut reads| {
        while let Some(((runner, _), _)) = reads.first() {
            let pool = Lanes { runner: Weak::clone(runner), ..pool.clone() };
            let is_its = |((owner, _), _): &(Owned, bool)| owner.ptr_eq(&pool.runner);
            let (its, others): (Vec<_>, Vec<_>) = reads.into_iter().partition(is_its);
            pool.ended(its.into_iter().map(|((_, taken), full)| (taken, full)).collect());
            reads = others;
        }
    }
}

impl Cold {
    /// Takes it, if it is a single read that a ring may have.
    fn take_read(self, ticks: &Ticks) -> Result<(Read, Taken), Cold> {
        let Lane::Device(_) = self.lane else { return Err(self) };
        if !self.errand.is_read() || self.bytes > INLINE_BYTES_MAX {
            return Err(self);
        }
        // An errand that was just made is not taken back.
        let Some((part, mut job)) = self.errand.take(ticks) else { return Err(self) };
        let Some((read, device)) = job.only_read() else {
            self.errand.put_back((part, job));
            return Err(self);
        };
        if !device.silence.enter_ring(RING_READS) {
            self.errand.put_back((part, job));
            return Err(self);
        }
        self.errand.enter_ring();
        Ok((read, Taken { cold: self, part, job, device }))
    }

    fn done(&self, part: Option<Part>, job: Job, result: Result<(), Errno>) -> Event {
        let Cold { share, id, .. } = *self;
        Event::Done(Box::new(Done { share, id, part, job, result }))
    }
}

impl Taken {
    /// Puts it back, because it was not read: it is to be done in another way.
    fn put_back(self) -> Cold {
        let Taken { cold, part, job, device } = self;
        device.silence.leave_ring();
        cold.errand.put_back((part, job));
        cold
    }
}

impl Lanes {
    /// Returns completed reads to the processor; the pool repeats the failed ones.
    fn ended(&self, reads: Vec<(Taken, bool)>) {
        let (mut read, mut failed) = (Vec::with_capacity(reads.len()), Vec::new());
        for (mut taken, full) in reads {
            if full {
                let result = taken.job.check_read();
                taken.device.silence.leave_ring();
                read.push(taken.cold.done(taken.part, taken.job, result));
            } else {
                failed.push(taken.put_back());
            }
        }
        self.do_all(&mut failed);
        // A stopped engine has abandoned reads that hang.
        if let Some(runner) = self.runner.upgrade().filter(|_| !read.is_empty()) {
            runner.submit(&mut read);
        }
    }

    /// Queues all of `colds` on the pool, and leaves it empty.
    fn do_all(&self, colds: &mut Vec<Cold>) {
        let mut groups: Vec<(Lane, Vec<Cold>)> = Vec::new();
        for cold in colds.drain(..) {
            let (lane, small) = (cold.lane, cold.bytes <= SMALL_BYTES);
            let fits = |group: &&mut (Lane, Vec<Cold>)| {
                group.0 == lane && group.1.len() < PARTS_PER_JOB && group.1[0].bytes <= SMALL_BYTES
            };
            match groups.iter_mut().find(fits).filter(|_| small) {
                Some(group) => group.1.push(cold),
                None => groups.push((lane, vec![cold])),
            }
        }
        for (lane, group) in groups {
            let ours = self.clone();
            self.pool.run(lane, move || ours.do_one_by_one(group));
        }
    }

    /// Does a group. A part that waited for a disk is returned at once; the others together.
    fn do_one_by_one(&self, group: Vec<Cold>) {
        let mut began = self.system.monotonic_ns();
        let last = group.len() - 1;
        for (index, cold) in group.into_iter().enumerate() {
            let Some((part, mut job)) = cold.errand.take(&self.ticks) else { continue };
            let result = job.run();
            let Some(runner) = self.runner.upgrade() else { return };
            let mut done = vec![cold.done(part, job, result)];
            let now = self.system.monotonic_ns();
            if index == last || now.saturating_sub(began) > RUN_PROCESSOR_AFTER_NS {
                began = now;
                runner.submit(&mut done);
            } else {
                runner.queue.push_all_without_wake(&mut done);
            }
        }
        if let Some(runner) = self.runner.upgrade() {
            runner.submit(&mut Vec::new()); // the last one may have been taken back
        }
    }
}
