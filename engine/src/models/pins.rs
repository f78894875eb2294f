//! Pins: a place that a clone reads is not used again, whenever the clone is opened or closed (PI1).
//!
//! What is modelled  The share's processor is a lock around the versions of a partition of one block. A worker copies the
//!                   block and moves it in all versions, and another thread writes to the place that the block has left.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use loom::thread::{self, JoinHandle};

use super::check_within;
use crate::block_map::history::History;
use crate::block_map::place::Place;
use crate::block_map::relocation::Move;
use crate::block_map::versions::{Change, Versions};
use crate::geometry::pins::{Pin, Pins};
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering};
use crate::units::{Epoch, SlotIndex};

/// A pin that comes between a worker's look at the pins and its move needs more than three.
const PREEMPTIONS: usize = 6;
const SNAPSHOT: Epoch = 1;
/// What the snapshot sees, and what is written to a place that was left.
const OLD: u64 = 17;
const NEW: u64 = 23;

/// Where the block goes.
#[derive(Clone, Copy)]
enum Goes {
    Home,
    Away,
}

struct Partition {
    pins: Arc<Pins>,
    versions: Mutex<Versions>,
    base: AtomicU64,
    slot: AtomicU64,
    is_left: AtomicBool,
    from: Place,
    to: Place,
}

impl Partition {
    fn new(goes: Goes) -> Arc<Partition> {
        let slot = |number| Place::slot(1, SlotIndex(number));
        let mut versions = Versions::new(1);
        let mut write = |epoch, place, seq| {
            versions.freeze_before(epoch, &[SNAPSHOT]);
            let change = Change { epoch, first: 0, count: 1, place, checksums: &[7], seq };
            versions.apply(change, &History::line(&[SNAPSHOT]), |_, _, _| {});
        };
        let (from, to) = match goes {
            Goes::Home => {
                write(SNAPSHOT, slot(1), 1);
                (slot(1), Place::BASE)
            }
            Goes::Away => {
                write(SNAPSHOT + 1, slot(2), 1); // the snapshot keeps the base place
                (Place::BASE, slot(1))
            }
        };
        let (base, slot) = (AtomicU64::new(0), AtomicU64::new(0));
        let (pins, is_left) = (Arc::default(), AtomicBool::new(false));
        let versions = Mutex::new(versions);
        let made = Partition { pins, versions, base, slot, is_left, from, to };
        made.contents(from).store(OLD, Ordering::Relaxed);
        Arc::new(made)
    }

    fn contents(&self, place: Place) -> &AtomicU64 {
        if place == Place::BASE { &self.base } else { &self.slot }
    }

    /// What relocation does.
    fn relocate(&self) -> bool {
        let old = self.contents(self.from).load(Ordering::Relaxed);
        self.contents(self.to).store(old, Ordering::Relaxed);
        let mut versions = self.versions.lock().unwrap();
        let pinned = self.pins.epochs();
        let (_, is_pinned) = versions.any_has(&pinned, 0, 1, |place| place == self.from);
        if !is_pinned {
            let one = Move { first: 0, count: 1, from: self.from, to: self.to, sums: vec![7] };
            versions.relocate(&[one], 2);
            self.is_left.store(true, Ordering::Release);
        }
        !is_pinned
    }

    /// What a host, or the next relocation, does.
    fn write_where_it_was(&self) {
        if self.is_left.load(Ordering::Acquire) {
            self.contents(self.from).store(NEW, Ordering::Relaxed);
        }
    }

    /// Where a clone that is opened now finds the block.
    fn find(&self) -> Place {
        self.versions.lock().unwrap().at(SNAPSHOT).0.place(0)
    }

    fn read(&self, place: Place) {
        assert_eq!(self.contents(place).load(Ordering::Relaxed), OLD, "a place was used again");
    }

    /// Starts a thread that relocates, and one that writes.
    fn start(self: &Arc<Self>) -> (JoinHandle<bool>, JoinHandle<()>) {
        let (worker, host) = (Arc::clone(self), Arc::clone(self));
        (thread::spawn(move || worker.relocate()), thread::spawn(move || host.write_where_it_was()))
    }
}

/// Counts the orders in which the block was moved, and those in which it stayed.
#[derive(Default)]
struct Seen([AtomicUsize; 2]);

impl Seen {
    fn note(&self, moved: bool) {
        self.0[usize::from(moved)].fetch_add(1, Ordering::Relaxed);
    }

    fn assert_both(&self) {
        assert!(self.0.iter().all(|times| times.load(Ordering::Relaxed) > 0));
    }
}

fn try_both(model: fn(Goes) -> bool) {
    for goes in [Goes::Home, Goes::Away] {
        let seen = Arc::new(Seen::default());
        let noted = Arc::clone(&seen);
        check_within(PREEMPTIONS, move || noted.note(model(goes)));
        seen.assert_both();
    }
}

#[test]
fn a_clone_that_is_opened_finds_the_block_where_it_stays() {
    try_both(|goes| {
        let partition = Partition::new(goes);
        let (worker, host) = partition.start();
        let pin = Pin::new(&partition.pins, SNAPSHOT);
        let place = partition.find();
        partition.read(place);
        drop(pin);
        host.join().unwrap();
        worker.join().unwrap()
    });
}

#[test]
fn a_clone_that_is_closed_takes_no_pin_of_another() {
    try_both(|goes| {
        let partition = Partition::new(goes);
        let pins = [Pin::new(&partition.pins, SNAPSHOT), Pin::new(&partition.pins, SNAPSHOT)];
        let place = partition.find();
        let (worker, host) = partition.start();
        let [closed, pin] = pins;
        drop(closed);
        partition.read(place);
        drop(pin);
        host.join().unwrap();
        worker.join().unwrap()
    });
}
