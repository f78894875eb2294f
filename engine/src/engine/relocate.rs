//! Relocate: the control call that brings a volume's blocks from change logs back to their base places, or moves away
//! what only snapshots see there.
//!
//! How it works      It asks one share after the other for a batch
//!                   ([`Share::relocate`](crate::processor::share::Share::relocate)), until a pass over all of them has
//!                   found nothing, enough was moved, or the time is over. If hosts were active since the batch before,
//!                   batches are small, and the call sleeps nineteen times as long as each took. After moves away it
//!                   flushes, because the base places are held until then. Python decides how often it is called,
//!                   and with which bounds.
//! Errors            NotFound if the volume is not served; what a flush can fail with, after moves away.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::engine::Engine;
use crate::error::Result;
use crate::processor::messages::Control;
use crate::processor::queue::ask;
pub use crate::processor::share::relocate::{Kind, Scattered};
use crate::units::{BLOCK_SIZE, VolumeId};
use crate::volume::Volume;

/// Blocks of a batch: 1 MiB.
const BATCH_BLOCKS: u32 = 256;
/// Blocks of a batch while hosts are active.
const SMALL_BATCH_BLOCKS: u32 = 32;
/// How many times as long as a batch took it sleeps while hosts are active.
const SLEEP_FACTOR: u32 = 19;
/// How long it sleeps if a share is busy.
const BUSY_SLEEP: Duration = Duration::from_millis(1);

/// The bounds of one call.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes to move.
    pub bytes: u64,
    /// How long it may take; a batch is not interrupted.
    pub time: Duration,
    /// Hosts that are active do not matter: a log is full.
    pub urgent: bool,
    /// What is moved.
    pub kind: Kind,
}

/// What one call has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Relocation {
    /// Bytes that were moved.
    pub bytes: u64,
    /// Batches with blocks that could not be moved, because their slots are bad or a device failed.
    pub failed: u64,
    /// A pass over all partitions has found nothing that can be moved now.
    pub at_end: bool,
    /// Hosts were active.
    pub hosts: bool,
}

impl Engine {
    /// Relocates blocks of a volume, within bounds.
    pub fn relocate(&self, volume: VolumeId, bounds: Bounds) -> Result<Relocation> {
        let volume = self.volume(volume)?;
        let (began, mut done) = (Instant::now(), Relocation::default());
        let mut requests = requests(&volume);
        let (mut share, mut idle_shares, mut moved, mut busy) = (0, 0, false, false);
        while done.bytes < bounds.bytes && began.elapsed() < bounds.time {
            let before = std::mem::replace(&mut requests, self::requests(&volume));
            let gives_way = before != requests && !bounds.urgent;
            done.hosts |= before != requests;
            let batch = if gives_way { SMALL_BATCH_BLOCKS } else { BATCH_BLOCKS };
            let wanted = (bounds.bytes - done.bytes).div_ceil(BLOCK_SIZE).min(u64::from(batch));
            let batch_began = Instant::now();
            let answer = ask(&*self.system, &volume.shares[share].queue, |answer| {
                Control::Relocate(volume.share, bounds.kind, wanted as u32, answer)
            });
            let Ok(answer) = answer else { break }; // it is being closed
            done.bytes += answer.blocks * BLOCK_SIZE;
            done.failed += answer.failed;
            moved |= answer.blocks > 0;
            if answer.at_end || answer.busy {
                // In a busy share another call's job may be under way: it has not come to its end.
                let idle = answer.at_end && !moved;
                (idle_shares, busy) =
                    if idle { (idle_shares + 1, busy || answer.busy) } else { (0, answer.busy) };
                (share, moved) = ((share + 1) % volume.shares.len(), false);
            }
            if idle_shares >= volume.shares.len() {
                done.at_end = !busy;
                break;
            }
            if answer.busy {
                std::thread::sleep(BUSY_SLEEP);
            } else if gives_way && answer.blocks > 0 {
                std::thread::sleep(batch_began.elapsed() * SLEEP_FACTOR);
            }
        }
        if bounds.kind != Kind::Home && done.bytes > 0 {
            self.flush(volume.id)?; // base places are held until then
        }
        Ok(done)
    }
}

/// How many requests hosts have made of a volume.
fn requests(volume: &Volume) -> u64 {
    let of = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let shares = volume.shares.iter().map(|share| &share.stats);
    shares
        .map(|stats| of(&stats.reads) + of(&stats.writes) + of(&stats.trims) + of(&stats.zeroes))
        .sum()
}
