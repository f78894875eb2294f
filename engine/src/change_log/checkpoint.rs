//! Checkpoint: one processor's maps of one volume in a file, so that the journal before it is not needed.
//!
//! How it works      The processor clones its versions, which costs references; another thread writes them
//!                   to `pPPP-NNNNNNNNNN.checkpoint.new`, syncs it, renames it, and removes what it has made
//!                   unnecessary. The devices were synced meanwhile; the journal need not be, as its records are not
//!                   needed any more. A leaf that several versions share is written once.
//! Invariants        K1 a checkpoint under its final name is whole, durable, and speaks only of data that is
//!                   durable; K2 the journal before it is removed after it has its name.
//! Errors            a failed checkpoint leaves the older one and the journal: nothing is lost, recovery is longer.

use std::collections::HashMap;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use super::format::{CHECKPOINT_MAGIC, Header};
use super::format::{HEADER_BYTES, possible, u16_at, u32_at, u64_at};
use super::journal::Identity;
use crate::block_map::leaf::{LEAF_BLOCKS, Leaf};
use crate::block_map::place::Place;
use crate::block_map::tree::{Map, Node, leaves};
use crate::block_map::versions::{Frozen, Versions};
use crate::error::Errno;
use crate::system::File;
use crate::units::{Epoch, PartitionIndex};

/// What a checkpoint holds.
#[derive(Clone, Debug)]
pub struct Contents {
    /// The first record that it does not cover.
    pub first_seq: u64,
    /// The epoch in which it was taken.
    pub epoch: Epoch,
    /// Partitions that are not simply all base and never frozen, with their versions.
    pub partitions: Vec<(PartitionIndex, Versions)>,
}

const NODE_BASE: u64 = 0;
const NODE_ZERO: u64 = 1;
const NODE_LEAVES: u64 = 2;
/// Bytes of a run before its checksums.
const RUN_BYTES: usize = 12;

/// Writes a checkpoint under `path` and syncs it; returns its size in bytes. It is not named yet: see [`publish`].
pub fn write(
    path: &Path,
    identity: &Identity,
    number: u64,
    contents: &Contents,
) -> Result<u64, Errno> {
    let file = identity.system.create(path)?;
    let writer = Writer { file: Arc::clone(&file), at: 0 };
    let mut out = Summed { inner: BufWriter::with_capacity(1 << 20, writer), crc: 0 };
    let header = Header {
        volume_uuid: identity.volume_uuid,
        boot_id: [0; 16],
        processor: identity.processor,
        number,
        first_seq: contents.first_seq,
        incarnation: 0,
    };
    let mut page = [0; HEADER_BYTES];
    let bytes = header.encode(CHECKPOINT_MAGIC);
    page[..bytes.len()].copy_from_slice(&bytes);
    out.put(&page)?;
    out.put(&contents.epoch.to_le_bytes())?;
    let known = write_leaves(&mut out, contents)?;
    out.put(&(contents.partitions.len() as u64).to_le_bytes())?;
    for (partition, versions) in &contents.partitions {
        write_partition(&mut out, *partition, versions, &known)?;
    }
    let crc = out.crc;
    out.put(&u64::from(crc).to_le_bytes())?;
    out.inner.flush()?;
    file.sync()?;
    Ok(out.inner.get_ref().at)
}

/// Gives a checkpoint its name (K1: the caller has seen to the rest), durably.
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
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        Ok(self.inner.write_all(bytes)?)
    }
}

fn maps(versions: &Versions) -> impl Iterator<Item = (Epoch, &Map)> {
    let frozen = versions.frozen().iter().map(|frozen| (frozen.last_epoch, &frozen.map));
    frozen.chain(std::iter::once((Epoch::MAX, &versions.live)))
}

type Known = HashMap<*const Leaf, u64>;

fn write_leaves<W: Write>(out: &mut Summed<W>, contents: &Contents) -> Result<Known, Errno> {
    let mut known = Known::new();
    let mut bytes = Vec::new();
    for (_, versions) in &contents.partitions {
        for (_, map) in maps(versions) {
            for node in map.nodes() {
                let Node::Leaf(leaf) = node else { continue };
                let next = known.len() as u64 + NODE_LEAVES;
                if known.contains_key(&Arc::as_ptr(&leaf)) {
                    continue;
                }
                known.insert(Arc::as_ptr(&leaf), next);
                encode_leaf(&leaf, &mut bytes);
                out.put(&bytes)?;
            }
        }
    }
    out.put(&0u32.to_le_bytes())?;
    Ok(known)
}

/// A leaf: bytes that follow (u32, never 0), then runs.
fn encode_leaf(leaf: &Leaf, bytes: &mut Vec<u8>) {
    bytes.clear();
    bytes.extend_from_slice(&[0; 4]);
    for (run, sums) in leaf.runs() {
        bytes.extend_from_slice(&run.start.to_le_bytes());
        bytes.extend_from_slice(&run.count.to_le_bytes());
        bytes.extend_from_slice(&run.place.raw().to_le_bytes());
        for sum in sums {
            bytes.extend_from_slice(&sum.to_le_bytes());
        }
    }
    if bytes.len() == 4 {
        // A leaf without runs: one run of no blocks says so, as a length of 0 ends the list.
        bytes.extend_from_slice(&[0; RUN_BYTES]);
    }
    let length = (bytes.len() - 4) as u32;
    bytes[0..4].copy_from_slice(&length.to_le_bytes());
}

fn write_partition<W: Write>(
    out: &mut Summed<W>,
    partition: PartitionIndex,
    versions: &Versions,
    known: &Known,
) -> Result<(), Errno> {
    out.put(&partition.to_le_bytes())?;
    out.put(&(versions.frozen().len() as u32 + 1).to_le_bytes())?;
    for (last_epoch, map) in maps(versions) {
        out.put(&last_epoch.to_le_bytes())?;
        out.put(&map.write_seq.to_le_bytes())?;
        for node in map.nodes() {
            let number = match node {
                Node::Uniform(Place::BASE) => NODE_BASE,
                Node::Uniform(_) => NODE_ZERO,
                Node::Leaf(leaf) => known[&Arc::as_ptr(&leaf)],
            };
            out.put(&number.to_le_bytes())?;
        }
    }
    Ok(())
}

/// Reads a checkpoint's bytes. `blocks_of` gives a partition's size in blocks, `None` for one that this processor
/// does not own. `Err` says what is wrong with it.
pub fn read(
    bytes: &[u8],
    blocks_of: impl Fn(PartitionIndex) -> Option<u32>,
) -> Result<(Header, Contents), String> {
    let header =
        Header::decode(bytes, CHECKPOINT_MAGIC).map_err(|bad| format!("its header: {bad:?}"))?;
    let body = bytes.len().checked_sub(8).filter(|body| *body >= HEADER_BYTES);
    let body = body.ok_or("it is too short")?;
    if u64_at(bytes, body) != u64::from(crc32c::crc32c(&bytes[..body])) {
        return Err("its checksum does not match".to_owned());
    }
    let mut input = Input { bytes: &bytes[..body], at: HEADER_BYTES };
    let epoch = input.u64()?;
    if !possible(epoch) {
        return Err("its epoch cannot be".to_owned());
    }
    let mut leaves = Vec::new();
    loop {
        let length = input.u32()? as usize;
        if length == 0 {
            break;
        }
        leaves.push(Arc::new(decode_leaf(input.take(length)?)?));
    }
    let count = input.u64()?;
    let mut partitions = Vec::new();
    for _ in 0..count {
        let partition = input.u32()?;
        let blocks = blocks_of(partition)
            .ok_or_else(|| format!("partition {partition} is not this processor's"))?;
        let versions = read_partition(&mut input, blocks, &leaves)?;
        if let Some((last, _)) = partitions.last()
            && partition <= *last
        {
            return Err(format!("partition {partition} is out of order"));
        }
        partitions.push((partition, versions));
    }
    if input.at != body {
        return Err("it is longer than it says".to_owned());
    }
    let contents = Contents { first_seq: header.first_seq, epoch, partitions };
    Ok((header, contents))
}

struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        let rest = &self.bytes[self.at..];
        let taken = rest.get(..length).ok_or("it ends too early")?;
        self.at += length;
        Ok(taken)
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32_at(self.take(4)?, 0))
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64_at(self.take(8)?, 0))
    }
}

fn decode_leaf(bytes: &[u8]) -> Result<Leaf, String> {
    let mut leaf = Leaf::uniform(Place::BASE);
    let mut at = 0;
    let mut sums = Vec::new();
    while at < bytes.len() {
        let run = bytes.get(at..at + RUN_BYTES).ok_or("a leaf ends too early")?;
        at += RUN_BYTES;
        let (start, count) = (u32::from(u16_at(run, 0)), u32::from(u16_at(run, 2)));
        let place = Place::from_raw(u64_at(run, 4)).filter(|place| place.has_room(count));
        let place = place.ok_or("a leaf has a place that is none")?;
        if count == 0 {
            continue;
        }
        if start + count > LEAF_BLOCKS {
            return Err("a leaf has a run beyond its end".to_owned());
        }
        sums.clear();
        if place.is_slot() {
            let length = count as usize * 4;
            let raw = bytes.get(at..at + length).ok_or("a leaf ends too early")?;
            sums.extend(raw.chunks_exact(4).map(|sum| u32_at(sum, 0)));
            at += length;
        }
        leaf.set(start, count, place, &sums);
    }
    Ok(leaf)
}

fn read_partition(
    input: &mut Input<'_>,
    blocks: u32,
    known: &[Arc<Leaf>],
) -> Result<Versions, String> {
    let count = input.u32()?;
    let mut frozen = Vec::new();
    for version in 1..=count {
        let last_epoch = input.u64()?;
        let write_seq = input.u64()?;
        let mut nodes = Vec::with_capacity(leaves(blocks));
        for _ in 0..leaves(blocks) {
            nodes.push(match input.u64()? {
                NODE_BASE => Node::Uniform(Place::BASE),
                NODE_ZERO => Node::Uniform(Place::ZERO),
                number => {
                    let leaf = known.get((number - NODE_LEAVES) as usize);
                    Node::Leaf(Arc::clone(leaf.ok_or("it refers to a leaf that is not there")?))
                }
            });
        }
        let map = Map::from_nodes(blocks, nodes, write_seq);
        if version == count {
            let wrong = "its versions are out of order".to_owned();
            return Versions::from_parts(map, frozen)
                .filter(|_| last_epoch == Epoch::MAX)
                .ok_or(wrong);
        }
        frozen.push(Frozen { last_epoch, map });
    }
    Err("a partition without versions".to_owned())
}
