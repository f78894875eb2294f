//! Partitions: a volume's partitions, their snapshots and their change logs, page by page, and where a byte is.
//!
//! How it works      Processors send clones of the versions of those partitions that a page has, some at a time; the
//!                   caller's thread derives everything from these ([`crate::block_map::change_logs`]). Nothing is
//!                   remembered, and the cost of a page follows what its partitions have.
//! Errors            NotFound for a volume, snapshot or partition that does not exist; Invalid for a byte behind the
//!                   end.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use crate::block_map::change_logs::{
    Attribution, ChangeLog, PlaceCounts, count_places, on_devices,
};
use crate::block_map::counters::Counters;
use crate::block_map::history::History;
use crate::block_map::place::Place;
use crate::block_map::versions::Versions;
use crate::change_log::chunks::CHUNK_SLOTS;
use crate::change_log::space::Space;
use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::processor::share::compare::VersionsPage;
use crate::units::{
    BLOCK_SHIFT, BLOCK_SIZE, BlockIndex, DeviceId, Epoch, PartitionIndex, ProcessorIndex, VolumeId,
};
use crate::volume::Volume;

/// A partition as it was at a cut.
#[derive(Clone, Debug)]
pub struct PartitionSnapshot {
    /// The partition.
    pub partition: PartitionIndex,
    /// The processor that owns it.
    pub processor: ProcessorIndex,
    /// Bytes that the snapshot has of it.
    pub size: u64,
    /// The snapshot has a map of its own.
    pub frozen: bool,
    /// The blocks of its map.
    pub places: PlaceCounts,
    /// What was counted until the cut; `None`: it was not counted.
    pub counters: Option<Counters>,
    /// When the last write ended, nanoseconds since 1970 (0: there was none); `None`: it is not known.
    pub last_write_ns: Option<u64>,
    /// Sequence number of the latest mapping change.
    pub write_seq: u64,
    /// Writes and bytes since the snapshot before it; `None`: they were not counted.
    pub since: Option<(u64, u64)>,
    /// What is in the change log that begins with it, if that exists: blocks in slots, zero, and at their base places.
    pub log: Option<[u64; 3]>,
}

/// A partition now.
#[derive(Clone, Debug)]
pub struct LivePartition {
    /// The partition.
    pub partition: PartitionIndex,
    /// The processor that owns it.
    pub processor: ProcessorIndex,
    /// The blocks of its map.
    pub places: PlaceCounts,
    /// What was counted.
    pub counters: Counters,
    /// When the last write ended, nanoseconds since 1970 (0: there was none); `None`: it is not known.
    pub last_write_ns: Option<u64>,
    /// Sequence number of the latest mapping change.
    pub write_seq: u64,
    /// Frozen maps.
    pub versions: usize,
    /// The epoch of the newest snapshot that shows it; 0: none does.
    pub newest_snapshot: Epoch,
}

/// A partition's change log.
#[derive(Clone, Debug)]
pub struct LogOfPartition {
    /// The partition.
    pub partition: PartitionIndex,
    /// The processor that owns it.
    pub processor: ProcessorIndex,
    /// The epoch of the snapshot with which it begins; 0: it begins with the volume.
    pub begin: Epoch,
    /// Blocks in slots.
    pub blocks: u64,
    /// Blocks that became zero.
    pub zeroes: u64,
    /// Blocks that went back to their base places.
    pub bases: u64,
    /// Runs of consecutive slots on one device.
    pub runs: usize,
    /// Blocks by log area, in order of the areas' numbers.
    pub areas: Vec<(u16, u64)>,
    /// Writes and bytes from its beginning to its end; `None`: they were not counted.
    pub written: Option<(u64, u64)>,
    /// The epoch of the snapshot that ended it; `None`: blocks are still added.
    pub ended: Option<Epoch>,
}

/// Blocks of a change log that lie together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocatedRun {
    /// The first block.
    pub block: BlockIndex,
    /// Blocks.
    pub blocks: u32,
    /// The log area's number.
    pub area: u16,
    /// The device.
    pub device: DeviceId,
    /// First byte on the device.
    pub offset: u64,
}

/// Where a byte is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spot {
    /// At its base place: device and byte.
    Base(DeviceId, u64),
    /// Nowhere: it is zero.
    Zero,
    /// In a change log: area, device, byte, and the change log's beginning.
    Log(u16, DeviceId, u64, Epoch),
    /// Where the snapshot has it from which the volume was made.
    Source,
}

/// A byte's partition, processor and block, and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// The partition.
    pub partition: PartitionIndex,
    /// The processor that owns it.
    pub processor: ProcessorIndex,
    /// The block within the partition.
    pub block: BlockIndex,
    /// Where it is.
    pub spot: Spot,
}

/// The snapshots that end the change log that begins with one snapshot, and whether the live volume adds to it.
#[derive(Clone, Debug, Default)]
struct Ends {
    snapshots: Vec<Epoch>,
    live: bool,
}

/// By the beginning of a change log.
fn ends_of(page: &VersionsPage) -> HashMap<Epoch, Ends> {
    let mut ends: HashMap<Epoch, Ends> = HashMap::new();
    for epoch in page.history.snapshots() {
        let begin = page.history.snapshot_before(*epoch);
        ends.entry(begin).or_default().snapshots.push(*epoch);
    }
    ends.entry(page.history.snapshot_before(page.epoch)).or_default().live = true;
    ends
}

/// What was counted when the snapshot of `begin` was taken; `None`: it was not counted.
fn counters_from(page: &VersionsPage, versions: &Versions, begin: Epoch) -> Option<Counters> {
    match begin {
        begin if begin < page.counted_from => None,
        0 => Some(Counters::default()),
        begin => Some(versions.counters_at(begin)),
    }
}

/// What was counted when the snapshot of `epoch` was taken, and when the last write before that ended.
fn counters_of(
    page: &VersionsPage,
    versions: &Versions,
    epoch: Epoch,
) -> (Option<Counters>, Option<u64>) {
    let counters = counters_from(page, versions, epoch);
    (counters, counters.and_then(|counters| last_write(page, counters)))
}

/// When the last write ended. A write that was not counted may have been the last one.
fn last_write(page: &VersionsPage, counters: Counters) -> Option<u64> {
    let known = counters.last_write_ns != 0 || page.counted_from == 0;
    known.then_some(counters.last_write_ns)
}

impl Engine {
    /// Calls `f` with a processor and some of its partitions until it has had all partitions of a range.
    fn each_page(
        &self,
        volume: &Volume,
        range: Range<PartitionIndex>,
        mut f: impl FnMut(ProcessorIndex, &VersionsPage) -> Result<()>,
    ) -> Result<()> {
        let end = range.end.min(volume.geometry.partitions.len() as PartitionIndex);
        let mut asked = vec![false; volume.shares.len()];
        for partition in range.start..end {
            let owner = volume.geometry.partitions[partition as usize].processor;
            let number = volume.share_of[owner as usize];
            if std::mem::replace(&mut asked[number], true) {
                continue;
            }
            let share = &volume.shares[number];
            for page in self.versions_pages(volume, share, range.start..end) {
                f(share.processor, &page?)?;
            }
            if asked.iter().all(|asked| *asked) {
                break;
            }
        }
        Ok(())
    }

    /// The partition snapshots of a snapshot, by partition, of the partitions of a range.
    pub fn partition_snapshots(
        &self,
        volume: VolumeId,
        epoch: Epoch,
        range: Range<PartitionIndex>,
    ) -> Result<Vec<PartitionSnapshot>> {
        let volume = self.volume(volume)?;
        self.refuse_unknown(&volume, epoch)?;
        let mut found = Vec::new();
        self.each_page(&volume, range, |processor, page| {
            if !page.history.has(epoch) {
                return Err(no_snapshot(&volume, epoch));
            }
            let before = page.history.snapshot_before(epoch);
            for (partition, versions) in &page.versions {
                let partition = *partition;
                let size = volume.partition_bytes_at(partition, epoch);
                if size == 0 {
                    continue; // it came later
                }
                let (map, frozen) = versions.at(epoch);
                let (counters, last_write_ns) = counters_of(page, versions, epoch);
                let since = counters_from(page, versions, before)
                    .zip(counters)
                    .map(|(before, counters)| counters.since(&before));
                let attribution = attribution(&volume, partition, versions, &page.history);
                let log = attribution.change_logs(Some(epoch)).pop();
                found.push(PartitionSnapshot {
                    partition,
                    processor,
                    size,
                    frozen,
                    places: count_places(map, (size / BLOCK_SIZE) as u32),
                    counters,
                    last_write_ns,
                    write_seq: map.recorded_seq(),
                    since,
                    log: log.map(|log| [log.blocks(), log.zeroes, log.bases]),
                });
            }
            Ok(())
        })?;
        found.sort_unstable_by_key(|one| one.partition);
        Ok(found)
    }

    /// The partitions of a range, now.
    pub fn partitions(
        &self,
        volume: VolumeId,
        range: Range<PartitionIndex>,
    ) -> Result<Vec<LivePartition>> {
        let volume = self.volume(volume)?;
        let mut found = Vec::new();
        self.each_page(&volume, range, |processor, page| {
            for (partition, versions) in &page.versions {
                let shown = |epoch: &&Epoch| volume.partition_bytes_at(*partition, **epoch) > 0;
                let newest = page.history.snapshots().last().filter(shown);
                found.push(LivePartition {
                    partition: *partition,
                    processor,
                    places: count_places(&versions.live, versions.live.blocks()),
                    counters: versions.counters(),
                    last_write_ns: last_write(page, versions.counters()),
                    write_seq: versions.live.recorded_seq(),
                    versions: versions.frozen().len(),
                    newest_snapshot: newest.copied().unwrap_or(0),
                });
            }
            Ok(())
        })?;
        found.sort_unstable_by_key(|one| one.partition);
        Ok(found)
    }

    /// The change logs that exist of the partitions of a range, by partition and beginning; only those that begin with
    /// `begin`, if it is given.
    pub fn change_logs(
        &self,
        volume: VolumeId,
        range: Range<PartitionIndex>,
        begin: Option<Epoch>,
    ) -> Result<Vec<LogOfPartition>> {
        let volume = self.volume(volume)?;
        let mut found = Vec::new();
        self.each_page(&volume, range, |processor, page| {
            let ends = ends_of(page);
            for (partition, versions) in &page.versions {
                let attribution = attribution(&volume, *partition, versions, &page.history);
                for log in attribution.change_logs(begin) {
                    let ends = ends.get(&log.begin).cloned().unwrap_or_default();
                    let of = (*partition, processor);
                    found.push(describe(&volume, of, page, versions, &log, &ends));
                }
            }
            Ok(())
        })?;
        found.sort_unstable_by_key(|one| (one.partition, one.begin));
        Ok(found)
    }

    /// How many change logs begin with each epoch, by processor, in this order.
    pub fn change_log_counts(
        &self,
        volume: VolumeId,
    ) -> Result<BTreeMap<(Epoch, ProcessorIndex), u64>> {
        let volume = self.volume(volume)?;
        let mut found = BTreeMap::new();
        self.each_page(&volume, 0..PartitionIndex::MAX, |processor, page| {
            for (partition, versions) in &page.versions {
                let attribution = attribution(&volume, *partition, versions, &page.history);
                for begin in attribution.beginnings() {
                    *found.entry((begin, processor)).or_default() += 1;
                }
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// The runs of a change log, in the order of its blocks, from number `first` on, at most `count`, and how many it
    /// has in all.
    pub fn change_log_runs(
        &self,
        volume: VolumeId,
        partition: PartitionIndex,
        begin: Epoch,
        first: usize,
        count: usize,
    ) -> Result<(Vec<LocatedRun>, usize)> {
        let volume = self.volume(volume)?;
        refuse_partition(&volume, partition)?;
        let (mut found, mut total) = (Vec::new(), 0);
        let range = partition..partition + 1;
        self.each_page(&volume, range, |_, page| {
            let Some((_, versions)) = page.versions.first() else { return Ok(()) };
            let attribution = attribution(&volume, partition, versions, &page.history);
            let Some(log) = attribution.change_logs(Some(begin)).pop() else { return Ok(()) };
            let runs = on_devices(&log.runs, CHUNK_SLOTS, |place| breaks(&volume.space, place));
            total = runs.len();
            for run in runs.iter().skip(first).take(count) {
                let (area, device, offset) = locate_slot(&volume.space, run.place());
                found.push(LocatedRun {
                    block: run.block,
                    blocks: run.count,
                    area,
                    device,
                    offset,
                });
            }
            Ok(())
        })?;
        Ok((found, total))
    }

    /// Where a byte of a volume is, now or at a snapshot.
    pub fn locate(&self, volume: VolumeId, offset: u64, epoch: Option<Epoch>) -> Result<Location> {
        let volume = self.volume(volume)?;
        epoch.map_or(Ok(()), |epoch| self.refuse_unknown(&volume, epoch))?;
        let size = epoch.map_or(volume.geometry.size, |epoch| volume.size_at(epoch));
        if offset >= size {
            let what = format!("byte {offset} is behind the end of volume {}: {size}", volume.name);
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        let partition = (offset >> volume.geometry.partition_shift) as PartitionIndex;
        let within = offset & ((1 << volume.geometry.partition_shift) - 1);
        let (block, rest) = ((within >> BLOCK_SHIFT) as BlockIndex, within % BLOCK_SIZE);
        let owner = &volume.geometry.partitions[partition as usize];
        let mut spot = None;
        let range = partition..partition + 1;
        self.each_page(&volume, range, |_, page| {
            let Some((_, versions)) = page.versions.first() else { return Ok(()) };
            if let Some(epoch) = epoch.filter(|epoch| !page.history.has(*epoch)) {
                return Err(no_snapshot(&volume, epoch));
            }
            let index = epoch.map_or(versions.frozen().len(), |epoch| versions.first_from(epoch));
            spot = Some(match versions.map(index).place(block) {
                Place::BASE if volume.origin.is_some() => Spot::Source,
                Place::BASE => {
                    let mut base = Spot::Source;
                    let found = owner.pieces(within, 1, |device, at, _, _| {
                        base = Spot::Base(device.id, at);
                        Ok::<(), Error>(())
                    });
                    found.map(|()| base)?
                }
                Place::ZERO => Spot::Zero,
                place => {
                    let (area, device, at) = locate_slot(&volume.space, place);
                    let attribution = attribution(&volume, partition, versions, &page.history);
                    Spot::Log(area, device, at + rest, attribution.begin_of_block(index, block))
                }
            });
            Ok(())
        })?;
        let spot = spot.ok_or_else(|| no_partition(&volume, partition))?;
        Ok(Location { partition, processor: owner.processor, block, spot })
    }
}

fn no_snapshot(volume: &Volume, epoch: Epoch) -> Error {
    let what = format!("volume {} has no snapshot of epoch {epoch}", volume.name);
    Error::new(ErrorKind::NotFound, what)
}

fn no_partition(volume: &Volume, partition: PartitionIndex) -> Error {
    let what = format!("volume {} has no partition {partition}", volume.name);
    Error::new(ErrorKind::NotFound, what)
}

fn refuse_partition(volume: &Volume, partition: PartitionIndex) -> Result<()> {
    let known = (partition as usize) < volume.geometry.partitions.len();
    if known { Ok(()) } else { Err(no_partition(volume, partition)) }
}

/// How the blocks of a partition are attributed.
fn attribution<'a>(
    volume: &'a Volume,
    partition: PartitionIndex,
    versions: &'a Versions,
    history: &'a History,
) -> Attribution<'a, impl Fn(Epoch) -> u32 + 'a> {
    let blocks_at = move |epoch| (volume.partition_bytes_at(partition, epoch) / BLOCK_SIZE) as u32;
    Attribution { versions, history, blocks_at }
}

/// The area, device and byte of a slot.
fn locate_slot(space: &Space, place: Place) -> (u16, DeviceId, u64) {
    let area = space.log(place.log()).expect("a map refers to slots of existing areas");
    let (device, offset) = area.locate(place.slot_number());
    (area.number, device.id, offset)
}

/// Whether a slot, the first of a chunk, does not follow the one before it on its device.
fn breaks(space: &Space, place: Place) -> bool {
    let Some(before) = place.slot_number().0.checked_sub(1) else { return true };
    let before = Place::slot(place.log(), crate::units::SlotIndex(before));
    let (_, device, offset) = locate_slot(space, place);
    let (_, other, end) = locate_slot(space, before);
    device != other || offset != end + BLOCK_SIZE
}

fn describe(
    volume: &Volume,
    (partition, processor): (PartitionIndex, ProcessorIndex),
    page: &VersionsPage,
    versions: &Versions,
    log: &ChangeLog,
    ends: &Ends,
) -> LogOfPartition {
    let runs = on_devices(&log.runs, CHUNK_SLOTS, |place| breaks(&volume.space, place));
    let mut areas: BTreeMap<u16, u64> = BTreeMap::new();
    for run in &runs {
        *areas.entry(run.place().log()).or_default() += u64::from(run.count);
    }
    let written = counters_from(page, versions, log.begin).map(|begin| {
        let snapshots = ends.snapshots.iter().map(|epoch| versions.counters_at(*epoch));
        let all = snapshots.chain(ends.live.then(|| versions.counters()));
        all.map(|end| end.since(&begin)).fold((0, 0), |sum, part| (sum.0 + part.0, sum.1 + part.1))
    });
    LogOfPartition {
        partition,
        processor,
        begin: log.begin,
        blocks: log.blocks(),
        zeroes: log.zeroes,
        bases: log.bases,
        runs: runs.len(),
        areas: areas.into_iter().collect(),
        written,
        ended: ends.snapshots.last().copied().filter(|_| !ends.live),
    }
}
