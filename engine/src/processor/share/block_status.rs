//! Block status: the small verbs CACHE and BLOCK_STATUS, which read no data.
//!
//! How it works      The processor answers from the map; a pool thread queries a device's file system, because the
//!                   query may wait for a thread that clears or writes the same file, and takes long for a fragmented
//!                   file. Both stop after a while, and after as many extents as an answer may have: then the answer
//!                   ends there ([`Request::answer_up_to`]).
//! Invariants        LK1 the answer includes the first byte of the request, or the request fails: so repeated requests
//!                   end.

use crate::block_map::leaf::Found;
use crate::block_map::place::Place;
use crate::error::Errno;
use crate::geometry::Partition;
use crate::processor::io_job::{Job, Spot, Step};
use crate::processor::part::Part;
use crate::processor::share::clearing::Deadline;
use crate::processor::share::{Context, Share};
use crate::request::{Request, StatusExtent};

/// Runs of one partition that one piece looks up, if the volume is not a clone.
const RUNS_MAX: u32 = 1024;

/// Read-ahead of one call, bytes, of one run.
const AHEAD_BYTES: usize = 2 << 20;
/// Calls on a device between two reads of the clock.
const CALLS: u32 = 16;

impl Share {
    /// How many runs one piece looks up. In a clone each may be looked up in several origins.
    fn runs_max(&self) -> u32 {
        let origins = std::iter::successors(self.origin.as_ref(), |origin| origin.origin.as_ref());
        (RUNS_MAX / (1 + origins.count() as u32)).max(16)
    }

    pub(super) fn cache(&mut self, mut part: Part, context: &mut Context<'_>) {
        let mut job = self.new_job(&part, false);
        let (mut left, mut reached) = (self.runs_max(), part.offset);
        let planned = self.for_each_run(&part, |of, found, offset, length, _| {
            let length = length.min(AHEAD_BYTES);
            let bytes = length as u64;
            if found.place == Place::BASE {
                job.steps.push(Step::AheadBase { of: of.cloned(), offset, length: bytes });
            } else if found.place.is_slot() {
                let spot = self.spot(of, found.place);
                job.steps.push(Step::AheadSlots { spot, offset, length: bytes });
            }
            left = if length == AHEAD_BYTES { 0 } else { left - 1 };
            reached = offset as u32 + length as u32;
            Ok(left > 0)
        });
        part.cut(reached);
        if planned.is_err() || job.steps.is_empty() {
            return self.end(part, planned, context);
        }
        self.hand_over(part, job, context);
    }

    pub(super) fn block_status(&mut self, mut part: Part, context: &mut Context<'_>) {
        if !part.request.continues_at(part.start()) {
            return self.end_now(part, Ok(()), context);
        }
        if let Some(contexts) = part.request.contexts.clone() {
            self.find_changes(&part, &contexts, context.system);
            if !contexts.allocation {
                return self.end(part, Ok(()), context);
            }
        }
        let mut job = self.new_job(&part, false);
        let mut known = Statuses::new(&part.request);
        let (mut left, mut reached) = (self.runs_max(), part.offset);
        let start = part.start() - u64::from(part.offset);
        let planned = self.for_each_run(&part, |of, found, offset, length, _| {
            let (at, length) = (start + offset, length as u64);
            match status_of(&found) {
                Some(hole) => known.push(at, length, hole),
                None => job.steps.push(Step::Allocation { of: of.cloned(), offset, length, at }),
            }
            left -= 1;
            reached = offset as u32 + length as u32;
            Ok(left > 0 && !known.are_enough())
        });
        assert!(planned.is_ok(), "planning does no I/O");
        part.request.add_status(&known.found);
        if reached < part.offset + part.length && known.are_enough() {
            part.request.answer_up_to(start + u64::from(reached));
        }
        part.cut(reached);
        if job.steps.is_empty() {
            return self.end(part, Ok(()), context);
        }
        self.hand_over(part, job, context);
    }
}

/// Whether a run is a hole, from the map; `None`: its device must be queried.
fn status_of(found: &Found<'_>) -> Option<bool> {
    (found.place != Place::BASE).then_some(found.place == Place::ZERO)
}

/// Statuses found, in order.
struct Statuses {
    found: Vec<StatusExtent>,
    most: usize,
}

impl Statuses {
    fn new(request: &Request) -> Statuses {
        Statuses { found: Vec::new(), most: request.extents_max }
    }

    fn push(&mut self, offset: u64, length: u64, hole: bool) {
        match self.found.last_mut() {
            Some(last) if last.hole == hole && last.offset + last.length == offset => {
                last.length += length;
            }
            _ => self.found.push(StatusExtent { offset, length, hole, zero: hole }),
        }
    }

    /// Whether there are as many as an answer may have.
    fn are_enough(&self) -> bool {
        self.found.len() > self.most
    }
}

impl Job {
    /// Queries the allocation from devices, for a limited time.
    pub(in crate::processor) fn query_allocation(
        &self,
        partition: &Partition,
        steps: &[Step],
    ) -> Result<(), Errno> {
        let request = self.request.as_ref().expect("it is a request's");
        let (mut found, deadline) = (Statuses::new(request), Deadline::of(partition));
        let (mut reached, mut calls) = (None, 0);
        let mut looked = Ok(());
        for step in steps {
            let Step::Allocation { of, offset, length, at } = step else {
                unreachable!("all steps are of one kind")
            };
            reached = None;
            looked = self.base(of.as_ref(), partition).pieces(
                *offset,
                *length,
                |device, from, here, done| {
                    let mut seen = 0;
                    while seen < here {
                        reached = Some(at + done + seen);
                        let late = calls % CALLS == CALLS - 1 && deadline.has_come();
                        if late || found.are_enough() {
                            return Err(None);
                        }
                        calls += 1;
                        let result = device.allocation(from + seen, here - seen);
                        let (run, hole) = result.map_err(Some)?;
                        found.push(at + done + seen, run, hole);
                        seen += run;
                    }
                    Ok(())
                },
            );
            if looked.is_err() {
                break;
            }
        }
        request.add_status(&found.found);
        let Err(stopped) = looked else { return Ok(()) };
        let reached = reached.expect("it stopped somewhere");
        request.answer_up_to(reached);
        // LK1: the answer only has to include the request's beginning.
        stopped.filter(|_| reached == request.offset).map_or(Ok(()), Err)
    }

    /// Requests read-ahead from devices, for a limited time; notes where it stopped.
    pub(in crate::processor) fn read_ahead(
        &mut self,
        partition: &Partition,
        steps: &[Step],
    ) -> Result<(), Errno> {
        let deadline = Deadline::of(partition);
        for (number, step) in steps.iter().enumerate() {
            let offset = match step {
                Step::AheadBase { offset, .. } | Step::AheadSlots { offset, .. } => *offset,
                _ => unreachable!("all steps are of one kind"),
            };
            if number > 0 && deadline.has_come() {
                self.stopped_at = Some(offset);
                break;
            }
            match step {
                Step::AheadSlots { spot: Spot { device, offset, .. }, length, .. } => {
                    device.will_need(*offset, *length);
                }
                Step::AheadBase { of, offset, length } => {
                    let base = self.base(of.as_ref(), partition);
                    base.pieces(*offset, *length, |device, from, here, _| {
                        device.will_need(from, here);
                        Ok::<(), Errno>(())
                    })?;
                }
                _ => unreachable!("all steps are of one kind"),
            }
        }
        Ok(())
    }
}
