//! Cold: reads that the page cache cannot answer, many at a time on one thread.
//!
//! How it works      To have looked into the page cache was enough for the kernel to begin reading. What is left of a batch of
//!                   events goes to the processor's ring, whose thread brings all that have ended to the processor, and runs it
//!                   itself if that is idle. Reads past the page cache begin at once, and one thread for all processors brings
//!                   them back ([`Direct`]). What neither can read goes to the pool: what lies in pieces, what they have
//!                   failed to read, and everything where there is no ring. There up to [`AT_ONCE`] parts of one device are
//!                   one job, whose thread waits for one after the other. So a read costs no wake-up but the disk's. What is
//!                   read of more than one device is a job of its own: a slow disk holds up nobody who does not read it.
//! Owner and locks   the processor has the list, which is empty between batches.

use std::sync::{Arc, OnceLock, Weak};

use crate::error::Errno;
use crate::processor::core::Core;
use crate::processor::io_job::{Done, Job};
use crate::processor::queue::{Event, Part};
use crate::processor::run::Processor;
use crate::system::direct::Direct;
use crate::system::pool::Pool;
use crate::system::ring::{Read, Ring};
use crate::units::DeviceId;

/// Reads of one job: as many threads take part where there are more.
const AT_ONCE: usize = 8;

/// A part that has to be read, its blocks reserved (I1).
pub struct Cold {
    pub(super) share: u32,
    pub(super) id: u64,
    pub(super) part: Part,
    pub(super) job: Job,
}

/// Who reads past the page cache, for all processors; made when it is first needed. `None` inside: there is none to be had.
pub type Directs = Arc<OnceLock<Option<Direct<Owned>>>>;

/// A part that is read for this processor.
pub type Owned = (Weak<Core<Processor>>, Cold);

/// Those who read for a processor.
pub struct Readers {
    ring: Option<Ring<Cold>>,
    directs: Option<Directs>,
    pool: Pool,
    core: Weak<Core<Processor>>,
}

impl Readers {
    /// With a ring if there is one to be had and it is `wanted`, and then with `directs`.
    pub fn new(
        name: &str,
        wanted: bool,
        directs: &Directs,
        pool: Pool,
        core: Weak<Core<Processor>>,
    ) -> Readers {
        let (for_failed, ours) = (pool.clone(), Weak::clone(&core));
        let ended = move |reads| ended(reads, &for_failed, &ours);
        let ring = wanted.then(|| Ring::start(name, ended)).flatten();
        let directs = wanted.then(|| Arc::clone(directs));
        Readers { ring, directs, pool, core }
    }

    /// Reads all of `colds`, which is left empty.
    pub fn read_all(&self, colds: &mut Vec<Cold>) {
        if self.ring.is_some() || self.directs.is_some() {
            let (mut direct, mut reads) = (Vec::new(), Vec::with_capacity(colds.len()));
            for mut cold in std::mem::take(colds) {
                match cold.job.only_read() {
                    Some((read, true)) => direct.push((read, cold)),
                    Some((read, false)) => reads.push((read, cold)),
                    None => colds.push(cold),
                }
            }
            reads.extend(self.read_direct(direct));
            match &self.ring {
                // SAFETY: a cold part has its request, whose buffer it fills alone (B3).
                Some(ring) if !reads.is_empty() => unsafe { ring.read(reads) },
                _ => colds.extend(reads.into_iter().map(|(_, cold)| cold)),
            }
        }
        pool_reads(colds, &self.pool, &self.core);
    }

    /// Begins reads past the page cache; returns those that could not be.
    fn read_direct(&self, reads: Vec<(Read, Cold)>) -> Vec<(Read, Cold)> {
        let Some(directs) = self.directs.as_ref().filter(|_| !reads.is_empty()) else {
            return reads;
        };
        let start = || {
            let pool = self.pool.clone();
            Direct::start("pv-direct", move |reads| ended_direct(reads, &pool))
        };
        let Some(direct) = directs.get_or_init(start) else { return reads };
        let owned =
            reads.into_iter().map(|(read, cold)| (read, (Weak::clone(&self.core), cold))).collect();
        // SAFETY: a cold part has its request, whose buffer it fills alone (B3).
        let refused = unsafe { direct.read(owned) };
        refused.into_iter().map(|(read, (_, cold))| (read, cold)).collect()
    }
}

/// Brings what was read past the page cache to its processors.
fn ended_direct(mut reads: Vec<(Owned, bool)>, pool: &Pool) {
    while let Some(((core, _), _)) = reads.first() {
        let core = Weak::clone(core);
        let is_its = |((owner, _), _): &(Owned, bool)| owner.ptr_eq(&core);
        let (its, others): (Vec<_>, Vec<_>) = reads.into_iter().partition(is_its);
        ended(its.into_iter().map(|((_, cold), full)| (cold, full)).collect(), pool, &core);
        reads = others;
    }
}

/// Brings what was read to its processor; has the pool read what could not be.
fn ended(reads: Vec<(Cold, bool)>, pool: &Pool, core: &Weak<Core<Processor>>) {
    let (mut read, mut failed) = (Vec::with_capacity(reads.len()), Vec::new());
    for (mut cold, full) in reads {
        if full {
            let result = cold.job.check_read();
            read.push(cold.done(result));
        } else {
            failed.push(cold);
        }
    }
    pool_reads(&mut failed, pool, core);
    if !read.is_empty() {
        core.upgrade().expect("a share stays while a job of its is out").bring(&mut read);
    }
}

impl Cold {
    fn done(self, result: Result<(), Errno>) -> Event {
        let Cold { share, id, part, job } = self;
        Event::Done(Box::new(Done { share, id, part: Some(part), job, result }))
    }
}

/// Has the pool read all of `colds`, which is left empty.
fn pool_reads(colds: &mut Vec<Cold>, pool: &Pool, core: &Weak<Core<Processor>>) {
    let mut groups: Vec<(Option<DeviceId>, Vec<Cold>)> = Vec::new();
    for cold in colds.drain(..) {
        let device = cold.job.only_device();
        let fits = |group: &&mut (Option<DeviceId>, Vec<Cold>)| {
            device.is_some() && group.0 == device && group.1.len() < AT_ONCE
        };
        match groups.iter_mut().find(fits) {
            Some(group) => group.1.push(cold),
            None => groups.push((device, vec![cold])),
        }
    }
    for (_, group) in groups {
        let core = Weak::clone(core);
        pool.run(move || {
            wait_for(group, &core.upgrade().expect("a share stays while a job of its is out"));
        });
    }
}

fn wait_for(group: Vec<Cold>, core: &Arc<Core<Processor>>) {
    for mut cold in group {
        let result = cold.job.run();
        core.bring(&mut vec![cold.done(result)]);
    }
}
