//! Cold: reads that the page cache cannot answer, several at a time on one thread of the pool.
//!
//! How it works      To have looked into the page cache was enough for the kernel to begin reading. What is left of one batch of
//!                   events, up to [`AT_ONCE`] parts of one device, is one job of the pool: its thread waits for one after the
//!                   other, and brings each to the processor, which it runs itself if that is idle. So a read costs no wake-up
//!                   but the disk's. What is read of more than one device is a job of its own: a slow disk holds up nobody
//!                   who does not read it.
//! Owner and locks   the processor has the list, which is empty between batches.

use std::sync::{Arc, Weak};

use crate::processor::core::Core;
use crate::processor::io_job::{Done, Job};
use crate::processor::queue::{Event, Part};
use crate::processor::run::Processor;
use crate::system::pool::Pool;
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

/// Has the pool read all of `colds`, which is left empty.
pub fn read_all(colds: &mut Vec<Cold>, pool: &Pool, core: &Weak<Core<Processor>>) {
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
            read(group, &core.upgrade().expect("a share stays while a job of its is out"))
        });
    }
}

fn read(group: Vec<Cold>, core: &Arc<Core<Processor>>) {
    for Cold { share, id, part, mut job } in group {
        let result = job.run();
        let done = Done { share, id, part: Some(part), job, result };
        core.bring(&mut vec![Event::Done(Box::new(done))]);
    }
}
