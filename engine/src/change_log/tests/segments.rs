//! Segments: prepared before they are needed, and begun without waiting for the disk (J7).

use super::{Scratch, back, begin_again, entry, segment_bytes, ten_records};
use crate::change_log::format::record_bytes;
use crate::change_log::journal::{Journal, Start};
use crate::change_log::segment::Prepared;
use crate::error::ErrorKind;

/// Two more segments after the ten records, with one uncommitted record each.
fn two_more_segments(scratch: &Scratch) {
    for first in [20, 21] {
        let mut journal = begin_again(scratch, 1);
        journal.append(entry(first, u64::from(first) + 100, 1, &[7])).unwrap();
    }
}

#[test]
fn a_segment_whose_header_was_lost_in_a_power_loss_has_no_records_that_count() {
    let scratch = Scratch::new();
    ten_records(&scratch);
    two_more_segments(&scratch);
    let lost = scratch.identity(1).segment_path(2);
    let mut bytes = std::fs::read(&lost).unwrap();
    bytes[..512].fill(0);
    std::fs::write(&lost, &bytes).unwrap();
    // After a kill all records count, so the segment is required.
    assert_eq!(back(&scratch, 1, &[]).unwrap_err().kind, ErrorKind::Corrupt);
    let found = back(&scratch, 2, &[]).unwrap();
    assert_eq!((found.next_seq, found.replayed, found.leftovers), (6, 5, vec![lost]));
    let mut journal = begin_again(&scratch, 2);
    assert_eq!(journal.append(entry(30, 500, 1, &[1])).unwrap(), 6);
    drop(journal);
    let killed = back(&scratch, 2, &[]).unwrap();
    assert_eq!((killed.next_seq, killed.replayed), (7, 6));
}

#[test]
fn a_mark_that_reached_the_disk_without_the_header_before_it_does_not_count() {
    let scratch = Scratch::new();
    ten_records(&scratch);
    two_more_segments(&scratch);
    let lost = scratch.identity(1).segment_path(2);
    let mut bytes = std::fs::read(&lost).unwrap();
    bytes[..512].fill(0);
    bytes[512..536].fill(0x5a); // of a commit whose sync had not ended
    std::fs::write(&lost, &bytes).unwrap();
    let found = back(&scratch, 2, &[]).unwrap();
    assert_eq!((found.next_seq, found.replayed, found.leftovers), (6, 5, vec![lost]));
}

#[test]
fn a_prepared_segment_is_used_next_or_leaves_nothing() {
    let scratch = Scratch::new();
    let mut journal = Journal::begin(scratch.identity(1), Start::fresh()).unwrap();
    assert_eq!(journal.ask_next(), None);
    let sums = vec![3; 8];
    let asked = loop {
        if let Some(asked) = journal.ask_next() {
            break asked;
        }
        journal.append(entry(0, 0, 1, &sums)).unwrap();
    };
    assert_eq!(journal.ask_next(), None, "one at a time");
    // It is prepared too late: the segment before is already full.
    let late = Prepared::make(&scratch.identity(1), 2, asked.1).unwrap();
    for _ in 0..segment_bytes() / record_bytes(sums.len()) {
        journal.append(entry(0, 0, 1, &sums)).unwrap();
    }
    assert!(scratch.identity(1).segment_path(3).exists());
    journal.prepared(Some(late));
    assert!(!scratch.identity(1).segment_path(2).exists());
    let (number, previous) = loop {
        journal.append(entry(0, 0, 1, &sums)).unwrap();
        if let Some(asked) = journal.ask_next() {
            break asked;
        }
    };
    journal.prepared(Some(Prepared::make(&scratch.identity(1), number, previous).unwrap()));
    // A kill now leaves a segment without a header, which is ignored.
    let killed = back(&scratch, 1, &[]).unwrap();
    assert_eq!(killed.replayed, journal.shared().appended());
    assert_eq!(killed.leftovers, [scratch.identity(1).segment_path(number)]);
    for _ in 0..segment_bytes() / record_bytes(sums.len()) {
        journal.append(entry(0, 0, 1, &sums)).unwrap();
    }
    journal.shared().commit(journal.shared().appended()).unwrap();
    let found = back(&scratch, 2, &[]).unwrap();
    assert_eq!(found.replayed, journal.shared().appended());
    assert_eq!(found.segments.len(), 3);
}

#[test]
fn no_commit_succeeds_while_a_file_is_gone_and_its_contents_can_be_rewritten() {
    for of_manifest in [false, true] {
        let scratch = Scratch::new();
        let mut journal = Journal::begin(scratch.identity(1), Start::fresh()).unwrap();
        journal.append(entry(1, 1, 1, &[1])).unwrap();
        journal.shared().commit(1).unwrap();
        let identity = scratch.identity(1);
        let gone = if of_manifest { identity.manifest } else { identity.segment_path(1) };
        let aside = gone.with_extension("aside");
        std::fs::rename(&gone, &aside).unwrap();
        assert!(
            journal.shared().commit(1).is_err(),
            "there is nothing new, but a start would not find the old records"
        );
        assert!(journal.shared().has_missing_file());
        journal.renew().unwrap();
        assert!(journal.shared().commit(1).is_err(), "no checkpoint covers it");
        let seq = journal.append(entry(2, 2, 1, &[2])).unwrap();
        journal.shared().forget_covered(1);
        journal.shared().commit(seq).unwrap();
        let found = journal.shared().find_missing_files();
        assert_eq!((found.now, found.replaced), (None, vec![gone.clone()]));
        assert!(gone.exists() == of_manifest);
    }
}
