//! Messages: the events in a processor's [queue](super::queue): parts of requests, finished jobs, and controls.
//!
//! Owner and locks   a message belongs to the queue that it is in, then to the processor that takes it.
//! Errors            a query that is refused, or whose processor stops, is never answered: its sender is dropped.

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use crate::block_map::history::{History, Rollback};
use crate::change_log::log_rules::{LogRules, VolumeRules};
use crate::change_log::segment::Prepared;
use crate::error::Errno;
use crate::processor::cut::Cut;
use crate::processor::inspect::ShareLook;
use crate::processor::io_job::Done;
use crate::processor::part::Part;
use crate::processor::share::Share;
use crate::processor::share::compare::{Pair, VersionsPage};
use crate::processor::share::grow::Growth;
use crate::processor::share::reclaim::Dropping;
use crate::processor::share::relocate::{Kind, Relocated};
use crate::processor::share::scrub::Question;
use crate::units::{Epoch, PartitionIndex};

/// The result of a control.
pub type Ended = std::result::Result<(), Errno>;

/// A control event from the engine.
pub enum Control {
    /// Serve a volume.
    AddShare(u32, Box<Share>),
    /// Stop serving it, and return its share when nothing of it is in flight.
    RemoveShare(u32, Sender<Box<Share>>),
    /// First step of a cut: stop starting writes of these shares.
    CutStop(Arc<Cut>, Vec<CutShare>),
    /// Last step of a cut: advance the epoch and start writes again.
    CutGo(Arc<Cut>),
    /// Answer when the writes of this epoch and earlier ones have ended, with whether the journal has the end of the
    /// epoch.
    Settle(u32, Epoch, Sender<Ended>),
    /// Drop the snapshots of these epochs, and forget the rollback at an epoch, if one is given; answer with the bytes
    /// that only they could see.
    Drop(u32, Vec<Epoch>, Option<Epoch>, Sender<u64>),
    /// Answer with the snapshots and rollbacks, and the epoch of the newest durable checkpoint (0: there is none).
    History(u32, Sender<(History, Epoch)>),
    /// Answer whether there is a snapshot of this epoch.
    HasSnapshot(u32, Epoch, Sender<bool>),
    /// Roll back to a snapshot, as soon as nothing is in flight; answer whether that was done.
    RollBack(u32, Rollback, Sender<Ended>),
    /// Write a checkpoint now, and answer whether that was done.
    Checkpoint(u32, Sender<bool>),
    /// Make journal segments removable, because there is little space, and answer whether that was done.
    Relieve(u32, Sender<bool>),
    /// Continue a `Drop`.
    DropMore(u32, Box<Dropping>),
    /// A sync that a share had requested has ended.
    Release {
        /// The share.
        share: u32,
        /// How it ended.
        result: Ended,
    },
    /// Continue a `Release`.
    ReleaseMore(u32),
    /// Punch the freed slots of a share, also those that were freed just now.
    GiveBack(u32),
    /// Answer a scrub's query of a share.
    Scrub(u32, Question),
    /// Relocate up to so many blocks of a share, of this kind, then answer.
    Relocate(u32, Kind, u32, Sender<Relocated>),
    /// A device was reopened.
    DeviceBack(u32),
    /// A tick: end what has lasted too long.
    Tick,
    /// There may be slots for the parts that wait for them, or a job that punches has ended.
    TryAgain(u32),
    /// The volume has these log rules, and perhaps one more log area. Answer when that is done.
    LogRules(u32, VolumeRules, Sender<()>),
    /// A share's volume has grown. Answer when the share serves the new blocks.
    Grow(u32, Box<Growth>),
    /// A share's journal could not be synced: make the lost records unnecessary.
    RenewJournal(u32),
    /// A share's next journal segment was prepared, or could not be.
    SegmentPrepared(u32, Option<Prepared>),
    /// A checkpoint was written, of so many bytes, or failed; the epoch in which it was taken.
    CheckpointDone(u32, std::result::Result<u64, Errno>, Epoch),
    /// Answer with the maps, at two epochs (the second 0: now), of the partitions in which they differ.
    Compare(u32, Epoch, Epoch, Sender<Option<Vec<Pair>>>),
    /// Answer with clones of the versions of the share's first partitions of a range.
    Versions(u32, Range<PartitionIndex>, Sender<VersionsPage>),
    /// Answer with what waits in the processor's shares, and for what.
    Inspect(Sender<Vec<ShareLook>>),
    /// End the thread.
    Stop,
}

/// One share's part of a cut.
#[derive(Clone, Debug)]
pub struct CutShare {
    /// The share.
    pub share: u32,
    /// The log rules of the new snapshot.
    pub rules: LogRules,
}

/// An event in a queue.
pub enum Event {
    /// A part of a host's request.
    Part(Part),
    /// A pool thread has finished a part, or work of the share itself.
    Done(Box<Done>),
    /// A control of the engine.
    Control(Box<Control>),
}

impl Event {
    /// Ends an event that no processor will take: a part fails, and a query gets no answer.
    pub fn refuse(self) {
        if let Event::Part(part) = self {
            part.request.fail(Errno::ESHUTDOWN);
            if part.request.end_part() {
                let sink = Arc::clone(part.request.sink());
                part.request.complete();
                sink.kick();
            }
        }
    }
}
