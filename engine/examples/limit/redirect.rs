//! Redirect: the least work of a server that never overwrites a block: write it to another place, with a checksum and a
//! journal record, and find it again.
//!
//! How it works      Blocks of 4 KiB. A write allocates free slots of a log, computes a CRC-32C of each block, writes
//!                   them with one call, appends one record to a mapped journal, which has a checksum too, and stores
//!                   the slots in a flat map; the blocks' previous slots become free. A read uses the map. One thread,
//!                   no locks, and no snapshots: a map of one version.
//! What it is not    Safe: slots are reused at once, and the journal is overwritten when it is full.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::ptr::null_mut;
use std::sync::Arc;

use polyvol_engine::checksum::crc32c;

use super::{PAYLOAD_BYTES_MAX, Store};

const BLOCK: usize = 4096;
const JOURNAL_BYTES: usize = 64 << 20;
const RECORD_BYTES: usize = 48;
/// Slots of the log for each block of the file.
const SLOTS_PER_BLOCK: u64 = 2;
/// The longest request, blocks.
const RUN_MAX: usize = PAYLOAD_BYTES_MAX / BLOCK;
/// A block in its original place.
const BASE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Entry {
    slot: u32,
    sum: u32,
}

/// See the module's head.
pub struct Redirect {
    file: Arc<File>,
    log: File,
    map: Vec<Entry>,
    /// Slots from this one on were never used.
    fresh: u64,
    /// Free runs of slots, by their length.
    free: Vec<Vec<u32>>,
    journal: &'static mut [u8],
    at: usize,
    seq: u64,
}

impl Redirect {
    /// Serves `file`, and creates `path` and its journal.
    pub fn new(file: Arc<File>, path: &str) -> io::Result<Redirect> {
        let blocks = file.metadata()?.len() / BLOCK as u64;
        let create = |path: &str, length: u64| {
            let made =
                File::options().read(true).write(true).create(true).truncate(true).open(path)?;
            made.set_len(length)?;
            Ok::<File, io::Error>(made)
        };
        let log = create(path, blocks * SLOTS_PER_BLOCK * BLOCK as u64)?;
        let journal = create(&format!("{path}.journal"), JOURNAL_BYTES as u64)?;
        // SAFETY: a new mapping of a file of that length; it stays until the process ends.
        let journal = unsafe {
            let (protection, flags) =
                (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_POPULATE);
            let start =
                libc::mmap(null_mut(), JOURNAL_BYTES, protection, flags, journal.as_raw_fd(), 0);
            if start == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            std::slice::from_raw_parts_mut(start.cast(), JOURNAL_BYTES)
        };
        let map = vec![Entry { slot: BASE, sum: 0 }; blocks as usize];
        Ok(Redirect {
            file,
            log,
            map,
            fresh: 0,
            free: vec![Vec::new(); RUN_MAX + 1],
            journal,
            at: 0,
            seq: 0,
        })
    }

    fn take(&mut self, count: u32) -> io::Result<u32> {
        if let Some(slot) = self.free[count as usize].pop() {
            return Ok(slot);
        }
        let slot = self.fresh;
        self.fresh += u64::from(count);
        if self.fresh > self.map.len() as u64 * SLOTS_PER_BLOCK {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(slot as u32)
    }

    fn record(&mut self, block: u32, slot: u32, sums: &[u32]) {
        let length = RECORD_BYTES + 4 * (sums.len() - 1);
        if self.at + length > JOURNAL_BYTES {
            self.at = 0;
        }
        self.seq += 1;
        let out = &mut self.journal[self.at..self.at + length];
        out[8..16].copy_from_slice(&self.seq.to_le_bytes());
        out[16..20].copy_from_slice(&block.to_le_bytes());
        out[20..24].copy_from_slice(&slot.to_le_bytes());
        out[24..28].copy_from_slice(&(sums.len() as u32).to_le_bytes());
        for (out, sum) in out[44..].chunks_exact_mut(4).zip(sums) {
            out.copy_from_slice(&sum.to_le_bytes());
        }
        let sum = crc32c(&out[8..]);
        out[..4].copy_from_slice(&sum.to_le_bytes());
        self.at += length;
    }

    /// Stores the slots of written blocks in the map, and frees their previous ones.
    fn map(&mut self, first: usize, slot: u32, sums: &[u32]) {
        let mut run: Option<(u32, u32)> = None;
        for (entry, (number, sum)) in self.map[first..].iter_mut().zip((slot..).zip(sums)) {
            let old = std::mem::replace(entry, Entry { slot: number, sum: *sum }).slot;
            run = match run {
                Some((start, count)) if old == start + count => Some((start, count + 1)),
                other => {
                    give(&mut self.free, other);
                    (old != BASE).then_some((old, 1))
                }
            };
        }
        give(&mut self.free, run);
    }
}

fn give(free: &mut [Vec<u32>], run: Option<(u32, u32)>) {
    if let Some((start, count)) = run {
        free[count as usize].push(start);
    }
}

impl Store for Redirect {
    fn read(&mut self, out: &mut [u8], offset: u64) -> io::Result<()> {
        for (block, out) in (offset as usize / BLOCK..).zip(out.chunks_mut(BLOCK)) {
            let Entry { slot, sum } = self.map[block];
            if slot == BASE {
                self.file.read_exact_at(out, (block * BLOCK) as u64)?;
                continue;
            }
            self.log.read_exact_at(out, u64::from(slot) * BLOCK as u64)?;
            if out.len() == BLOCK && crc32c(out) != sum {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let first = offset as usize / BLOCK;
        if !(offset as usize | bytes.len()).is_multiple_of(BLOCK)
            || first + bytes.len() / BLOCK > self.map.len()
        {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let slot = self.take((bytes.len() / BLOCK) as u32)?;
        let sums: Vec<u32> = bytes.chunks_exact(BLOCK).map(crc32c).collect();
        self.log.write_all_at(bytes, u64::from(slot) * BLOCK as u64)?;
        self.record(first as u32, slot, &sums);
        self.map(first, slot, &sums);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        self.log.sync_data()
    }
}
