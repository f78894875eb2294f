//! Record: the kinds of a journal's records, and their bytes.

use super::{RECORD_BYTES, seed, u16_at, u32_at, u64_at};
use crate::block_map::counters::Counters;
use crate::block_map::place::Place;
use crate::block_map::relocation::Move;
use crate::checksum;
use crate::units::Epoch;

/// The kinds of record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// Blocks `first..first + count` of `partition` are at `place` and the places that follow it.
    Map,
    /// A cut ended `epoch`; `place` holds its instant, ns since 1970, `count` the processor's partitions (0: unknown).
    Cut,
    /// A rollback ended `epoch`; `place` holds the epoch of the snapshot that was its target, `partition` and `first`
    /// the low and the high half of the volume's size in blocks.
    Rollback,
    /// No epoch from `place` to `epoch` has a snapshot any more.
    Dropped,
    /// The volume has grown in `epoch`; `partition` and `first` hold the low and the high half of its size in blocks.
    Grown,
    /// What was counted of `partition` up to the end of `epoch`: `place` holds when it was written last, ns since 1970, and
    /// [`Record::counters`] the rest.
    State,
    /// Blocks `first..first + count` of `partition` went to their base places from slots, the first from `place`.
    Home,
    /// Blocks `first..first + count` of `partition` went from their base places to slots, the first to `place`.
    Away,
}

/// One record, without its checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its kind.
    pub kind: RecordKind,
    /// Its sequence number: one more than that of the record before.
    pub seq: u64,
    /// The epoch in which the write was started.
    pub epoch: Epoch,
    /// Partition within the volume.
    pub partition: u32,
    /// First block within the partition.
    pub first: u32,
    /// Blocks.
    pub count: u32,
    /// The first block's place, raw, or another value for other kinds.
    pub place: u64,
}

const KIND_MAP: u8 = 1;
const KIND_CUT: u8 = 2;
const KIND_ROLLBACK: u8 = 3;
const KIND_DROPPED: u8 = 4;
const KIND_GROWN: u8 = 5;
const KIND_STATE: u8 = 6;
const KIND_HOME: u8 = 7;
const KIND_AWAY: u8 = 8;
const FLAG_SUMS: u8 = 1;

/// Bytes of a record with so many checksums.
pub const fn record_bytes(sums: usize) -> usize {
    RECORD_BYTES + (sums * 4).next_multiple_of(8)
}

impl Record {
    /// Writes it with its checksums into `out`, which is [`record_bytes`] long.
    pub fn encode(&self, sums: &[u32], incarnation: u64, out: &mut [u8]) {
        assert_eq!(out.len(), record_bytes(sums.len()));
        out[4] = match self.kind {
            RecordKind::Map => KIND_MAP,
            RecordKind::Cut => KIND_CUT,
            RecordKind::Rollback => KIND_ROLLBACK,
            RecordKind::Dropped => KIND_DROPPED,
            RecordKind::Grown => KIND_GROWN,
            RecordKind::State => KIND_STATE,
            RecordKind::Home => KIND_HOME,
            RecordKind::Away => KIND_AWAY,
        };
        out[5] = if sums.is_empty() { 0 } else { FLAG_SUMS };
        let words = ((out.len() - RECORD_BYTES) / 8) as u16;
        out[6..8].copy_from_slice(&words.to_le_bytes());
        out[8..16].copy_from_slice(&self.seq.to_le_bytes());
        out[16..24].copy_from_slice(&self.epoch.to_le_bytes());
        out[24..28].copy_from_slice(&self.partition.to_le_bytes());
        out[28..32].copy_from_slice(&self.first.to_le_bytes());
        out[32..36].copy_from_slice(&self.count.to_le_bytes());
        out[36..40].fill(0);
        out[40..48].copy_from_slice(&self.place.to_le_bytes());
        for (i, sum) in sums.iter().enumerate() {
            out[RECORD_BYTES + i * 4..RECORD_BYTES + i * 4 + 4].copy_from_slice(&sum.to_le_bytes());
        }
        let end = RECORD_BYTES + sums.len() * 4;
        out[end..].fill(0);
        let crc = checksum::crc32c_append(seed(incarnation), &out[4..]);
        out[0..4].copy_from_slice(&crc.to_le_bytes());
    }

    /// The record at the start of `bytes`, its checksums and its length; `Ok(None)` if there is no complete record;
    /// `Err(kind)` for a complete record of an unknown kind.
    pub fn decode(bytes: &[u8], incarnation: u64) -> Result<Option<(Record, Vec<u32>, usize)>, u8> {
        let mut sums = Vec::new();
        let found = Record::decode_into(bytes, seed(incarnation), &mut sums)?;
        Ok(found.map(|(record, length)| (record, sums, length)))
    }

    /// Like [`Record::decode`], with the incarnation's [`seed`], and the checksums stored in `sums`.
    pub fn decode_into(
        bytes: &[u8],
        seed: u32,
        sums: &mut Vec<u32>,
    ) -> Result<Option<(Record, usize)>, u8> {
        sums.clear();
        if bytes.len() < RECORD_BYTES {
            return Ok(None);
        }
        let length = RECORD_BYTES + usize::from(u16_at(bytes, 6)) * 8;
        let Some(whole) = bytes.get(..length) else { return Ok(None) };
        if checksum::crc32c_append(seed, &whole[4..]) != u32_at(bytes, 0) {
            return Ok(None);
        }
        let count = u32_at(bytes, 32);
        let kind = match bytes[4] {
            KIND_MAP => RecordKind::Map,
            KIND_CUT => RecordKind::Cut,
            KIND_ROLLBACK => RecordKind::Rollback,
            KIND_DROPPED => RecordKind::Dropped,
            KIND_GROWN => RecordKind::Grown,
            KIND_STATE => RecordKind::State,
            KIND_HOME => RecordKind::Home,
            KIND_AWAY => RecordKind::Away,
            other => return Err(other),
        };
        match bytes[5] {
            0 => {}
            FLAG_SUMS if record_bytes(count as usize) == length => {
                let raw = whole[RECORD_BYTES..].chunks_exact(4).take(count as usize);
                sums.extend(raw.map(|sum| u32_at(sum, 0)));
            }
            _ => return Err(bytes[4]),
        }
        let record = Record {
            kind,
            seq: u64_at(bytes, 8),
            epoch: u64_at(bytes, 16),
            partition: u32_at(bytes, 24),
            first: u32_at(bytes, 28),
            count,
            place: u64_at(bytes, 40),
        };
        // Reserved, 0 in every version so far: another value is from an unknown version.
        if u32_at(bytes, 36) != 0 {
            return Err(bytes[4]);
        }
        Ok(Some((record, length)))
    }

    /// The volume's size in blocks, for a record of a rollback or a growth.
    pub fn volume_blocks(&self) -> u64 {
        u64::from(self.first) << 32 | u64::from(self.partition)
    }

    /// The counters, for a record of a state: those that its words hold.
    pub fn counters(&self, words: &[u32]) -> Option<Counters> {
        // Version 3 had no fifth word, and at least one write.
        let [low, high, writes_high, writes_low, rest @ ..] = words else { return None };
        let counters = Counters {
            writes: u64::from(*writes_high) << 32 | u64::from(*writes_low),
            written_bytes: u64::from(*high) << 32 | u64::from(*low),
            last_write_ns: self.place,
        };
        let right = rest == [1] || (rest.is_empty() && counters.writes > 0);
        (right && counters.are_possible() && counters.written_bytes > 0).then_some(counters)
    }

    /// The move, for a record of one: `Some(None)` if it is not possible.
    pub fn moved(&self, sums: &[u32]) -> Option<Option<Move>> {
        let place = Place::from_raw(self.place).filter(|place| place.fits(self.count));
        let slots = place.filter(|place| place.is_slot() && self.count > 0);
        let (from, to, expected) = match self.kind {
            RecordKind::Home => (slots, Some(Place::BASE), 0),
            RecordKind::Away => (Some(Place::BASE), slots, self.count as usize),
            _ => return None,
        };
        let (first, count) = (self.first, self.count);
        let made = from.zip(to).filter(|_| sums.len() == expected);
        Some(made.map(|(from, to)| Move { first, count, from, to, sums: sums.to_vec() }))
    }

    /// The place, for a map record with a valid place and the right number of checksums.
    pub fn checked_place(&self, sums: &[u32]) -> Option<Place> {
        let place = Place::from_raw(self.place).filter(|place| place.fits(self.count))?;
        let expected = if place.is_slot() { self.count as usize } else { 0 };
        (sums.len() == expected && self.count > 0).then_some(place)
    }
}

/// The words of a record of a state. The last one is not 0, as the checksums of other records are not.
pub fn state_words(counters: &Counters) -> [u32; 5] {
    let Counters { writes, written_bytes, .. } = counters;
    let halves = |number: u64| [number as u32, (number >> 32) as u32];
    let ([low, high], [writes_low, writes_high]) = (halves(*written_bytes), halves(*writes));
    [low, high, writes_high, writes_low, 1]
}
