//! States: what was counted of a partition, and recorded at a cut.

use super::{BLOCKS, Scratch, back, counters, entry};
use crate::block_map::counters::Counters;
use crate::block_map::place::Place;
use crate::change_log::checkpoint::{self, Contents};
use crate::change_log::format::{
    CHECKPOINT_MAGIC, FORMAT_VERSION, HEADER_BYTES, Header, JOURNAL_MAGIC, Record, RecordKind,
    UNCOUNTED_VERSION, record_bytes, seed, state_words,
};
use crate::change_log::journal::{Entry, Journal, Start};
use crate::change_log::past::{Past, RecordedCut};
use crate::checksum;
use crate::units::{Epoch, SlotIndex};

fn cut(journal: &mut Journal, epoch: Epoch) {
    let cut = RecordedCut { epoch, instant_ns: 50 + epoch, partitions: 3 };
    journal.append(Entry::cut(cut)).unwrap();
}

fn state(journal: &mut Journal, epoch: Epoch, counters: Counters) {
    let words = state_words(&counters);
    journal.append(Entry::state(epoch, 4, &words, counters.last_write_ns)).unwrap();
}

fn at(epoch: Epoch, block: u32, slot: u64) -> Entry<'static> {
    Entry { epoch, ..entry(block, slot, 1, &[5]) }
}

#[test]
fn a_state_is_that_of_its_snapshot_whatever_came_before_its_record() {
    let scratch = Scratch::new();
    let mut journal = Journal::begin(scratch.identity(1), Start::fresh()).unwrap();
    journal.append(at(1, 1, 10)).unwrap();
    cut(&mut journal, 1);
    journal.append(at(2, 2, 11)).unwrap();
    state(&mut journal, 1, counters(5));
    cut(&mut journal, 2);
    // A write of the next epoch has ended first, and one of the epoch before is late.
    journal.append(at(3, 3, 12)).unwrap();
    journal.append(at(2, 4, 13)).unwrap();
    state(&mut journal, 2, counters(9));
    cut(&mut journal, 3);
    state(&mut journal, 3, counters(11));
    drop(journal);
    let recovered = back(&scratch, 1, &[1, 2, 3]).unwrap();
    let versions = &recovered.partitions[&4];
    for (epoch, writes) in [(1, 5), (2, 9), (3, 11), (4, 11)] {
        assert_eq!(versions.counters_at(epoch), counters(writes), "epoch {epoch}");
    }
    let cuts: Vec<_> = recovered.past.cuts.iter().map(|cut| (cut.epoch, cut.partitions)).collect();
    assert_eq!(cuts, [(1, 3), (2, 3), (3, 3)]);
    // Without the snapshot in the midst, the next one has the same state.
    let recovered = back(&scratch, 1, &[1, 3]).unwrap();
    let versions = &recovered.partitions[&4];
    assert_eq!(versions.counters_at(1), counters(5));
    assert_eq!(versions.counters_at(3), counters(11));
    assert_eq!(recovered.past.cuts.len(), 2);
}

#[test]
fn a_snapshot_of_a_partition_that_was_then_written_in_place_has_a_state_of_its_own() {
    let scratch = Scratch::new();
    let mut journal = Journal::begin(scratch.identity(1), Start::fresh()).unwrap();
    cut(&mut journal, 1);
    state(&mut journal, 1, counters(2));
    cut(&mut journal, 2);
    state(&mut journal, 2, counters(7));
    drop(journal);
    let versions = &back(&scratch, 1, &[1, 2]).unwrap().partitions[&4];
    assert_eq!(versions.counters_at(1), counters(2));
    assert_eq!(versions.counters_at(2), counters(7));
}

#[test]
fn a_state_that_cannot_be_is_refused() {
    for (epoch, words, last, why) in [
        (1, state_words(&Counters::default()), 1, "no writes"),
        (2, state_words(&counters(1)), 1, "its epoch has not ended"),
        (1, [1, 0, u32::MAX, 1, 1], 1, "too many writes"),
        (1, [1, 0, 0, 1, 0], 1, "another last word"),
        (1, state_words(&counters(1)), u64::MAX, "an impossible time"),
    ] {
        let scratch = Scratch::new();
        let mut journal = Journal::begin(scratch.identity(1), Start::fresh()).unwrap();
        cut(&mut journal, 1);
        journal.append(Entry::state(epoch, 4, &words, last)).unwrap();
        drop(journal);
        let error = back(&scratch, 1, &[1]).unwrap_err();
        assert!(error.what.contains("record 2: it is inconsistent"), "{why}: {error}");
    }
}

/// Makes the segment one of the version before: with cuts that do not say how many partitions there were.
fn make_uncounted(scratch: &Scratch) {
    let path = scratch.identity(1).segment_path(1);
    let mut bytes = std::fs::read(&path).unwrap();
    let header = Header::decode(&bytes, JOURNAL_MAGIC).unwrap();
    let old = Header { version: UNCOUNTED_VERSION, ..header.clone() };
    bytes[..88].copy_from_slice(&old.encode(JOURNAL_MAGIC));
    let mut at = HEADER_BYTES;
    while let Ok(Some((record, sums, length))) = Record::decode(&bytes[at..], header.incarnation) {
        if record.kind == RecordKind::Cut {
            let old = Record { count: 0, ..record };
            old.encode(&sums, header.incarnation, &mut bytes[at..at + length]);
        }
        at += length;
    }
    assert_eq!(record_bytes(0), 48);
    std::fs::write(&path, bytes).unwrap();
}

#[test]
fn what_an_older_version_has_written_is_taken_over_and_counts_from_then_on() {
    let scratch = Scratch::new();
    let mut journal = Journal::begin(scratch.identity(1), Start::fresh()).unwrap();
    journal.append(at(1, 1, 10)).unwrap();
    cut(&mut journal, 1);
    journal.append(at(2, 2, 11)).unwrap();
    drop(journal);
    make_uncounted(&scratch);
    let mut recovered = back(&scratch, 1, &[1]).unwrap();
    assert_eq!(recovered.past.counted_from, 2);
    assert_eq!(recovered.past.cuts, [RecordedCut { epoch: 1, instant_ns: 51, partitions: 0 }]);
    assert_eq!(recovered.partitions[&4].live.place(2), Place::slot(1, SlotIndex(11)));
    let mut journal = Journal::begin(scratch.identity(1), recovered.start()).unwrap();
    cut(&mut journal, 2);
    state(&mut journal, 2, counters(4));
    drop(journal);
    let recovered = back(&scratch, 1, &[1, 2]).unwrap();
    assert_eq!(recovered.past.counted_from, 2);
    assert_eq!(recovered.partitions[&4].counters_at(1), Counters::default());
    assert_eq!(recovered.partitions[&4].counters_at(2), counters(4));
}

#[test]
fn a_checkpoint_of_an_older_version_is_read_and_one_of_a_newer_is_refused() {
    let scratch = Scratch::new();
    let path = scratch.0.join("checkpoint");
    let past = Past { blocks: 9, ..Past::default() };
    let contents = Contents { first_seq: 7, epoch: 3, past, ..Contents::first() };
    checkpoint::write(&path, &scratch.identity(1), 3, contents).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let with_version = |version: u32, body: &[u8]| {
        let header = Header::decode(&whole, CHECKPOINT_MAGIC).unwrap();
        let mut bytes = Header { version, ..header }.encode(CHECKPOINT_MAGIC).to_vec();
        bytes.resize(HEADER_BYTES, 0);
        bytes.extend(body);
        bytes.extend(u64::from(checksum::crc32c(&bytes)).to_le_bytes());
        checkpoint::read(&bytes, |_| Some(BLOCKS))
    };
    let body = &whole[HEADER_BYTES..whole.len() - 8];
    // Epoch, blocks, two numbers; then counted_from and the number of cuts; partitions, and those written in place.
    let old = [&body[..32], &body[48..56]].concat();
    let (header, read) = with_version(UNCOUNTED_VERSION, &old).unwrap();
    assert_eq!((header.version, read.epoch, read.past.blocks), (2, 3, 9));
    assert_eq!(read.past.counted_from, 3);
    let newer = with_version(FORMAT_VERSION + 1, body).unwrap_err();
    let words = "it has format version 6, which this version of polyvol cannot read".to_owned();
    assert_eq!(newer, checkpoint::Bad::Corrupt(words));
    assert!(with_version(UNCOUNTED_VERSION, body).is_err());
    assert_ne!(seed(1), 0);
}
