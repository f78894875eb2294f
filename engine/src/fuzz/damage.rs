//! Damage: a good journal that was damaged.
//!
//! How it works      The input says which changes were recorded, in which segments, up to which record they were
//!                   committed, and the damage: up to four bytes in a row have changed, which a CRC-32C always detects,
//!                   or a sector reads as zeroes, or the file is shorter. The last of the files is the manifest.
//! Promises          promise 5: recovery finds what was recorded, all of it after a kill, up to what was committed
//!                   after a power loss; or it refuses. Never anything else.

use super::Target;
use super::checkpoint::{MapRuns, blocks_of, map_runs};
use super::files::BOOT_ID;
use super::journal::{incarnation, map_record, recover_segments, write_manifest, write_segment};
use super::random::Choices;
use crate::block_map::history::History;
use crate::block_map::place::Place;
use crate::block_map::versions::{Change, Versions};
use crate::change_log::format::{HEADER_BYTES, Record};
use crate::change_log::manifest::State;
use crate::units::SlotIndex;

/// See the module's head.
pub const TARGET: Target = Target { name: "damage", run, seeds, bytes_max: 512 };

const OTHER_BOOT: [u8; 16] = [7; 16];
const PARTITION: u32 = 4;
const RECORDS_MAX: u64 = 40;
const SECTOR: usize = 512;

fn run(input: &[u8]) {
    let mut choices = Choices(input);
    let killed = choices.byte() & 1 == 0;
    let committed = u64::from(choices.byte());
    let split = usize::from(choices.byte());
    let (kind, where_, how) = (choices.byte(), choices.pair(), choices.take(4));
    let mut records = Vec::new();
    while !choices.is_empty() && (records.len() as u64) < RECORDS_MAX {
        records.push(record(&mut choices, records.len() as u64 + 1));
    }
    let count = records.len() as u64;
    // Another mark follows a mark, or it was the last one waited for: both marks cover the same.
    let committed = committed.min(count);
    let split = split.min(records.len());
    let boot = if killed { BOOT_ID } else { OTHER_BOOT };
    let (first, second) = records.split_at(split);
    let in_first = committed.min(split as u64);
    let mut segments = vec![write_segment(1, boot, 1, [in_first; 2], first)];
    if !second.is_empty() {
        let marks = if committed > split as u64 { [committed; 2] } else { [0; 2] };
        segments.push(write_segment(2, boot, split as u64 + 1, marks, second));
    }
    let marked = if committed > split as u64 { 2 } else { 1 };
    let segment = if committed > 0 { (marked, incarnation(marked)) } else { (0, 0) };
    let state = State { boot_id: boot, run: 1, run_seq: 1, segment, committed, ..State::default() };
    segments.push(write_manifest(&state, count));
    let harmed = harm(&mut segments, kind, where_, how);
    let manifest = segments.pop();
    let states = states(&records);
    match recover_segments(&segments, manifest, &[]) {
        Err(error) => assert!(harmed, "refused without cause: {error}"),
        Ok(recovered) => {
            let reached = recovered.next_seq - 1;
            let found = recovered.partitions.get(&PARTITION).map(|one| map_runs(&one.live));
            let wanted = &states[usize::try_from(reached).expect("few")];
            assert_eq!(&found.unwrap_or_default(), wanted, "up to record {reached}");
            let least = if killed { count } else { committed };
            assert_eq!(reached, least, "records are missing");
        }
    }
}

/// The change that the input chooses.
fn record(choices: &mut Choices<'_>, seq: u64) -> (Record, Vec<u32>) {
    let blocks = blocks_of(PARTITION).expect("it is owned");
    let kind = choices.byte();
    let first = u32::from(choices.pair()) % blocks;
    let count = (1 + u32::from(choices.byte())).min(blocks - first);
    let place = match kind % 4 {
        0 => Place::BASE,
        1 => Place::ZERO,
        _ => Place::slot(1, SlotIndex(seq * 1000)),
    };
    map_record(seq, 1, PARTITION, first, count, place)
}

/// Damages one file; returns whether it did.
fn harm(segments: &mut [Vec<u8>], kind: u8, where_: u16, how: &[u8]) -> bool {
    let index = usize::from(kind >> 4) % segments.len();
    let bytes = &mut segments[index];
    let before = bytes.clone();
    let at = usize::from(where_) % bytes.len();
    match kind % 4 {
        0 => {}
        1 => {
            for (byte, change) in bytes[at..].iter_mut().zip(how) {
                *byte ^= change;
            }
        }
        2 => {
            let sector = at - at % SECTOR;
            let end = (sector + SECTOR).min(bytes.len());
            bytes[sector..end].fill(0);
        }
        _ => bytes.truncate(at.max(HEADER_BYTES)),
    }
    *bytes != before
}

/// The runs of the partition's live map after each number of records.
fn states(records: &[(Record, Vec<u32>)]) -> Vec<MapRuns> {
    let mut versions = Versions::new(blocks_of(PARTITION).expect("it is owned"));
    let mut states = vec![map_runs(&versions.live)];
    for (record, sums) in records {
        let place = record.checked_place(sums).expect("a good record");
        let change = Change {
            epoch: record.epoch,
            first: record.first,
            count: record.count,
            place,
            checksums: sums,
            seq: record.seq,
        };
        versions.apply(change, &History::line(&[1, 2]), |_, _, _| {});
        states.push(map_runs(&versions.live));
    }
    states
}

fn seeds() -> Vec<Vec<u8>> {
    let changes = [2, 0, 0, 3, 1, 0, 2, 200, 3, 4, 0, 9, 0, 0, 1, 0, 6, 2, 188, 30];
    let mut seeds = Vec::new();
    for (killed, committed, split) in [(0, 3, 9), (1, 3, 9), (0, 2, 2), (1, 4, 2), (1, 0, 0)] {
        for (kind, at) in [(0, 0), (1, 4100), (1, 20), (2, 520), (2, 4200), (3, 4300), (17, 4097)] {
            let [high, low] = u16::to_be_bytes(at);
            let head = [killed, committed, split, kind, high, low, 1, 2, 0, 128];
            seeds.push([&head[..], &changes].concat());
        }
    }
    seeds
}
