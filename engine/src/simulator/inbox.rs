//! Inbox: where the host's requests end, and what is known of that instant.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::faults::Injected;
use super::scarcity::Scarcity;
use super::system::Shelf;
use crate::change_log::space::Space;
use crate::request::{Request, Sink};

/// A request that has ended.
pub struct Ended {
    /// When.
    pub time: u64,
    /// What had gone wrong until then.
    pub injected: Injected,
    /// It.
    pub request: Arc<Request>,
}

/// Where requests end.
pub struct Inbox {
    disk: Shelf,
    clock: Arc<AtomicU64>,
    space: Arc<Space>,
    scarcity: Mutex<Scarcity>,
    ended: Mutex<Vec<Ended>>,
}

impl Inbox {
    /// The inbox of a volume with this space.
    pub fn new(disk: Shelf, clock: Arc<AtomicU64>, space: Arc<Space>) -> Inbox {
        Inbox { disk, clock, space, scarcity: Mutex::default(), ended: Mutex::default() }
    }

    /// What has ended since the last call.
    pub fn take(&self) -> Vec<Ended> {
        std::mem::take(&mut *self.ended.lock().expect("nobody panics with it"))
    }

    /// The fewest slots that were free at some time since this one.
    pub fn fewest_free_since(&self, time: u64) -> u64 {
        self.scarcity.lock().expect("nobody panics with it").fewest_since(time)
    }

    /// Notes how many slots are free.
    pub fn look(&self) {
        let (time, free) = (self.clock.load(Ordering::Relaxed), self.space.free());
        self.scarcity.lock().expect("nobody panics with it").look(time, free);
    }
}

impl Sink for Inbox {
    fn complete(&self, request: Arc<Request>) {
        let mut disk = self.disk.lock();
        disk.maybe_crash();
        if disk.dead {
            return; // nobody hears it
        }
        let time = self.clock.fetch_add(1, Ordering::Relaxed);
        let errno = request.result().err().map_or(0, |errno| errno.raw() as u64);
        disk.note("end", request.cookie, errno, time);
        let injected = disk.injected;
        drop(disk);
        self.look();
        let ended = Ended { time, injected, request };
        self.ended.lock().expect("nobody panics with it").push(ended);
    }

    fn kick(&self) {}
}
