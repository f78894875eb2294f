//! Grow: a share's part in the growth of its volume: a longer last partition, and new ones after it.
//!
//! How it works      Jobs in flight are not touched: partitions keep their numbers and their bytes, so a plan with the
//!                   older geometry is valid with the newer one. New blocks are empty, and no snapshot shows them.
//! Durability        The catalog has the size of the volume and of each snapshot. The journal has the volume's, so that an
//!                   older copy of the catalog is noticed; if there is no space for the record, the next checkpoint has it.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use crate::block_map::versions::Versions;
use crate::change_log::journal::Entry;
use crate::geometry::Geometry;
use crate::processor::share::{Local, Share};
use crate::units::{BLOCK_SIZE, LocalIndex, PartitionIndex};

/// The growth of a share.
pub struct Growth {
    /// The volume's shape from now on.
    pub geometry: Arc<Geometry>,
    /// The partition that becomes longer, by its number on the share, and its new size in blocks.
    pub longer: Option<(LocalIndex, u32)>,
    /// Its new partitions, with their blocks, in order.
    pub added: Vec<(PartitionIndex, u32)>,
    /// The sender of the answer.
    pub answer: Sender<()>,
}

impl Share {
    /// Serves the new blocks of its volume.
    pub fn grow(&mut self, growth: Growth) {
        self.geometry = growth.geometry;
        if self.journal.append(Entry::grown(self.epoch, self.geometry.size / BLOCK_SIZE)).is_err() {
            self.journal.bytes_since_checkpoint = u64::MAX / 2;
        }
        if let Some((local, blocks)) = growth.longer {
            self.locals[local.index()].versions.grow(blocks, self.history.retained_epochs());
        }
        let newest = self.history.retained_epochs().last().copied().unwrap_or(0);
        for (partition, blocks) in growth.added {
            let mut versions = Versions::new(blocks);
            versions.hide(newest, self.history.retained_epochs(), 0);
            self.locals.push(Local { partition, versions, moved_back: 0 });
        }
        self.touched.grow(self.locals.len());
        self.refresh_devices();
        let _ = growth.answer.send(());
    }
}
