//! Read: a part of READ, of the live volume or of a snapshot.
//!
//! How it works      Data in the page cache is read at once, directly into the request's buffer; if any of the part
//!                   would block, a ring or a pool thread reads the part ([`cold`](crate::processor::cold)). Slots are
//!                   checked against their checksums.

use std::sync::Arc;

use crate::block_map::leaf::Found;
use crate::block_map::place::Place;
use crate::block_map::tree::Map;
use crate::change_log::space::{LogArea, Space};
use crate::error::Errno;
use crate::geometry::Partition;
use crate::geometry::origin::{Origin, resolve};
use crate::processor::io_job::{Job, Spot, Step, read_slots};
use crate::processor::part::Part;
use crate::processor::share::backlog::Kind;
use crate::processor::share::{Context, Share, count};
use crate::units::{BLOCK_SIZE, Epoch, LocalIndex};

/// A pool thread reads longer parts: the processor has other requests to serve.
pub(in crate::processor) const INLINE_BYTES_MAX: u32 = 256 << 10;

impl Share {
    pub(super) fn read(&mut self, mut part: Part, context: &mut Context<'_>) {
        let mut done = None;
        if part.length <= INLINE_BYTES_MAX && !part.cold {
            done = match self.read_now(&part) {
                Ok(true) => Some(Ok(())),
                Ok(false) => None,
                Err(errno) => Some(Err(errno)),
            };
            part.cold = done.is_none();
            if part.cold && self.backlog.is_full(Kind::Cold) {
                return self.backlog.push(Kind::Cold, part);
            }
        }
        count(&self.stats.reads, 1);
        count(&self.stats.read_bytes, u64::from(part.length));
        if let Some(result) = done {
            return self.end(part, result, context);
        }
        let job = self.plan_read(&part);
        self.hand_over(part, job, context);
    }

    /// The map of a part's view.
    pub(super) fn map_of(&self, local: LocalIndex, view: Epoch) -> &Map {
        let versions = &self.locals[local.index()].versions;
        if view == 0 { &versions.live } else { versions.at(view).0 }
    }

    /// Reads without waiting; `false` if some of the part would wait.
    pub(super) fn read_now(&self, part: &Part) -> Result<bool, Errno> {
        let number = self.locals[part.local.index()].partition;
        let mut cached = true;
        self.for_each_run(part, |of, found, offset, length, at| {
            // SAFETY: B3: only this part accesses its range of the request's buffer.
            let out = unsafe { part.request.data.part_mut(at, length) };
            if found.place == Place::BASE {
                self.base(of, number).pieces(
                    offset,
                    length as u64,
                    |device, from, here, done| {
                        let out = &mut out[done as usize..(done + here) as usize];
                        cached = cached && device.read_cached(out, from)?;
                        Ok::<(), Errno>(())
                    },
                )?;
            } else if found.place.is_slot() {
                let spot = self.spot(of, found.place);
                let skip = (offset % BLOCK_SIZE) as usize;
                let bad = of.map_or(&self.bad, |origin| &origin.bad);
                let note = |index: u32| {
                    let first = (offset / BLOCK_SIZE) as u32;
                    bad.note(number, first + index, spot.place.step(index), spot.device.id);
                };
                cached = cached
                    && read_slots(
                        &spot,
                        found.checksums,
                        skip,
                        out,
                        note,
                        |device, into, from| device.read_cached(into, from),
                    )?;
            } else {
                out.fill(0);
            }
            Ok(cached)
        })?;
        Ok(cached)
    }

    fn plan_read(&self, part: &Part) -> Job {
        let mut steps = Vec::new();
        let planned = self.for_each_run(part, |of, found, offset, length, at| {
            steps.push(if found.place == Place::BASE {
                Step::ReadBase { of: of.cloned(), offset, length: length as u64, at }
            } else if found.place.is_slot() {
                let spot = self.spot(of, found.place);
                let skip = (offset % BLOCK_SIZE) as usize;
                let block = (offset / BLOCK_SIZE) as u32;
                let (of, sums) = (of.cloned(), found.checksums.to_vec());
                Step::ReadSlots { of, spot, block, sums, skip, length, at }
            } else {
                Step::ReadZero { length, at }
            });
            Ok(true)
        });
        assert!(planned.is_ok(), "planning does no I/O");
        Job { steps, ..self.new_job(part, false) }
    }

    /// Calls `f(of, run, offset in the partition, length, offset in the request)` for each run that a part touches,
    /// until it returns false; `of`: the origin that has it, if it is not the volume itself. A run of slots never
    /// leaves its chunk.
    pub(super) fn for_each_run(
        &self,
        part: &Part,
        mut f: impl FnMut(Option<&Arc<Origin>>, Found<'_>, u64, usize, usize) -> Result<bool, Errno>,
    ) -> Result<(), Errno> {
        let map = self.map_of(part.local, part.view);
        let partition = self.locals[part.local.index()].partition;
        let (first, last) = part.blocks();
        let end = u64::from(part.offset) + u64::from(part.length);
        let mut block = first;
        while block <= last {
            let own = map.find(block, last - block + 1);
            let (of, found) = resolve(own, self.origin.as_ref(), partition, block);
            let found = within_chunk(found);
            let from = (u64::from(block) * BLOCK_SIZE).max(u64::from(part.offset));
            let to = (u64::from(block + found.count) * BLOCK_SIZE).min(end);
            let at = part.at as usize + (from - u64::from(part.offset)) as usize;
            block += found.count;
            if !f(of, found, from, (to - from) as usize, at)? {
                break;
            }
        }
        Ok(())
    }

    /// The spot of a slot of the volume or of an origin.
    pub(super) fn spot(&self, of: Option<&Arc<Origin>>, place: Place) -> Spot {
        spot_in(of.map_or(&self.space, |origin| &origin.space), place)
    }

    /// The base places of a partition of the volume or of an origin.
    pub(super) fn base<'a>(&'a self, of: Option<&'a Arc<Origin>>, number: u32) -> &'a Partition {
        &of.map_or(&self.geometry, |origin| &origin.geometry).partitions[number as usize]
    }
}

/// A run of slots up to its chunk's end: the next chunk may be in another extent.
pub(super) fn within_chunk(found: Found<'_>) -> Found<'_> {
    if !found.place.is_slot() {
        return found;
    }
    let count = found.count.min(found.place.slot_number().left_in_chunk());
    Found { count, checksums: &found.checksums[..count as usize], ..found }
}

fn spot_in(space: &Space, place: Place) -> Spot {
    let log: Arc<LogArea> =
        space.log(place.log()).expect("recovery has checked every log's number");
    let (device, offset) = log.locate(place.slot_number());
    Spot { device: Arc::clone(device), offset, place }
}
