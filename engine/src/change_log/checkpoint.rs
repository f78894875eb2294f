//! Checkpoint: one processor's maps of one volume in a file, so that earlier journal records are not needed.
//!
//! How it works      The processor clones its versions, which costs references; another thread writes them
//!                   to `pPPP-NNNNNNNNNN.checkpoint.new`, syncs it, renames it, and removes the files that it replaces.
//!                   The devices are synced before the rename; the journal need not be, because its records are not
//!                   needed any more. A leaf that several versions share is written once.
//! Memory            a leaf that changes while a clone refers to it is copied. So the clone is dropped partition by
//!                   partition, while they are written to the page cache and before anything is synced: only leaves
//!                   that change in that time are copied, and never more than the maps. Reading takes one buffer.
//! Invariants        K1 a checkpoint under its final name is complete, durable, and refers only to data that is
//!                   durable; K2 the manifest names it before the journal and the checkpoint before it are removed.
//! Errors            a failed checkpoint leaves the older one and the journal: nothing is lost, recovery takes longer.
//!                   A file that is not a checkpoint is refused, for any contents, and no more is allocated for it than
//!                   a small multiple of its length.

use std::collections::HashMap;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use super::files::Identity;
use super::format::{
    CHECKPOINT_MAGIC, COUNTED_VERSION, FIRST_VERSION, FORMAT_VERSION, HEADER_BYTES, Header,
};
use super::format::{possible, u32_at, u64_at};
use super::leaf_bytes::{self, LEAF_BYTES_MAX};
use super::past::{EpochRanges, Past, RecordedCut};
use crate::block_map::counters::Counters;
use crate::block_map::history::{History, Rollback};
use crate::block_map::leaf::Leaf;
use crate::block_map::place::Place;
use crate::block_map::tree::{Map, Node, NodeRef, leaves};
use crate::block_map::versions::{Frozen, Versions};
use crate::checksum;
use crate::error::Errno;
use crate::system::File;
use crate::units::{Epoch, PartitionIndex};

/// Contents of a checkpoint.
#[derive(Clone, Debug)]
pub struct Contents {
    /// The first record that it does not cover.
    pub first_seq: u64,
    /// The epoch in which it was taken.
    pub epoch: Epoch,
    /// The volume's history up to it.
    pub past: Past,
    /// Partitions that are not simply all base and never frozen, with their versions.
    pub partitions: Vec<(PartitionIndex, Versions)>,
    /// Partitions that are all base and never frozen, and that were written in place.
    pub in_place: Vec<(PartitionIndex, Counters)>,
}

impl Contents {
    /// The contents for a processor without a checkpoint: nothing was recorded.
    pub fn first() -> Contents {
        Contents {
            first_seq: 1,
            epoch: 1,
            past: Past::default(),
            partitions: Vec::new(),
            in_place: Vec::new(),
        }
    }
}

/// Bytes of a version's counters.
const COUNTER_BYTES: usize = 24;
const NODE_BASE: u32 = 0;
const NODE_ZERO: u32 = 1;
const NODE_LEAVES: u32 = 2;
/// Flag of a partition's leaf count: its size in blocks follows.
const BLOCKS_FOLLOW: u32 = 1 << 31;
/// Bytes that one read takes.
const BUFFER_BYTES: usize = 1 << 20;

/// Writes a checkpoint to `path`; returns the file, which is not synced, its size in bytes, and its CRC-32C. It does
/// not have its final name yet: see [`publish`].
pub fn write(
    path: &Path,
    identity: &Identity,
    number: u64,
    contents: Contents,
) -> Result<(Arc<dyn File>, u64, u32), Errno> {
    let file = identity.system.create(path)?;
    let writer = Writer { file: Arc::clone(&file), at: 0 };
    let mut out = Summed { inner: BufWriter::with_capacity(BUFFER_BYTES, writer), crc: 0 };
    let header = Header {
        version: FORMAT_VERSION,
        volume_uuid: identity.volume_uuid,
        boot_id: [0; 16],
        processor: identity.processor,
        number,
        first_seq: contents.first_seq,
        incarnation: 0,
        previous: 0,
    };
    let mut page = [0; HEADER_BYTES];
    let bytes = header.encode(CHECKPOINT_MAGIC);
    page[..bytes.len()].copy_from_slice(&bytes);
    out.put(&page)?;
    out.put(&contents.epoch.to_le_bytes())?;
    write_past(&mut out, &contents.past)?;
    out.put(&(contents.partitions.len() as u64).to_le_bytes())?;
    for (partition, versions) in contents.partitions {
        write_partition(&mut out, partition, &versions)?;
    }
    out.put(&(contents.in_place.len() as u64).to_le_bytes())?;
    for (partition, counters) in contents.in_place {
        out.put(&partition.to_le_bytes())?;
        out.put(&counter_bytes(&counters))?;
    }
    let crc = out.crc;
    out.put(&u64::from(crc).to_le_bytes())?;
    out.inner.flush()?;
    Ok((file, out.inner.get_ref().at, crc))
}

/// Renames a checkpoint to its final name, durably (K1: the caller has ensured the rest).
pub fn publish(identity: &Identity, new: &Path, path: &Path) -> Result<(), Errno> {
    identity.system.rename(new, path)?;
    identity.system.sync_directory(&identity.directory)
}

/// A file that is written from its beginning to its end.
struct Writer {
    file: Arc<dyn File>,
    at: u64,
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.file.write(bytes, self.at);
        written.map_err(|errno| std::io::Error::from_raw_os_error(errno.raw()))?;
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

struct Summed<W: Write> {
    inner: W,
    crc: u32,
}

impl<W: Write> Summed<W> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        self.crc = checksum::crc32c_append(self.crc, bytes);
        Ok(self.inner.write_all(bytes)?)
    }
}

fn write_past<W: Write>(out: &mut Summed<W>, past: &Past) -> Result<(), Errno> {
    let rollbacks = past.rollbacks.as_deref().unwrap_or(&[]);
    out.put(&past.blocks.to_le_bytes())?;
    out.put(&(past.dropped.ranges().len() as u64).to_le_bytes())?;
    out.put(&(rollbacks.len() as u64).to_le_bytes())?;
    let rollbacks = rollbacks.iter().map(|rollback| (rollback.at, rollback.to));
    for (one, other) in past.dropped.ranges().iter().copied().chain(rollbacks) {
        out.put(&one.to_le_bytes())?;
        out.put(&other.to_le_bytes())?;
    }
    out.put(&past.counted_from.to_le_bytes())?;
    out.put(&(past.cuts.len() as u64).to_le_bytes())?;
    for cut in &past.cuts {
        out.put(&cut.epoch.to_le_bytes())?;
        out.put(&cut.instant_ns.to_le_bytes())?;
        out.put(&u64::from(cut.partitions).to_le_bytes())?;
    }
    Ok(())
}

fn counter_bytes(counters: &Counters) -> [u8; COUNTER_BYTES] {
    let mut bytes = [0; COUNTER_BYTES];
    let words = [counters.writes, counters.written_bytes, counters.last_write_ns];
    for (out, word) in bytes.chunks_exact_mut(8).zip(words) {
        out.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

fn maps(versions: &Versions) -> impl Iterator<Item = (Epoch, &Map, Counters)> {
    let frozen = versions.frozen().iter();
    let frozen = frozen.map(|frozen| (frozen.last_epoch, &frozen.map, frozen.counters));
    frozen.chain(std::iter::once((Epoch::MAX, &versions.live, versions.counters())))
}

fn nodes(map: &Map) -> impl Iterator<Item = NodeRef<'_>> {
    (0..leaves(map.blocks()) as u32).map(|leaf| map.node(leaf))
}

fn write_partition<W: Write>(
    out: &mut Summed<W>,
    partition: PartitionIndex,
    versions: &Versions,
) -> Result<(), Errno> {
    out.put(&partition.to_le_bytes())?;
    out.put(&(versions.frozen().len() as u32 + 1).to_le_bytes())?;
    let mut known: HashMap<*const Leaf, u32> = HashMap::new();
    let mut bytes = Vec::with_capacity(LEAF_BYTES_MAX);
    for (_, map, _) in maps(versions) {
        for node in nodes(map) {
            let NodeRef::Leaf(leaf) = node else { continue };
            let next = known.len() as u32 + NODE_LEAVES;
            if *known.entry(Arc::as_ptr(leaf)).or_insert(next) != next {
                continue;
            }
            bytes.clear();
            bytes.extend_from_slice(&[0; 4]);
            leaf_bytes::encode(leaf, &mut bytes);
            let length = (bytes.len() - 4) as u32;
            bytes[0..4].copy_from_slice(&length.to_le_bytes());
            out.put(&bytes)?;
        }
    }
    out.put(&(BLOCKS_FOLLOW | versions.live.blocks()).to_le_bytes())?;
    for (last_epoch, map, counters) in maps(versions) {
        bytes.clear();
        bytes.extend_from_slice(&last_epoch.to_le_bytes());
        bytes.extend_from_slice(&map.write_seq.to_le_bytes());
        bytes.extend_from_slice(&counter_bytes(&counters));
        for node in nodes(map) {
            let number = match node {
                NodeRef::Uniform(Place::BASE) => NODE_BASE,
                NodeRef::Uniform(_) => NODE_ZERO,
                NodeRef::Leaf(leaf) => known[&Arc::as_ptr(leaf)],
            };
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        out.put(&bytes)?;
    }
    Ok(())
}

/// Why a checkpoint cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bad {
    /// The file could not be read.
    Io(Errno),
    /// What is wrong with its contents.
    Corrupt(String),
}

impl From<&str> for Bad {
    fn from(what: &str) -> Bad {
        Bad::Corrupt(what.to_owned())
    }
}

/// Reads a checkpoint's bytes; see [`read_file`].
pub fn read(
    bytes: &[u8],
    blocks_of: impl Fn(PartitionIndex) -> Option<u32>,
) -> Result<(Header, Contents), Bad> {
    let input = |into: &mut [u8], at: u64| {
        into.copy_from_slice(&bytes[at as usize..at as usize + into.len()]);
        Ok(())
    };
    read_input(input, bytes.len() as u64, blocks_of).map(|(header, contents, _)| (header, contents))
}

/// Reads a checkpoint, with its CRC-32C. `blocks_of` gives a partition's size in blocks, `None` for one that this
/// processor does not own.
pub fn read_file(
    file: &dyn File,
    blocks_of: impl Fn(PartitionIndex) -> Option<u32>,
) -> Result<(Header, Contents, u32), Bad> {
    let length = file.length().map_err(Bad::Io)?;
    read_input(|into, at| file.read(into, at).map_err(Bad::Io), length, blocks_of)
}

fn read_input(
    read: impl FnMut(&mut [u8], u64) -> Result<(), Bad>,
    length: u64,
    blocks_of: impl Fn(PartitionIndex) -> Option<u32>,
) -> Result<(Header, Contents, u32), Bad> {
    let body = length.checked_sub(8).filter(|body| *body >= HEADER_BYTES as u64);
    let body = body.ok_or("it is too short")?;
    let mut input = Input { read, body, next: 0, crc: 0, buffer: Vec::new(), at: 0 };
    let header = Header::decode(input.take(HEADER_BYTES)?, CHECKPOINT_MAGIC)
        .map_err(|bad| Bad::Corrupt(bad.words()))?;
    let version = header.version;
    let epoch = input.u64()?;
    let mut past =
        if version == FIRST_VERSION { Past::default() } else { read_past(&mut input, version)? };
    if version < COUNTED_VERSION {
        past.counted_from = epoch;
    }
    let count = input.u64()?;
    let mut partitions: Vec<(PartitionIndex, Versions)> = Vec::new();
    for _ in 0..count {
        let (partition, blocks) = input.partition(partitions.last(), &blocks_of)?;
        partitions.push((partition, read_partition(&mut input, blocks, version)?));
    }
    let mut in_place: Vec<(PartitionIndex, Counters)> = Vec::new();
    let count = if version >= COUNTED_VERSION { input.u64()? } else { 0 };
    for _ in 0..count {
        let (partition, _) = input.partition(in_place.last(), &blocks_of)?;
        in_place.push((partition, input.counters()?));
    }
    let crc = input.end()?;
    if !possible(epoch) {
        return Err("its epoch is impossible".into());
    }
    let named = |partition: &PartitionIndex| {
        partitions.binary_search_by_key(partition, |(number, _)| *number).is_ok()
    };
    if in_place.iter().any(|(partition, _)| named(partition)) {
        return Err("it has a partition twice".into());
    }
    let maps = partitions.iter().flat_map(|(_, versions)| maps(versions));
    for (last_epoch, map, _) in maps {
        let later = last_epoch >= epoch && last_epoch != Epoch::MAX;
        if later || map.recorded_seq() >= header.first_seq {
            return Err("one of its maps is later than the checkpoint".into());
        }
    }
    if past.dropped.ranges().last().is_some_and(|range| range.1 >= epoch)
        || past.rollbacks.iter().flatten().any(|rollback| rollback.at >= epoch)
        || past.cuts.last().is_some_and(|cut| cut.epoch >= epoch)
        || past.counted_from > epoch
    {
        return Err("its history is later than the checkpoint".into());
    }
    let contents = Contents { first_seq: header.first_seq, epoch, past, partitions, in_place };
    Ok((header, contents, crc))
}

/// A body that is read sequentially while its checksum is computed.
struct Input<R> {
    read: R,
    /// Offset of the checksum.
    body: u64,
    /// Offset of the next read.
    next: u64,
    crc: u32,
    buffer: Vec<u8>,
    at: usize,
}

impl<R: FnMut(&mut [u8], u64) -> Result<(), Bad>> Input<R> {
    /// The next `length` bytes; `length` is small.
    fn take(&mut self, length: usize) -> Result<&[u8], Bad> {
        debug_assert!(length <= BUFFER_BYTES / 2);
        if self.buffer.len() - self.at < length {
            self.fill(length)?;
        }
        self.at += length;
        Ok(&self.buffer[self.at - length..self.at])
    }

    fn fill(&mut self, length: usize) -> Result<(), Bad> {
        self.buffer.drain(..self.at);
        self.at = 0;
        let rest = self.buffer.len();
        let more = (self.body - self.next).min((BUFFER_BYTES - rest) as u64) as usize;
        if rest + more < length {
            return Err("it ends too early".into());
        }
        self.buffer.resize(rest + more, 0);
        (self.read)(&mut self.buffer[rest..], self.next)?;
        self.crc = checksum::crc32c_append(self.crc, &self.buffer[rest..]);
        self.next += more as u64;
        Ok(())
    }

    fn u32(&mut self) -> Result<u32, Bad> {
        Ok(u32_at(self.take(4)?, 0))
    }

    fn u64(&mut self) -> Result<u64, Bad> {
        Ok(u64_at(self.take(8)?, 0))
    }

    fn counters(&mut self) -> Result<Counters, Bad> {
        let (writes, written_bytes) = (self.u64()?, self.u64()?);
        let counters = Counters { writes, written_bytes, last_write_ns: self.u64()? };
        if counters.are_possible() {
            Ok(counters)
        } else {
            Err("its counters are impossible".into())
        }
    }

    /// The next partition of a list, behind its last one, and its size in blocks.
    fn partition<T>(
        &mut self,
        last: Option<&(PartitionIndex, T)>,
        blocks_of: &impl Fn(PartitionIndex) -> Option<u32>,
    ) -> Result<(PartitionIndex, u32), Bad> {
        let partition = self.u32()?;
        if last.is_some_and(|(last, _)| *last >= partition) {
            return Err("its partitions are out of order".into());
        }
        let not_ours = || Bad::Corrupt(format!("partition {partition} is not this processor's"));
        Ok((partition, blocks_of(partition).ok_or_else(not_ours)?))
    }

    fn end(mut self) -> Result<u32, Bad> {
        if self.at != self.buffer.len() || self.next != self.body {
            return Err("it is longer than it says".into());
        }
        let mut crc = [0; 8];
        (self.read)(&mut crc, self.body)?;
        let same = u64::from_le_bytes(crc) == u64::from(self.crc);
        if same { Ok(self.crc) } else { Err("its checksum does not match".into()) }
    }
}

fn read_past<R: FnMut(&mut [u8], u64) -> Result<(), Bad>>(
    input: &mut Input<R>,
    version: u32,
) -> Result<Past, Bad> {
    let blocks = input.u64()?;
    let (ranges, count) = (input.u64()?, input.u64()?);
    let mut dropped = Vec::new();
    for _ in 0..ranges {
        dropped.push((input.u64()?, input.u64()?));
    }
    let mut rollbacks = Vec::new();
    for _ in 0..count {
        rollbacks.push(Rollback { at: input.u64()?, to: input.u64()? });
    }
    let dropped = EpochRanges::from_parts(dropped).ok_or("its history is out of order")?;
    if blocks >= 1 << 62 || History::new(Vec::new(), rollbacks.clone()).is_none() {
        return Err("its history is impossible".into());
    }
    let mut past = Past { blocks, dropped, rollbacks: Some(rollbacks), ..Past::default() };
    if version >= COUNTED_VERSION {
        past.counted_from = input.u64()?;
        for _ in 0..input.u64()? {
            let (epoch, instant_ns, partitions) = (input.u64()?, input.u64()?, input.u64()?);
            if instant_ns == 0 || past.cuts.last().is_some_and(|last| last.epoch >= epoch) {
                return Err("its cuts are out of order".into());
            }
            let partitions = u32::try_from(partitions).map_err(|_| "a cut is impossible")?;
            past.cuts.push(RecordedCut { epoch, instant_ns, partitions });
        }
    }
    Ok(past)
}

fn read_partition<R: FnMut(&mut [u8], u64) -> Result<(), Bad>>(
    input: &mut Input<R>,
    blocks: u32,
    format: u32,
) -> Result<Versions, Bad> {
    let count = input.u32()?;
    let mut known = Vec::new();
    let had = loop {
        let length = input.u32()? as usize;
        if length == 0 {
            break blocks; // it was written by a version in which no volume could grow
        }
        if length as u32 & BLOCKS_FOLLOW != 0 {
            break length as u32 & !BLOCKS_FOLLOW;
        }
        if length > LEAF_BYTES_MAX {
            return Err("a leaf is too long".into());
        }
        known.push(Arc::new(leaf_bytes::decode(input.take(length)?)?));
    };
    if had == 0 || had > blocks {
        return Err("a partition is larger than possible".into());
    }
    let mut frozen = Vec::new();
    for version in 1..=count {
        let last_epoch = input.u64()?;
        let write_seq = input.u64()?;
        let counters =
            if format >= COUNTED_VERSION { input.counters()? } else { Counters::default() };
        let mut nodes = Vec::with_capacity(leaves(had));
        for number in input.take(leaves(had) * 4)?.chunks_exact(4) {
            nodes.push(match u32_at(number, 0) {
                NODE_BASE => Node::Uniform(Place::BASE),
                NODE_ZERO => Node::Uniform(Place::ZERO),
                number => {
                    let leaf = known.get((number - NODE_LEAVES) as usize);
                    Node::Leaf(Arc::clone(leaf.ok_or("it refers to a leaf that is not there")?))
                }
            });
        }
        let mut map = Map::from_nodes(had, nodes, write_seq);
        map.grow(blocks, if version == count { Place::BASE } else { Place::ZERO });
        if version == count {
            return Versions::from_parts(map, counters, frozen)
                .filter(|_| last_epoch == Epoch::MAX)
                .ok_or("its versions are out of order".into());
        }
        frozen.push(Frozen { last_epoch, map, counters });
    }
    Err("a partition without versions".into())
}
