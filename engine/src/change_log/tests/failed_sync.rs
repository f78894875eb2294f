//! The effect of a failed sync on a journal (J8).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Scratch, back, entry, ten_records};
use crate::change_log::failed_sync::FailedSync;
use crate::change_log::format::FAILED_SYNC_MAGIC;
use crate::change_log::journal::{Journal, Start};
use crate::error::Errno;
use crate::system::mapping::Mapping;
use crate::system::{self, Cached, File};

/// A file that implements only sync.
#[derive(Debug)]
struct Synced {
    fails: AtomicBool,
}

impl File for Synced {
    fn read_cached(&self, _: &mut [u8], _: u64) -> system::Result<Cached> {
        unimplemented!()
    }
    fn read(&self, _: &mut [u8], _: u64) -> system::Result<()> {
        unimplemented!()
    }
    fn write(&self, _: &[u8], _: u64) -> system::Result<()> {
        unimplemented!()
    }
    fn punch(&self, _: u64, _: u64) -> system::Result<()> {
        unimplemented!()
    }
    fn zero_range(&self, _: u64, _: u64) -> system::Result<()> {
        unimplemented!()
    }
    fn sync(&self) -> system::Result<()> {
        if self.fails.load(Ordering::Relaxed) { Err(Errno::EIO) } else { Ok(()) }
    }
    fn will_need(&self, _: u64, _: u64) {}
    fn allocation(&self, _: u64, _: u64) -> system::Result<(u64, bool)> {
        unimplemented!()
    }
    fn length(&self) -> system::Result<u64> {
        unimplemented!()
    }
    fn map(&self, _: usize) -> system::Result<Mapping> {
        unimplemented!()
    }
}

#[test]
fn recovered_segments_are_synced_before_the_first_commit() {
    let scratch = Scratch::new();
    ten_records(&scratch);
    let mut found = back(&scratch, 1, &[]).unwrap();
    let bad: Vec<Arc<dyn File>> = vec![Arc::new(Synced { fails: AtomicBool::new(true) })];
    let covered = found.next_seq - 1;
    let start = Start { covered, segments: bad, ..found.start() };
    let journal = Journal::begin(scratch.identity(1), start).unwrap();
    assert!(journal.shared().commit(10).is_err());
}

#[test]
fn after_a_failed_sync_no_commit_succeeds() {
    let scratch = Scratch::new();
    let segment = Arc::new(Synced { fails: AtomicBool::new(true) });
    let recovered: Vec<Arc<dyn File>> = vec![Arc::clone(&segment) as Arc<dyn File>];
    let mut journal =
        Journal::begin(scratch.identity(1), Start { segments: recovered, ..Start::fresh() })
            .unwrap();
    journal.append(entry(1, 1, 1, &[1])).unwrap();
    assert!(journal.shared().commit(1).is_err());
    segment.fails.store(false, Ordering::Relaxed);
    assert!(journal.shared().commit(1).is_err());
    assert_eq!(journal.shared().committed(), 0);
}

#[test]
fn a_failed_journal_commits_again_after_a_checkpoint_covers_its_records() {
    let scratch = Scratch::new();
    let bad: Vec<Arc<dyn File>> = vec![Arc::new(Synced { fails: AtomicBool::new(true) })];
    let mut journal =
        Journal::begin(scratch.identity(1), Start { segments: bad, ..Start::fresh() }).unwrap();
    journal.append(entry(1, 1, 1, &[1])).unwrap();
    assert!(journal.shared().commit(1).is_err());
    assert_eq!(journal.shared().forget_covered(1), 1);
    assert!(journal.shared().commit(1).is_err(), "the segment that has failed is the newest");
    journal.renew().unwrap();
    journal.append(entry(2, 2, 1, &[2])).unwrap();
    assert!(journal.shared().commit(2).is_err());
    assert_eq!(journal.shared().forget_covered(1), 2);
    journal.shared().commit(2).unwrap();
    journal.renew().unwrap();
    assert_eq!(journal.take_number(), 3, "no segment was begun without need");
}

#[test]
fn a_failed_sync_is_recorded_until_the_machine_is_rebooted() {
    let scratch = Scratch::new();
    let path = scratch.identity(1).directory.join("d000007.failed-sync");
    let of = |boot| FailedSync::of_device(&scratch.identity(boot), 7);
    assert!(!of(1).is_set() && !path.exists());
    of(1).set();
    assert!(of(1).is_set());
    assert!(!FailedSync::of_device(&scratch.identity(1), 8).is_set());
    let again = of(1);
    again.forget_if(|| false);
    assert!(of(1).is_set());
    again.forget_if(|| true);
    assert!(!again.is_set() && !of(1).is_set());
    of(1).set();
    assert!(!of(2).is_set(), "another boot");
    assert!(!path.exists());
}

#[test]
fn a_record_emptied_by_a_power_loss_is_not_set_and_a_damaged_one_is_set() {
    let scratch = Scratch::new();
    let path = scratch.identity(1).directory.join("d000007.failed-sync");
    FailedSync::of_device(&scratch.identity(1), 7).set();
    let whole = std::fs::read(&path).unwrap();
    assert_eq!(whole[..8], FAILED_SYNC_MAGIC);
    let set = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        FailedSync::of_device(&scratch.identity(1), 7).is_set()
    };
    assert!(set(&whole));
    assert!(!set(&[]) && !set(&[0; 88]));
    assert!(set(&whole[..40]));
    for bit in 0..whole.len() * 8 {
        let mut damaged = whole.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(set(&damaged), "bit {bit}");
        assert!(path.exists(), "it is left unchanged");
    }
}
