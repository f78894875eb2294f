//! Checkpoint: any contents of a checkpoint's file.
//!
//! How it works      The input's first byte says whether checksums are corrected; then come the used bytes of the
//!                   header, which are expanded to their offsets, and the body. A checkpoint that can be read is
//!                   written again.
//! Promises          a refused checkpoint is refused with a reason; an accepted one is consistent, and is the same
//!                   after it is written and read again.

use std::path::Path;
use std::sync::Arc;

use super::Target;
use super::files::{Files, PROCESSOR, VOLUME_UUID, identity};
use super::random::Choices;
use crate::block_map::counters::Counters;
use crate::block_map::history::{History, Rollback};
use crate::block_map::leaf::Found;
use crate::block_map::place::Place;
use crate::block_map::tree::Map;
use crate::block_map::versions::{Change, Versions};
use crate::change_log::checkpoint::{self, Bad, Contents};
use crate::change_log::format::{
    CHECKPOINT_MAGIC, FIRST_VERSION, FORMAT_VERSION, HEADER_BYTES, HEADER_END, Header, u32_at,
};
use crate::change_log::past::{Past, RecordedCut};
use crate::checksum;
use crate::units::{Epoch, PartitionIndex, SlotIndex};

/// See the module's head.
pub const TARGET: Target = Target { name: "checkpoint", run, seeds, bytes_max: 8192 };

/// Used bytes of a header.
pub const HEADER_USED: usize = HEADER_END;

/// Partitions that the processor owns: three sizes, one of them not a multiple of a leaf.
pub fn blocks_of(partition: PartitionIndex) -> Option<u32> {
    match partition {
        0 => Some(256),
        1 => Some(1024),
        4 => Some(1300),
        _ => None,
    }
}

/// All runs of a map.
pub type MapRuns = Vec<(u32, u32, Place, Vec<u32>)>;

/// All runs of a map. Panics if they are inconsistent.
pub fn map_runs(map: &Map) -> MapRuns {
    let mut runs: MapRuns = Vec::new();
    let mut block = 0;
    while block < map.blocks() {
        let Found { count, place, checksums } = map.find(block, map.blocks() - block);
        assert!(count > 0 && block + count <= map.blocks(), "a run outside the partition");
        assert!(Place::from_raw(place.raw()) == Some(place), "an invalid place");
        assert!(place.is_slot() != checksums.is_empty(), "checksums do not go with the place");
        let _ = place.step(count - 1);
        if place != Place::BASE {
            // If a leaf has the other form, its runs may end at other blocks.
            match runs.last_mut() {
                Some((before, blocks, from, known))
                    if *before + *blocks == block && place.follows(*from, *blocks) =>
                {
                    *blocks += count;
                    known.extend(checksums);
                }
                _ => runs.push((block, count, place, checksums.to_vec())),
            }
        }
        block += count;
    }
    runs
}

/// All runs and counters of all versions, oldest first.
pub fn version_runs(versions: &Versions) -> Vec<(Epoch, u64, Counters, MapRuns)> {
    let frozen = versions.frozen().iter().map(|one| (one.last_epoch, &one.map, one.counters));
    let all = frozen.chain([(Epoch::MAX, &versions.live, versions.counters())]);
    all.map(|(epoch, map, counters)| (epoch, map.write_seq, counters, map_runs(map))).collect()
}

/// A checkpoint's bytes.
pub fn bytes_of(contents: &Contents, number: u64) -> Vec<u8> {
    let files = Arc::new(Files::default());
    let path = Path::new("/volume/written");
    checkpoint::write(path, &identity(&files), number, contents.clone())
        .expect("memory does not fail");
    files.bytes(path).expect("just written")
}

/// Corrects the checksum of a header.
pub fn fix_header(bytes: &mut [u8]) {
    if bytes.len() >= HEADER_USED {
        let end = if u32_at(bytes, 8) == FIRST_VERSION { 80 } else { HEADER_USED };
        let crc = checksum::crc32c(&bytes[16..end]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    }
}

/// A file from an input: a header with its padding, a body, and corrected checksums if `fix`.
pub fn expand(used: &[u8], body: &[u8], fix: bool) -> Vec<u8> {
    let mut bytes = used.to_vec();
    bytes.resize(HEADER_BYTES.max(used.len()), 0);
    bytes.extend_from_slice(body);
    if fix {
        fix_header(&mut bytes);
        let crc = u64::from(checksum::crc32c(&bytes));
        bytes.extend(crc.to_le_bytes());
    }
    bytes
}

fn run(input: &[u8]) {
    let mut choices = Choices(input);
    let marks = choices.byte();
    let used = choices.take(HEADER_USED);
    let mut bytes = expand(used, choices.0, marks & 1 == 0);
    if marks & 2 != 0 {
        bytes = short(used);
    }
    match checkpoint::read(&bytes, blocks_of) {
        Err(Bad::Corrupt(reason)) => assert!(!reason.is_empty()),
        Err(Bad::Io(errno)) => panic!("memory can be read: {errno:?}"),
        Ok((header, contents)) => check(&header, &contents),
    }
}

/// A file that ends before its body begins, with checksums that match.
fn short(used: &[u8]) -> Vec<u8> {
    let mut bytes = used.to_vec();
    fix_header(&mut bytes);
    let crc = u64::from(checksum::crc32c(&bytes));
    bytes.extend(crc.to_le_bytes());
    bytes
}

fn check(header: &Header, contents: &Contents) {
    let again = bytes_of(contents, header.number);
    let (same, twice) = checkpoint::read(&again, blocks_of).expect("what was written is read");
    assert_eq!((same.first_seq, same.number), (header.first_seq, header.number));
    assert!(header.first_seq > 0, "the first record has number 1");
    assert_eq!(twice.epoch, contents.epoch);
    assert_eq!(twice.in_place, contents.in_place);
    assert_eq!(twice.past.cuts, contents.past.cuts);
    assert_eq!(twice.past.counted_from, contents.past.counted_from);
    assert_eq!(twice.partitions.len(), contents.partitions.len());
    for ((one, versions), (other, others)) in contents.partitions.iter().zip(&twice.partitions) {
        assert_eq!(one, other);
        assert_eq!(version_runs(versions), version_runs(others), "partition {one}");
    }
}

fn change(versions: &mut Versions, epoch: Epoch, first: u32, count: u32, place: Place, seq: u64) {
    let sums: Vec<u32> = (0..if place.is_slot() { count } else { 0 }).map(|i| i ^ first).collect();
    versions.apply(
        Change { epoch, first, count, place, checksums: &sums, seq },
        &History::line(&[1, 2]),
        |_, _, _| {},
    );
}

/// Contents with every feature of a checkpoint.
pub fn rich() -> Contents {
    let mut first = Versions::new(256);
    for block in 0..140 {
        let place = Place::slot(1 + block as u16 % 2, SlotIndex(u64::from(block) * 3));
        change(&mut first, 1, block, 1, place, u64::from(block) + 1);
    }
    let mut second = Versions::new(1300);
    change(&mut second, 1, 0, 1300, Place::ZERO, 141);
    change(&mut second, 1, 500, 40, Place::slot(1, SlotIndex(1 << 39)), 142);
    second.freeze_before(2, &[1]);
    change(&mut second, 2, 510, 4, Place::slot(4095, SlotIndex(7)), 143);
    second.freeze_before(3, &[1, 2]);
    change(&mut second, 3, 1290, 10, Place::slot(1, SlotIndex(90)), 144);
    let rollbacks = Some(vec![Rollback { at: 2, to: 1 }]);
    let mut past = Past { blocks: 1 << 20, rollbacks, ..Past::default() };
    past.dropped.add(2, 2);
    past.counted_from = 1;
    past.cuts.push(RecordedCut { epoch: 1, instant_ns: 5, partitions: 3 });
    let counters = Counters { writes: 2, written_bytes: 1 << 40, last_write_ns: 9 };
    second.count(3, counters);
    let (partitions, in_place) = (vec![(0, first), (4, second)], vec![(1, counters)]);
    Contents { first_seq: 145, epoch: 3, past, partitions, in_place }
}

/// The input that gives this checkpoint.
pub fn compact(bytes: &[u8]) -> Vec<u8> {
    let body = &bytes[HEADER_BYTES..bytes.len() - 8];
    [&bytes[..HEADER_USED], body].concat()
}

fn seeds() -> Vec<Vec<u8>> {
    let rich = rich();
    let mut some = vec![Contents::first()];
    for index in 0..2 {
        some.push(Contents { partitions: vec![rich.partitions[index].clone()], ..rich.clone() });
    }
    let mut small = Versions::new(256);
    change(&mut small, 1, 3, 2, Place::slot(1, SlotIndex(5)), 1);
    small.freeze_before(2, &[1]);
    change(&mut small, 2, 4, 250, Place::ZERO, 2);
    some.push(Contents {
        first_seq: 3,
        epoch: 2,
        partitions: vec![(0, small)],
        ..Contents::first()
    });
    some.push(rich);
    let mut seeds: Vec<Vec<u8>> =
        some.iter().map(|one| [vec![0], compact(&bytes_of(one, 7))].concat()).collect();
    let header = Header {
        version: FORMAT_VERSION,
        volume_uuid: VOLUME_UUID,
        boot_id: [0; 16],
        processor: PROCESSOR,
        number: 1,
        first_seq: 1,
        incarnation: 0,
        previous: 0,
    };
    for marks in [1, 2] {
        seeds.push([&[marks][..], &header.encode(CHECKPOINT_MAGIC)].concat());
    }
    seeds
}
