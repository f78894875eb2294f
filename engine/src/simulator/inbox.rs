//! Inbox: receives the host's ended requests, with the time and the faults injected by then.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::faults::Injected;
use super::scarcity::Scarcity;
use super::shape::Areas;
use super::system::Shelf;
use crate::change_log::space::Space;
use crate::request::{Request, Sink};

/// A request that has ended.
pub struct Ended {
    /// Time of its end.
    pub time: u64,
    /// The faults injected by then.
    pub injected: Injected,
    /// The request.
    pub request: Arc<Request>,
}

/// The sink of the host's requests.
pub struct Inbox {
    disk: Shelf,
    clock: Arc<AtomicU64>,
    space: Arc<Space>,
    /// The scarcity in each set of log areas.
    scarcity: Mutex<BTreeMap<Areas, Scarcity>>,
    ended: Mutex<Vec<Ended>>,
}

impl Inbox {
    /// The inbox of a volume with this space.
    pub fn new(disk: Shelf, clock: Arc<AtomicU64>, space: Arc<Space>) -> Inbox {
        Inbox { disk, clock, space, scarcity: Mutex::default(), ended: Mutex::default() }
    }

    /// The requests that ended since the last call.
    pub fn take(&self) -> Vec<Ended> {
        std::mem::take(&mut *self.ended.lock().expect("no holder panics"))
    }

    /// The minimum of free slots in these areas since `time`.
    pub fn fewest_free_since(&self, time: u64, areas: Areas) -> u64 {
        let scarcity = self.scarcity.lock().expect("no holder panics");
        scarcity.get(&areas).map_or(u64::MAX, |scarcity| scarcity.fewest_since(time))
    }

    /// Samples the number of free slots.
    pub fn sample(&self) {
        let time = self.clock.load(Ordering::Relaxed);
        let mut scarcity = self.scarcity.lock().expect("no holder panics");
        let mut sets = vec![(0, 0)];
        for log in self.space.logs() {
            let free = log.free();
            let with = sets.iter().map(|(areas, sum)| (areas | 1 << log.number, sum + free));
            sets.extend(with.collect::<Vec<_>>());
        }
        for (areas, free) in sets {
            scarcity.entry(areas).or_default().sample(time, free);
        }
    }
}

impl Sink for Inbox {
    fn complete(&self, request: Arc<Request>) {
        let mut disk = self.disk.lock();
        disk.maybe_crash();
        if disk.dead {
            return; // the machine is dead: the reply is lost
        }
        let time = self.clock.fetch_add(1, Ordering::Relaxed);
        let errno = request.result().err().map_or(0, |errno| errno.raw() as u64);
        disk.note("end", request.cookie, errno, time);
        let injected = disk.injected;
        drop(disk);
        self.sample();
        let ended = Ended { time, injected, request };
        self.ended.lock().expect("no holder panics").push(ended);
    }

    fn kick(&self) {}
}
