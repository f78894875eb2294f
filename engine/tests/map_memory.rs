//! Memory of maps: bytes allocated for each redirected block, with an allocator's rounding.
//!
//! Strategy          A counting allocator, and versions that are changed block by block in a pseudo-random order at
//!                   several densities. Sequential writes must take far less.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use polyvol_engine::block_map::history::History;
use polyvol_engine::block_map::place::Place;
use polyvol_engine::block_map::versions::{Change, Versions};
use polyvol_engine::units::SlotIndex;

static LIVE: AtomicUsize = AtomicUsize::new(0);
/// Tests that count take turns.
static TURN: Mutex<()> = Mutex::new(());

struct Counting;

/// As in glibc: 8 bytes of overhead, a multiple of 16, at least 32.
fn taken(layout: Layout) -> usize {
    (layout.size() + 8).next_multiple_of(16).max(32)
}

// SAFETY: the system's allocator does the work; this only counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(taken(layout), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(taken(layout), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Blocks of a partition of 64 MiB.
const BLOCKS: u32 = 16_384;
const PARTITIONS: usize = 16;

fn put(versions: &mut Versions, epoch: u64, first: u32, count: u32, slot: u64, log: u16) {
    versions.freeze_before(epoch, &[1]);
    let (sums, place) = (vec![first; count as usize], Place::slot(log, SlotIndex(slot)));
    let change = Change { epoch, first, count, place, checksums: &sums, seq: slot + 1 };
    versions.apply(change, &History::line(&[1, 2]), |_, _, _| {});
}

/// Every block of `PARTITIONS` partitions, in a pseudo-random order.
fn scattered() -> impl Iterator<Item = (usize, u32)> {
    let all = PARTITIONS as u64 * u64::from(BLOCKS);
    (0..all).map(move |n| {
        let at = (n * 0x9e37_79b1) % all; // odd, and a power of two
        let at = (at ^ (at >> 9)) % all;
        ((at / u64::from(BLOCKS)) as usize, (at % u64::from(BLOCKS)) as u32)
    })
}

fn partitions() -> Vec<Versions> {
    (0..PARTITIONS).map(|_| Versions::new(BLOCKS)).collect()
}

/// Bytes for each block, after this percentage of all blocks was redirected one by one.
fn scattered_bytes(percent: usize, logs: u16) -> f64 {
    let count = PARTITIONS * BLOCKS as usize * percent / 100;
    let before = LIVE.load(Ordering::Relaxed);
    let mut all = partitions();
    for (slot, (partition, block)) in scattered().take(count).enumerate() {
        let log = 1 + (slot as u16) % logs;
        put(&mut all[partition], 2, block, 1, slot as u64, log);
    }
    let mapped: u32 = all.iter().map(|versions| versions.live.mapped()).sum();
    assert_eq!(mapped as usize, count, "each block once");
    (LIVE.load(Ordering::Relaxed) - before) as f64 / count as f64
}

#[test]
fn scattered_blocks_take_twelve_bytes_each_at_every_density() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    for percent in [10, 20, 30, 50, 75, 100] {
        let bytes = scattered_bytes(percent, 1);
        // The size of the leaf itself matters if it has few blocks.
        let most = if percent < 20 { 12.5 } else { 12.0 };
        println!("{bytes:.2} bytes for each block at {percent} %");
        assert!(bytes <= most, "{bytes:.2} bytes for each block at {percent} %");
    }
}

#[test]
fn blocks_in_several_change_logs_take_little_more() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    for (percent, most) in [(10, 17.5), (30, 14.5), (50, 13.0), (100, 12.0)] {
        let bytes = scattered_bytes(percent, 3);
        println!("{bytes:.2} bytes for each block at {percent} %");
        assert!(bytes <= most, "{bytes:.2} bytes for each block at {percent} %");
    }
}

#[test]
fn sequential_writes_take_five_bytes_per_block() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    for count in [1, 8, 256] {
        let before = LIVE.load(Ordering::Relaxed);
        let mut all = partitions();
        let mut slot = 0;
        for versions in &mut all {
            for first in (0..BLOCKS).step_by(count as usize) {
                put(versions, 2, first, count, slot, 1);
                slot += u64::from(count);
            }
        }
        let bytes = (LIVE.load(Ordering::Relaxed) - before) as f64 / slot as f64;
        assert!(bytes <= 5.0, "{bytes:.2} bytes for each block, {count} at a time");
    }
}

#[test]
fn a_frozen_map_shares_what_has_not_changed_since() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut all = partitions();
    for (slot, (partition, block)) in scattered().enumerate() {
        put(&mut all[partition], 2, block, 1, slot as u64, 1);
    }
    let before = LIVE.load(Ordering::Relaxed);
    let kept: Vec<Versions> = all.clone();
    let cloned = LIVE.load(Ordering::Relaxed) - before;
    assert!(cloned < 100 * PARTITIONS, "a clone costs references: {cloned}");
    // One block of every 512 changes: a page of each leaf is copied, not the leaf.
    let leaves = PARTITIONS * BLOCKS as usize / 512;
    for (index, versions) in all.iter_mut().enumerate() {
        for first in (0..BLOCKS).step_by(512) {
            put(versions, 2, first, 1, 1 << 30 | index as u64, 1);
        }
    }
    let copied = (LIVE.load(Ordering::Relaxed) - before) as f64 / leaves as f64;
    assert!(copied < 1000.0, "{copied:.0} bytes for each leaf");
    drop(kept);
}
