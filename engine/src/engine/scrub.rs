//! Scrub: reads all slots, and checks them.
//!
//! How it works      The partition's processor lists its slots; the caller's thread reads them, so that the pool serves
//!                   only hosts; the caller decides how fast, call by call. A slot that does not match is read again,
//!                   and before and after that the processor is asked whether any version sees it: so a slot that was
//!                   freed and reused during the scrub is never reported.
//! Errors            a failed read is reported, not raised.

use std::sync::Arc;

use crate::checksum;
use crate::engine::Engine;
use crate::error::{Errno, Error, ErrorKind, Result};
use crate::io::device::Device;
use crate::processor::messages::Control;
use crate::processor::queue::{Queue, ask};
use crate::processor::share::scrub::{Cursor, Question, SeenBy, SlotRun};
use crate::system::pool::Lane;
use crate::units::{BLOCK_SIZE, BlockIndex, DeviceId, LocalIndex, PartitionIndex, VolumeId};
use crate::volume::Volume;

const BLOCK: usize = BLOCK_SIZE as usize;

/// A block that could not be read or does not match its checksum.
#[derive(Clone, Debug)]
pub struct ScrubBad {
    /// The block within the partition.
    pub block: BlockIndex,
    /// The device of its slot.
    pub device: DeviceId,
    /// The error of the read; `None`: it was read, and does not match.
    pub errno: Option<Errno>,
    /// The versions that see it.
    pub seen_by: SeenBy,
}

/// Result of one call.
#[derive(Clone, Debug, Default)]
pub struct ScrubReport {
    /// Where to continue; `None` at the partition's end.
    pub next: Option<Cursor>,
    /// Bytes that were read and checked, bad ones included.
    pub bytes: u64,
    /// Bytes on devices that are missing.
    pub skipped_bytes: u64,
    /// Bad blocks.
    pub bad: Vec<ScrubBad>,
}

/// A partition that is being scrubbed.
struct Scrub<'a> {
    engine: &'a Engine,
    volume: Arc<Volume>,
    queue: Arc<Queue>,
    partition: PartitionIndex,
    local: LocalIndex,
    report: ScrubReport,
}

impl Engine {
    /// Reads and checks a partition's slots from `cursor` on, about `bytes_max` bytes of them.
    pub fn scrub(
        &self,
        volume: VolumeId,
        partition: PartitionIndex,
        cursor: Cursor,
        bytes_max: u64,
    ) -> Result<ScrubReport> {
        let volume = self.volume(volume)?;
        let Some(place) = volume.geometry.partitions.get(partition as usize) else {
            let what = format!("volume {} has no partition {partition}", volume.name);
            return Err(Error::new(ErrorKind::NotFound, what));
        };
        let (share, local) = (volume.share_of[place.processor as usize], place.local);
        let queue = Arc::clone(&volume.shares[share].queue);
        let blocks_min = (bytes_max / BLOCK_SIZE).clamp(1, u64::from(u32::MAX)) as u32;
        let number = volume.share;
        let (runs, next) = ask(&*self.system, &queue, |answer| {
            Control::Scrub(number, Question::SlotsFrom { local, cursor, blocks_min, answer })
        })?;
        let report = ScrubReport { next, ..ScrubReport::default() };
        let mut scrub = Scrub { engine: self, volume, queue, partition, local, report };
        for run in &runs {
            scrub.run(run)?;
        }
        Ok(scrub.report)
    }
}

impl Scrub<'_> {
    fn run(&mut self, run: &SlotRun) -> Result<()> {
        let mut done = 0;
        while done < run.sums.len() {
            let place = run.place.step(done as u32);
            let left = place.slot_number().left_in_chunk() as usize;
            let count = left.min(run.sums.len() - done);
            let sums = run.sums[done..done + count].to_vec();
            self.piece(&SlotRun { block: run.block + done as u32, place, sums })?;
            done += count;
        }
        Ok(())
    }

    fn piece(&mut self, run: &SlotRun) -> Result<()> {
        let bytes = run.sums.len() * BLOCK;
        let Some(log) = self.volume.space.log(run.place.log()) else { return Ok(()) };
        let (device, offset) = log.locate(run.place.slot_number());
        if !device.is_present() {
            self.report.skipped_bytes += bytes as u64;
            return Ok(());
        }
        self.report.bytes += bytes as u64;
        let (read, buffer) = self.read(device, bytes, offset);
        let whole = read.is_ok();
        let mut all_well = true;
        for (index, block) in buffer.chunks_exact(BLOCK).enumerate() {
            if whole && checksum::crc32c(block) == run.sums[index] {
                continue;
            }
            let offset = offset + (index * BLOCK) as u64;
            all_well &= self.recheck(run, index as u32, device, offset)?;
        }
        if all_well {
            self.volume.bad.forget(run.place, run.sums.len() as u32);
        }
        Ok(())
    }

    /// Reads one block again; reports it if it is bad and a version sees it.
    fn recheck(
        &mut self,
        run: &SlotRun,
        index: u32,
        device: &Arc<Device>,
        offset: u64,
    ) -> Result<bool> {
        if self.seen_by(run, index)?.is_none() {
            return Ok(true);
        }
        let (read, block) = self.read(device, BLOCK, offset);
        if read.is_ok() && checksum::crc32c(&block) == run.sums[index as usize] {
            return Ok(true);
        }
        let Some(seen_by) = self.seen_by(run, index)? else { return Ok(true) };
        let block = run.block + index;
        if read.is_ok() {
            let place = run.place.step(index);
            self.volume.bad.note(self.partition, block, place, device.id);
        }
        self.report.bad.push(ScrubBad { block, device: device.id, errno: read.err(), seen_by });
        Ok(false)
    }

    /// Reads on a thread of the pool, because the read may never end.
    fn read(
        &self,
        device: &Arc<Device>,
        length: usize,
        offset: u64,
    ) -> (std::result::Result<(), Errno>, Vec<u8>) {
        let (ours, pool, lane) = (Arc::clone(device), &self.engine.pool, Lane::Device(device.id));
        let read = self.engine.bounded(pool, lane, Some(device), move |_| {
            let mut buffer = vec![0; length];
            (ours.read(&mut buffer, offset), buffer)
        });
        read.unwrap_or_else(|| (Err(Errno::EIO), vec![0; length]))
    }

    fn seen_by(&self, run: &SlotRun, index: u32) -> Result<Option<SeenBy>> {
        let (local, block) = (self.local, run.block + index);
        let (place, sum) = (run.place.step(index), run.sums[index as usize]);
        ask(&*self.engine.system, &self.queue, |answer| {
            let question = Question::SeenBy { local, block, place, sum, answer };
            Control::Scrub(self.volume.share, question)
        })
    }
}
