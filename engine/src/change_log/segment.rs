//! Segment: a file of a [journal](super::journal), from its creation until it is full.
//!
//! How it works      It is created with a header, durably, before it is needed: [`Prepared`]. It is begun by storing
//!                   its first record's number in its mapping, without waiting for the disk. Records and commit marks
//!                   are stored in the mapping in the same way.
//! Invariants        J7, J9 (see the journal).
//! Owner and locks   the journal's.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::files::Identity;
use super::format::{
    BEGIN_OFFSET, Begin, FORMAT_VERSION, HEADER_BYTES, Header, JOURNAL_MAGIC, MARK_OFFSETS, Mark,
    RECORD_SUMS_MAX, record_bytes,
};
use super::known_file::KnownFile;
use crate::error::Errno;
use crate::limits::{
    FULL_SEGMENTS_FREE_MIN, SEGMENT_BYTES, SEGMENT_BYTES_MIN, SEGMENT_BYTES_SMALL,
};
use crate::mutants::{Bug, bug};
use crate::system::File;
use crate::system::mapping::Mapping;

const _: () = assert!(SEGMENT_BYTES_MIN >= HEADER_BYTES + record_bytes(RECORD_SUMS_MAX as usize));

/// A segment that was begun, and is mapped.
#[derive(Debug)]
pub struct Segment {
    /// Its header.
    pub header: Header,
    /// Its first record's number.
    pub first_seq: u64,
    /// The file.
    pub file: Arc<dyn File>,
    /// Its path and status.
    pub known: KnownFile,
    /// The file, mapped.
    pub map: Mapping,
    /// Bytes.
    pub length: usize,
    /// All of it is durable, and nothing is appended any more.
    pub synced: AtomicBool,
}

/// A segment that has a header, and was not begun yet.
#[derive(Debug)]
pub struct Prepared {
    /// Its header.
    pub header: Header,
    /// Its path and status.
    pub known: KnownFile,
    file: Arc<dyn File>,
    map: Mapping,
    length: usize,
}

impl Prepared {
    /// Creates it, durably; `previous` is the incarnation of the segment before it. After a failure nothing is left of
    /// it.
    pub fn make(
        identity: &Identity,
        number: u64,
        previous: u64,
    ) -> std::result::Result<Prepared, Errno> {
        let length = SEGMENT_BYTES.load(Ordering::Relaxed);
        Prepared::make_sized(identity, number, previous, length)
    }

    /// Creates the first one of a run: a small one if there is little space, so that the volumes that are opened after
    /// this one can be opened too.
    pub fn make_first(
        identity: &Identity,
        number: u64,
        previous: u64,
    ) -> std::result::Result<Prepared, Errno> {
        let whole = SEGMENT_BYTES.load(Ordering::Relaxed);
        if identity.system.room(&identity.directory) < (whole * FULL_SEGMENTS_FREE_MIN) as u64 {
            return Prepared::make_sized(identity, number, previous, SEGMENT_BYTES_MIN);
        }
        match Prepared::make(identity, number, previous) {
            Err(errno) if errno.is_no_space() => {
                Prepared::make_sized(identity, number, previous, SEGMENT_BYTES_MIN)
            }
            made => made,
        }
    }

    /// Creates one of the full size, or a smaller one if there is no space for that.
    pub fn make_small(
        identity: &Identity,
        number: u64,
        previous: u64,
    ) -> std::result::Result<Prepared, Errno> {
        let whole = SEGMENT_BYTES.load(Ordering::Relaxed);
        let mut last = Errno::ENOSPC;
        for length in [whole, SEGMENT_BYTES_SMALL, SEGMENT_BYTES_MIN] {
            match Prepared::make_sized(identity, number, previous, length.min(whole)) {
                Err(errno) if errno.is_no_space() => last = errno,
                made => return made,
            }
        }
        Err(last)
    }

    /// Whether it is smaller than the full size.
    pub fn is_small(&self) -> bool {
        self.length < SEGMENT_BYTES.load(Ordering::Relaxed)
    }

    fn make_sized(
        identity: &Identity,
        number: u64,
        previous: u64,
        length: usize,
    ) -> std::result::Result<Prepared, Errno> {
        let path = identity.segment_path(number);
        let made = Prepared::make_at(identity, number, previous, length, &path);
        if made.is_err() {
            let _ = identity.system.remove(&path);
        }
        made
    }

    fn make_at(
        identity: &Identity,
        number: u64,
        previous: u64,
        length: usize,
        path: &Path,
    ) -> std::result::Result<Prepared, Errno> {
        let header = Header {
            volume_uuid: identity.volume_uuid,
            boot_id: identity.boot_id,
            processor: identity.processor,
            number,
            first_seq: 0,
            incarnation: identity.system.random()?,
            previous,
            version: FORMAT_VERSION,
        };
        let file = identity.system.create(path)?;
        let map = file.map(length)?;
        let known = KnownFile::fixed_length(&*identity.system, path.to_owned())?;
        file.write(&header.encode(JOURNAL_MAGIC), 0)?;
        file.sync()?;
        if !bug(Bug::NoDirectorySync) {
            identity.system.sync_directory(&identity.directory)?; // J7
        }
        Ok(Prepared { header, known, file, map, length })
    }

    /// Prefaults its pages, so that the processor does not fault on each one.
    pub fn prefault(&self) {
        self.map.prefault();
    }

    /// Begins it (J9). If the store fails, it is returned: it was not begun, and may be later.
    pub fn begin(self, first_seq: u64) -> std::result::Result<Segment, Box<(Prepared, Errno)>> {
        for (index, word) in Begin::words(first_seq).into_iter().enumerate() {
            // SAFETY: no other thread has access to the mapping yet.
            if let Err(errno) = unsafe { self.map.store_word(BEGIN_OFFSET + index * 8, word) } {
                return Err(Box::new((self, errno)));
            }
        }
        let Prepared { header, known, file, map, length } = self;
        let synced = AtomicBool::new(false);
        Ok(Segment { header, first_seq, file, known, map, length, synced })
    }
}

impl Segment {
    /// Stores a commit mark (J9). If that fails, the mark's place has none, or its previous one.
    ///
    /// # Safety
    /// The caller holds `committing`: only its holder accesses the marks' bytes.
    pub unsafe fn store_mark(&self, mark: Mark) -> std::result::Result<(), Errno> {
        let at = MARK_OFFSETS[(mark.turn % 2) as usize];
        let [seq, turn, check] = mark.words(self.header.incarnation);
        for (offset, word) in [(16, 0), (0, seq), (8, turn), (16, check)] {
            // SAFETY: the caller's promise.
            unsafe { self.map.store_word(at + offset, word)? };
        }
        Ok(())
    }
}

/// How many of the oldest segments have no records after `covered`: the records of a segment end where the next segment
/// begins.
pub fn needless(segments: &[Arc<Segment>], covered: u64) -> usize {
    let later = segments.iter().skip(1);
    later.take_while(|segment| segment.first_seq <= covered + 1).count()
}
