//! Format: every byte of journals and checkpoints, each number little-endian, each structure under a CRC-32C.
//!
//! How it works      A pair of functions for each structure, over offsets that are in docs/formats.md (a test compares).
//! Errors            `decode` returns `None` for an incomplete structure; an unknown version or kind is told from it.

mod record;

pub use record::{Record, RecordKind, record_bytes, state_words};

use crate::checksum;

/// First bytes of a journal segment.
pub const JOURNAL_MAGIC: [u8; 8] = *b"PVJRNL\r\n";
/// First bytes of a checkpoint.
pub const CHECKPOINT_MAGIC: [u8; 8] = *b"PVCKPT\r\n";
/// First bytes of the record of a failed sync.
pub const FAILED_SYNC_MAGIC: [u8; 8] = *b"PVFAIL\r\n";
/// The version that is written.
pub const FORMAT_VERSION: u32 = 5;
/// In this version, blocks moved to their base places only.
pub const HOME_VERSION: u32 = 4;
/// In this version, no block was relocated.
pub const COUNTED_VERSION: u32 = 3;
/// In this version, nothing was counted, and a cut did not say how many partitions there were.
pub const UNCOUNTED_VERSION: u32 = 2;
/// In this version, segments had their first record's number in the header, and no manifest; no record was of a rollback.
pub const FIRST_VERSION: u32 = 1;
/// Bytes of a journal segment's and a checkpoint's header.
pub const HEADER_BYTES: usize = 4096;
/// Offsets of a segment's two commit marks: each in a sector of its own.
pub const MARK_OFFSETS: [usize; 2] = [512, 1024];
/// Offset of the words that a segment is begun with: in a sector of its own.
pub const BEGIN_OFFSET: usize = 1536;
/// Bytes of these words.
pub const BEGIN_BYTES: usize = 16;
/// Bytes of a commit mark.
pub const MARK_BYTES: usize = 24;
/// Bytes of a record before its checksums.
pub const RECORD_BYTES: usize = 48;
/// Most blocks of one record that carries checksums.
pub const RECORD_SUMS_MAX: u32 = 8192;

/// Offsets of the fields of a [`Header`], by name.
pub const HEADER_FIELDS: [(&str, usize, usize); 11] = [
    ("magic", 0, 8),
    ("version", 8, 4),
    ("header_crc", 12, 4),
    ("volume_uuid", 16, 16),
    ("boot_id", 32, 16),
    ("processor", 48, 4),
    ("reserved", 52, 4),
    ("number", 56, 8),
    ("first_seq", 64, 8),
    ("incarnation", 72, 8),
    ("previous", 80, 8),
];
/// Used bytes of a header.
pub const HEADER_END: usize = 88;
/// Used bytes of a header in version 1.
const HEADER_END_1: usize = 80;

/// Offsets of a record's fields, by name.
pub const RECORD_FIELDS: [(&str, usize, usize); 11] = [
    ("record_crc", 0, 4),
    ("kind", 4, 1),
    ("flags", 5, 1),
    ("payload_words", 6, 2),
    ("seq", 8, 8),
    ("epoch", 16, 8),
    ("partition", 24, 4),
    ("first", 28, 4),
    ("count", 32, 4),
    ("branch", 36, 4),
    ("place", 40, 8),
];

/// Offsets of a commit mark's fields, by name.
pub const MARK_FIELDS: [(&str, usize, usize); 4] =
    [("committed_seq", 0, 8), ("turn", 8, 8), ("mark_crc", 16, 4), ("mark_check", 20, 4)];

/// Offsets of the fields with which a segment is begun, by name.
pub const BEGIN_FIELDS: [(&str, usize, usize); 2] = [("begin_seq", 0, 8), ("begin_check", 8, 8)];

/// Whether fields follow each other without gaps, up to `end`.
pub const fn ends_at(fields: &[(&str, usize, usize)], end: usize) -> bool {
    let mut at = 0;
    let mut i = 0;
    while i < fields.len() {
        if fields[i].1 != at {
            return false;
        }
        at += fields[i].2;
        i += 1;
    }
    at == end
}

const _: () = assert!(ends_at(&HEADER_FIELDS, HEADER_END));
const _: () = assert!(ends_at(&RECORD_FIELDS, RECORD_BYTES));
const _: () = assert!(ends_at(&MARK_FIELDS, MARK_BYTES));
const _: () = assert!(HEADER_END <= MARK_OFFSETS[0]);
const _: () = assert!(ends_at(&BEGIN_FIELDS, BEGIN_BYTES));
const _: () = assert!(MARK_OFFSETS[1] + MARK_BYTES <= BEGIN_OFFSET);
const _: () = assert!(BEGIN_OFFSET + BEGIN_BYTES <= HEADER_BYTES);
const _: () = assert!(RECORD_SUMS_MAX as usize * 4 / 8 <= u16::MAX as usize);
const _: () = assert!(RECORD_BYTES.is_multiple_of(8));

/// The header of a journal segment (`first_seq`: 0, see [`Begin`]; in version 1 its first record's) or of a checkpoint
/// (`first_seq`: of the first record that it does not cover; `boot_id` is zero).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The format version that it was read with, or is to be written with.
    pub version: u32,
    /// The volume's UUID.
    pub volume_uuid: [u8; 16],
    /// The host's boot id when the segment was made.
    pub boot_id: [u8; 16],
    /// Processor that writes it.
    pub processor: u32,
    /// Segment or checkpoint number.
    pub number: u64,
    /// See above.
    pub first_seq: u64,
    /// Random; records' checksums start from it, so that bytes of an older file are never read as records.
    pub incarnation: u64,
    /// Segment: the incarnation of the one before it; 0 for none.
    pub previous: u64,
}

/// Why a header cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadHeader {
    /// Not this kind of file.
    Magic,
    /// Written by an unknown version.
    Version(u32),
    /// Its checksum does not match.
    Checksum,
    /// Its checksum matches, but its numbers are impossible: they begin with 1, and never come near the maximum.
    Numbers,
}

impl BadHeader {
    /// What is wrong with the file, in words.
    pub fn words(self) -> String {
        match self {
            BadHeader::Version(version) => {
                format!(
                    "it has format version {version}, which this version of polyvol cannot read"
                )
            }
            BadHeader::Magic => "it is another kind of file".to_owned(),
            BadHeader::Checksum => "its header is damaged".to_owned(),
            BadHeader::Numbers => "the numbers in its header are impossible".to_owned(),
        }
    }
}

impl Header {
    /// Its bytes.
    pub fn encode(&self, magic: [u8; 8]) -> [u8; HEADER_END] {
        let mut bytes = [0; HEADER_END];
        bytes[0..8].copy_from_slice(&magic);
        bytes[8..12].copy_from_slice(&self.version.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.volume_uuid);
        bytes[32..48].copy_from_slice(&self.boot_id);
        bytes[48..52].copy_from_slice(&self.processor.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.number.to_le_bytes());
        bytes[64..72].copy_from_slice(&self.first_seq.to_le_bytes());
        bytes[72..80].copy_from_slice(&self.incarnation.to_le_bytes());
        bytes[80..88].copy_from_slice(&self.previous.to_le_bytes());
        let end = if self.version == FIRST_VERSION { HEADER_END_1 } else { HEADER_END };
        let crc = checksum::crc32c(&bytes[16..end]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Decodes a file's first bytes.
    pub fn decode(bytes: &[u8], magic: [u8; 8]) -> Result<Header, BadHeader> {
        if bytes.len() < HEADER_END_1 || bytes[0..8] != magic {
            return Err(BadHeader::Magic);
        }
        let version = u32_at(bytes, 8);
        let end = match version {
            FIRST_VERSION => HEADER_END_1,
            UNCOUNTED_VERSION..=FORMAT_VERSION => HEADER_END,
            other => return Err(BadHeader::Version(other)),
        };
        if bytes.len() < end || u32_at(bytes, 12) != checksum::crc32c(&bytes[16..end]) {
            return Err(BadHeader::Checksum);
        }
        let (number, first_seq) = (u64_at(bytes, 56), u64_at(bytes, 64));
        let has_begin_words = version != FIRST_VERSION && magic == JOURNAL_MAGIC;
        let right = if has_begin_words { first_seq == 0 } else { possible(first_seq) };
        if !possible(number) || !right {
            return Err(BadHeader::Numbers);
        }
        Ok(Header {
            version,
            volume_uuid: bytes[16..32].try_into().expect("16 bytes"),
            boot_id: bytes[32..48].try_into().expect("16 bytes"),
            processor: u32_at(bytes, 48),
            number,
            first_seq,
            incarnation: u64_at(bytes, 72),
            previous: if version == FIRST_VERSION { 0 } else { u64_at(bytes, 80) },
        })
    }
}

/// Whether a segment was begun, and with which record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// It was not: both words are zero, or a kill came between the two stores.
    Not,
    /// Its first record has this number.
    With(u64),
    /// The words are damaged.
    Bad,
}

impl Begin {
    /// The two words, in the order in which they are stored.
    pub fn words(first_seq: u64) -> [u64; 2] {
        [first_seq, !first_seq]
    }

    /// Decodes a segment's first bytes.
    pub fn decode(page: &[u8]) -> Begin {
        match (u64_at(page, BEGIN_OFFSET), u64_at(page, BEGIN_OFFSET + 8)) {
            (_, 0) => Begin::Not,
            (seq, check) if check == !seq && possible(seq) => Begin::With(seq),
            _ => Begin::Bad,
        }
    }
}

/// A commit mark: every record up to `committed_seq`, and the data that they refer to, is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The last record that counts after a power loss.
    pub committed_seq: u64,
    /// Incremented by one with each mark; even turns go to the first place, odd ones to the second.
    pub turn: u64,
}

/// Contents of a commit mark's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MarkPlace {
    /// Nothing was ever stored there.
    Empty,
    /// A mark was being stored when the process was killed: its sync had not begun.
    Unfinished,
    /// A mark.
    Complete(Mark),
    /// It is damaged.
    Bad,
}

impl Mark {
    /// Its three words. The last one is 0 while it is being stored.
    pub fn words(&self, incarnation: u64) -> [u64; 3] {
        let (seq, turn) = (self.committed_seq.to_le_bytes(), self.turn.to_le_bytes());
        let crc = checksum::crc32c_append(checksum::crc32c_append(seed(incarnation), &seq), &turn);
        [self.committed_seq, self.turn, u64::from(crc) | u64::from(!crc) << 32]
    }

    /// Its bytes.
    pub fn encode(&self, incarnation: u64) -> [u8; MARK_BYTES] {
        let mut bytes = [0; MARK_BYTES];
        for (out, word) in bytes.chunks_exact_mut(8).zip(self.words(incarnation)) {
            out.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Decodes the place, in the segment of this header.
    pub fn decode(bytes: &[u8], header: &Header) -> MarkPlace {
        let mark = Mark { committed_seq: u64_at(bytes, 0), turn: u64_at(bytes, 8) };
        let [.., check] = mark.words(header.incarnation);
        let found = u64_at(bytes, 16);
        if header.version == FIRST_VERSION {
            // In version 1 the upper half was 0, and a mark torn by a kill looks like a damaged one.
            let whole = found == check & u64::from(u32::MAX);
            return if whole { MarkPlace::Complete(mark) } else { MarkPlace::Unfinished };
        }
        match found {
            0 if bytes.iter().all(|byte| *byte == 0) => MarkPlace::Empty,
            0 => MarkPlace::Unfinished,
            found if found == check => MarkPlace::Complete(mark),
            _ => MarkPlace::Bad,
        }
    }
}

/// Whether a number that begins with 1 and is incremented by one can have this value.
pub fn possible(number: u64) -> bool {
    (1..1 << 62).contains(&number)
}

/// The value from which the checksums of an incarnation's records and marks start.
pub fn seed(incarnation: u64) -> u32 {
    checksum::crc32c(&incarnation.to_le_bytes())
}

/// Two little-endian bytes.
pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("2 bytes"))
}

/// Four little-endian bytes.
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

/// Eight little-endian bytes.
pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}
