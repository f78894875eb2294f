//! State: a connection's state for the next process, as bytes.
//!
//! How it works      Fixed offsets, all numbers little-endian, followed by the bytes received. The offsets are
//!                   constants here and a table in docs/formats-hand-over.md; a test compares the two.
//! Invariants        `encode` gives the same bytes again for each state that `decode` accepts.
//! Errors            `decode` says what is wrong as a clause; an unknown version is distinguished from damage.

use crate::checksum;
use crate::error::Errno;
use crate::limits::REQUEST_BYTES_MAX;
use crate::nbd::handshake::contexts::SELECTED_MAX;
use crate::nbd::reader::{OVERLONG_DRAINED_BYTES, Refusal, ResumePoint};
use crate::nbd::request::Agreed;
use crate::nbd::wire::BASE_ALLOCATION_ID;
use crate::request::Contexts;
use crate::units::Epoch;

/// First bytes of a state.
pub const MAGIC: [u8; 8] = *b"PVCONN\r\n";
/// The only version so far.
pub const VERSION: u32 = 1;
/// Bytes before the snapshots' epochs; the received bytes follow these.
pub const HEADER_BYTES: usize = 88;
/// Where the range that the CRC-32C covers begins.
const COVERED: usize = 16;

/// Offsets of the fields, by name.
#[cfg(test)]
const FIELDS: [(&str, usize, usize); 16] = [
    ("magic", 0, 8),
    ("version", 8, 4),
    ("crc", 12, 4),
    ("size", 16, 8),
    ("agreed_size", 24, 8),
    ("moved", 32, 8),
    ("skip", 40, 8),
    ("cookie", 48, 8),
    ("errno", 56, 4),
    ("flags", 60, 4),
    ("request_bytes_max", 64, 4),
    ("base_allocation", 68, 4),
    ("transmission_flags", 72, 4),
    ("received_bytes", 76, 4),
    ("compared", 80, 4),
    ("reserved", 84, 4),
];

/// The export is read-only.
const READ_ONLY: u32 = 1 << 0;
/// Replies have chunks.
const STRUCTURED: u32 = 1 << 1;
/// Metadata contexts were selected.
const STATUS: u32 = 1 << 2;
/// The connection ends once `skip` bytes were discarded.
const LAST: u32 = 1 << 3;
/// A refused request is answered then.
const REFUSAL: u32 = 1 << 4;
/// It is answered with a chunk.
const REFUSAL_STRUCTURED: u32 = 1 << 5;
/// `base:allocation` is one of them.
const ALLOCATION: u32 = 1 << 6;
const KNOWN: u32 = (1 << 7) - 1;

/// Everything about a connection except its socket and its export's name.
#[derive(Clone, Debug)]
pub struct State {
    /// What was agreed on.
    pub agreed: Agreed,
    /// The metadata contexts that were selected, if any was.
    pub contexts: Option<Contexts>,
    /// The export's size when it was frozen, bytes.
    pub size: u64,
    /// The transmission flags that its host was given.
    pub transmission_flags: u16,
    /// Bytes sent and received since its start.
    pub moved: u64,
    /// Where its reader resumes.
    pub resume_point: ResumePoint,
}

impl State {
    /// The bytes for another process.
    pub fn encode(&self) -> Vec<u8> {
        let State { agreed, resume_point, .. } = self;
        let mut flags = 0;
        let refusal = resume_point.refusal;
        let base = self.contexts.as_ref().is_some_and(|contexts| contexts.allocation);
        let since = self.contexts.as_ref().map_or(&[][..], |contexts| &contexts.since);
        for (holds, flag) in [
            (agreed.read_only, READ_ONLY),
            (agreed.structured, STRUCTURED),
            (agreed.status, STATUS),
            (base, ALLOCATION),
            (resume_point.last, LAST),
            (refusal.is_some(), REFUSAL),
            (refusal.is_some_and(|refusal| refusal.structured), REFUSAL_STRUCTURED),
        ] {
            flags |= if holds { flag } else { 0 };
        }
        let errno = refusal.map_or(0, |refusal| refusal.errno.raw().unsigned_abs());
        let allocation = if base { BASE_ALLOCATION_ID } else { 0 };
        let all = HEADER_BYTES + 8 * since.len() + resume_point.bytes.len();
        let mut bytes = Vec::with_capacity(all);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        let cookie = refusal.map_or(0, |refusal| refusal.cookie);
        for number in [self.size, agreed.size, self.moved, resume_point.skip, cookie] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        for number in [
            errno,
            flags,
            REQUEST_BYTES_MAX as u32,
            allocation,
            u32::from(self.transmission_flags),
            u32::try_from(resume_point.bytes.len()).unwrap_or(u32::MAX),
            since.len() as u32,
            0,
        ] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        since.iter().for_each(|epoch| bytes.extend_from_slice(&epoch.to_le_bytes()));
        bytes.extend_from_slice(&resume_point.bytes);
        let crc = checksum::crc32c(&bytes[COVERED..]);
        bytes[12..COVERED].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// What the bytes say.
    ///
    /// # Errors
    /// Why it cannot be used: incomplete, of another version, or it promises what this server does not keep.
    pub fn decode(bytes: &[u8]) -> Result<State, String> {
        let not_whole = || "what was handed over with it is incomplete".to_owned();
        let header = bytes.first_chunk::<HEADER_BYTES>().ok_or_else(not_whole)?;
        if header[..8] != MAGIC {
            return Err(not_whole());
        }
        let version = u32_at(header, 8);
        if version != VERSION {
            let what = format!("what was handed over with it is of version {version}");
            return Err(format!("{what}, which this polyvol does not know"));
        }
        if u32_at(header, 12) != checksum::crc32c(&bytes[COVERED..]) {
            return Err(not_whole());
        }
        let promised = u64::from(u32_at(header, 64)) != REQUEST_BYTES_MAX;
        let flags = u32_at(header, 60);
        let allocation = u32_at(header, 68);
        let expected = if flags & ALLOCATION != 0 { BASE_ALLOCATION_ID } else { 0 };
        if promised || allocation != expected {
            return Err("its host was promised what is no longer so".to_owned());
        }
        read(header, &bytes[HEADER_BYTES..], flags).ok_or_else(not_whole)
    }
}

/// The fields; `None` where they do not fit together.
fn read(header: &[u8; HEADER_BYTES], rest: &[u8], flags: u32) -> Option<State> {
    let compared = u32_at(header, 80) as usize;
    let (since, received) = rest.split_at_checked(compared.checked_mul(8)?)?;
    let epoch = |bytes: &[u8]| Epoch::from_le_bytes(bytes.try_into().expect("8 bytes"));
    let since: Vec<Epoch> = since.chunks_exact(8).map(epoch).collect();
    let allocation = flags & ALLOCATION != 0;
    let selected = allocation || !since.is_empty();
    let errno = u32_at(header, 56);
    let refusal = (flags & REFUSAL != 0).then_some(Refusal {
        structured: flags & REFUSAL_STRUCTURED != 0,
        cookie: u64_at(header, 48),
        errno: Errno::new(i32::try_from(errno).unwrap_or(0)),
    });
    let said = (flags & REFUSAL_STRUCTURED != 0, u64_at(header, 48), errno);
    let fits = match refusal {
        Some(refusal) => i64::from(refusal.errno.raw()) == i64::from(errno),
        None => said == (false, 0, 0),
    };
    let skip = u64_at(header, 40);
    let sane = fits
        && flags & !KNOWN == 0
        && u32_at(header, 84) == 0
        && since.len() <= SELECTED_MAX
        && selected == (flags & STATUS != 0)
        && received.len() == u32_at(header, 76) as usize
        && skip <= REQUEST_BYTES_MAX.max(OVERLONG_DRAINED_BYTES);
    let transmission_flags = u16::try_from(u32_at(header, 72)).ok()?;
    let agreed = Agreed {
        size: u64_at(header, 24),
        read_only: flags & READ_ONLY != 0,
        structured: flags & STRUCTURED != 0,
        status: flags & STATUS != 0,
    };
    let last = flags & LAST != 0;
    let resume_point = ResumePoint { bytes: received.to_vec(), skip, last, refusal };
    let (size, moved) = (u64_at(header, 16), u64_at(header, 32));
    let contexts = selected.then_some(Contexts { allocation, since });
    sane.then_some(State { agreed, contexts, size, transmission_flags, moved, resume_point })
}

fn u32_at(bytes: &[u8; HEADER_BYTES], offset: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|index| bytes[offset + index]))
}

fn u64_at(bytes: &[u8; HEADER_BYTES], offset: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|index| bytes[offset + index]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn states() -> Vec<State> {
        let refusal = Refusal { structured: true, cookie: 7 << 40, errno: Errno::ENOSPC };
        let standings = [
            ResumePoint::default(),
            ResumePoint { bytes: vec![7; 300_000], ..ResumePoint::default() },
            ResumePoint { bytes: vec![1], skip: 5, last: true, refusal: Some(refusal) },
        ];
        let contexts = |resume_point: &ResumePoint| {
            (resume_point.skip > 0).then(|| Contexts { allocation: true, since: vec![3, 9] })
        };
        let state = |resume_point: ResumePoint| State {
            contexts: contexts(&resume_point),
            agreed: Agreed {
                size: 1 << 33,
                read_only: resume_point.last,
                structured: resume_point.skip > 0,
                status: resume_point.skip > 0,
            },
            size: 1 << 34,
            transmission_flags: 0x10d,
            moved: 99,
            resume_point,
        };
        standings.into_iter().map(state).collect()
    }

    #[test]
    fn what_was_encoded_is_decoded_to_the_same() {
        for state in states() {
            let bytes = state.encode();
            let back = State::decode(&bytes).unwrap();
            assert_eq!(back.resume_point, state.resume_point);
            assert_eq!(back.encode(), bytes);
        }
    }

    #[test]
    fn whatever_is_cut_off_or_changed_is_refused() {
        let bytes = states()[2].encode();
        for end in 0..bytes.len() {
            assert!(State::decode(&bytes[..end]).is_err());
        }
        for at in 0..bytes.len() {
            let mut other = bytes.clone();
            other[at] ^= 1 << (at % 8);
            assert!(State::decode(&other).is_err(), "byte {at}");
        }
    }

    #[test]
    fn another_version_is_distinguished_from_damage() {
        let mut bytes = states()[0].encode();
        bytes[8] = 2;
        let said = State::decode(&bytes).unwrap_err();
        assert!(said.contains("of version 2"), "{said}");
    }

    #[test]
    fn the_page_has_every_field_at_its_offset() {
        let page = include_str!("../../../../docs/formats-hand-over.md");
        let split = |line: &str| line.split('|').map(str::trim).collect::<Vec<_>>().join("|");
        let rows: Vec<String> = page.lines().map(split).collect();
        let mut end = 0;
        for (name, offset, bytes) in &FIELDS {
            assert_eq!(*offset, end);
            end = offset + bytes;
            let row = format!("|{name}|{offset}|{bytes}|");
            assert!(rows.iter().any(|found| found.starts_with(&row)), "no row {row}");
        }
        assert_eq!(end, HEADER_BYTES);
    }
}
