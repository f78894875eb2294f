//! Changes between two instants of a volume, compared with the contents.

use std::collections::BTreeMap;

use polyvol_engine::engine::Engine;

/// Between every two instants, all differences are reported as changes.
pub fn check(engine: &Engine, volume: u64, snapshots: &BTreeMap<u64, Vec<u8>>, live: &Vec<u8>) {
    for (since, before) in snapshots {
        let later = snapshots.range(since + 1..).map(|(epoch, after)| (Some(*epoch), after));
        for (until, after) in later.chain([(None, live)]) {
            let size = after.len() as u64;
            let mut before = before.clone();
            before.resize(after.len(), 0); // blocks added by growth did not exist before
            let changes = engine.changes(volume, *since, until, 0, usize::MAX).unwrap();
            assert_eq!(changes.next, None);
            let mut at = 0;
            for (offset, length) in changes.extents.into_iter().chain([(size, 0)]) {
                assert!(offset >= at && offset + length <= size, "in order, and inside");
                let unchanged = at as usize..offset as usize;
                assert!(
                    before[unchanged.clone()] == after[unchanged],
                    "a change from {since} to {until:?} between {at} and {offset} is not reported"
                );
                at = offset + length;
            }
        }
    }
}

/// What the engine says that has changed since each of these snapshots: extents, offset and length.
pub fn since_each<'a>(
    engine: &Engine,
    volume: u64,
    epochs: impl Iterator<Item = &'a u64>,
) -> Vec<Vec<(u64, u64)>> {
    let since = |epoch: &u64| engine.changes(volume, *epoch, None, 0, usize::MAX).unwrap().extents;
    epochs.map(since).collect()
}
