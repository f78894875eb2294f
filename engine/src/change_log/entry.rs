//! Entry: what a [journal](super::journal) is made of and given: what it continues from, what is appended.

use std::path::PathBuf;
use std::sync::Arc;

use super::format::RecordKind;
use super::manifest;
use super::past::RecordedCut;
use crate::block_map::history::Rollback;
use crate::block_map::place::Place;
use crate::system::File;
use crate::units::{BlockIndex, Epoch, PartitionIndex};

/// The starting point of a journal.
#[derive(Debug)]
pub struct Start {
    /// The first segment's number.
    pub number: u64,
    /// The first record's number.
    pub next_seq: u64,
    /// Records up to this one are known to be durable; later ones become durable with the first commit.
    pub covered: u64,
    /// The segments that recovery read: they are synced before the first commit mark.
    pub segments: Vec<Arc<dyn File>>,
    /// Their paths.
    pub paths: Vec<PathBuf>,
    /// The incarnation of the last segment that was begun; 0: none.
    pub previous: u64,
    /// Number and CRC-32C of the checkpoint that recovery read; 0: none.
    pub checkpoint: (u64, u32),
    /// The manifest, if there is one.
    pub manifest: Option<manifest::Found>,
}

impl Start {
    /// The start of a new journal.
    pub fn fresh() -> Start {
        Start {
            number: 1,
            next_seq: 1,
            covered: 0,
            segments: Vec::new(),
            paths: Vec::new(),
            previous: 0,
            checkpoint: (0, 0),
            manifest: None,
        }
    }
}

/// The contents of a record, before it has its sequence number.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// See [`Record`].
    pub kind: RecordKind,
    /// The epoch in which the write was started.
    pub epoch: Epoch,
    /// Partition within the volume.
    pub partition: u32,
    /// First block.
    pub first: u32,
    /// Blocks.
    pub count: u32,
    /// Raw place.
    pub place: u64,
    /// Checksums, for slots; the words of a state.
    pub checksums: &'a [u32],
}

impl<'a> Entry<'a> {
    /// The entry that says that blocks were relocated from their base places to these slots.
    pub fn away(
        epoch: Epoch,
        partition: PartitionIndex,
        first: BlockIndex,
        to: Place,
        checksums: &'a [u32],
    ) -> Entry<'a> {
        let (kind, place, count) = (RecordKind::Away, to.raw(), checksums.len() as u32);
        Entry { kind, epoch, partition, first, count, place, checksums }
    }
}

impl Entry<'static> {
    /// The entry of a cut. One that has ended in an earlier run has an instant of 0, and 0 partitions.
    pub fn cut(cut: RecordedCut) -> Entry<'static> {
        Entry {
            kind: RecordKind::Cut,
            epoch: cut.epoch,
            partition: 0,
            first: 0,
            count: cut.partitions,
            place: cut.instant_ns,
            checksums: &[],
        }
    }

    /// The entry that says that blocks were relocated to their base places from these slots.
    pub fn home(
        epoch: Epoch,
        partition: PartitionIndex,
        first: BlockIndex,
        count: u32,
        from: Place,
    ) -> Entry<'static> {
        let (kind, place) = (RecordKind::Home, from.raw());
        Entry { kind, epoch, partition, first, count, place, checksums: &[] }
    }

    /// The entry that says that no epoch from `first` to `last` has a snapshot any more.
    pub fn dropped(first: Epoch, last: Epoch) -> Entry<'static> {
        let (kind, place) = (RecordKind::Dropped, first);
        Entry { kind, epoch: last, partition: 0, first: 0, count: 0, place, checksums: &[] }
    }

    /// The entry that says that the volume has grown to so many blocks, in `epoch`.
    pub fn grown(epoch: Epoch, blocks: u64) -> Entry<'static> {
        Entry {
            kind: RecordKind::Grown,
            epoch,
            partition: blocks as u32,
            first: (blocks >> 32) as u32,
            count: 0,
            place: 0,
            checksums: &[],
        }
    }

    /// The entry that says what was counted of a partition up to the end of `epoch`: at least one write, in these
    /// words ([`state_words`](super::format::state_words)) and at this time.
    pub fn state<'a>(
        epoch: Epoch,
        partition: PartitionIndex,
        words: &'a [u32; 5],
        last_write_ns: u64,
    ) -> Entry<'a> {
        Entry {
            kind: RecordKind::State,
            epoch,
            partition,
            first: 0,
            count: words.len() as u32,
            place: last_write_ns,
            checksums: words,
        }
    }

    /// The entry of a rollback; `blocks` is the volume's size.
    pub fn rollback(rollback: Rollback, blocks: u64) -> Entry<'static> {
        Entry {
            kind: RecordKind::Rollback,
            epoch: rollback.at,
            partition: blocks as u32,
            first: (blocks >> 32) as u32,
            count: 0,
            place: rollback.to,
            checksums: &[],
        }
    }
}
