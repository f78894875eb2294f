//! Clearing: making runs of base places read as zeroes, on a pool thread.
//!
//! How it works      A file system holds a file's lock while it clears a range of it; the time grows with the number of
//!                   fragments: on ext4 up to a millisecond for each. So a range that has data is cleared a little at a
//!                   time, and after a while a request's job stops; the rest of its part is another
//!                   [piece](super::pieces). An unallocated range is cleared with one call.

use crate::error::Errno;
use crate::geometry::Partition;
use crate::processor::io_job::{Job, Step};
use crate::processor::part::Part;
use crate::units::BLOCK_SIZE;

/// How long a job that may stop early continues, nanoseconds.
const JOB_NS: u64 = 1_000_000;

/// The time at which a job stops.
pub(super) struct Deadline<'a> {
    partition: &'a Partition,
    until: u64,
}

impl Deadline<'_> {
    /// The deadline of a job that begins now, on this partition.
    pub(super) fn of(partition: &Partition) -> Deadline<'_> {
        Deadline { partition, until: now(partition) + JOB_NS }
    }

    pub(super) fn has_come(&self) -> bool {
        now(self.partition) > self.until
    }
}

fn now(partition: &Partition) -> u64 {
    partition.extents.first().map_or(0, |extent| extent.device.now_ns())
}

impl Job {
    /// Clears runs; a request's job does so for a limited time, and notes where it stopped. The plan contains only what
    /// the devices support; if a device turns out not to support it, the result is ENOTSUP, and later plans avoid it.
    pub(in crate::processor) fn clear_all(
        &mut self,
        partition: &Partition,
        steps: &[Step],
    ) -> Result<(), Errno> {
        let deadline = self.request.as_ref().map(|_| Deadline::of(partition));
        let mut begin = None;
        for step in steps {
            let Step::Clear { offset, length, keep_allocated } = step else {
                unreachable!("all are alike")
            };
            let begin = *begin.get_or_insert(*offset);
            let mut stopped_at = None;
            let cleared = partition.pieces(*offset, *length, |device, from, here, done| {
                let mut cleared = 0;
                while cleared < here {
                    // Complete blocks, at least one: a block that was cleared in part is cleared again.
                    let at = (offset + done + cleared) / BLOCK_SIZE * BLOCK_SIZE;
                    if at > begin && deadline.as_ref().is_some_and(Deadline::has_come) {
                        stopped_at = Some(at);
                        return Err(None);
                    }
                    let piece = device.clearable_in_one_call(from + cleared, here - cleared);
                    let result = match keep_allocated {
                        true => device.zero_range(from + cleared, piece),
                        false => device.punch(from + cleared, piece),
                    };
                    if !result.map_err(Some)? {
                        return Err(Some(Errno::ENOTSUP));
                    }
                    cleared += piece;
                }
                Ok(())
            });
            match cleared {
                Err(Some(errno)) => return Err(errno),
                Err(None) => {
                    self.stopped_at = stopped_at;
                    break;
                }
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Ends the part and the job where the job stopped.
    pub(super) fn stop_there(&mut self, part: &mut Part) {
        let Some(at) = self.stopped_at.take() else { return };
        part.cut(at as u32);
        let end = (at / BLOCK_SIZE) as u32;
        self.changes.retain(|change| change.first < end);
        for change in &mut self.changes {
            change.count = change.count.min(end - change.first);
        }
    }
}
