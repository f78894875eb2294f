//! Compare: the extents that changed between a snapshot and a later one, or the live volume.
//!
//! How it works      Each processor sends the maps of the partitions that differ (a comparison of pointers finds them);
//!                   the caller's thread walks them, and in them only the leaves that are not shared. So the time
//!                   depends on the amount of change. The result comes in pages: a page ends after `extents_max`
//!                   extents, and has the start of the next one.
//! Errors            NotFound if one of the snapshots does not exist (any more); earlier pages stay true.

use crate::block_map::diff::differing;
use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::processor::messages::Control;
use crate::processor::queue::ask;
use crate::processor::share::compare::Pair;
use crate::units::{BLOCK_SIZE, Epoch, VolumeId};

/// Changed extents, or a page of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Volume offset and length of each, bytes, in order; none touches the next.
    pub extents: Vec<(u64, u64)>,
    /// Where the next page begins; `None`: this is the last one.
    pub next: Option<u64>,
}

/// Total of changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChangeTotal {
    /// Extents.
    pub extents: u64,
    /// Bytes in them.
    pub bytes: u64,
}

impl Engine {
    /// What changed between `since` and `until` (`None`: now), from byte `from` on, at most `extents_max` extents.
    pub fn changes(
        &self,
        volume: VolumeId,
        since: Epoch,
        until: Option<Epoch>,
        from: u64,
        extents_max: usize,
    ) -> Result<Changes> {
        let mut changes = Changes::default();
        self.each_change(volume, since, until, from, |offset, length| {
            if changes.extents.len() >= extents_max {
                changes.next = Some(offset);
                return false;
            }
            changes.extents.push((offset, length));
            true
        })?;
        Ok(changes)
    }

    /// How much changed between `since` and `until` (`None`: now).
    pub fn change_total(
        &self,
        volume: VolumeId,
        since: Epoch,
        until: Option<Epoch>,
    ) -> Result<ChangeTotal> {
        let mut total = ChangeTotal::default();
        self.each_change(volume, since, until, 0, |_, length| {
            total.extents += 1;
            total.bytes += length;
            true
        })?;
        Ok(total)
    }

    /// Calls `f(offset, length)` for each changed extent from `from` on, in order, until it returns false.
    fn each_change(
        &self,
        volume: VolumeId,
        since: Epoch,
        until: Option<Epoch>,
        from: u64,
        mut f: impl FnMut(u64, u64) -> bool,
    ) -> Result<()> {
        let served = self.volume(volume)?;
        let mut pairs: Vec<Pair> = Vec::new();
        for share in &served.shares {
            let found = ask(&*self.system, &share.queue, |answer| {
                Control::Compare(served.share, since, until.unwrap_or(0), answer)
            })?;
            let missing = || {
                let what = format!("volume {} has no snapshot of this epoch", served.name);
                Error::new(ErrorKind::NotFound, what)
            };
            pairs.extend(found.ok_or_else(missing)?);
        }
        pairs.sort_unstable_by_key(|pair| pair.partition);
        let mut joined = Joined { last: None, wanted: true, f: &mut f };
        for Pair { partition, since, until } in &pairs {
            let start = u64::from(*partition) << served.geometry.partition_shift;
            let blocks = until.blocks();
            let skip = from.saturating_sub(start) / BLOCK_SIZE;
            if skip >= u64::from(blocks) {
                continue;
            }
            if !joined.wanted {
                break;
            }
            differing(since, until, skip as u32..blocks, |first, count| {
                let (offset, length) =
                    (u64::from(first) * BLOCK_SIZE, u64::from(count) * BLOCK_SIZE);
                joined.push(start + offset, length);
            });
        }
        joined.end();
        Ok(())
    }
}

/// Joins adjacent runs to extents.
struct Joined<'a, F: FnMut(u64, u64) -> bool> {
    last: Option<(u64, u64)>,
    wanted: bool,
    f: &'a mut F,
}

impl<F: FnMut(u64, u64) -> bool> Joined<'_, F> {
    fn push(&mut self, offset: u64, length: u64) {
        match &mut self.last {
            Some((start, joined)) if *start + *joined == offset => *joined += length,
            last => {
                let ended = last.replace((offset, length));
                self.emit(ended);
            }
        }
    }

    fn end(mut self) {
        let ended = self.last.take();
        self.emit(ended);
    }

    fn emit(&mut self, ended: Option<(u64, u64)>) {
        if let Some((offset, length)) = ended.filter(|_| self.wanted) {
            self.wanted = (self.f)(offset, length);
        }
    }
}
