//! Slot retry: a write whose slots could not be written is retried on other slots.
//!
//! How it works      The bad slots are quarantined, so that no other write gets them; their log moves to the end of the
//!                   order of logs, and the part starts again on other slots, of another log if one has free slots.
//!                   After a few attempts the host gets the error; at once if the log's device is missing, because such
//!                   a log is tried only when no other has free slots. When a device is reopened, logs return to their
//!                   own order, and quarantined slots can be used again.
//! Invariants        SR1 a quarantined slot is counted as used, and no record refers to it: after a restart it is
//!                   free again.
//! Owner and locks   the share's processor.

use crate::block_map::place::Place;
use crate::change_log::space::LogArea;
use crate::error::Errno;
use crate::io::fault::is_lack_of_space;
use crate::processor::io_job::Job;
use crate::processor::part::Part;
use crate::processor::share::{Context, Share};
use crate::units::Epoch;

/// Upper bound of quarantined runs: if there were more, the fault would not be a few bad sectors.
const QUARANTINED_RUNS_MAX: usize = 1024;
/// Attempts for one part, in addition to one for each log.
const ATTEMPTS: usize = 3;

/// Slots that could not be written, and logs that have such.
#[derive(Debug, Default)]
pub(super) struct SlotRetry {
    quarantined: Vec<(Place, u32)>,
    last_to_try: Vec<u16>,
}

impl Share {
    /// Ends a part whose job has ended, or starts it again if its slots could not be written.
    pub(super) fn finish(
        &mut self,
        mut part: Part,
        mut job: Job,
        epoch: Epoch,
        result: Result<(), Errno>,
        context: &mut Context<'_>,
    ) {
        if result.is_ok() {
            job.stop_there(&mut part);
        }
        job.request = None; // so that its buffer can be reused when the request is done
        if result == Err(Errno::ENOTSUP) {
            // A device turned out not to support clearing: the part is planned again without it.
            let _ = self.settle_changes(part.local, epoch, &job.changes, &job.frees, result);
            return self.take(part, context);
        }
        let first_failed = job.failed.unwrap_or(0);
        let failed = job.failed.map(|index| (job.changes[index].place, job.changes[index].count));
        let mut changes = job.changes;
        let (Some((place, count)), Err(errno)) = (failed, result) else {
            let result = self.settle_changes(part.local, epoch, &changes, &job.frees, result);
            if result.is_ok() {
                self.count_change(&part, epoch, context.wall_ns);
            }
            self.give_back_if_full(result, context);
            return self.end(part, result, context);
        };
        let room = self.slot_retry.quarantined.len() < QUARANTINED_RUNS_MAX;
        let present = self.spot(None, place).device.is_present();
        if room && present && !is_lack_of_space(errno) {
            self.slot_retry.quarantined.push((place, count)); // SR1
            self.area_of(place).end_write(u64::from(count)); // they are no longer claimed, and no waiter may count on them
            changes.retain(|change| change.place != place);
        }
        // The error stays; this frees the slots.
        let result = self.settle_changes(part.local, epoch, &changes, &job.frees, result);
        if is_lack_of_space(errno) {
            self.note_full(place, &changes[first_failed..], context.ticks);
        }
        if !self.slot_retry.last_to_try.contains(&place.log()) {
            self.slot_retry.last_to_try.push(place.log());
            self.order_logs();
        }
        // A missing device is tried last: no other log has free slots.
        if !present || usize::from(part.tried) >= self.log_orders.longest() + ATTEMPTS {
            return self.end(part, result, context);
        }
        part.tried = part.tried.saturating_add(1);
        self.take(part, context);
    }

    /// Ends the state of a log that came last because its device was full.
    pub(super) fn try_full_again(&mut self, log: u16) {
        self.slot_retry.last_to_try.retain(|number| *number != log);
        self.order_logs();
    }

    /// Whether a log comes last in the order: a device of it is missing, or it could not be written. Such logs stay in
    /// the order, because their slots are counted.
    pub(super) fn is_last(&self, log: &LogArea) -> (bool, bool) {
        let missing = log.devices().any(|device| !device.is_present());
        (missing, self.slot_retry.last_to_try.contains(&log.number))
    }

    /// Handles a reopened device: everything is tried again.
    pub fn device_back(&mut self) {
        let SlotRetry { quarantined, .. } = std::mem::take(&mut self.slot_retry);
        for (place, count) in quarantined {
            self.free_unrecorded(place, count);
        }
        self.space_waiters.wake(self.slots.take_freed_in());
        self.order_logs();
    }
}
