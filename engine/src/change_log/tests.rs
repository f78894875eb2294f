//! Tests of journals, checkpoints, recovery and slots against docs/formats.md and the heads of the modules.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::agreement::CatalogState;
use super::checkpoint::{self, Contents};
use super::files::Identity;
use super::format::{
    BEGIN_FIELDS, BEGIN_OFFSET, HEADER_FIELDS, Header, JOURNAL_MAGIC, MARK_FIELDS, MARK_OFFSETS,
    Mark, RECORD_FIELDS, RECORD_SUMS_MAX, Record, RecordKind, record_bytes, u64_at,
};
use super::journal::{Entry, Journal, Start};
use super::manifest::{APPENDED_FIELDS, COPY_FIELDS};
use super::partition_shape::Shape;
use super::past::{Past, RecordedCut};
use super::recover::{Recovered, recover};
use crate::block_map::counters::Counters;
use crate::block_map::history::{History, Rollback};
use crate::block_map::place::Place;
use crate::block_map::versions::{Change, Versions};
use crate::error::{ErrorKind, Result};
use crate::limits;
use crate::system::linux::Linux;
use crate::units::{Epoch, SlotIndex};

mod agreement;
mod areas;
mod damage;
mod failed_sync;
mod punching;
mod segments;
mod slots;
mod states;

const BLOCKS: u32 = 1024;

/// A directory of its own, removed with the value.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = format!("polyvol-change-log-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(path.join("volume")).unwrap();
        Scratch(path)
    }

    fn identity(&self, boot: u8) -> Identity {
        Identity {
            system: Arc::new(Linux),
            directory: self.0.join("volume"),
            manifest: self.0.join("manifests/p002.manifest"),
            volume_uuid: [9; 16],
            processor: 2,
            boot_id: [boot; 16],
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn segment_bytes() -> usize {
    limits::SEGMENT_BYTES.load(Ordering::Relaxed)
}

fn entry(first: u32, slot: u64, epoch: Epoch, sums: &[u32]) -> Entry<'_> {
    Entry {
        kind: RecordKind::Map,
        epoch,
        partition: 4,
        first,
        count: sums.len() as u32,
        place: Place::slot(1, SlotIndex(slot)).raw(),
        checksums: sums,
    }
}

fn back(scratch: &Scratch, boot: u8, snapshots: &[Epoch]) -> Result<Recovered> {
    recover(&scratch.identity(boot), &CatalogState::line(snapshots), |partition| {
        (partition == 4).then(|| Shape::whole(BLOCKS))
    })
}

/// Ten records of one block each, of which five are committed.
fn ten_records(scratch: &Scratch) -> Journal {
    let mut journal = Journal::begin(scratch.identity(1), Start::fresh()).unwrap();
    for i in 0..10 {
        journal.append(entry(i, u64::from(i) + 100, 1, &[i])).unwrap();
        if i == 4 {
            journal.shared().commit(5).unwrap();
        }
    }
    journal
}

#[test]
fn the_formats_page_has_every_field_at_its_offset() {
    let page = include_str!("../../../docs/formats.md");
    let rows: Vec<String> = page
        .lines()
        .filter(|line| line.starts_with('|'))
        .map(|line| line.split('|').map(str::trim).collect::<Vec<_>>().join("|"))
        .collect();
    let fields =
        HEADER_FIELDS.iter().chain(&RECORD_FIELDS).chain(&MARK_FIELDS).chain(&BEGIN_FIELDS);
    for (name, offset, bytes) in fields.chain(&COPY_FIELDS).chain(&APPENDED_FIELDS) {
        let row = format!("|{name}|{offset}|{bytes}|");
        assert!(rows.iter().any(|found| found.starts_with(&row)), "no row {row}");
    }
    assert!(page.contains(&format!("{RECORD_SUMS_MAX} blocks at most")));
}

#[test]
fn after_a_kill_every_record_counts_and_after_a_power_loss_the_committed_ones() {
    let scratch = Scratch::new();
    ten_records(&scratch);
    let killed = back(&scratch, 1, &[]).unwrap();
    assert_eq!((killed.next_seq, killed.replayed), (11, 10));
    assert_eq!(killed.partitions[&4].live.place(9), Place::slot(1, SlotIndex(109)));
    let lost = back(&scratch, 2, &[]).unwrap();
    assert_eq!((lost.next_seq, lost.replayed), (6, 5));
    assert_eq!(lost.partitions[&4].live.place(4), Place::slot(1, SlotIndex(104)));
    assert_eq!(lost.partitions[&4].live.place(5), Place::BASE);
}

#[test]
fn records_dropped_by_a_power_loss_stay_dropped_when_the_next_run_is_killed() {
    let scratch = Scratch::new();
    ten_records(&scratch);
    let mut journal = begin_again(&scratch, 2);
    journal.append(entry(20, 500, 1, &[1])).unwrap();
    drop(journal);
    let killed = back(&scratch, 2, &[]).unwrap();
    assert_eq!((killed.next_seq, killed.replayed), (7, 6));
    assert_eq!(killed.partitions[&4].live.place(7), Place::BASE);
    assert_eq!(killed.partitions[&4].live.place(20), Place::slot(1, SlotIndex(500)));
}

#[test]
fn records_continue_in_new_segments_and_a_missing_one_is_detected() {
    let scratch = Scratch::new();
    let mut journal = Journal::begin(scratch.identity(1), Start::fresh()).unwrap();
    let sums = vec![3; BLOCKS as usize];
    let records = 2 * segment_bytes() / record_bytes(sums.len());
    for _ in 0..records {
        journal.append(entry(0, 0, 1, &sums)).unwrap();
    }
    drop(journal);
    let killed = back(&scratch, 1, &[]).unwrap();
    assert_eq!(killed.replayed as usize, records);
    assert!(killed.segments.len() >= 2);
    // One byte of a record in the first segment.
    let path = scratch.identity(1).segment_path(1);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[20_000] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let error = back(&scratch, 1, &[]).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Corrupt);
    assert!(error.what.contains("p002-0000000001.journal"), "{}", error.what);
}

#[test]
fn an_unknown_version_is_refused_untouched() {
    let scratch = Scratch::new();
    ten_records(&scratch);
    let path = scratch.identity(1).segment_path(1);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[8] = 77;
    std::fs::write(&path, &bytes).unwrap();
    let error = back(&scratch, 1, &[]).unwrap_err();
    assert!(error.what.contains("version 77"), "{}", error.what);
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
}

#[test]
fn a_segment_that_a_crash_left_without_a_header_is_ignored() {
    let scratch = Scratch::new();
    ten_records(&scratch);
    std::fs::write(scratch.identity(1).segment_path(2), vec![0; 8192]).unwrap();
    let found = back(&scratch, 1, &[]).unwrap();
    assert_eq!((found.next_seq, found.leftovers), (11, vec![scratch.identity(1).segment_path(2)]));
}

#[test]
fn replay_makes_frozen_maps_for_snapshots_of_the_catalog_only() {
    let scratch = Scratch::new();
    let mut journal = Journal::begin(scratch.identity(1), Start::fresh()).unwrap();
    for epoch in 1..=3 {
        journal.append(entry(7, 100 + epoch, epoch, &[1])).unwrap();
    }
    drop(journal);
    let found = back(&scratch, 1, &[2]).unwrap();
    let versions = &found.partitions[&4];
    assert_eq!(versions.at(2).0.place(7), Place::slot(1, SlotIndex(102)));
    assert_eq!(versions.live.place(7), Place::slot(1, SlotIndex(103)));
    assert_eq!(versions.frozen().len(), 1);
    assert_eq!(found.epoch, 3);
}

#[test]
fn a_record_of_an_older_epoch_that_was_appended_later_stays_out_of_older_snapshots() {
    let scratch = Scratch::new();
    let mut journal = Journal::begin(scratch.identity(1), Start::fresh()).unwrap();
    journal.append(entry(7, 101, 1, &[1])).unwrap();
    journal.append(entry(8, 102, 3, &[1])).unwrap();
    journal.append(entry(7, 103, 2, &[1])).unwrap(); // started before the second cut, ended after it
    drop(journal);
    let found = back(&scratch, 1, &[1, 2]).unwrap();
    let versions = &found.partitions[&4];
    assert_eq!(versions.at(1).0.place(7), Place::slot(1, SlotIndex(101)));
    assert_eq!(versions.at(1).0.place(8), Place::BASE);
    assert_eq!(versions.at(2).0.place(7), Place::slot(1, SlotIndex(103)));
    assert_eq!(versions.at(2).0.place(8), Place::BASE);
    assert_eq!(versions.live.place(8), Place::slot(1, SlotIndex(102)));
}

/// The journal of the next run, after recovery.
fn begin_again(scratch: &Scratch, boot: u8) -> Journal {
    let start = back(scratch, boot, &[]).unwrap().start();
    Journal::begin(scratch.identity(boot), start).unwrap()
}

#[test]
fn records_dropped_by_a_power_loss_stay_dropped_although_they_had_begun_a_segment() {
    let scratch = Scratch::new();
    ten_records(&scratch);
    let mut journal = begin_again(&scratch, 1);
    let sums = vec![3; BLOCKS as usize];
    for _ in 0..segment_bytes() / record_bytes(sums.len()) + 1 {
        journal.append(entry(0, 0, 1, &sums)).unwrap();
    }
    drop(journal);
    let mut journal = begin_again(&scratch, 2);
    assert_eq!(journal.append(entry(20, 500, 1, &[1])).unwrap(), 6);
    drop(journal);
    for _ in 0..2 {
        let killed = back(&scratch, 2, &[]).unwrap();
        assert_eq!((killed.next_seq, killed.replayed), (7, 6));
        assert_eq!(killed.partitions[&4].live.place(7), Place::BASE);
        assert_eq!(killed.partitions[&4].live.place(20), Place::slot(1, SlotIndex(500)));
        drop(begin_again(&scratch, 2));
    }
}

/// Fills the `nth` record of the first segment, from 0, with zeroes. Each is of one block.
fn lose_record(scratch: &Scratch, nth: usize) {
    let path = scratch.identity(1).segment_path(1);
    let mut bytes = std::fs::read(&path).unwrap();
    let at = 4096 + nth * record_bytes(1);
    bytes[at..at + record_bytes(1)].fill(0);
    std::fs::write(&path, &bytes).unwrap();
}

#[test]
fn a_mark_that_reached_the_disk_before_its_records_is_harmless() {
    let scratch = Scratch::new();
    ten_records(&scratch);
    mark_again(&scratch, 10);
    lose_record(&scratch, 7);
    assert_eq!(back(&scratch, 1, &[]).unwrap_err().kind, ErrorKind::Corrupt);
    let lost = back(&scratch, 2, &[]).unwrap();
    assert_eq!((lost.next_seq, lost.replayed), (6, 5), "all that a mark covers, or none of it");
    let mut journal = begin_again(&scratch, 2);
    journal.append(entry(20, 500, 1, &[1])).unwrap();
    drop(journal);
    let killed = back(&scratch, 2, &[]).unwrap();
    assert_eq!((killed.next_seq, killed.replayed), (7, 6));
    let lost = back(&scratch, 3, &[]).unwrap();
    assert_eq!((lost.next_seq, lost.replayed), (6, 5));
    // The records that the mark before it covers must be there.
    lose_record(&scratch, 4);
    assert_eq!(back(&scratch, 2, &[]).unwrap_err().kind, ErrorKind::Corrupt);
    assert_eq!(back(&scratch, 3, &[]).unwrap_err().kind, ErrorKind::Corrupt);
}

#[test]
fn records_that_a_checkpoint_covers_may_be_missing() {
    let scratch = Scratch::new();
    let journal = ten_records(&scratch);
    journal.shared().commit(8).unwrap();
    let all = back(&scratch, 2, &[]).unwrap();
    let identity = scratch.identity(1);
    let contents = Contents {
        first_seq: 9,
        partitions: all.partitions.into_iter().collect(),
        ..Contents::first()
    };
    let new = scratch.0.join("new");
    let (_, _, crc) = checkpoint::write(&new, &identity, 2, contents).unwrap();
    checkpoint::publish(&identity, &new, &identity.checkpoint_path(2)).unwrap();
    journal.shared().name_checkpoint((2, crc), 8).unwrap();
    drop(journal);
    lose_record(&scratch, 6);
    let lost = back(&scratch, 2, &[]).unwrap();
    assert_eq!((lost.next_seq, lost.replayed), (9, 0));
    let mut journal = begin_again(&scratch, 2);
    journal.append(entry(20, 500, 1, &[1])).unwrap();
    drop(journal);
    let killed = back(&scratch, 2, &[]).unwrap();
    assert_eq!((killed.next_seq, killed.replayed), (10, 1));
    assert_eq!(killed.partitions[&4].live.place(7), Place::slot(1, SlotIndex(107)));
}

/// Stores a second commit mark in the first segment.
fn mark_again(scratch: &Scratch, committed_seq: u64) {
    let path = scratch.identity(1).segment_path(1);
    let mut bytes = std::fs::read(&path).unwrap();
    let header = Header::decode(&bytes, JOURNAL_MAGIC).unwrap();
    let mark = Mark { committed_seq, turn: 3 }.encode(header.incarnation);
    bytes[MARK_OFFSETS[1]..MARK_OFFSETS[1] + mark.len()].copy_from_slice(&mark);
    std::fs::write(&path, &bytes).unwrap();
}

#[test]
fn a_segment_without_a_successor_accepts_no_more_records() {
    let scratch = Scratch::new();
    let mut journal = Journal::begin(scratch.identity(1), Start::fresh()).unwrap();
    let sums = vec![3; BLOCKS as usize];
    let fit = (segment_bytes() - 4096) / record_bytes(sums.len());
    for _ in 0..fit {
        journal.append(entry(0, 0, 1, &sums)).unwrap();
    }
    let directory = scratch.identity(1).directory;
    let away = scratch.0.join("away");
    std::fs::rename(&directory, &away).unwrap();
    assert!(journal.append(entry(0, 0, 1, &sums)).is_err());
    // It would fit, but the next segment may already exist, which means that this one has ended.
    assert!(journal.append(entry(9, 900, 1, &[1])).is_err());
    std::fs::rename(&away, &directory).unwrap();
    journal.append(entry(9, 901, 1, &[1])).unwrap();
    drop(journal);
    let killed = back(&scratch, 1, &[]).unwrap();
    assert_eq!(killed.replayed as usize, fit + 1);
    assert_eq!(killed.partitions[&4].live.place(9), Place::slot(1, SlotIndex(901)));
}

/// Converts a segment that was begun to format version 1.
fn make_version_1(bytes: &mut [u8]) {
    let header = Header::decode(bytes, JOURNAL_MAGIC).unwrap();
    let first_seq = u64_at(bytes, BEGIN_OFFSET);
    let header = Header { first_seq, version: 1, ..header }.encode(JOURNAL_MAGIC);
    bytes[..80].copy_from_slice(&header[..80]);
    bytes[80..88].fill(0);
    bytes[BEGIN_OFFSET..BEGIN_OFFSET + 16].fill(0);
    for at in MARK_OFFSETS {
        bytes[at + 20..at + 24].fill(0);
    }
}

fn versions() -> Versions {
    let mut versions = Versions::new(BLOCKS);
    for (epoch, first, slot) in [(1, 3, 0u64), (2, 600, 50), (3, 3, 70)] {
        versions.freeze_before(epoch, &[1, 2]);
        let sums = [slot as u32, 1, 2];
        let place = Place::slot(1, SlotIndex(slot));
        let change = Change { epoch, first, count: 3, place, checksums: &sums, seq: epoch };
        versions.apply(change, &History::line(&[1, 2, 3]), |_, _, _| {});
    }
    // Scattered blocks, in one log and in several.
    for (first, logs) in [(100, 1), (700, 3)] {
        for i in 0..40 {
            let place =
                Place::slot(1 + i % logs, SlotIndex(1000 + u64::from(first) - 2 * u64::from(i)));
            let first = first + 3 * u32::from(i);
            let change = Change { epoch: 3, first, count: 1, place, checksums: &[first], seq: 5 };
            versions.apply(change, &History::line(&[1, 2, 3]), |_, _, _| {});
        }
    }
    versions.count(3, counters(5));
    versions.freeze_before(4, &[1, 2, 3]);
    versions.count(4, counters(8));
    let zero =
        Change { epoch: 4, first: 512, count: 512, place: Place::ZERO, checksums: &[], seq: 9 };
    versions.apply(zero, &History::line(&[1, 2, 3]), |_, _, _| {});
    versions
}

fn past() -> Past {
    let history = History::new(vec![2], vec![Rollback { at: 3, to: 2 }]).unwrap();
    let cuts = vec![RecordedCut { epoch: 2, instant_ns: 1 << 60, partitions: 2 }];
    Past { cuts, counted_from: 1, ..Past::of(&history, 4, u64::from(BLOCKS)) }
}

fn counters(writes: u64) -> Counters {
    Counters { writes, written_bytes: writes << 33, last_write_ns: writes + 7 }
}

#[test]
fn a_checkpoint_round_trips_and_every_flipped_bit_is_detected() {
    let scratch = Scratch::new();
    let in_place = vec![(7, counters(3))];
    let partitions = vec![(4, versions())];
    let contents = Contents { first_seq: 42, epoch: 4, past: past(), partitions, in_place };
    let path = scratch.0.join("checkpoint");
    checkpoint::write(&path, &scratch.identity(1), 3, contents.clone()).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let blocks_of = |partition| [4, 7].contains(&partition).then_some(BLOCKS);
    let (header, read) = checkpoint::read(&bytes, blocks_of).unwrap();
    assert_eq!((header.number, read.first_seq, read.epoch), (3, 42, 4));
    assert_eq!(read.past, contents.past);
    assert_eq!(read.in_place, contents.in_place);
    let (wrote, found) = (&contents.partitions[0].1, &read.partitions[0].1);
    for epoch in [1, 2, 3, 4] {
        for block in 0..BLOCKS {
            let (a, b) = (wrote.at(epoch).0.find(block, 1), found.at(epoch).0.find(block, 1));
            assert_eq!((a.place, a.checksums), (b.place, b.checksums));
        }
        assert_eq!(wrote.at(epoch).0.write_seq, found.at(epoch).0.write_seq);
        assert_eq!(wrote.counters_at(epoch), found.counters_at(epoch));
    }
    let interesting = (0..80).chain(4096..bytes.len());
    for at in interesting {
        let mut bad = bytes.clone();
        bad[at] ^= 0x10;
        assert!(checkpoint::read(&bad, blocks_of).is_err(), "byte {at}");
    }
    for length in [0, 79, 4095, 4100, bytes.len() - 1] {
        assert!(checkpoint::read(&bytes[..length], blocks_of).is_err());
    }
}

proptest! {
    #[test]
    fn a_record_round_trips_and_every_flipped_bit_is_detected(
        seq: u64, epoch: u64, partition: u32, first: u32, sums in prop::collection::vec(any::<u32>(), 0..9),
        incarnation: u64, flip in any::<prop::sample::Index>(), bit in 0..8u8,
    ) {
        let place = Place::slot(3, SlotIndex(99)).raw();
        let count = sums.len() as u32;
        let record = Record { kind: RecordKind::Map, seq, epoch, partition, first, count, place };
        let mut bytes = vec![0; record_bytes(sums.len())];
        record.encode(&sums, incarnation, &mut bytes);
        let (found, found_sums, length) = Record::decode(&bytes, incarnation).unwrap().unwrap();
        prop_assert_eq!((found, &found_sums, length), (record, &sums, bytes.len()));
        prop_assert!(Record::decode(&bytes, incarnation ^ 1).unwrap().is_none());
        let at = flip.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert!(!matches!(Record::decode(&bytes, incarnation), Ok(Some(_))));
    }
}
