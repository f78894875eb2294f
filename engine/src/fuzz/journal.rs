//! Journal: any contents of a journal's segments, with or without a checkpoint before them.
//!
//! How it works      The input says which snapshots exist, whether there are a checkpoint and a manifest, and how long
//!                   each segment is; each segment is the used bytes of its header, two commit marks, the words of its
//!                   begin, and records, which are expanded to their offsets. All of it is recovered.
//! Promises          a refused journal is refused with a reason; a recovered one is consistent and could be
//!                   checkpointed.

use std::sync::Arc;

use super::Target;
use super::checkpoint::{
    HEADER_USED, blocks_of, bytes_of, compact, expand, fix_header, rich, version_runs,
};
use super::files::{BOOT_ID, Files, PROCESSOR, VOLUME_UUID, identity};
use super::random::Choices;
use crate::block_map::counters::Counters;
use crate::block_map::place::Place;
use crate::change_log::agreement::CatalogState;
use crate::change_log::checkpoint::{self, Contents};
use crate::change_log::format::{
    BEGIN_BYTES, BEGIN_OFFSET, Begin, FIRST_VERSION, FORMAT_VERSION, HEADER_BYTES, Header,
    JOURNAL_MAGIC, MARK_BYTES, MARK_OFFSETS, Mark, RECORD_BYTES, Record, RecordKind, record_bytes,
    state_words, u32_at, u64_at,
};
use crate::change_log::manifest::{
    self, APPENDED_OFFSET, COPY_BYTES, COPY_OFFSETS, MANIFEST_BYTES, State,
};
use crate::change_log::partition_shape::Shape;
use crate::change_log::recover::{Recovered, recover};
use crate::checksum;
use crate::error::{ErrorKind, Result};
use crate::units::{Epoch, SlotIndex};

/// See the module's head.
pub const TARGET: Target = Target { name: "journal", run, seeds, bytes_max: 8192 };

/// Bytes of a segment before its records, in an input.
const SEGMENT_HEAD: usize = HEADER_USED + 2 * MARK_BYTES + BEGIN_BYTES;
const FIX: u8 = 1;
const CHECKPOINT: u8 = 2;
const MANIFEST: u8 = 32;

/// A segment's bytes from an input.
fn segment(input: &[u8], fix: bool) -> Vec<u8> {
    let mut choices = Choices(input);
    let mut bytes = choices.take(HEADER_USED).to_vec();
    bytes.resize(HEADER_BYTES, 0);
    for at in MARK_OFFSETS {
        let mark = choices.take(MARK_BYTES);
        bytes[at..at + mark.len()].copy_from_slice(mark);
    }
    let begin = choices.take(BEGIN_BYTES);
    bytes[BEGIN_OFFSET..BEGIN_OFFSET + begin.len()].copy_from_slice(begin);
    bytes.extend_from_slice(choices.0);
    if fix {
        fix_checksums(&mut bytes);
    }
    bytes
}

/// Corrects every checksum of a segment.
pub fn fix_checksums(bytes: &mut [u8]) {
    fix_header(bytes);
    let incarnation: [u8; 8] = bytes[72..80].try_into().expect("8 bytes");
    let seed = checksum::crc32c(&incarnation);
    for at in MARK_OFFSETS {
        let crc = checksum::crc32c_append(seed, &bytes[at..at + 16]);
        bytes[at + 16..at + 20].copy_from_slice(&crc.to_le_bytes());
        let first_version = u32_at(bytes, 8) == FIRST_VERSION;
        let check = if first_version { 0 } else { !crc };
        bytes[at + 20..at + 24].copy_from_slice(&check.to_le_bytes());
    }
    let check = !u64_at(bytes, BEGIN_OFFSET);
    bytes[BEGIN_OFFSET + 8..BEGIN_OFFSET + 16].copy_from_slice(&check.to_le_bytes());
    let mut at = HEADER_BYTES;
    while let Some(words) = bytes.get(at + 6..at + 8) {
        let length = RECORD_BYTES + usize::from(u16::from_le_bytes([words[0], words[1]])) * 8;
        let Some(record) = bytes.get_mut(at..at + length) else { break };
        let crc = checksum::crc32c_append(seed, &record[4..]);
        record[..4].copy_from_slice(&crc.to_le_bytes());
        at += length;
    }
}

fn run(input: &[u8]) {
    let mut choices = Choices(input);
    let marks = choices.byte();
    let snapshots: Vec<Epoch> = (1..4).filter(|bit| choices_have(marks, *bit)).collect();
    let files = Arc::new(Files::default());
    let identity = identity(&files);
    if marks & CHECKPOINT != 0 {
        let length = usize::from(choices.pair());
        let mut part = Choices(choices.take(length));
        let used = part.take(HEADER_USED);
        files.put(identity.checkpoint_path(1), expand(used, part.0, marks & FIX != 0));
    }
    if marks & MANIFEST != 0 {
        let copies = [COPY_BYTES; 2].map(|length| choices.take(length).to_vec());
        let appended = choices.take(16);
        files.put(identity.manifest.clone(), manifest_file(copies, appended, marks & FIX != 0));
    }
    for number in 1..=u64::from(choices.byte() % 4) {
        let length = usize::from(choices.pair());
        let bytes = segment(choices.take(length), marks & FIX != 0);
        files.put(identity.segment_path(number), bytes);
    }
    match recover(&identity, &CatalogState::line(&snapshots), |number| {
        blocks_of(number).map(Shape::whole)
    }) {
        Ok(recovered) => check(recovered),
        Err(error) => {
            let expected = [ErrorKind::Corrupt, ErrorKind::Io];
            assert!(expected.contains(&error.kind) && !error.what.is_empty());
        }
    }
}

/// Whether an input's flags include the snapshot of this epoch: the epochs 1, 2 and 3 have a bit each.
fn choices_have(marks: u8, epoch: Epoch) -> bool {
    marks & (2 << epoch) != 0
}

fn check(recovered: Recovered) {
    assert!(
        recovered.covered < recovered.next_seq,
        "the records that the checkpoint covers come first"
    );
    assert!(recovered.epoch > 0);
    let mut partitions: Vec<_> = recovered.partitions.into_iter().collect();
    partitions.sort_unstable_by_key(|(partition, _)| *partition);
    let contents = Contents {
        first_seq: recovered.next_seq,
        epoch: recovered.epoch,
        partitions,
        ..Contents::first()
    };
    let bytes = bytes_of(&contents, recovered.next_number);
    let (_, again) = checkpoint::read(&bytes, blocks_of).expect("what was written is read");
    for ((_, versions), (_, others)) in contents.partitions.iter().zip(&again.partitions) {
        assert_eq!(version_runs(versions), version_runs(others));
    }
}

/// The incarnation of a segment that is written here.
pub fn incarnation(number: u64) -> u64 {
    0x1234 + number
}

/// A manifest's file from two copies and the number of the last record.
fn manifest_file(copies: [Vec<u8>; 2], appended: &[u8], fix: bool) -> Vec<u8> {
    let mut bytes = vec![0; MANIFEST_BYTES];
    for (at, mut copy) in COPY_OFFSETS.into_iter().zip(copies) {
        if fix && copy.len() == COPY_BYTES {
            let crc = checksum::crc32c(&copy[16..]);
            copy[12..16].copy_from_slice(&crc.to_le_bytes());
        }
        bytes[at as usize..at as usize + copy.len()].copy_from_slice(&copy);
    }
    bytes[APPENDED_OFFSET..APPENDED_OFFSET + appended.len()].copy_from_slice(appended);
    bytes
}

/// A complete manifest with this state.
pub fn write_manifest(state: &State, appended: u64) -> Vec<u8> {
    let identity = identity(&Arc::default());
    let turn = |turn| manifest::encode(&State { turn, ..state.clone() }, &identity).to_vec();
    let words = [appended, !appended].map(u64::to_le_bytes).concat();
    manifest_file([turn(2), turn(1)], &words, false)
}

/// A complete segment with these records, and the next record's number.
pub fn write_segment(
    number: u64,
    boot: [u8; 16],
    first_seq: u64,
    marks: [u64; 2],
    records: &[(Record, Vec<u32>)],
) -> Vec<u8> {
    let header = Header {
        version: FORMAT_VERSION,
        volume_uuid: VOLUME_UUID,
        boot_id: boot,
        processor: PROCESSOR,
        number,
        first_seq: 0,
        incarnation: incarnation(number),
        previous: if number > 1 { incarnation(number - 1) } else { 0 },
    };
    let mut bytes = header.encode(JOURNAL_MAGIC).to_vec();
    bytes.resize(HEADER_BYTES, 0);
    // The first mark of a segment is in both places; two different marks are the next ones.
    let turn = if marks[0] == marks[1] { 1 } else { 3 };
    for (committed_seq, turn) in marks.into_iter().zip(turn..).filter(|(seq, _)| *seq > 0) {
        let at = MARK_OFFSETS[(turn % 2) as usize];
        let mark = Mark { committed_seq, turn }.encode(header.incarnation);
        bytes[at..at + MARK_BYTES].copy_from_slice(&mark);
    }
    for (word, at) in Begin::words(first_seq).into_iter().zip([BEGIN_OFFSET, BEGIN_OFFSET + 8]) {
        bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
    }
    for (record, sums) in records {
        let at = bytes.len();
        bytes.resize(at + record_bytes(sums.len()), 0);
        record.encode(sums, header.incarnation, &mut bytes[at..]);
    }
    bytes
}

/// A record that moves blocks.
pub fn map_record(
    seq: u64,
    epoch: Epoch,
    partition: u32,
    first: u32,
    count: u32,
    place: Place,
) -> (Record, Vec<u32>) {
    let sums =
        if place.is_slot() { (0..count).map(|i| i + seq as u32).collect() } else { Vec::new() };
    let record =
        Record { kind: RecordKind::Map, seq, epoch, partition, first, count, place: place.raw() };
    (record, sums)
}

fn cut_record(seq: u64, epoch: Epoch) -> (Record, Vec<u32>) {
    let record =
        Record { kind: RecordKind::Cut, seq, epoch, partition: 0, first: 0, count: 0, place: 77 };
    (record, Vec::new())
}

fn state_record(seq: u64, epoch: Epoch, partition: u32) -> (Record, Vec<u32>) {
    let counters = Counters { writes: seq, written_bytes: 1 << 35, last_write_ns: 1 << 50 };
    let words = state_words(&counters).to_vec();
    let (kind, count) = (RecordKind::State, words.len() as u32);
    let place = counters.last_write_ns;
    (Record { kind, seq, epoch, partition, first: 0, count, place }, words)
}

/// An input of these parts.
fn input(
    marks: u8,
    checkpoint: Option<&[u8]>,
    manifest: Option<&[u8]>,
    segments: &[Vec<u8>],
) -> Vec<u8> {
    let mut bytes = vec![marks];
    let part = |bytes: &mut Vec<u8>, part: &[u8]| {
        bytes.extend((part.len() as u16).to_be_bytes());
        bytes.extend(part);
    };
    if let Some(checkpoint) = checkpoint {
        part(&mut bytes, checkpoint);
    }
    if let Some(manifest) = manifest {
        for at in COPY_OFFSETS {
            bytes.extend(&manifest[at as usize..at as usize + COPY_BYTES]);
        }
        bytes.extend(&manifest[APPENDED_OFFSET..APPENDED_OFFSET + 16]);
    }
    bytes.push(segments.len() as u8);
    for segment in segments {
        let mut compact = segment[..HEADER_USED].to_vec();
        MARK_OFFSETS.iter().for_each(|at| compact.extend(&segment[*at..*at + MARK_BYTES]));
        compact.extend(&segment[BEGIN_OFFSET..BEGIN_OFFSET + BEGIN_BYTES]);
        compact.extend(&segment[HEADER_BYTES..]);
        debug_assert!(compact.len() >= SEGMENT_HEAD);
        part(&mut bytes, &compact);
    }
    bytes
}

fn seeds() -> Vec<Vec<u8>> {
    let first = [
        map_record(1, 1, 4, 0, 4, Place::slot(1, SlotIndex(100))),
        map_record(2, 1, 0, 250, 6, Place::ZERO),
        cut_record(3, 1),
        map_record(4, 2, 4, 2, 600, Place::ZERO),
        map_record(5, 2, 4, 700, 3, Place::slot(2, SlotIndex((1 << 40) - 3))),
    ];
    let second = [
        map_record(6, 2, 1, 0, 1024, Place::ZERO),
        cut_record(7, 2),
        map_record(8, 1, 4, 1, 1, Place::slot(1, SlotIndex(500))),
        map_record(9, 3, 4, 0, 1300, Place::BASE),
        state_record(10, 2, 4),
        state_record(11, 2, 1),
    ];
    let other_boot = [7; 16];
    let segments = |boot: [u8; 16]| {
        vec![write_segment(1, boot, 1, [2, 4], &first), write_segment(2, boot, 6, [6, 8], &second)]
    };
    let behind = [map_record(145, 3, 4, 9, 1, Place::slot(1, SlotIndex(9)))];
    let rich = bytes_of(&rich(), 1);
    let mut seeds = Vec::new();
    for marks in [FIX, FIX | 4, FIX | 12, FIX | 28, 0] {
        seeds.push(input(marks, None, None, &segments(BOOT_ID)));
        seeds.push(input(marks, None, None, &segments(other_boot)));
    }
    for boot_id in [BOOT_ID, other_boot] {
        let segment = (2, incarnation(2));
        let state =
            State { boot_id, run: 1, run_seq: 1, segment, committed: 6, ..State::default() };
        let manifest = write_manifest(&state, 11);
        seeds.push(input(FIX | MANIFEST, None, Some(&manifest), &segments(boot_id)));
    }
    let after = write_segment(1, BOOT_ID, 145, [0, 0], &behind);
    let after = std::slice::from_ref(&after);
    seeds.push(input(FIX | CHECKPOINT | 12, Some(&compact(&rich)), None, after));
    seeds.push(input(FIX, None, None, &[]));
    seeds.push(input(FIX, None, None, &[write_segment(1, other_boot, 1, [0, 0], &first[..1])]));
    seeds
}

/// Recovers these segments, in another boot or in theirs, with this manifest, if any; for [`super::damage`].
pub fn recover_segments(
    segments: &[Vec<u8>],
    manifest: Option<Vec<u8>>,
    snapshots: &[Epoch],
) -> Result<Recovered> {
    let files = Arc::new(Files::default());
    let identity = identity(&files);
    for (number, bytes) in (1..).zip(segments) {
        files.put(identity.segment_path(number), bytes.clone());
    }
    manifest.into_iter().for_each(|bytes| files.put(identity.manifest.clone(), bytes));
    recover(&identity, &CatalogState::line(snapshots), |number| blocks_of(number).map(Shape::whole))
}
