//! Stats: how much of a share's partitions is mapped.

use crate::processor::share::Share;

impl Share {
    /// Blocks of the live volume that are not at their base place.
    pub fn usage(&self) -> u64 {
        self.locals.iter().map(|local| u64::from(local.versions.live.mapped())).sum()
    }
}
