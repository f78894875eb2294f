//! I/O jobs: the I/O of one part, planned by its processor, done there or on a pool thread.
//!
//! How it works      A job is a list of steps that needs no map and no lock to be run: places were resolved when it was
//!                   planned. It includes a write's changes of the map, which the processor applies after the job has
//!                   succeeded.
//! Invariants        I1 a job's blocks are reserved in its share while it is on a pool thread: no conflicting request
//!                   that overlaps them starts in the meantime;
//!                   I2 a slot is read completely and checked, or its contents are not used.

use std::ptr::NonNull;
use std::sync::Arc;

use crate::block_map::place::Place;
use crate::change_log::space::LogArea;
use crate::checksum;
use crate::error::Errno;
use crate::geometry::bad_blocks::BadBlocks;
use crate::geometry::origin::Origin;
use crate::geometry::{Geometry, Partition};
use crate::io::device::Device;
use crate::mutants::{Bug, bug};
use crate::processor::part::Part;
use crate::request::Request;
use crate::system::ring::Read;
use crate::units::{BLOCK_SIZE, BlockIndex};

const BLOCK: usize = BLOCK_SIZE as usize;

/// Consecutive slots on a device.
#[derive(Clone, Debug)]
pub struct Spot {
    /// The device.
    pub device: Arc<Device>,
    /// First byte.
    pub offset: u64,
    /// The first slot.
    pub place: Place,
}

/// Where the old contents of a partially overwritten block are.
#[derive(Clone, Debug)]
pub enum Old {
    /// At its base place, or an origin's.
    Base(Option<Arc<Origin>>),
    /// Nowhere: it is zero.
    Zero,
    /// In a slot, or an origin's, with this checksum.
    Slot(Option<Arc<Origin>>, Spot, u32),
}

/// The destination of complete blocks.
#[derive(Clone, Debug)]
pub enum Target {
    /// To their base places.
    Base,
    /// To consecutive slots.
    Slots(Spot),
}

/// One step of a job. `at` counts bytes from the request's start; offsets count from the partition's. `of`: the origin
/// that has the place, if it is not the volume itself.
#[allow(missing_docs)]
#[derive(Clone, Debug)]
pub enum Step {
    /// Read from the base place.
    ReadBase { of: Option<Arc<Origin>>, offset: u64, length: u64, at: usize },
    /// Fill with zeroes.
    ReadZero { length: usize, at: usize },
    /// Read consecutive slots, without the first `skip` bytes.
    ReadSlots {
        of: Option<Arc<Origin>>,
        spot: Spot,
        block: BlockIndex,
        sums: Vec<u32>,
        skip: usize,
        length: usize,
        at: usize,
    },
    /// Overwrite at the base place.
    WriteInPlace { offset: u64, length: u64, at: usize },
    /// Write complete blocks to a new place.
    WriteWhole { change: usize, target: Target, at: usize },
    /// Write one block, of which `length` bytes from `skip` on are overwritten, to a new place.
    WritePartial { change: usize, target: Target, old: Old, skip: usize, length: usize, at: usize },
    /// Punch or zero a run of base places.
    Clear { offset: u64, length: u64, keep_allocated: bool },
    /// Copy slots, each run with its checksums, to the base places of consecutive blocks from `first` on.
    CopyHome { first: BlockIndex, slots: Vec<(Spot, Vec<u32>)> },
    /// Copy the base places of a change's blocks to its slots.
    CopyAway { change: usize, to: Spot },
    /// Query the allocation of a run of base places; `at` is in the volume.
    Allocation { of: Option<Arc<Origin>>, offset: u64, length: u64, at: u64 },
    /// Read-ahead of a run of base places.
    AheadBase { of: Option<Arc<Origin>>, offset: u64, length: u64 },
    /// Read-ahead of consecutive slots.
    AheadSlots { spot: Spot, offset: u64, length: u64 },
}

/// A change of the map, prepared by a job.
#[derive(Clone, Debug)]
pub struct NewPlace {
    /// First block.
    pub first: BlockIndex,
    /// Blocks.
    pub count: u32,
    /// The place of the first block.
    pub place: Place,
    /// Checksums, computed as the data is written.
    pub sums: Vec<u32>,
}

/// Log areas, each with the number of its slots that a write may free.
pub type Frees = Vec<(Arc<LogArea>, u64)>;

/// See the module's head.
pub struct Job {
    /// The volume's shape.
    pub geometry: Arc<Geometry>,
    /// The partition within the volume.
    pub partition: u32,
    /// The request whose buffer is read or filled; `None` for work of the share itself.
    pub request: Option<Arc<Request>>,
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// Changes of the map after success.
    pub changes: Vec<NewPlace>,
    /// Write zeroes instead of the request's buffer.
    pub zeroes: bool,
    /// Where in the partition it stopped, if it was long and did not finish.
    pub stopped_at: Option<u64>,
    /// The change whose slots could not be written, if that is the reason of a failure.
    pub failed: Option<usize>,
    /// What it may free in areas in which it has claimed no slots.
    pub frees: Frees,
    /// The list of bad blocks.
    pub bad: Arc<BadBlocks>,
}

/// A job that a pool thread has finished.
pub struct Done {
    /// The share.
    pub share: u32,
    /// The reservation.
    pub id: u64,
    /// The part, unless it was work of the share itself.
    pub part: Option<Part>,
    /// The job.
    pub job: Job,
    /// Its result.
    pub result: Result<(), Errno>,
}

impl Job {
    /// Runs all steps, and waits for the disk if necessary.
    pub fn run(&mut self) -> Result<(), Errno> {
        let geometry = Arc::clone(&self.geometry);
        let partition = &geometry.partitions[self.partition as usize];
        let steps = std::mem::take(&mut self.steps);
        match steps.first() {
            Some(Step::Clear { .. }) => return self.clear_all(partition, &steps),
            Some(Step::CopyHome { .. }) => return self.copy_home(partition, &steps),
            Some(Step::CopyAway { .. }) => return self.copy_away(partition, &steps),
            Some(Step::Allocation { .. }) => return self.query_allocation(partition, &steps),
            Some(Step::AheadBase { .. } | Step::AheadSlots { .. }) => {
                return self.read_ahead(partition, &steps);
            }
            _ => {}
        }
        steps.iter().try_for_each(|step| match step {
            Step::ReadBase { .. } | Step::ReadZero { .. } | Step::ReadSlots { .. } => {
                self.read_step(partition, step, Device::read)
            }
            _ => self.write_step(partition, step),
        })
    }

    fn buffer(&self) -> &Request {
        self.request.as_ref().expect("only a request's job reads or writes its buffer")
    }

    /// The request's bytes `at..at + length`, to fill.
    fn fill(&mut self, at: usize, length: usize) -> &mut [u8] {
        // SAFETY: B3: only this part accesses its range of the request's buffer, and `at` is inside it.
        unsafe { self.buffer().data.part_mut(at, length) }
    }

    /// Its only read and the device, if it reads one range of one device, of complete blocks if they have checksums.
    pub fn only_read(&mut self) -> Option<(Read, Arc<Device>)> {
        let partition = &self.geometry.partitions[self.partition as usize];
        let [step] = &self.steps[..] else { return None };
        let (device, offset, at, length) = match step {
            Step::ReadBase { of, offset, length, at } => {
                let (mut found, mut pieces) = (None, 0);
                let base = self.base(of.as_ref(), partition);
                let result = base.pieces(*offset, *length, |device, from, _, _| {
                    pieces += 1;
                    found = Some((Arc::clone(device), from));
                    Ok::<(), Errno>(())
                });
                assert!(result.is_ok(), "nothing was read");
                let (device, from) = found.filter(|_| pieces == 1)?;
                (device, from, *at, *length as usize)
            }
            Step::ReadSlots { spot, skip: 0, length, at, .. } if length % BLOCK == 0 => {
                (Arc::clone(&spot.device), spot.offset, *at, *length)
            }
            _ => return None,
        };
        let file = device.ring_file(offset | at as u64, length as u64)?;
        let start = NonNull::from(self.fill(at, length)).cast();
        Some((Read { file, offset, start, length: length as u32 }, device))
    }

    /// Checks the bytes after the read of [`Job::only_read`].
    pub fn check_read(&mut self) -> Result<(), Errno> {
        let geometry = Arc::clone(&self.geometry);
        let partition = &geometry.partitions[self.partition as usize];
        let steps = std::mem::take(&mut self.steps);
        steps.iter().try_for_each(|step| self.read_step(partition, step, |_, _, _| Ok(())))
    }

    /// Reads with `read`, and checks the checksums.
    fn read_step(
        &mut self,
        partition: &Partition,
        step: &Step,
        read: impl Fn(&Device, &mut [u8], u64) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        match step {
            Step::ReadBase { of, offset, length, at } => self.base(of.as_ref(), partition).pieces(
                *offset,
                *length,
                |device, from, here, done| {
                    read(device, self.fill(at + done as usize, here as usize), from)
                },
            ),
            Step::ReadZero { length, at } => {
                self.fill(*at, *length).fill(0);
                Ok(())
            }
            Step::ReadSlots { of, spot, block, sums, skip, length, at } => {
                let (bad, partition) = (Arc::clone(self.bad_of(of.as_ref())), self.partition);
                let note = |index: u32| {
                    bad.note(partition, block + index, spot.place.step(index), spot.device.id);
                };
                let out = self.fill(*at, *length);
                read_slots(spot, sums, *skip, out, note, |device, buffer, offset| {
                    read(device, buffer, offset).map(|()| true)
                })
                .map(|_| ())
            }
            _ => unreachable!("a write step"),
        }
    }

    fn write_step(&mut self, partition: &Partition, step: &Step) -> Result<(), Errno> {
        match step {
            Step::WriteInPlace { offset, length, at } => {
                with_bytes(self.zeroes, self.buffer(), *at, *length as usize, |source| {
                    write_base(partition, *offset, source)
                })
            }
            Step::WriteWhole { change, target, at } => {
                let NewPlace { first, count, .. } = self.changes[*change];
                let length = count as usize * BLOCK;
                let mut sums = std::mem::take(&mut self.changes[*change].sums);
                let result = with_bytes(self.zeroes, self.buffer(), *at, length, |source| {
                    write_blocks(partition, first, target, source, &mut sums)
                });
                self.changes[*change].sums = sums;
                self.noted(*change, target, result)
            }
            Step::WritePartial { change, target, old, skip, length, at } => {
                let first = self.changes[*change].first;
                let mut block = [0; BLOCK];
                self.read_old(partition, first, old, &mut block)?;
                with_bytes(self.zeroes, self.buffer(), *at, *length, |source| {
                    block[*skip..*skip + *length].copy_from_slice(source);
                    Ok(())
                })?;
                let mut sums = Vec::with_capacity(1);
                let result = write_blocks(partition, first, target, &block, &mut sums);
                self.changes[*change].sums = sums;
                self.noted(*change, target, result)
            }
            _ => unreachable!("a read step"),
        }
    }
}

impl Job {
    /// The partition's base places, or an origin's.
    pub(super) fn base<'a>(
        &self,
        of: Option<&'a Arc<Origin>>,
        own: &'a Partition,
    ) -> &'a Partition {
        of.map_or(own, |source| &source.geometry.partitions[self.partition as usize])
    }

    /// The list of bad blocks of the volume, or of an origin.
    fn bad_of<'a>(&'a self, of: Option<&'a Arc<Origin>>) -> &'a Arc<BadBlocks> {
        of.map_or(&self.bad, |source| &source.bad)
    }

    fn read_old(
        &self,
        partition: &Partition,
        first: BlockIndex,
        old: &Old,
        block: &mut [u8],
    ) -> Result<(), Errno> {
        let (start, number) = (u64::from(first) * BLOCK_SIZE, self.partition);
        match old {
            Old::Base(of) => {
                let base = self.base(of.as_ref(), partition);
                base.pieces(start, BLOCK_SIZE, |device, from, here, done| {
                    device.read(&mut block[done as usize..(done + here) as usize], from)
                })
            }
            Old::Zero => {
                block.fill(0);
                Ok(())
            }
            Old::Slot(of, spot, sum) => {
                spot.device.read(block, spot.offset)?;
                verify(block, std::slice::from_ref(sum), |_| {
                    self.bad_of(of.as_ref()).note(number, first, spot.place, spot.device.id);
                })
            }
        }
    }

    /// Notes the change whose slots could not be written.
    fn noted(
        &mut self,
        change: usize,
        target: &Target,
        result: Result<(), Errno>,
    ) -> Result<(), Errno> {
        if result.is_err() && matches!(target, Target::Slots(_)) {
            self.failed = Some(change);
        }
        result
    }
}

/// For partial blocks that are to read as zeroes: at most two adjacent ones.
static ZEROES: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// Calls `f` with the bytes to write: those of the request, or zeroes, in pieces of at most [`ZEROES`].
fn with_bytes(
    zeroes: bool,
    request: &Request,
    at: usize,
    length: usize,
    f: impl FnOnce(&[u8]) -> Result<(), Errno>,
) -> Result<(), Errno> {
    if zeroes { f(&ZEROES[..length]) } else { f(&request.data.as_slice()[at..at + length]) }
}

/// Overwrites bytes at their base place.
pub fn write_base(partition: &Partition, offset: u64, source: &[u8]) -> Result<(), Errno> {
    partition.pieces(offset, source.len() as u64, |device, from, here, done| {
        device.write(&source[done as usize..(done + here) as usize], from)
    })
}

/// Writes complete blocks to their target; slots get their checksums.
pub fn write_blocks(
    partition: &Partition,
    first: BlockIndex,
    target: &Target,
    source: &[u8],
    sums: &mut Vec<u32>,
) -> Result<(), Errno> {
    match target {
        Target::Base => write_base(partition, u64::from(first) * BLOCK_SIZE, source),
        Target::Slots(spot) => write_slots(&spot.device, spot.offset, source, sums),
    }
}

/// Writes complete blocks to slots, which get their checksums.
pub fn write_slots(
    device: &Device,
    offset: u64,
    source: &[u8],
    sums: &mut Vec<u32>,
) -> Result<(), Errno> {
    sums.clear();
    sums.extend(source.chunks_exact(BLOCK).map(checksum::crc32c));
    device.write(source, offset)
}

/// Checks complete blocks against their checksums (I2); calls `note` with the index of each that does not match.
pub fn verify(blocks: &[u8], sums: &[u32], mut note: impl FnMut(u32)) -> Result<(), Errno> {
    let mut result = Ok(());
    for (index, (block, sum)) in blocks.chunks_exact(BLOCK).zip(sums).enumerate() {
        if checksum::crc32c(block) != *sum {
            note(index as u32);
            result = Err(Errno::EIO);
        }
    }
    if bug(Bug::NoChecksum) { Ok(()) } else { result }
}

/// Reads consecutive slots into `out`, without the first `skip` bytes, with `read`, which returns whether it could
/// without waiting. Complete blocks are read straight into `out`. Calls `note` with the index of each block that does
/// not match.
pub fn read_slots(
    spot: &Spot,
    sums: &[u32],
    skip: usize,
    out: &mut [u8],
    mut note: impl FnMut(u32),
    mut read: impl FnMut(&Device, &mut [u8], u64) -> Result<bool, Errno>,
) -> Result<bool, Errno> {
    let mut block = [0; BLOCK];
    let (mut done, mut from) = (0, skip);
    while done < out.len() {
        let index = from / BLOCK;
        let inner = from % BLOCK;
        let whole = (out.len() - done) / BLOCK;
        let offset = spot.offset + (index * BLOCK) as u64;
        if inner == 0 && whole > 0 {
            let into = &mut out[done..done + whole * BLOCK];
            if !read(&spot.device, into, offset)? {
                return Ok(false);
            }
            verify(into, &sums[index..index + whole], |bad| note(index as u32 + bad))?;
            done += whole * BLOCK;
            from += whole * BLOCK;
            continue;
        }
        if !read(&spot.device, &mut block, offset)? {
            return Ok(false);
        }
        verify(&block, &sums[index..=index], |_| note(index as u32))?;
        let here = (BLOCK - inner).min(out.len() - done);
        out[done..done + here].copy_from_slice(&block[inner..inner + here]);
        done += here;
        from += here;
    }
    Ok(true)
}
