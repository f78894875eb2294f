//! Recover: reads a processor's maps of a volume from its checkpoint and journal, at a start.
//!
//! How it works      It reads the newest checkpoint, then replays every record after it, in order, with the same
//!                   [`Versions::apply`] that served the writes. Snapshots that the catalog does not know leave no
//!                   trace: no frozen map is made for them. The slots in use follow from the maps.
//! Which records     In the boot of the newest segment: all, because the page cache has them. In another boot: those up
//!                   to the newest commit mark, if all of them are there; otherwise the sync of that mark had not
//!                   ended, and the records up to the mark before it count. Records between two marks never count in
//!                   part, because [young](super::young) slots are reused between them. Records that the checkpoint
//!                   covers need not be there in either case. The [manifest](super::manifest) names the boot and the
//!                   files, and the record that must be reached at least; volumes of an earlier version have none until
//!                   they are served for the first time.
//! Errors            a required file that cannot be read is `Corrupt`, with the file's name; an unknown version is
//!                   refused and left unchanged. Nothing is guessed, and nothing is changed.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::PathBuf;
use std::sync::Arc;

use super::agreement::{Agreement, CatalogState, records_ends};
use super::expected::{expect_files, expect_records, list, read_checkpoint};
use super::files::{Identity, corrupt};
use super::format::{COUNTED_VERSION, FIRST_VERSION, FORMAT_VERSION, HEADER_BYTES, HOME_VERSION};
use super::format::{Record, RecordKind, possible, seed, u32_at};
use super::journal::Start;
use super::manifest::{self, Found};
use super::old_segments::{Marks, OldSegment, may_be_lost, read_segments};
use super::partition_shape::Shape;
use super::past::{Past, RecordedCut, Stale};
use super::slot_set::SlotSet;
use crate::block_map::counters::Counters;
use crate::block_map::history::History;
use crate::block_map::tree::Map;
use crate::block_map::versions::{Change, Versions};
use crate::error::Result;
use crate::mutants::{Bug, bug};
use crate::system::File;
use crate::units::{Epoch, PartitionIndex};

/// Result of a recovery.
#[derive(Debug)]
pub struct Recovered {
    /// Partitions that are not simply all base and never frozen.
    pub partitions: BTreeMap<PartitionIndex, Versions>,
    /// The epoch of the checkpoint; 0: there was none.
    pub checkpoint_epoch: Epoch,
    /// How many of the catalog's last rollbacks came after all recovered records: the journal has to record them.
    pub unrecorded_rollbacks: usize,
    /// The record of each rollback that was applied; 0: it was before the checkpoint, which has all that it changed.
    pub rollback_seqs: Vec<u64>,
    /// The number of the next record.
    pub next_seq: u64,
    /// The last record that the checkpoint covers. No later one is known to survive a power loss before the next sync
    /// has ended, because a mark that recovery read may not be durable.
    pub covered: u64,
    /// The number of the next segment or checkpoint.
    pub next_number: u64,
    /// No epoch below this may be used for new writes.
    pub epoch: Epoch,
    /// Segments that were read, to be synced before the next commit mark.
    pub segments: Vec<Arc<dyn File>>,
    /// Their paths.
    pub paths: Vec<PathBuf>,
    /// Slots freed by records after the checkpoint, and by snapshots dropped since: older maps on the disk may still
    /// refer to them.
    pub freed: SlotSet,
    /// Segments that were not begun, to be removed.
    pub leftovers: Vec<PathBuf>,
    /// Records that were replayed.
    pub replayed: u64,
    /// The incarnation of the last segment that was begun; 0: none.
    pub previous: u64,
    /// Number and CRC-32C of the checkpoint; 0: none.
    pub checkpoint: (u64, u32),
    /// The manifest, if there is one.
    pub manifest: Option<Found>,
    /// The volume's history as it is recorded.
    pub past: Past,
    /// What the catalog has although the records say that it is gone. If there is such, nothing was recovered: recovery is
    /// repeated without it.
    pub stale: Stale,
}

impl Recovered {
    /// Refuses a journal that ends before the manifest says.
    fn expect_records(&self, identity: &Identity) -> Result<()> {
        match &self.manifest {
            Some(found) if !bug(Bug::QuietEnd) => {
                expect_records(identity, found, self.next_seq - 1)
            }
            _ => Ok(()),
        }
    }

    /// What is returned if the catalog has what is gone.
    fn without_maps(self) -> Recovered {
        Recovered { partitions: BTreeMap::new(), ..self }
    }

    /// The starting point of the next run's journal; takes the segments out of `self`.
    pub fn start(&mut self) -> Start {
        Start {
            number: self.next_number,
            next_seq: self.next_seq,
            covered: self.covered,
            segments: std::mem::take(&mut self.segments),
            paths: std::mem::take(&mut self.paths),
            previous: self.previous,
            checkpoint: self.checkpoint,
            manifest: self.manifest.take(),
        }
    }
}

/// Recovers a processor's maps. `shape_of` returns the shape of a partition that this processor owns.
pub fn recover(
    identity: &Identity,
    catalog: &CatalogState,
    shape_of: impl Fn(PartitionIndex) -> Option<Shape>,
) -> Result<Recovered> {
    let blocks_of = |partition| shape_of(partition).map(|shape: Shape| shape.blocks);
    let history = &catalog.history;
    let manifest = manifest::read(identity)?;
    let names = list(identity, catalog.expect)?;
    if manifest.is_none() {
        expect_files(identity, catalog.expect, &names)?;
    }
    let mut leftovers = Vec::new();
    let state = manifest.as_ref().map(|found| &found.state);
    let named = state.map(|state| state.checkpoint);
    let (checkpoint, contents) = read_checkpoint(identity, named, &names, &blocks_of)?;
    let segments = read_segments(identity, state, &names, &mut leftovers)?;
    let last = names.iter().map(|(number, _)| *number).max().unwrap_or(0);
    let newest = state.map_or(0, |state| state.run.max(state.segment.0));
    let mut recovered = Recovered {
        partitions: versions_of(contents.partitions, contents.in_place, &blocks_of),
        checkpoint_epoch: if checkpoint.0 > 0 { contents.epoch } else { 0 },
        unrecorded_rollbacks: 0,
        rollback_seqs: Vec::new(),
        next_seq: contents.first_seq,
        covered: contents.first_seq - 1,
        next_number: last.max(newest).max(checkpoint.0) + 1,
        epoch: contents.epoch,
        segments: Vec::new(),
        paths: Vec::new(),
        freed: SlotSet::default(),
        leftovers,
        replayed: 0,
        previous: segments.last().map_or(0, |segment| segment.header.incarnation),
        checkpoint,
        manifest,
        past: contents.past,
        stale: Stale::default(),
    };
    recovered.stale = recovered.past.stale(history, contents.epoch);
    if !recovered.stale.is_empty() {
        return Ok(recovered.without_maps());
    }
    let rolled = replay_all(identity, &mut recovered, &segments, catalog, &shape_of)?;
    recovered.unrecorded_rollbacks = history.rollbacks().len() - rolled;
    recovered.expect_records(identity)?;
    recovered.stale = recovered.past.stale(history, contents.epoch);
    if !recovered.stale.is_empty() {
        return Ok(recovered.without_maps());
    }
    let checked = recovered.past.check(history, catalog.blocks, rolled);
    checked.map_err(|what| match segments.last() {
        Some(segment) => corrupt(&segment.path, what),
        None => corrupt(&identity.checkpoint_path(checkpoint.0), what),
    })?;
    let next_seq = recovered.next_seq; // the next journal begins with the records of these rollbacks
    for (number, seq) in (rolled..history.rollbacks().len()).zip(next_seq..) {
        roll_back(&mut recovered, history, number, seq, &shape_of);
    }
    recovered.past.cuts.retain(|cut| history.has(cut.epoch));
    release_dropped(&mut recovered, history, &shape_of);
    let files = segments.into_iter().map(|segment| (segment.file, segment.path));
    (recovered.segments, recovered.paths) = files.unzip();
    Ok(recovered)
}

/// The versions of a checkpoint's partitions: with maps, and those that were only written in place.
fn versions_of(
    partitions: Vec<(PartitionIndex, Versions)>,
    in_place: Vec<(PartitionIndex, Counters)>,
    blocks_of: &impl Fn(PartitionIndex) -> Option<u32>,
) -> BTreeMap<PartitionIndex, Versions> {
    let written = |(partition, counters)| {
        let blocks = blocks_of(partition).expect("the checkpoint was read with it");
        let versions = Versions::from_parts(Map::new(blocks), counters, Vec::new());
        (partition, versions.expect("there is nothing to be out of order"))
    };
    partitions.into_iter().chain(in_place.into_iter().map(written)).collect()
}

/// Applies a rollback to the maps recovered so far. Record `seq` has it, or will have it, if only the catalog has it,
/// because a crash came before the record.
fn roll_back(
    recovered: &mut Recovered,
    history: &History,
    number: usize,
    seq: u64,
    shape_of: &impl Fn(PartitionIndex) -> Option<Shape>,
) {
    let Recovered { partitions, rollback_seqs, freed, epoch, .. } = recovered;
    assert_eq!(rollback_seqs.len(), number, "rollbacks are applied in their order");
    rollback_seqs.push(seq);
    for (partition, versions) in partitions {
        let shape = shape_of(*partition).expect("recovery checked that this processor owns it");
        shape.roll_back(versions, history, number, seq, |_, count, place| freed.add(place, count));
    }
    *epoch = (*epoch).max(history.rollbacks()[number].at + 1);
}

/// Frees the slots that only dropped snapshots could see.
fn release_dropped(
    recovered: &mut Recovered,
    history: &History,
    shape_of: &impl Fn(PartitionIndex) -> Option<Shape>,
) {
    let Recovered { partitions, freed, replayed, .. } = recovered;
    for (partition, versions) in partitions {
        let mut free = |_, count, place| {
            // If nothing was replayed, the disk has exactly these maps.
            if *replayed > 0 {
                freed.add(place, count);
            }
        };
        let shape = shape_of(*partition).expect("recovery checked that this processor owns it");
        shape.hide(versions, history, shape.blocks);
        versions.prune(history, &mut free);
        for mark in history.retained_epochs().iter().filter(|mark| !history.has(**mark)) {
            versions.forget(*mark, history, &mut free);
        }
    }
}

fn replay_all(
    identity: &Identity,
    recovered: &mut Recovered,
    segments: &[OldSegment],
    catalog: &CatalogState,
    shape_of: &impl Fn(PartitionIndex) -> Option<Shape>,
) -> Result<usize> {
    let history = &catalog.history;
    let agreement = Agreement::new(catalog, recovered.epoch);
    recovered.rollback_seqs = vec![0; agreement.applied_rollbacks()];
    let Some(last) = segments.last() else { return Ok(agreement.applied_rollbacks()) };
    let state = recovered.manifest.as_ref().map(|found| &found.state);
    let Marks { ends, marks } = Marks::of(segments, state)?;
    let newest = marks.last().map_or(0, |mark| *mark).max(recovered.covered);
    let covered = recovered.covered; // by the checkpoint: the journal may have lost these
    let boot = state.map_or(last.header.boot_id, |state| state.boot_id);
    let same_boot = boot == identity.boot_id || bug(Bug::PastTheMark);
    // The newest mark may have reached the disk before the records that it covers, if its sync had not ended. The sync
    // of the mark before it had ended, because another mark follows it.
    let mark_before_newest = marks.iter().rev().nth(1).map_or(0, |mark| *mark).max(covered);
    let (replay_until, must_reach) = if same_boot {
        (u64::MAX, newest)
    } else if bug(Bug::BetweenMarks) || all_readable(segments, &ends, recovered.next_seq, newest)? {
        (newest, mark_before_newest)
    } else {
        (mark_before_newest, mark_before_newest)
    };
    let history_before_rollback = history.before_rollback(agreement.applied_rollbacks());
    let (bytes, sums) = (Vec::new(), Vec::new());
    let mut replay =
        Replay { recovered, history, history_before_rollback, agreement, shape_of, bytes, sums };
    for (index, (segment, segment_end)) in segments.iter().zip(ends).enumerate() {
        let end = segment_end.min(replay_until);
        let next_seq = replay.recovered.next_seq;
        if segment_end < next_seq || segment.first_seq > end {
            continue; // the checkpoint has all its records, or none of them counts
        }
        // Of the segments before the first replayed record, some may have been removed.
        let chained = next_seq > covered + 1 && segment.header.version != FIRST_VERSION;
        let follows = !chained || segments[index - 1].header.incarnation == segment.header.previous;
        if segment.first_seq > next_seq || !follows {
            return Err(corrupt(&segment.path, "the records before it are missing"));
        }
        let reached = replay.segment(segment, end, same_boot)?;
        if segment.header.version < COUNTED_VERSION {
            replay.recovered.past.counted_from = replay.recovered.epoch;
        }
        if reached < end {
            let wanted = if same_boot && segment_end != u64::MAX { end } else { must_reach };
            if reached.max(covered) < wanted {
                return Err(corrupt(&segment.path, format!("record {} is missing", reached + 1)));
            }
            break;
        }
    }
    let Replay { recovered, agreement, .. } = replay;
    if recovered.next_seq <= must_reach {
        let what = format!("record {} is missing", recovered.next_seq);
        return Err(corrupt(&last.path, what));
    }
    let recorded = segments.iter().all(|segment| records_ends(segment.header.version));
    agreement.end(recovered.epoch, recorded).map_err(|what| corrupt(&last.path, what))?;
    Ok(agreement.applied_rollbacks())
}

/// Whether all records from `first` to `last` can be read. A record that a power loss has left incomplete is
/// distinguished from a damaged one, which is an error.
fn all_readable(segments: &[OldSegment], ends: &[u64], first: u64, last: u64) -> Result<bool> {
    let (mut bytes, mut sums, mut next) = (Vec::new(), Vec::new(), first);
    for (segment, end) in segments.iter().zip(ends) {
        if *end < next || segment.first_seq > next {
            continue;
        }
        segment.read(&mut bytes)?;
        let seed = seed(segment.header.incarnation);
        let (mut at, mut seq) = (HEADER_BYTES, segment.first_seq);
        while seq <= last.min(*end)
            && let Ok(Some((record, length))) = Record::decode_into(&bytes[at..], seed, &mut sums)
            && record.seq == seq
        {
            at += length;
            seq += 1;
        }
        let wanted = seq <= last.min(*end);
        if wanted && !may_be_lost(&bytes, at) && !bug(Bug::QuietEnd) {
            return Err(corrupt(&segment.path, format!("record {seq} is damaged")));
        }
        next = next.max(seq);
    }
    Ok(next > last)
}

/// State of a replay; it has one segment's bytes in memory at a time.
struct Replay<'a, F> {
    recovered: &'a mut Recovered,
    history: &'a History,
    /// As it was before the next rollback.
    history_before_rollback: History,
    agreement: Agreement<'a>,
    shape_of: &'a F,
    bytes: Vec<u8>,
    /// The record's checksums.
    sums: Vec<u32>,
}

impl<F: Fn(PartitionIndex) -> Option<Shape>> Replay<'_, F> {
    /// Replays the records of one segment up to `end`; returns the last sequence number that it reached. In the boot in
    /// which they were appended, they end with zeroes, or with a record that a kill left incomplete: its CRC is stored
    /// last.
    fn segment(&mut self, segment: &OldSegment, end: u64, same_boot: bool) -> Result<u64> {
        let path = &segment.path;
        let mut bytes = std::mem::take(&mut self.bytes);
        segment.read(&mut bytes)?;
        let seed = seed(segment.header.incarnation);
        let mut at = HEADER_BYTES;
        let mut reached = segment.first_seq - 1;
        while reached < end {
            let decoded = Record::decode_into(&bytes[at..], seed, &mut self.sums)
                .map_err(|kind| corrupt(path, format!("a record of unknown kind {kind}")))?;
            let decoded = decoded.filter(|(record, _)| record.seq == reached + 1);
            let Some((record, length)) = decoded else {
                let crc = bytes.get(at..at + 4).map_or(0, |crc| u32_at(crc, 0));
                if same_boot && crc != 0 && reached + 1 > self.recovered.covered {
                    return Err(corrupt(path, format!("record {} is damaged", reached + 1)));
                }
                break;
            };
            at += length;
            reached += 1;
            if record.seq < self.recovered.next_seq {
                continue; // the checkpoint has it
            }
            self.apply(&record, segment.header.version)
                .map_err(|what| corrupt(path, format!("record {}: {what}", record.seq)))?;
            self.recovered.next_seq = record.seq + 1;
            self.recovered.replayed += 1;
        }
        self.bytes = bytes;
        Ok(reached)
    }

    fn apply(&mut self, record: &Record, version: u32) -> std::result::Result<(), String> {
        if !possible(record.epoch) {
            return Err("its epoch is impossible".to_owned());
        }
        match record.kind {
            RecordKind::Dropped if (1..=record.epoch).contains(&record.place) => {
                self.recovered.past.dropped.add(record.place, record.epoch);
                return Ok(());
            }
            RecordKind::Grown if possible(record.volume_blocks()) => {
                let past = &mut self.recovered.past;
                past.blocks = past.blocks.max(record.volume_blocks());
                return Ok(());
            }
            RecordKind::State if version >= COUNTED_VERSION => return self.apply_state(record),
            RecordKind::Dropped | RecordKind::Grown | RecordKind::State => {
                return Err("it is inconsistent".to_owned());
            }
            RecordKind::Home if version < HOME_VERSION => {
                return Err("it is inconsistent".to_owned());
            }
            RecordKind::Away if version < FORMAT_VERSION => {
                return Err("it is inconsistent".to_owned());
            }
            RecordKind::Map | RecordKind::Home | RecordKind::Away => {}
            RecordKind::Cut | RecordKind::Rollback => {}
        }
        let rolled = self.agreement.applied_rollbacks();
        for number in rolled..rolled + self.agreement.check_record(record, version)? {
            roll_back(self.recovered, self.history, number, record.seq, self.shape_of);
            self.history_before_rollback = self.history.before_rollback(number + 1);
        }
        let recovered = &mut *self.recovered;
        if matches!(record.kind, RecordKind::Cut | RecordKind::Rollback) {
            recovered.epoch = recovered.epoch.max(record.epoch + 1);
            if record.kind == RecordKind::Cut {
                let (instant_ns, partitions) = (record.place, record.count);
                recovered.past.add_cut(RecordedCut { epoch: record.epoch, instant_ns, partitions });
            }
            return Ok(());
        }
        recovered.epoch = recovered.epoch.max(record.epoch);
        self.apply_change(record)
    }

    /// Makes a change of a partition's map, or a relocation of its blocks.
    fn apply_change(&mut self, record: &Record) -> std::result::Result<(), String> {
        let recovered = &mut *self.recovered;
        let shape = (self.shape_of)(record.partition);
        let shape = shape.ok_or("its partition is not this processor's")?;
        let blocks = shape.blocks;
        let in_range = record.first < blocks && record.count <= blocks - record.first;
        let entry = recovered.partitions.entry(record.partition);
        if let Some(moved) = record.moved(&self.sums) {
            let moved = moved.filter(|_| in_range).ok_or("it is inconsistent")?;
            if let Entry::Occupied(mut versions) = entry {
                versions.get_mut().relocate(std::slice::from_ref(&moved), record.seq);
            }
            if moved.from.is_slot() {
                recovered.freed.add(moved.from, moved.count);
            }
            return Ok(());
        }
        let place = record.checked_place(&self.sums).filter(|_| in_range);
        let place = place.ok_or("it is inconsistent")?;
        let rolled = &recovered.rollback_seqs;
        let versions = entry.or_insert_with(|| shape.fresh(self.history, rolled));
        versions.freeze_before(record.epoch, self.history.retained_epochs());
        let change = Change {
            epoch: record.epoch,
            first: record.first,
            count: record.count,
            place,
            checksums: &self.sums,
            seq: record.seq,
        };
        let freed = &mut recovered.freed;
        versions.apply(change, &self.history_before_rollback, |_, count, place| {
            freed.add(place, count)
        });
        Ok(())
    }

    /// Restores what was counted of a partition up to the end of an epoch, whose end was recorded before.
    fn apply_state(&mut self, record: &Record) -> std::result::Result<(), String> {
        let shape = (self.shape_of)(record.partition);
        let shape = shape.ok_or("its partition is not this processor's")?;
        let counters = record.counters(&self.sums);
        let rolled = &self.recovered.rollback_seqs;
        let left = rolled.len().checked_sub(1).map_or(0, |last| self.history.rollbacks()[last].at);
        let ended = (left + 1..self.recovered.epoch).contains(&record.epoch);
        let counters = counters.filter(|_| ended).ok_or("it is inconsistent")?;
        let entry = self.recovered.partitions.entry(record.partition);
        let versions = entry.or_insert_with(|| shape.fresh(self.history, rolled));
        versions.restore_counters(record.epoch, counters, self.history.retained_epochs());
        Ok(())
    }
}
