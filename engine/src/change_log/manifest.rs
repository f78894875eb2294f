//! Manifest: which files of a processor's journal must exist, stored outside of the volume's directory.
//!
//! How it works      A file `pPPP.manifest` for each volume and processor, in the directory of manifests. Two copies of
//!                   the same structure, each in a sector of its own, are written in turns, and synced. They name what
//!                   recovery needs: the last checkpoint, the newest segment that has commit marks, and the first
//!                   record of this process's run. A mapped page has the number of the last record appended, stored
//!                   after each append without a system call: it is exact as long as the host runs.
//! When it is written   once for each run, when the journal is started; once for each segment, when the first commit in
//!                   it is durable; once for each checkpoint, when that has its final name and before it replaces any
//!                   file.
//! Invariants        MF1 a file that the manifest names is durable before, and is removed after the manifest does not
//!                      name it any more, durably;
//!                   MF2 `appended` is stored after the record, so there is at most one more record than it says;
//!                   MF3 a turn that could not be made durable is rewritten in the same place, so the turns of the two
//!                       copies are always consecutive.
//! What a crash leaves  at each of these steps, the older copy, or the newer one; both are right:
//!                   - a checkpoint that has its final name and is not named here: it counts; the older one and the
//!                     journal still exist;
//!                   - a segment that was prepared, or begun, and has no commit mark: none of its records was
//!                     committed;
//!                   - a run that was started and is not named here: its segment was not begun, nothing was appended.
//! If it is lost     the processor rewrites a file that another program has removed, replaced or truncated, with both
//!                   copies and the page ([`Manifest::renew`]): its contents are in memory.
//! Owner and locks   the copies: one lock, held while they are written. The page: the processor.
//! Errors            reading: `Corrupt` for a file that is damaged or belongs to another volume; it is left unchanged.

use std::path::Path;
use std::sync::{Arc, Mutex};

use super::files::Identity;
use super::format::{ends_at, possible, u32_at, u64_at};
use super::known_file::KnownFile;
use crate::checksum;
use crate::error::{Errno, Error, ErrorKind, Result};
use crate::mutants::{Bug, bug};
use crate::system::File;
use crate::system::mapping::Mapping;

/// First bytes of a copy.
pub const MANIFEST_MAGIC: [u8; 8] = *b"PVMANI\r\n";
/// Offsets of the copies; even turns are in the first.
pub const COPY_OFFSETS: [u64; 2] = [0, 512];
/// Bytes of a copy.
pub const COPY_BYTES: usize = 128;
/// Offset of the number of the last record.
pub const APPENDED_OFFSET: usize = 4096;
/// The version of manifests.
const MANIFEST_VERSION: u32 = 2;
/// Bytes of a manifest.
pub const MANIFEST_BYTES: usize = 8192;

/// Offsets of a copy's fields, by name.
pub const COPY_FIELDS: [(&str, usize, usize); 16] = [
    ("magic", 0, 8),
    ("version", 8, 4),
    ("copy_crc", 12, 4),
    ("volume_uuid", 16, 16),
    ("boot_id", 32, 16),
    ("processor", 48, 4),
    ("reserved", 52, 4),
    ("turn", 56, 8),
    ("run", 64, 8),
    ("run_seq", 72, 8),
    ("segment", 80, 8),
    ("segment_incarnation", 88, 8),
    ("committed_seq", 96, 8),
    ("checkpoint", 104, 8),
    ("checkpoint_crc", 112, 8),
    ("zero", 120, 8),
];

/// Offsets of the fields of its second page, by name.
pub const APPENDED_FIELDS: [(&str, usize, usize); 2] =
    [("appended_seq", 4096, 8), ("appended_check", 4104, 8)];

const _: () = assert!(ends_at(&COPY_FIELDS, COPY_BYTES));

/// The contents of a manifest's copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Incremented by one with each write.
    pub turn: u64,
    /// The host's boot in which the run was started.
    pub boot_id: [u8; 16],
    /// Number of the run's first segment.
    pub run: u64,
    /// Number of the run's first record: older segments count up to the one before it.
    pub run_seq: u64,
    /// Number and incarnation of the newest segment that has commit marks; 0: none that is needed.
    pub segment: (u64, u64),
    /// Records up to this one are durable, and later ones may be.
    pub committed: u64,
    /// Number and CRC-32C of the checkpoint; 0: none.
    pub checkpoint: (u64, u32),
}

/// A manifest as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The newer copy.
    pub state: State,
    /// The number of the last record appended; one more record may have been appended. Valid only in the boot of the
    /// run.
    pub appended: Option<u64>,
}

/// See the module's head.
#[derive(Debug)]
pub struct Manifest {
    identity: Identity,
    current: Mutex<Current>,
}

/// The page with the number of the last record. Only the processor uses it.
#[derive(Debug)]
pub struct Page(Mapping);

impl Page {
    /// Stores that record `seq` was appended (MF2). If that fails, it must be stored before the next record is
    /// appended.
    pub fn appended(&self, seq: u64) -> std::result::Result<(), Errno> {
        // SAFETY: only the processor uses the page.
        unsafe {
            self.0.store_word(APPENDED_OFFSET, seq)?;
            self.0.store_word(APPENDED_OFFSET + 8, !seq)
        }
    }
}

/// The present contents of a manifest, and which segments it will not name any more.
#[derive(Debug)]
struct Current {
    file: Arc<dyn File>,
    known: KnownFile,
    state: State,
    /// Segments before this one may have been removed: a checkpoint covers a commit in them that ends only now.
    oldest: u64,
}

/// A copy's bytes.
pub fn encode(state: &State, identity: &Identity) -> [u8; COPY_BYTES] {
    let mut bytes = [0; COPY_BYTES];
    bytes[0..8].copy_from_slice(&MANIFEST_MAGIC);
    bytes[8..12].copy_from_slice(&MANIFEST_VERSION.to_le_bytes());
    bytes[16..32].copy_from_slice(&identity.volume_uuid);
    bytes[32..48].copy_from_slice(&state.boot_id);
    bytes[48..52].copy_from_slice(&identity.processor.to_le_bytes());
    let words = [
        state.turn,
        state.run,
        state.run_seq,
        state.segment.0,
        state.segment.1,
        state.committed,
        state.checkpoint.0,
        u64::from(state.checkpoint.1),
    ];
    for (out, word) in bytes[56..].chunks_exact_mut(8).zip(words) {
        out.copy_from_slice(&word.to_le_bytes());
    }
    let crc = checksum::crc32c(&bytes[16..]);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8], identity: &Identity) -> std::result::Result<State, String> {
    if bytes[0..8] != MANIFEST_MAGIC {
        return Err("it is damaged".to_owned());
    }
    let version = u32_at(bytes, 8);
    if version != MANIFEST_VERSION {
        return Err(format!("it has format version {version}"));
    }
    if u32_at(bytes, 12) != checksum::crc32c(&bytes[16..COPY_BYTES]) {
        return Err("it is damaged: a checksum does not match".to_owned());
    }
    if bytes[16..32] != identity.volume_uuid || u32_at(bytes, 48) != identity.processor {
        return Err("it belongs to another volume or processor".to_owned());
    }
    let state = State {
        turn: u64_at(bytes, 56),
        boot_id: bytes[32..48].try_into().expect("16 bytes"),
        run: u64_at(bytes, 64),
        run_seq: u64_at(bytes, 72),
        segment: (u64_at(bytes, 80), u64_at(bytes, 88)),
        committed: u64_at(bytes, 96),
        checkpoint: (u64_at(bytes, 104), u32_at(bytes, 112)),
    };
    let known = [state.segment.0, state.committed, state.checkpoint.0];
    let numbers = [state.turn, state.run, state.run_seq].into_iter().all(possible)
        && known.into_iter().all(|number| number == 0 || possible(number));
    if numbers { Ok(state) } else { Err("its numbers are impossible".to_owned()) }
}

/// Reads a processor's manifest; `None` if there is none.
pub fn read(identity: &Identity) -> Result<Option<Found>> {
    let path = &identity.manifest;
    let io = |e: Errno| Error::io(format!("{} cannot be read", path.display()), e);
    let wrong = |what: String| {
        Error::new(ErrorKind::Corrupt, format!("{} cannot be read back: {what}", path.display()))
    };
    let file = match identity.system.open(path, false) {
        Err(errno) if errno.raw() == libc::ENOENT => return Ok(None),
        opened => opened.map_err(io)?,
    };
    if file.length().map_err(io)? != MANIFEST_BYTES as u64 {
        return Err(wrong("it is damaged: its length is impossible".to_owned()));
    }
    let mut bytes = vec![0; MANIFEST_BYTES];
    file.read(&mut bytes, 0).map_err(io)?;
    let mut copies = Vec::new();
    for (place, at) in (0..).zip(COPY_OFFSETS) {
        let copy = decode(&bytes[at as usize..], identity).map_err(wrong)?;
        if copy.turn % 2 != place {
            return Err(wrong("it is damaged: a copy is in the place of the other".to_owned()));
        }
        copies.push(copy);
    }
    copies.sort_by_key(|copy| copy.turn);
    let state = copies.pop().expect("there are two");
    if state.turn != copies[0].turn + 1 {
        return Err(wrong("it is damaged: its copies are not consecutive".to_owned()));
    }
    let (seq, check) = (u64_at(&bytes, APPENDED_OFFSET), !u64_at(&bytes, APPENDED_OFFSET + 8));
    let right = seq < 1 << 62 && (seq == check || seq == check.wrapping_add(1));
    Ok(Some(Found { state, appended: right.then_some(check.min(seq)) }))
}

impl Manifest {
    /// Starts a run whose last record so far is `appended`: creates the manifest, or continues with the one that was
    /// found. `state` is its new contents, except for the turn.
    pub fn begin(
        identity: &Identity,
        found: Option<&Found>,
        state: State,
        appended: u64,
    ) -> std::result::Result<(Manifest, Page), Errno> {
        let Some(found) = found else { return Manifest::make(identity, state, appended) };
        let file = identity.system.open(&identity.manifest, true)?;
        let page = Page(file.map(MANIFEST_BYTES)?);
        let known = KnownFile::fixed_length(&*identity.system, identity.manifest.clone())?;
        let current = Mutex::new(Current { file, known, state: found.state.clone(), oldest: 0 });
        let manifest = Manifest { identity: identity.clone(), current };
        // Before the copy: once that names this boot, the page is valid.
        page.appended(appended)?;
        manifest.change(|current| current.state = State { turn: current.state.turn, ..state })?;
        Ok((manifest, page))
    }

    /// Creates it, and its directory.
    fn make(
        identity: &Identity,
        state: State,
        appended: u64,
    ) -> std::result::Result<(Manifest, Page), Errno> {
        let folder = folder(identity);
        identity.system.make_directory(folder)?;
        if let Some(above) = folder.parent() {
            identity.system.sync_directory(above)?;
        }
        let state = State { turn: 2, ..state };
        let (file, known, page) = write_new(identity, &state, appended)?;
        let current = Mutex::new(Current { file, known, state, oldest: 0 });
        Ok((Manifest { identity: identity.clone(), current }, page))
    }

    /// Rewrites the file if it is gone or was replaced, or `always`; returns the new page. Called by the processor,
    /// whose last record is `appended`. The directory must exist: one that was moved away is not created again in its
    /// old place. EAGAIN: another thread is changing it, and finds out by itself whether the file is gone: the processor
    /// does not wait for its sync, unless it has to (`always`).
    pub fn renew(&self, appended: u64, always: bool) -> std::result::Result<Option<Page>, Errno> {
        let mut current = match self.current.try_lock() {
            Ok(current) => current,
            Err(_) if !always => return Err(Errno::EAGAIN),
            Err(_) => self.current.lock().expect("no holder panics"),
        };
        if !always && current.known.is_there(&*self.identity.system)? {
            return Ok(None);
        }
        let (file, known, page) = write_new(&self.identity, &current.state, appended)?;
        (current.file, current.known) = (file, known);
        Ok(Some(page))
    }

    /// Whether the file is still at its path, unchanged.
    pub fn is_there(&self) -> std::result::Result<bool, Errno> {
        self.current.lock().expect("no holder panics").known.is_there(&*self.identity.system)
    }

    /// The journal's identity.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Records that the first commit in a segment is durable.
    pub fn committed_in(
        &self,
        segment: (u64, u64),
        committed: u64,
    ) -> std::result::Result<(), Errno> {
        if bug(Bug::NoManifest) {
            return Ok(());
        }
        self.change(|current| {
            if segment.0 >= current.oldest {
                current.state.segment = segment;
            }
            current.state.committed = current.state.committed.max(committed);
        })
    }

    /// Records that a checkpoint has its final name, and covers the records up to `covered`. After success, older
    /// checkpoints, and segments before `oldest`, may be removed.
    pub fn checkpointed(
        &self,
        checkpoint: (u64, u32),
        covered: u64,
        oldest: u64,
    ) -> std::result::Result<(), Errno> {
        if bug(Bug::NoManifest) {
            return Ok(());
        }
        self.change(|current| {
            current.oldest = oldest;
            current.state.checkpoint = checkpoint;
            current.state.committed = current.state.committed.max(covered);
            if current.state.segment.0 < oldest {
                current.state.segment = (0, 0);
            }
        })
    }

    fn change(&self, change: impl FnOnce(&mut Current)) -> std::result::Result<(), Errno> {
        let mut current = self.current.lock().expect("no holder panics");
        let before = current.state.turn;
        change(&mut current);
        current.state.turn = before + 1;
        let at = COPY_OFFSETS[(current.state.turn % 2) as usize];
        // A copy that could not be made durable may still be on the disk, so its contents stay valid; its turn is
        // reused (MF3).
        let written = current.file.write(&encode(&current.state, &self.identity), at);
        let synced = written.and_then(|()| current.file.sync());
        let there = synced.and_then(|()| current.known.is_there(&*self.identity.system));
        let result = there.and_then(|there| if there { Ok(()) } else { Err(Errno::EIO) });
        if result.is_err() {
            current.state.turn = before;
        }
        result
    }
}

fn folder(identity: &Identity) -> &Path {
    identity.manifest.parent().unwrap_or(Path::new("/"))
}

/// Writes a file with both copies, which have the same contents, and renames it to its final name, durably.
fn write_new(
    identity: &Identity,
    state: &State,
    appended: u64,
) -> std::result::Result<(Arc<dyn File>, KnownFile, Page), Errno> {
    let new = identity.manifest.with_extension("manifest.new");
    let file = identity.system.create(&new)?;
    let page = Page(file.map(MANIFEST_BYTES)?);
    let older = State { turn: state.turn - 1, ..state.clone() };
    for copy in [&older, state] {
        file.write(&encode(copy, identity), COPY_OFFSETS[(copy.turn % 2) as usize])?;
    }
    page.appended(appended)?;
    file.sync()?;
    identity.system.rename(&new, &identity.manifest)?;
    let known = KnownFile::fixed_length(&*identity.system, identity.manifest.clone())?;
    identity.system.sync_directory(folder(identity))?;
    Ok((file, known, page))
}
