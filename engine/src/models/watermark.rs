//! Watermark: no record that a sync commits refers to a slot that is reused at once (Y1).

use std::sync::Arc;

use loom::thread;

use super::check;
use crate::change_log::watermark::Watermark;
use crate::change_log::young::Young;

const SLOT: (u16, u64, u32) = (1, 0, 5);

#[test]
fn a_sync_covers_no_slot_that_was_reused() {
    check(|| {
        let watermark = Arc::new(Watermark::new(0));
        let theirs = Arc::clone(&watermark);
        let syncs = thread::spawn(move || [theirs.begin_commit(), theirs.begin_commit()]);
        let mut young = Young::default();
        let (log, chunk, slot) = SLOT;
        watermark.append(1); // the slot is allocated
        young.observe(watermark.sync_watermark(), 1);
        young.add(1, (log, chunk), slot, 1);
        watermark.append(2); // and freed
        young.observe(watermark.sync_watermark(), 1);
        let (used_again, _) = young.take(log, chunk, slot, 1);
        let covered = syncs.join().unwrap();
        assert!(
            !used_again || !covered.contains(&1),
            "a sync commits a record that refers to the slot"
        );
    });
}
