//! Damage: every bit flip in the small structures, each file missing, each file from an older time: recovery refuses
//! it, or is right.
//!
//! How it works      A journal on real files makes histories, and recovery reads them in memory, where they are
//!                   shorter: segments end after their last record. The right result is the last state of the journal:
//!                   everything after a kill, what was committed last after a power loss.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::{BLOCKS, Scratch, begin_again, entry};
use crate::block_map::place::Place;
use crate::change_log::agreement::CatalogState;
use crate::change_log::checkpoint::{self, Contents};
use crate::change_log::expected::Expect;
use crate::change_log::files::Identity;
use crate::change_log::format::{BEGIN_OFFSET, HEADER_END, MARK_BYTES, MARK_OFFSETS};
use crate::change_log::journal::{Journal, Start};
use crate::change_log::manifest::{APPENDED_OFFSET, COPY_BYTES};
use crate::change_log::partition_shape::Shape;
use crate::change_log::recover::recover;
use crate::error::{ErrorKind, Result};
use crate::fuzz::files::{Files, identity};

/// All records of every segment are before this offset.
const SEGMENT: usize = 6 << 10;

type State = BTreeMap<PathBuf, Vec<u8>>;

/// The present contents of a journal's files, by their paths in memory.
fn state(scratch: &Scratch) -> State {
    let there = scratch.identity(1);
    let here = identity(&Arc::default());
    let mut state = State::new();
    for entry in std::fs::read_dir(&there.directory).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        if path.extension().is_some_and(|ending| ending == "journal") {
            assert!(bytes[SEGMENT..].iter().all(|byte| *byte == 0));
            bytes.truncate(SEGMENT);
        }
        state.insert(here.directory.join(path.file_name().unwrap()), bytes);
    }
    state.insert(here.manifest, std::fs::read(there.manifest).unwrap());
    state
}

/// Result of recovery: the next record, and the slots of the first blocks.
type Found = (u64, Vec<Place>);

fn read_back(state: &State, boot: u8) -> Result<Found> {
    let files = Arc::new(Files::default());
    state.iter().for_each(|(path, bytes)| files.put(path.clone(), bytes.clone()));
    let identity = Identity { boot_id: [boot; 16], ..identity(&files) };
    let catalog = CatalogState { expect: Expect::Manifest, ..CatalogState::line(&[]) };
    let found =
        recover(&identity, &catalog, |partition| (partition == 4).then(|| Shape::whole(BLOCKS)))?;
    let place = |block| found.partitions.get(&4).map_or(Place::BASE, |one| one.live.place(block));
    Ok((found.next_seq, (0..64).map(place).collect()))
}

/// Asserts that recovery refuses this, or is right; returns whether it refused.
fn refused_or_right(state: &State, boot: u8, right: &Found, what: &str) -> bool {
    match read_back(state, boot) {
        Ok(found) => {
            assert_eq!(&found, right, "{what}, boot {boot}");
            false
        }
        Err(error) => {
            assert_eq!(error.kind, ErrorKind::Corrupt, "{what}: {error}");
            true
        }
    }
}

fn append(journal: &mut Journal, blocks: std::ops::Range<u32>, slot: u64) {
    for block in blocks {
        journal.append(entry(block, slot + u64::from(block), 1, &[block + 7])).unwrap();
    }
}

fn take_checkpoint(scratch: &Scratch, journal: &mut Journal) {
    let identity = scratch.identity(1);
    let found = super::back(scratch, 1, &[]).unwrap();
    let (first_seq, number) = (journal.shared().appended() + 1, journal.take_number());
    let partitions = found.partitions.into_iter().collect();
    let contents = Contents { first_seq, partitions, ..Contents::first() };
    let new = scratch.0.join("new");
    let (_, _, crc) = checkpoint::write(&new, &identity, number, contents).unwrap();
    checkpoint::publish(&identity, &new, &identity.checkpoint_path(number)).unwrap();
    journal.shared().name_checkpoint((number, crc), first_seq - 1).unwrap();
    journal.shared().forget_covered(first_seq - 1);
}

/// The states of three runs, one after the other; each is killed. Times 0 to 6.
fn history() -> (Scratch, Vec<State>) {
    let scratch = Scratch::new();
    let mut times = Vec::new();
    let mut journal = Journal::begin(scratch.identity(1), Start::fresh()).unwrap();
    times.push(state(&scratch));
    append(&mut journal, 0..5, 100);
    journal.shared().commit(5).unwrap();
    times.push(state(&scratch));
    append(&mut journal, 3..8, 200);
    journal.shared().commit(8).unwrap();
    append(&mut journal, 8..10, 300);
    times.push(state(&scratch));
    drop(journal);
    let mut journal = begin_again(&scratch, 1);
    append(&mut journal, 9..12, 400);
    take_checkpoint(&scratch, &mut journal);
    times.push(state(&scratch));
    append(&mut journal, 2..4, 500);
    journal.shared().commit(journal.shared().appended()).unwrap();
    append(&mut journal, 20..21, 600);
    times.push(state(&scratch));
    drop(journal);
    let mut journal = begin_again(&scratch, 1);
    append(&mut journal, 30..40, 700);
    journal.shared().commit(journal.shared().appended()).unwrap();
    append(&mut journal, 35..38, 800);
    times.push(state(&scratch));
    take_checkpoint(&scratch, &mut journal); // as a clean stop does
    times.push(state(&scratch));
    (scratch, times)
}

/// Offsets of the used bytes of a file, including the records.
fn used(path: &std::path::Path, bytes: &[u8]) -> Vec<usize> {
    let ranges = match path.extension().and_then(|ending| ending.to_str()) {
        Some("journal") => vec![
            0..HEADER_END,
            MARK_OFFSETS[0]..MARK_OFFSETS[0] + MARK_BYTES,
            MARK_OFFSETS[1]..MARK_OFFSETS[1] + MARK_BYTES,
            BEGIN_OFFSET..BEGIN_OFFSET + 16,
            4096..bytes.len(),
        ],
        Some("manifest") => {
            vec![0..COPY_BYTES, 512..512 + COPY_BYTES, APPENDED_OFFSET..APPENDED_OFFSET + 16]
        }
        _ => vec![0..HEADER_END, 4096..bytes.len()],
    };
    ranges.into_iter().flatten().collect()
}

#[test]
fn every_flipped_bit_is_refused_or_changes_nothing() {
    let (_scratch, times) = history();
    for (time, state) in times.iter().enumerate() {
        for boot in [1, 2] {
            let right = read_back(state, boot).unwrap();
            let mut refused = 0;
            for (path, bytes) in state {
                let mut changed = state.clone();
                for at in used(path, bytes) {
                    for bit in 0..8 {
                        changed.get_mut(path).unwrap()[at] ^= 1 << bit;
                        let what = format!("time {time}, {} byte {at} bit {bit}", path.display());
                        refused += u64::from(refused_or_right(&changed, boot, &right, &what));
                        changed.get_mut(path).unwrap()[at] ^= 1 << bit;
                    }
                }
            }
            assert!(refused > 1000, "time {time}: {refused}");
        }
    }
}

#[test]
fn a_sector_of_zeroes_is_refused_or_changes_nothing() {
    let (_scratch, times) = history();
    for (time, state) in times.iter().enumerate() {
        let right = read_back(state, 1).unwrap();
        for (path, bytes) in state {
            for at in (0..bytes.len()).step_by(512) {
                let mut changed = state.clone();
                let end = (at + 512).min(bytes.len());
                changed.get_mut(path).unwrap()[at..end].fill(0);
                let what = format!("time {time}, {} sector at {at}", path.display());
                refused_or_right(&changed, 1, &right, &what);
            }
        }
    }
}

#[test]
fn a_missing_file_is_refused_or_was_not_needed() {
    let (_scratch, times) = history();
    for (time, state) in times.iter().enumerate() {
        for boot in [1, 2] {
            let right = read_back(state, boot).unwrap();
            for path in state.keys() {
                let mut changed = state.clone();
                changed.remove(path);
                let what = format!("time {time}, without {}", path.display());
                let refused = refused_or_right(&changed, boot, &right, &what);
                let manifest = path.extension().is_some_and(|ending| ending == "manifest");
                assert!(refused || !manifest, "{what}");
            }
            let mut alone = state.clone();
            alone.retain(|path, _| path.starts_with("/manifests"));
            let what = format!("time {time}, the manifest alone");
            let refused = refused_or_right(&alone, boot, &right, &what);
            assert!(refused || right.0 == 1, "{what}");
        }
    }
}

#[test]
fn files_of_two_times_are_refused_or_right() {
    let (_scratch, times) = history();
    for (time, state) in times.iter().enumerate() {
        let right = read_back(state, 1).unwrap();
        for (older, before) in times.iter().enumerate().filter(|(other, _)| *other != time) {
            let paths: Vec<&PathBuf> = before.keys().chain(state.keys()).collect();
            let mut paths: Vec<_> = paths.into_iter().collect();
            paths.sort();
            paths.dedup();
            // Every choice of files from the other time, except all of them.
            for choice in 1..(1u32 << paths.len()) - 1 {
                let mut mixed = State::new();
                for (number, path) in paths.iter().enumerate() {
                    let from = if choice & (1 << number) == 0 { state } else { before };
                    from.get(*path).map(|bytes| mixed.insert((*path).clone(), bytes.clone()));
                }
                let what =
                    format!("time {time} with files {choice:b} of {paths:?} of time {older}");
                let of_before = read_back(before, 1).unwrap();
                match read_back(&mixed, 1) {
                    // If all files that matter are from the other time, its state is right.
                    Ok(found) => assert!(found == right || found == of_before, "{what}"),
                    Err(error) => assert_eq!(error.kind, ErrorKind::Corrupt, "{what}"),
                }
            }
            // The manifest reveals an older directory, and the directory an older manifest.
            let mut directory = before.clone();
            directory.retain(|path, _| path.starts_with("/volume"));
            directory.extend(
                state
                    .iter()
                    .filter(|(path, _)| path.starts_with("/manifests"))
                    .map(|(path, bytes)| (path.clone(), bytes.clone())),
            );
            let what = format!("time {time} with the directory of time {older}");
            refused_or_right(&directory, 1, &right, &what);
        }
    }
    // After a clean stop and a reboot, the checkpoint reveals it.
    let last = times.last().unwrap();
    let right = read_back(last, 2).unwrap();
    for before in &times[..times.len() - 1] {
        let mut directory = before.clone();
        let manifest = last.iter().filter(|(path, _)| path.starts_with("/manifests"));
        directory.extend(manifest.map(|(path, bytes)| (path.clone(), bytes.clone())));
        assert!(refused_or_right(&directory, 2, &right, "an older directory after a clean stop"));
    }
}

#[test]
fn journals_of_version_1_are_read_and_must_be_there() {
    let (scratch, times) = history();
    let mut state = times[2].clone();
    state.retain(|path, _| path.starts_with("/volume"));
    let read = |state: &State, expect| {
        let files = Arc::new(Files::default());
        state.iter().for_each(|(path, bytes)| files.put(path.clone(), bytes.clone()));
        let catalog = CatalogState { expect, ..CatalogState::line(&[]) };
        recover(&identity(&files), &catalog, |partition| {
            (partition == 4).then(|| Shape::whole(BLOCKS))
        })
    };
    let path = identity(&Arc::default()).segment_path(1);
    super::make_version_1(state.get_mut(&path).unwrap());
    let found = read(&state, Expect::Files).unwrap();
    assert_eq!((found.next_seq, found.replayed), (13, 12));
    assert!(read(&state, Expect::Manifest).is_err(), "{:?}", scratch.0);
    // A damaged header, followed by records.
    for bit in 0..80 * 8 {
        let mut changed = state.clone();
        changed.get_mut(&path).unwrap()[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(
            read(&changed, Expect::Files).unwrap_err().kind,
            ErrorKind::Corrupt,
            "bit {bit}"
        );
    }
    state.clear();
    assert_eq!(read(&state, Expect::Files).unwrap_err().kind, ErrorKind::Corrupt);
    assert_eq!(read(&state, Expect::Nothing).unwrap().next_seq, 1);
}

/// Checks that the tests above fail if recovery treats damaged or missing records as the end.
#[cfg(feature = "simulator")]
#[test]
fn the_quiet_end_mutant_is_detected() {
    use crate::mutants::{Bug, set};
    for (bug, test) in [
        (Bug::QuietEnd, every_flipped_bit_is_refused_or_changes_nothing as fn()),
        (Bug::QuietEnd, a_missing_file_is_refused_or_was_not_needed),
        (Bug::QuietEnd, files_of_two_times_are_refused_or_right),
        (Bug::NoManifest, a_missing_file_is_refused_or_was_not_needed),
    ] {
        set(Some(bug));
        let seen = std::panic::catch_unwind(test).is_err();
        set(None);
        assert!(seen, "{bug:?} is not detected");
    }
}
