//! How rollbacks in older journals are read, and which differences between a journal and a catalog are refused.

use super::*;
use crate::change_log::agreement::Agreement;
use crate::change_log::expected::Expect;
use crate::change_log::format::{Begin, FORMAT_VERSION, HEADER_BYTES};
use crate::change_log::past::EpochRanges;
use crate::units::SlotIndex;

const S: Epoch = 1;
const ROLLBACK: Rollback = Rollback { at: 3, to: S };

/// A segment's records: kind, epoch, and the slot of block 0, or the meaning of the place for that kind.
type Records = [(RecordKind, Epoch, u64)];

const MAP: RecordKind = RecordKind::Map;
const CUT: RecordKind = RecordKind::Cut;
const BACK: RecordKind = RecordKind::Rollback;

/// A journal of one segment of this format version.
fn write(version: u32, records: &Records) -> Scratch {
    let scratch = Scratch::new();
    let identity = scratch.identity(1);
    let header = Header {
        version,
        volume_uuid: identity.volume_uuid,
        boot_id: identity.boot_id,
        processor: identity.processor,
        number: 1,
        first_seq: if version == 1 { 1 } else { 0 },
        incarnation: 7,
        previous: 0,
    };
    let mut bytes = header.encode(JOURNAL_MAGIC).to_vec();
    bytes.resize(HEADER_BYTES, 0);
    for (word, at) in Begin::words(1).into_iter().zip([BEGIN_OFFSET, BEGIN_OFFSET + 8]) {
        bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
    }
    for (seq, (kind, epoch, place)) in (1..).zip(records.iter().copied()) {
        let (place, sums, blocks) = match kind {
            RecordKind::Map => (Place::slot(1, SlotIndex(place)).raw(), vec![0], 0),
            RecordKind::Cut => (place, Vec::new(), 0),
            RecordKind::Dropped => (place, Vec::new(), 0),
            RecordKind::Rollback | RecordKind::Grown => (place, Vec::new(), BLOCKS),
            RecordKind::State | RecordKind::Home | RecordKind::Away => {
                unreachable!("these have tests of their own")
            }
        };
        let partition = if kind == RecordKind::Map { 4 } else { blocks };
        let count = sums.len() as u32;
        let record = Record { kind, seq, epoch, partition, first: 0, count, place };
        let mut out = vec![0; record_bytes(sums.len())];
        record.encode(&sums, 7, &mut out);
        bytes.extend(out);
    }
    std::fs::write(identity.segment_path(1), bytes).unwrap();
    scratch
}

fn catalog(rollbacks: &[Rollback], reached: Epoch) -> CatalogState {
    CatalogState {
        history: History::new(vec![S], rollbacks.to_vec()).unwrap(),
        blocks: u64::from(BLOCKS),
        sizes: rollbacks.iter().map(|_| u64::from(BLOCKS)).collect(),
        expect: Expect::Nothing,
        reached,
    }
}

fn read(scratch: &Scratch, catalog: &CatalogState) -> Result<Recovered> {
    recover(&scratch.identity(1), catalog, |partition| {
        (partition == 4).then(|| Shape::whole(BLOCKS))
    })
}

fn refused(version: u32, records: &Records, rollbacks: &[Rollback], why: &str) {
    let error = read(&write(version, records), &catalog(rollbacks, 0)).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Corrupt);
    assert!(error.what.contains(why), "{error}");
}

fn live(recovered: &Recovered) -> Place {
    recovered.partitions[&4].live.place(0)
}

#[test]
fn a_journal_of_version_1_has_a_cut_where_the_volume_was_rolled_back() {
    let before = [(MAP, 1, 10), (CUT, S, 0), (MAP, 2, 20), (CUT, 2, 0), (CUT, 3, 0)];
    let recovered = read(&write(1, &before), &catalog(&[ROLLBACK], 0)).unwrap();
    assert_eq!(
        (live(&recovered), recovered.unrecorded_rollbacks, recovered.epoch),
        (Place::slot(1, SlotIndex(10)), 1, 4)
    );
    let after: Vec<_> = before.into_iter().chain([(CUT, 4, 0)]).collect();
    let recovered = read(&write(1, &after), &catalog(&[ROLLBACK], 9)).unwrap();
    assert_eq!(
        (live(&recovered), recovered.unrecorded_rollbacks, recovered.epoch),
        (Place::slot(1, SlotIndex(10)), 0, 5)
    );
    // Only the catalog has the rollback.
    let recovered = read(&write(1, &after), &catalog(&[], 0)).unwrap();
    assert_eq!(live(&recovered), Place::slot(1, SlotIndex(20)));
}

#[test]
fn a_rollback_is_recorded_once_more_behind_the_cut_that_version_1_had_for_it() {
    let catalog = catalog(&[ROLLBACK], 3);
    let record = |kind, epoch, place| {
        let partition = if kind == BACK { BLOCKS } else { 0 };
        Record { kind, seq: 1, epoch, partition, first: 0, count: 0, place }
    };
    let after_cut = || {
        let mut agreement = Agreement::new(&catalog, 1);
        for epoch in 1..=3 {
            assert_eq!(agreement.check_record(&record(CUT, epoch, 0), 1), Ok(0));
        }
        agreement
    };
    let mut agreement = after_cut();
    assert_eq!(agreement.check_record(&record(BACK, 3, S), FORMAT_VERSION), Ok(1));
    assert!(agreement.check_record(&record(BACK, 3, S), FORMAT_VERSION).is_err());
    assert_eq!(agreement.check_record(&record(CUT, 4, 0), FORMAT_VERSION), Ok(0));
    for (kind, version) in [(CUT, 1), (CUT, FORMAT_VERSION)] {
        assert!(after_cut().check_record(&record(kind, 3, 0), version).is_err());
    }
    // A cut of a later version, and one of an epoch that no rollback has ended, end the epoch.
    let mut agreement = Agreement::new(&catalog, 1);
    assert_eq!(agreement.check_record(&record(CUT, 2, 0), 1), Ok(0));
    assert!(agreement.check_record(&record(BACK, 2, S), FORMAT_VERSION).is_err());
    let mut agreement = after_cut();
    assert_eq!(agreement.check_record(&record(MAP, 4, 0), 1), Ok(1));
    assert!(agreement.check_record(&record(BACK, 3, S), FORMAT_VERSION).is_err());
}

#[test]
fn a_journal_records_the_target_of_a_rollback() {
    let records =
        [(MAP, 1, 10), (CUT, S, 0), (MAP, 2, 20), (CUT, 2, 0), (BACK, 3, S), (MAP, 4, 40)];
    let recovered = read(&write(FORMAT_VERSION, &records[..5]), &catalog(&[ROLLBACK], 4)).unwrap();
    assert_eq!(
        (live(&recovered), recovered.unrecorded_rollbacks, recovered.epoch),
        (Place::slot(1, SlotIndex(10)), 0, 4)
    );
    let recovered = read(&write(FORMAT_VERSION, &records), &catalog(&[ROLLBACK], 4)).unwrap();
    assert_eq!(
        (live(&recovered), recovered.unrecorded_rollbacks),
        (Place::slot(1, SlotIndex(40)), 0)
    );
    assert_eq!(recovered.partitions[&4].at(S).0.place(0), Place::slot(1, SlotIndex(10)));
    // Without a record it is applied again.
    let recovered = read(&write(FORMAT_VERSION, &records[..4]), &catalog(&[ROLLBACK], 3)).unwrap();
    assert_eq!(
        (live(&recovered), recovered.unrecorded_rollbacks, recovered.epoch),
        (Place::slot(1, SlotIndex(10)), 1, 4)
    );
    refused(FORMAT_VERSION, &records, &[], "does not have this rollback");
    let other = Rollback { to: 2, ..ROLLBACK };
    refused(FORMAT_VERSION, &records, &[other], "differently");
    let more = [ROLLBACK, Rollback { at: 4, to: S }];
    let beyond = [&records[..], &[(MAP, 5, 50)]].concat();
    refused(FORMAT_VERSION, &beyond, &more, "no record says that the volume was rolled back");
    refused(
        FORMAT_VERSION,
        &beyond,
        &[Rollback { at: 2, to: S }, ROLLBACK],
        "a snapshot ended epoch 2",
    );
    let mut smaller = catalog(&[ROLLBACK], 0);
    smaller.sizes = vec![u64::from(BLOCKS) - 1];
    assert!(read(&write(FORMAT_VERSION, &records), &smaller).is_err());
}

#[test]
fn epochs_neither_end_twice_nor_continue_after_a_rollback() {
    let before = [(MAP, 1, 10), (CUT, S, 0), (CUT, 2, 0), (BACK, 3, S)];
    let then = |record| [&before[..], &[record]].concat();
    for epoch in 1..=3 {
        let records = then((MAP, epoch, 20));
        refused(FORMAT_VERSION, &records, &[ROLLBACK], "which a rollback has ended");
        let records = then((CUT, epoch, 0));
        refused(FORMAT_VERSION, &records, &[ROLLBACK], "which a rollback has ended");
    }
    let old = [(MAP, 1, 10), (CUT, S, 0), (CUT, 2, 0), (CUT, 3, 0), (MAP, 4, 40), (MAP, 3, 30)];
    refused(1, &old, &[ROLLBACK], "which a rollback has ended");
    refused(FORMAT_VERSION, &[(CUT, 2, 0), (CUT, 2, 0)], &[], "which had ended");
    refused(FORMAT_VERSION, &[(CUT, 2, 0), (CUT, 1, 0)], &[], "which had ended");
    refused(FORMAT_VERSION, &[(CUT, 0, 0)], &[], "its epoch is impossible");
    // A write that began before a cut may end after it.
    let late = [(MAP, 1, 10), (CUT, S, 0), (MAP, 1, 20)];
    assert_eq!(read(&write(FORMAT_VERSION, &late), &catalog(&[], 2)).unwrap().replayed, 3);
}

#[test]
fn a_journal_that_ends_before_the_catalogs_last_snapshot_is_refused() {
    let records = [(MAP, 1, 10), (CUT, S, 0)];
    assert!(read(&write(FORMAT_VERSION, &records), &catalog(&[], 2)).is_ok());
    let error = read(&write(FORMAT_VERSION, &records[..1]), &catalog(&[], 2)).unwrap_err();
    assert!(error.what.contains("older than the catalog"), "{error}");
    // Version 1 has no record of a cut whose record could not be appended.
    assert!(read(&write(1, &records[..1]), &catalog(&[], 2)).is_ok());
}

#[test]
fn a_checkpoint_with_a_map_later_than_itself_is_refused() {
    for (first_seq, epoch) in [(42, 2), (9, 4), (3, 4)] {
        let scratch = Scratch::new();
        let contents =
            Contents { first_seq, epoch, partitions: vec![(4, versions())], ..Contents::first() };
        let path = scratch.0.join("checkpoint");
        checkpoint::write(&path, &scratch.identity(1), 3, contents).unwrap();
        let read = checkpoint::read(&std::fs::read(&path).unwrap(), |_| Some(BLOCKS));
        let later = "one of its maps is later than the checkpoint".to_owned();
        assert_eq!(read.unwrap_err(), checkpoint::Bad::Corrupt(later));
    }
}

const DROPPED: RecordKind = RecordKind::Dropped;
const GROWN: RecordKind = RecordKind::Grown;

#[test]
fn a_snapshot_whose_record_says_that_it_was_dropped_is_stale() {
    let before = [(MAP, 1, 10), (CUT, S, 0), (MAP, 2, 20)];
    assert!(read(&write(FORMAT_VERSION, &before), &catalog(&[], 2)).unwrap().stale.is_empty());
    let after = [&before[..], &[(DROPPED, S, S), (MAP, 2, 10)]].concat();
    let recovered = read(&write(FORMAT_VERSION, &after), &catalog(&[], 2)).unwrap();
    assert_eq!(recovered.stale.snapshots, [S]);
    assert!(recovered.partitions.is_empty());
    let other = CatalogState { reached: 2, ..CatalogState::line(&[2]) };
    let recovered = read(&write(FORMAT_VERSION, &after), &other).unwrap();
    assert!(recovered.stale.is_empty() && recovered.past.dropped.has(S));
    assert_eq!(live(&recovered), Place::slot(1, SlotIndex(10)));
    refused(FORMAT_VERSION, &[(DROPPED, 1, 2)], &[], "it is inconsistent");
    refused(FORMAT_VERSION, &[(DROPPED, 1, 0)], &[], "it is inconsistent");
    // A rollback that only the catalog has needs its target.
    let records = [(MAP, 1, 10), (CUT, S, 0), (CUT, 2, 0), (DROPPED, S, S)];
    let mut undone = catalog(&[ROLLBACK], 3);
    undone.history = History::new(vec![2], vec![ROLLBACK]).unwrap();
    let error = read(&write(FORMAT_VERSION, &records), &undone).unwrap_err();
    assert!(error.what.contains("was deleted before that"), "{error}");
}

#[test]
fn a_growth_that_the_catalog_lacks_is_refused() {
    let records = [(MAP, 1, 10), (GROWN, 1, 0)];
    assert!(read(&write(FORMAT_VERSION, &records), &catalog(&[], 0)).is_ok());
    let mut smaller = catalog(&[], 0);
    smaller.blocks -= 1;
    let error = read(&write(FORMAT_VERSION, &records), &smaller).unwrap_err();
    assert!(error.what.contains("had grown"), "{error}");
}

#[test]
fn a_catalog_is_compared_with_the_rollbacks_of_a_checkpoint() {
    let history = |snapshots: &[Epoch], rollbacks: &[Rollback]| {
        History::new(snapshots.to_vec(), rollbacks.to_vec()).unwrap()
    };
    let past = Past::of(&history(&[1, 2], &[ROLLBACK]), 5, 1);
    assert!(past.check(&history(&[1, 2], &[ROLLBACK]), 1, 1).is_ok());
    // Without snapshot 2, the volume descends from snapshot 1 in either case.
    assert!(past.check(&history(&[1], &[]), 1, 0).is_ok());
    let lacking = past.check(&history(&[1, 2], &[]), 1, 0).unwrap_err();
    assert!(lacking.contains("was rolled back at epoch 3 to epoch 1"), "{lacking}");
    let other = Rollback { to: 2, ..ROLLBACK };
    assert_eq!(past.stale(&history(&[1, 2], &[other]), 5).rollbacks, [3]);
    let forgotten = Past::of(&history(&[2], &[]), 5, 1);
    let stale = forgotten.stale(&history(&[1, 2], &[ROLLBACK]), 5);
    assert_eq!((stale.snapshots, stale.rollbacks), (vec![1], vec![3]));
    // One that came after the checkpoint is not known to it.
    let later = Rollback { at: 5, to: 2 };
    assert!(forgotten.stale(&history(&[2], &[later]), 5).is_empty());
    assert!(Past::default().stale(&history(&[1, 2], &[ROLLBACK]), 5).is_empty());
}

proptest! {
    #[test]
    fn ranges_of_epochs_are_a_set(
        added in prop::collection::vec((1..30u64, 0..6u64), 0..8),
        others in prop::collection::btree_set(1..30u64, 0..10),
    ) {
        let mut ranges = EpochRanges::default();
        let mut model = std::collections::BTreeSet::new();
        for (first, more) in added {
            ranges.add(first, first + more);
            model.extend(first..=first + more);
        }
        prop_assert!((0..40).all(|epoch| ranges.has(epoch) == model.contains(&epoch)));
        prop_assert_eq!(EpochRanges::from_parts(ranges.ranges().to_vec()), Some(ranges.clone()));
        let others: Vec<Epoch> = others.into_iter().collect();
        let without = EpochRanges::without(&others, 40);
        prop_assert!((1..40).all(|epoch| without.has(epoch) != others.contains(&epoch)));
        prop_assert!(!without.has(0) && !without.has(40));
        let both: Vec<Epoch> =
            without.minus(&ranges).into_iter().flat_map(|(first, last)| first..=last).collect();
        let expected: Vec<Epoch> =
            (1..40).filter(|epoch| without.has(*epoch) && !model.contains(epoch)).collect();
        prop_assert_eq!(both, expected);
    }
}
