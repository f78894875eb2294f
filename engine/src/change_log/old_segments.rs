//! Old segments: the segments that recovery finds, which of their records may count, and how far they were committed.
//!
//! How it works      A segment's header was durable before it could be begun, so one that cannot be read is damaged,
//!                   unless nothing was ever stored after it. A segment that was not begun has no records that count:
//!                   the caller decides whether that is possible, because it knows up to which record the journal must
//!                   go. The files that the manifest names must exist.
//! Errors            `Corrupt`, with the file's name. Nothing is changed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::files::Identity;
use super::files::corrupt;
use super::format::{BadHeader, Begin, FIRST_VERSION, HEADER_BYTES, Header, JOURNAL_MAGIC};
use super::format::{MARK_BYTES, MARK_OFFSETS, Mark, MarkPlace, RECORD_BYTES, RECORD_SUMS_MAX};
use super::format::{record_bytes, u16_at, u32_at};
use super::manifest::State;
use crate::error::{Errno, Error, Result};
use crate::mutants::{Bug, bug};
use crate::system::File;

/// Bytes that a disk writes atomically.
const SECTOR: usize = 512;

/// A segment that was begun.
pub struct OldSegment {
    /// Its path.
    pub path: PathBuf,
    /// Its header.
    pub header: Header,
    /// Its first record's number.
    pub first_seq: u64,
    /// Its first bytes, with the commit marks.
    page: Vec<u8>,
    /// The file.
    pub file: Arc<dyn File>,
}

impl OldSegment {
    /// Reads all of it.
    pub fn read(&self, bytes: &mut Vec<u8>) -> Result<()> {
        read_all(&self.path, &*self.file, bytes)
    }

    fn marks(&self) -> [MarkPlace; 2] {
        MARK_OFFSETS.map(|at| Mark::decode(&self.page[at..at + MARK_BYTES], &self.header))
    }
}

fn read_all(path: &Path, file: &dyn File, bytes: &mut Vec<u8>) -> Result<()> {
    let io = |e: Errno| Error::io(format!("{} cannot be read", path.display()), e);
    bytes.resize(file.length().map_err(io)? as usize, 0);
    file.read(bytes, 0).map_err(io)
}

/// Reads the segments among a processor's files that were begun, in order; the others are added to `leftovers`.
pub fn read_segments(
    identity: &Identity,
    state: Option<&State>,
    names: &[(u64, PathBuf)],
    leftovers: &mut Vec<PathBuf>,
) -> Result<Vec<OldSegment>> {
    let is_segment = |path: &Path| path.extension().is_some_and(|ending| ending == "journal");
    let mut segments = Vec::new();
    for (number, path) in names.iter().filter(|(_, path)| is_segment(path)) {
        match read_segment(identity, *number, path)? {
            Some(segment) => segments.push(segment),
            None => leftovers.push(path.clone()),
        }
    }
    if let Some(state) = state.filter(|_| !bug(Bug::QuietEnd)) {
        check_named(identity, state, &segments)?;
    }
    Ok(segments)
}

/// Reads a segment; `None` if it was not begun.
fn read_segment(identity: &Identity, number: u64, path: &Path) -> Result<Option<OldSegment>> {
    let io = |e: Errno| Error::io(format!("{} cannot be read", path.display()), e);
    let file = identity.system.open(path, false).map_err(io)?;
    let mut page = vec![0; file.length().map_err(io)?.min(HEADER_BYTES as u64) as usize];
    file.read(&mut page, 0).map_err(io)?;
    let header = match Header::decode(&page, JOURNAL_MAGIC) {
        Ok(header) => header,
        Err(BadHeader::Version(version)) => {
            return Err(corrupt(path, format!("it has format version {version}")));
        }
        Err(_) if is_unused(path, &*file)? || bug(Bug::QuietEnd) => return Ok(None),
        Err(bad) => return Err(corrupt(path, format!("its header is damaged ({bad:?})"))),
    };
    let ours = header.volume_uuid == identity.volume_uuid
        && header.processor == identity.processor
        && header.number == number;
    if !ours || page.len() < HEADER_BYTES {
        return Err(corrupt(path, "it belongs to another volume or processor"));
    }
    let first_seq = match Begin::decode(&page) {
        _ if header.version == FIRST_VERSION => header.first_seq,
        Begin::With(first_seq) => first_seq,
        Begin::Not => return Ok(None),
        Begin::Bad => return Err(corrupt(path, "the number of its first record is damaged")),
    };
    Ok(Some(OldSegment { path: path.to_owned(), header, first_seq, page, file }))
}

/// Whether nothing except the header, which cannot be read, was ever stored in a segment: a crash came while it was
/// made.
fn is_unused(path: &Path, file: &dyn File) -> Result<bool> {
    let mut bytes = Vec::new();
    read_all(path, file, &mut bytes)?;
    // In version 1, records may follow a header that a power loss has destroyed.
    let no_header = bytes.iter().take(SECTOR).all(|byte| *byte == 0);
    Ok(no_header || bytes.iter().skip(SECTOR).all(|byte| *byte == 0))
}

/// Refuses if the segment with the last commit mark is missing, or a segment belongs to a run that the manifest does
/// not know.
fn check_named(identity: &Identity, state: &State, segments: &[OldSegment]) -> Result<()> {
    let unknown = |segment: &&OldSegment| {
        segment.header.number >= state.run && segment.header.boot_id != state.boot_id
    };
    if let Some(segment) = segments.iter().find(unknown) {
        let what = format!("it is older than {}", segment.path.display());
        return Err(corrupt(&identity.manifest, what));
    }
    let (number, incarnation) = state.segment;
    if number == 0 {
        return Ok(());
    }
    let path = identity.segment_path(number);
    let Some(segment) = segments.iter().find(|segment| segment.header.number == number) else {
        return Err(corrupt(&path, "it is missing, or its first page is"));
    };
    if segment.header.incarnation != incarnation {
        return Err(corrupt(&path, "it is from another time"));
    }
    if segment.marks().contains(&MarkPlace::Empty) {
        return Err(corrupt(&path, "a commit mark is missing"));
    }
    Ok(())
}

/// Whether the record at `at` may be incomplete because a power loss kept some of its sectors from the disk. Each
/// sector has the contents of some time, and a record is stored from its beginning to its end, except its CRC, which is
/// stored last. So if the sector of the CRC has it, a later sector must lack the end of the record. Otherwise the
/// record was complete once, and is damaged.
pub fn may_be_lost(bytes: &[u8], at: usize) -> bool {
    let Some(head) = bytes.get(at..at + RECORD_BYTES).filter(|head| u32_at(head, 0) != 0) else {
        return true;
    };
    let zero = |from: usize, to: usize| bytes[from..to].iter().all(|byte| *byte == 0);
    let next = (at + 1).next_multiple_of(SECTOR);
    let head_end = at + RECORD_BYTES;
    if next < head_end && zero(next, head_end) {
        return true;
    }
    let sums = if head[5] == 0 { 0 } else { u32_at(head, 32) as usize };
    let length = record_bytes(sums.min(RECORD_SUMS_MAX as usize));
    if length != RECORD_BYTES + usize::from(u16_at(head, 6)) * 8 || at + length > bytes.len() {
        return false; // its two lengths differ
    }
    let end = head_end + sums * 4;
    let later = (next..end).step_by(SECTOR).map(|start| (start + SECTOR).min(end));
    later.filter(|part_end| *part_end > head_end).any(|part_end| zero(part_end - 4, part_end))
}

/// Up to which records the segments count.
pub struct Marks {
    /// The last record that counts in each segment. The first record of a later segment, and those after it, were not
    /// recovered when that segment was begun, or were lost before. So a segment may end before it begins: then none of
    /// its records counts.
    pub ends: Vec<u64>,
    /// The last record that each of the commit marks covers, in order. Two may cover the same one, because later
    /// records no longer count.
    pub marks: Vec<u64>,
}

impl Marks {
    /// Computes them for these segments.
    pub fn of(segments: &[OldSegment], state: Option<&State>) -> Result<Marks> {
        let mut end = u64::MAX;
        let mut ends = Vec::with_capacity(segments.len());
        for segment in segments.iter().rev() {
            if let Some(state) = state.filter(|state| segment.header.number < state.run) {
                end = end.min(state.run_seq - 1);
            }
            ends.push(end);
            end = end.min(segment.first_seq - 1);
        }
        ends.reverse();
        let mut marks = Vec::new();
        for (segment, end) in segments.iter().zip(&ends) {
            let found = marks_of(segment)?;
            marks.extend(found.into_iter().flatten().map(|mark| mark.committed_seq.min(*end)));
        }
        marks.sort_unstable();
        Ok(Marks { ends, marks })
    }
}

/// The marks of a segment. The first one was stored in both places, and is returned once.
fn marks_of(segment: &OldSegment) -> Result<[Option<Mark>; 2]> {
    let bad = || Err(corrupt(&segment.path, "a commit mark is damaged"));
    let places = segment.marks();
    let whole = places.map(|place| match place {
        MarkPlace::Complete(mark) => Some(mark),
        _ => None,
    });
    if segment.header.version == FIRST_VERSION || bug(Bug::QuietEnd) {
        return Ok(whole);
    }
    let right = |index: usize| whole[index].is_none_or(|mark| mark.turn % 2 == index as u64);
    if places.contains(&MarkPlace::Bad) || !right(0) || !right(1) {
        return bad();
    }
    match whole {
        [Some(even), Some(odd)] if even.turn.abs_diff(odd.turn) != 1 => bad(),
        [Some(even), Some(odd)] if (even.turn, odd.turn) == (2, 1) => {
            if even.committed_seq == odd.committed_seq { Ok([Some(even), None]) } else { bad() }
        }
        // One place is empty until the first mark's sync has ended.
        [Some(one), None] | [None, Some(one)]
            if one.turn > 2 && places.contains(&MarkPlace::Empty) =>
        {
            bad()
        }
        _ => Ok(whole),
    }
}
