//! Grow: a share's part in the growth of its volume: a longer last partition, and new ones behind it.
//!
//! How it works      Nothing that is in flight is touched: partitions keep their numbers and their bytes, so what was planned
//!                   with the older geometry is right with the newer one. What is new is empty, and no snapshot shows it.
//! Durability        Nothing is recorded: how large the volume and each snapshot is, the catalog says.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use crate::block_map::versions::Versions;
use crate::geometry::Geometry;
use crate::processor::share::{Local, Share};
use crate::units::{LocalIndex, PartitionIndex};

/// What a share is told.
pub struct Growth {
    /// The volume's shape from now on.
    pub geometry: Arc<Geometry>,
    /// One of its partitions, by its number on the share, and how many blocks that has from now on.
    pub longer: Option<(LocalIndex, u32)>,
    /// Its new partitions, with their blocks, in order.
    pub added: Vec<(PartitionIndex, u32)>,
    /// Where the answer goes.
    pub answer: Sender<()>,
}

impl Share {
    /// Serves what is new of its volume.
    pub fn grow(&mut self, growth: Growth) {
        self.geometry = growth.geometry;
        if let Some((local, blocks)) = growth.longer {
            self.locals[local.index()].versions.grow(blocks, self.history.retained_epochs());
        }
        let newest = self.history.retained_epochs().last().copied().unwrap_or(0);
        for (partition, blocks) in growth.added {
            let mut versions = Versions::new(blocks);
            versions.hide(newest, self.history.retained_epochs(), 0);
            self.locals.push(Local { partition, versions, moved_back: 0 });
        }
        self.look_at_devices();
        let _ = growth.answer.send(());
    }
}
