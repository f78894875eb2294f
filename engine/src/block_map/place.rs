//! Place: where one block's contents are, in eight bytes.
//!
//! ```text
//! bits 63..62   kind: 0 base, 1 zero, 2 slot (3 is never written)
//! bits 61..52   zero
//! bits 51..40   slot: the log area's number within the volume, 1..4095
//! bits 39..0    slot: the slot's number within that log area
//! ```
//! The same eight bytes are in records and checkpoints (docs/formats.md).

use std::fmt;

use crate::units::SlotIndex;

const KIND_SHIFT: u32 = 62;
const LOG_SHIFT: u32 = 40;
const SLOT_MASK: u64 = (1 << LOG_SHIFT) - 1;
const LOG_MASK: u64 = 0xfff;

/// Largest number of a log area within a volume.
pub const LOG_NUMBER_MAX: u16 = 4095;

/// A block's place.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Place(u64);

impl Place {
    /// In the partition's extents.
    pub const BASE: Place = Place(0);
    /// Nowhere: it reads as zeroes.
    pub const ZERO: Place = Place(1 << KIND_SHIFT);

    /// In slot `slot` of log area `log`.
    pub fn slot(log: u16, slot: SlotIndex) -> Place {
        assert!((1..=LOG_NUMBER_MAX).contains(&log), "a log's number is in 1..=4095");
        assert!(slot.0 <= SLOT_MASK, "a slot's number has 40 bits");
        Place((2 << KIND_SHIFT) | (u64::from(log) << LOG_SHIFT) | slot.0)
    }

    /// Converts its eight bytes; `None` if they are not a place.
    pub fn from_raw(raw: u64) -> Option<Place> {
        let place = Place(raw);
        let valid = match raw >> KIND_SHIFT {
            0 => raw == 0,
            1 => place == Place::ZERO,
            2 => (raw >> 52) & 0x3ff == 0 && place.log() != 0,
            _ => false,
        };
        valid.then_some(place)
    }

    /// Converts the halves of its eight bytes; `None` if they are not a place.
    pub fn joined(high: u32, low: u32) -> Option<Place> {
        Place::from_raw(u64::from(high) << 32 | u64::from(low))
    }

    /// Its eight bytes.
    pub fn raw(self) -> u64 {
        self.0
    }

    /// Whether it is a slot.
    pub fn is_slot(self) -> bool {
        self.0 >> KIND_SHIFT == 2
    }

    /// The log area's number; meaningful only for slots.
    pub fn log(self) -> u16 {
        ((self.0 >> LOG_SHIFT) & LOG_MASK) as u16
    }

    /// The slot's number within its log area; meaningful only for slots.
    pub fn slot_number(self) -> SlotIndex {
        SlotIndex(self.0 & SLOT_MASK)
    }

    /// The place of the block `blocks` after the first in a run that starts here.
    pub fn step(self, blocks: u32) -> Place {
        if self.is_slot() {
            Place::slot(self.log(), self.slot_number().plus(u64::from(blocks)))
        } else {
            self
        }
    }

    /// Whether it is the place of the block `blocks` after the first in a run that starts at `first`.
    pub fn follows(self, first: Place, blocks: u32) -> bool {
        if !first.is_slot() {
            return self == first;
        }
        // In one log: the slot's number must not overflow into the log's.
        self.0 == first.0 + u64::from(blocks) && self.log() == first.log()
    }

    /// Whether a run of so many blocks can start here.
    pub fn fits(self, blocks: u32) -> bool {
        !self.is_slot() || self.slot_number().plus(u64::from(blocks)).0 <= SLOT_MASK + 1
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Place::BASE => f.write_str("base"),
            Place::ZERO => f.write_str("zero"),
            _ => write!(f, "slot {}:{}", self.log(), self.slot_number().0),
        }
    }
}
