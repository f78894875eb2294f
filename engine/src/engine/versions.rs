//! Versions: clones of the versions of a share's partitions, page by page, for code that derives something from them.
//!
//! How it works      The processor sends some of them at a time, because it has other requests to serve. The caller's thread
//!                   does the rest.

use std::ops::Range;

use crate::engine::Engine;
use crate::error::Result;
use crate::processor::messages::Control;
use crate::processor::queue::ask;
use crate::processor::share::compare::VersionsPage;
use crate::units::PartitionIndex;
use crate::volume::{ShareRef, Volume};

impl Engine {
    /// The versions of those partitions of a range that a share has, in order; no more after an error.
    pub(super) fn versions_pages<'a>(
        &'a self,
        volume: &'a Volume,
        share: &'a ShareRef,
        range: Range<PartitionIndex>,
    ) -> impl Iterator<Item = Result<VersionsPage>> + 'a {
        let mut next = Some(range.start);
        std::iter::from_fn(move || {
            let first = next.take()?;
            let page = ask(&*self.system, &share.queue, |answer| {
                Control::Versions(volume.share, first..range.end, answer)
            });
            next = page.as_ref().ok().and_then(|page| page.next);
            Some(page)
        })
    }
}
