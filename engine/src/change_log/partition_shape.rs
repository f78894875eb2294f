//! Partition shape: what the catalog says of a partition's size, now and at its snapshots and rollbacks, for recovery.

use crate::block_map::history::History;
use crate::block_map::place::Place;
use crate::block_map::versions::Versions;
use crate::units::{BlockIndex, Epoch};

/// A partition that this processor owns, as the catalog describes it.
#[derive(Clone, Debug, Default)]
pub struct Shape {
    /// Its size in blocks.
    pub blocks: u32,
    /// Snapshots of epochs below the first number do not have the blocks from the second number on.
    pub hidden: Vec<(Epoch, BlockIndex)>,
    /// Its size in blocks when the volume was rolled back, for each rollback.
    pub at_rollbacks: Vec<u32>,
}

impl Shape {
    /// A partition of so many blocks, all of them in every snapshot.
    pub fn whole(blocks: u32) -> Shape {
        Shape { blocks, ..Shape::default() }
    }

    /// Its versions if there is no record of it, after the history's first rollbacks, whose records are `rollback_seqs`.
    /// They change it if it has grown since.
    pub fn fresh(&self, history: &History, rollback_seqs: &[u64]) -> Versions {
        let mut versions = Versions::new(self.blocks);
        for (number, seq) in rollback_seqs.iter().enumerate() {
            self.roll_back(&mut versions, history, number, *seq, |_, _, _| {});
        }
        versions
    }

    /// Hides from snapshots the blocks that they did not have, when the partition had `blocks` blocks.
    pub fn hide(&self, versions: &mut Versions, history: &History, blocks: u32) {
        for (grown, from) in self.hidden.iter().filter(|(_, from)| *from < blocks) {
            versions.hide(grown - 1, history.retained_epochs(), *from);
        }
    }

    /// Applies the rollback of this number, by record `seq`.
    pub(super) fn roll_back(
        &self,
        versions: &mut Versions,
        history: &History,
        number: usize,
        seq: u64,
        freed: impl FnMut(BlockIndex, u32, Place),
    ) {
        let rollback = history.rollbacks()[number];
        let blocks = self.at_rollbacks.get(number).copied().unwrap_or(self.blocks);
        self.hide(versions, history, blocks);
        versions.roll_back(rollback, &history.before_rollback(number), seq, freed);
        if blocks < self.blocks {
            // Blocks added by growth since then are at their base places, whatever the recovered snapshot has there.
            versions.live.set(blocks, self.blocks - blocks, Place::BASE, &[]);
        }
    }
}
