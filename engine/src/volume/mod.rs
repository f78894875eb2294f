//! Volumes: what a host sees, and how a request finds the processors that serve it.
//!
//! How it works      A [`Volume`] is a [`Geometry`], log areas, a [`Flusher`], and shares, one on each
//!                   processor that owns partitions of it. A [`View`] of it, live or of a snapshot, is what an
//!                   [`export`] shows; it splits each [`Request`] into parts.
//!                   A volume that grows is a new [`Volume`] with the same shares and more; a holder of the older one
//!                   continues with the size that it knows.
//! Owner and locks   a volume's fields never change, but for its name; the mutable state is in its shares, owned by processors.

pub mod export;
pub mod local_client;
pub mod name;

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::block_map::usage::UsageMemory;
use crate::change_log::past::Stale;
use crate::change_log::space::Space;
use crate::geometry::Geometry;
use crate::geometry::bad_blocks::BadBlocks;
use crate::geometry::origin::Origin;
use crate::geometry::pins::Pins;
use crate::processor::durable::Durable;
use crate::processor::flusher::{Flusher, Waiter};
use crate::processor::messages::Event;
use crate::processor::part::Part;
use crate::processor::queue::Queue;
use crate::processor::run::Processor;
use crate::processor::runner::Runner;
use crate::processor::share::ShareStats;
use crate::processor::space_waiters::SpaceWaiters;
use crate::request::{Request, Target, Verb};
use crate::units::{Epoch, PartitionIndex, ProcessorIndex, VolumeId};
use name::VolumeName;

/// A volume's share, as all threads except its processor's see it.
#[derive(Clone)]
pub struct ShareRef {
    /// The processor.
    pub processor: ProcessorIndex,
    /// The processor's runner, for small batches.
    pub runner: Arc<Runner<Processor>>,
    /// Its queue.
    pub queue: Arc<Queue>,
    /// Counters.
    pub stats: Arc<ShareStats>,
}

/// See the module's head.
pub struct Volume {
    /// The catalog's number.
    pub id: VolumeId,
    /// Its name, for messages.
    pub name: Arc<VolumeName>,
    /// Its number on every processor that has a share of it.
    pub share: u32,
    /// Its shape.
    pub geometry: Arc<Geometry>,
    /// Its origin, if it is a clone.
    pub origin: Option<Arc<Origin>>,
    /// Its log areas.
    pub space: Arc<Space>,
    /// The queue of shares that wait for slots of these.
    pub space_waiters: Arc<SpaceWaiters>,
    /// What a flush syncs.
    pub durable: Arc<Durable>,
    /// Blocks that do not match their checksums.
    pub bad: Arc<BadBlocks>,
    /// Its snapshots whose maps clones have.
    pub pins: Arc<Pins>,
    /// Its flusher.
    pub flusher: Arc<Flusher>,
    /// Its shares, by processor.
    pub shares: Vec<ShareRef>,
    /// By processor number: the index in `shares`.
    pub share_of: Vec<usize>,
    /// Number of FLUSH requests.
    pub flushes: Arc<AtomicU64>,
    /// The epoch of new writes, since the last cut.
    pub epoch: Arc<AtomicU64>,
    /// Snapshots of epochs below the first number have at most the second number of bytes.
    pub bounds: Vec<(Epoch, u64)>,
    /// Results of measuring its snapshots' use.
    pub usage: Mutex<UsageMemory>,
    /// Held while snapshots are dropped.
    pub dropping: Arc<Mutex<()>>,
    /// Some shares may have rolled back to a snapshot, and others not.
    pub rolling_back: Arc<AtomicBool>,
    /// What only an older copy of the catalog has of it.
    pub stale: Stale,
}

impl Volume {
    fn partition_of(&self, offset: u64) -> PartitionIndex {
        (offset >> self.geometry.partition_shift) as PartitionIndex
    }

    /// Size of the snapshot of this epoch, bytes.
    pub fn size_at(&self, epoch: Epoch) -> u64 {
        let bounds = self.bounds.iter().filter(|(bound, _)| epoch < *bound).map(|(_, size)| *size);
        bounds.fold(self.geometry.size, u64::min)
    }

    /// Bytes that the snapshot of an epoch has of a partition, or that it has now (`Epoch::MAX`).
    pub fn partition_bytes_at(&self, partition: PartitionIndex, epoch: Epoch) -> u64 {
        let start = u64::from(partition) << self.geometry.partition_shift;
        self.size_at(epoch).saturating_sub(start).min(1 << self.geometry.partition_shift)
    }
}

/// A volume, live or at a snapshot.
pub struct View {
    /// The volume.
    pub volume: Arc<Volume>,
    /// The snapshot's epoch; `None` for the live volume.
    pub epoch: Option<Epoch>,
}

/// A batch of up to so many bytes is run by the thread that submits it, if the processors are idle: waking them would
/// take longer.
const INLINE_BYTES_MAX: usize = 512 << 10;
/// So is one whose requests have no more than so many bytes on average, because copying them takes less time than
/// passing them to another thread.
const SMALL_BYTES: usize = 16 << 10;

/// log2 of the largest piece of a read or write, bytes: it bounds how long one request occupies a thread, or a lock of
/// a file system, while others wait.
const PIECE_SHIFT: u32 = 21;

thread_local! {
    /// A list of events for each share of the volume; a static, so that its memory is reused.
    static SPLIT_SCRATCH: RefCell<Vec<Vec<Event>>> = const { RefCell::new(Vec::new()) };
}

impl Target for View {
    fn size(&self) -> u64 {
        self.epoch.map_or(self.volume.geometry.size, |epoch| self.volume.size_at(epoch))
    }

    fn read_only(&self) -> bool {
        self.epoch.is_some()
    }

    fn instant(&self) -> Option<(VolumeId, Option<Epoch>)> {
        Some((self.volume.id, self.epoch))
    }

    fn submit(&self, batch: &mut Vec<Arc<Request>>) {
        if let [request] = &batch[..]
            && request.verb == Verb::Flush
        {
            return batch.drain(..).for_each(|request| self.flush(request, true));
        }
        SPLIT_SCRATCH.with_borrow_mut(|outbox| {
            if outbox.len() < self.volume.shares.len() {
                outbox.resize_with(self.volume.shares.len(), Vec::new);
            }
            let (mut bytes, most) = (0, INLINE_BYTES_MAX.max(batch.len() * SMALL_BYTES));
            for request in batch.drain(..) {
                bytes += request.data.len();
                if request.verb == Verb::Flush {
                    self.flush(request, false);
                } else {
                    self.split(request, outbox);
                }
            }
            for (share, events) in self.volume.shares.iter().zip(outbox) {
                if events.is_empty() {
                } else if bytes <= most {
                    share.runner.run_or_push(events);
                } else {
                    share.queue.push_all(events);
                }
            }
        });
    }
}

impl View {
    /// Answers a FLUSH; `alone`: it is the whole batch, so its sync may run on the calling thread.
    fn flush(&self, request: Arc<Request>, alone: bool) {
        if self.epoch.is_none() {
            self.volume.flushes.fetch_add(1, Ordering::Relaxed);
            let waiter = Waiter::Request(request);
            let flusher = &self.volume.flusher;
            return if alone { flusher.push_and_wait(waiter) } else { flusher.push(waiter) };
        }
        // A snapshot is exported only when it is durable.
        let sink = Arc::clone(request.sink());
        request.complete();
        sink.kick();
    }

    /// Splits a request: one with data at partition borders and into pieces of [`PIECE_SHIFT`]; of others, which are
    /// done [piece by piece](crate::processor), every share gets its first piece.
    fn split(&self, request: Arc<Request>, outbox: &mut [Vec<Event>]) {
        let volume = &*self.volume;
        let end = request.offset + request.length;
        assert!(request.length > 0 && end <= volume.geometry.size, "R2");
        assert!(self.epoch.is_none() || !request.verb.is_write(), "R2");
        let view = self.epoch.unwrap_or(0);
        let mut parts = 0;
        let mut push = |number: PartitionIndex, from: u64, to: u64| {
            let partition = &volume.geometry.partitions[number as usize];
            let start = u64::from(number) << volume.geometry.partition_shift;
            let part = Part {
                request: Arc::clone(&request),
                view,
                share: volume.share,
                local: partition.local,
                offset: (from - start) as u32,
                length: (to - from) as u32,
                rest: 0,
                at: from - request.offset,
                tried: 0,
                cold: false,
                since: 0,
            };
            outbox[volume.share_of[partition.processor as usize]].push(Event::Part(part));
            parts += 1;
        };
        let shift = volume.geometry.partition_shift;
        if matches!(request.verb, Verb::Read | Verb::Write) {
            let shift = shift.min(PIECE_SHIFT);
            for number in request.offset >> shift..=(end - 1) >> shift {
                let from = request.offset.max(number << shift);
                let to = end.min((number + 1) << shift);
                push(volume.partition_of(from), from, to);
            }
        } else {
            let mut first_of = vec![true; volume.shares.len()];
            let mut left = first_of.len();
            for number in volume.partition_of(request.offset)..=volume.partition_of(end - 1) {
                let processor = volume.geometry.partitions[number as usize].processor;
                if std::mem::take(&mut first_of[volume.share_of[processor as usize]]) {
                    let start = u64::from(number) << shift;
                    push(number, request.offset.max(start), end.min(start + (1 << shift)));
                    left -= 1;
                }
                if left == 0 {
                    break;
                }
            }
        }
        request.expect_parts(parts);
    }
}
