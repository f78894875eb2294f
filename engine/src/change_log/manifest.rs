//! Manifest: which files of a processor's journal must be there, kept outside of the volume's directory.
//!
//! How it works      A file `pPPP.manifest` for each volume and processor, in the folder of manifests. Two copies of the same
//!                   structure, each in a sector of its own, are written in turns, and synced. They name what recovery
//!                   cannot do without: the last checkpoint, the newest segment that has commit marks, and with which
//!                   record the run of this process has begun. A page that is mapped has the number of the last record
//!                   appended, stored after each append without a system call: it is exact for as long as the host runs.
//! When it is written   once for each run, when the journal is begun; once for each segment, when the first commit in it is
//!                   durable; once for each checkpoint, when that has its name and before anything is removed for it.
//! Invariants        MF1 a file that the manifest names is durable before, and is removed after the manifest does not
//!                      name it any more, durably;
//!                   MF2 `appended` is stored after the record, so there is at most one record more than it says;
//!                   MF3 a turn that could not be made durable is written again to the same place, so the turns of the two
//!                      copies always follow each other.
//! What a crash leaves  at each step of those above, the older copy, or the newer one; both are right:
//!                   - a checkpoint that has its name and is not named here: it counts; the older one and the journal are
//!                     there, too;
//!                   - a segment that was prepared, or begun, and has no commit mark: nothing of it was committed;
//!                   - a run that was begun and is not named here: its segment was not begun, nothing was appended.
//! If it is lost     a file that another program has removed, replaced or truncated is written again, with both copies and the page,
//!                   by the processor ([`Manifest::renew`]): what it says is in memory.
//! Owner and locks   the copies: one lock, held while they are written. The page: the processor.
//! Errors            reading: `Corrupt` for a file that is damaged or of another volume; it is left as it is.

use std::path::Path;
use std::sync::{Arc, Mutex};

use super::files::Identity;
use super::format::{FORMAT_VERSION, ends_at, possible, u32_at, u64_at};
use super::known::Known;
use crate::checksum;
use crate::error::{Errno, Error, ErrorKind, Result};
use crate::mutants::{Bug, bug};
use crate::system::File;
use crate::system::mapping::Mapping;

/// First bytes of a copy.
pub const MANIFEST_MAGIC: [u8; 8] = *b"PVMANI\r\n";
/// Where the copies are, even turns in the first.
pub const COPY_OFFSETS: [u64; 2] = [0, 512];
/// Bytes of a copy.
pub const COPY_BYTES: usize = 128;
/// Where the number of the last record is.
pub const APPENDED_OFFSET: usize = 4096;
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

/// What a manifest says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Goes up by one each time.
    pub turn: u64,
    /// The host's boot in which the run was begun.
    pub boot_id: [u8; 16],
    /// Number of the run's first segment.
    pub run: u64,
    /// Number of the run's first record: older segments count up to the one before it.
    pub run_seq: u64,
    /// Number and incarnation of the newest segment that has commit marks; 0: none that is needed.
    pub segment: (u64, u64),
    /// Records up to this one are durable, and more may be.
    pub committed: u64,
    /// Number and CRC-32C of the checkpoint; 0: none.
    pub checkpoint: (u64, u32),
}

/// What was read of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The newer copy.
    pub state: State,
    /// The last record appended, and the one that may have been: the first is the same or one less. It is what it says
    /// only in the boot of the run.
    pub appended: Option<u64>,
}

/// See the module's head.
#[derive(Debug)]
pub struct Manifest {
    identity: Identity,
    now: Mutex<Now>,
}

/// The page with the number of the last record. It belongs to the processor.
#[derive(Debug)]
pub struct Page(Mapping);

impl Page {
    /// Record `seq` was appended (MF2). Where that cannot be stored, no further record may be appended before it is.
    pub fn appended(&self, seq: u64) -> std::result::Result<(), Errno> {
        // SAFETY: the page belongs to the processor.
        unsafe {
            self.0.store_word(APPENDED_OFFSET, seq)?;
            self.0.store_word(APPENDED_OFFSET + 8, !seq)
        }
    }
}

/// What a manifest says, and what it will not name any more.
#[derive(Debug)]
struct Now {
    file: Arc<dyn File>,
    known: Known,
    state: State,
    /// Segments before this one may have been removed: a commit in them that ends only now is covered by a checkpoint.
    oldest: u64,
}

/// A copy's bytes.
pub fn encode(state: &State, identity: &Identity) -> [u8; COPY_BYTES] {
    let mut bytes = [0; COPY_BYTES];
    bytes[0..8].copy_from_slice(&MANIFEST_MAGIC);
    bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
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
    if version != FORMAT_VERSION {
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
    if numbers { Ok(state) } else { Err("its numbers cannot be".to_owned()) }
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
        return Err(wrong("it is damaged: its length cannot be".to_owned()));
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
        return Err(wrong("it is damaged: its copies do not follow each other".to_owned()));
    }
    let (seq, check) = (u64_at(&bytes, APPENDED_OFFSET), !u64_at(&bytes, APPENDED_OFFSET + 8));
    let right = seq < 1 << 62 && (seq == check || seq == check.wrapping_add(1));
    Ok(Some(Found { state, appended: right.then_some(check.min(seq)) }))
}

impl Manifest {
    /// Begins a run whose last record so far is `appended`: makes the manifest, or continues with the one that was found.
    /// `state` is what it will say, but for its turn.
    pub fn begin(
        identity: &Identity,
        found: Option<&Found>,
        state: State,
        appended: u64,
    ) -> std::result::Result<(Manifest, Page), Errno> {
        let Some(found) = found else { return Manifest::make(identity, state, appended) };
        let file = identity.system.open(&identity.manifest, true)?;
        let page = Page(file.map(MANIFEST_BYTES)?);
        let known = Known::fixed_length(&*identity.system, identity.manifest.clone())?;
        let now = Mutex::new(Now { file, known, state: found.state.clone(), oldest: 0 });
        let manifest = Manifest { identity: identity.clone(), now };
        // First: once the copy names this boot, it is believed.
        page.appended(appended)?;
        manifest.change(|now| now.state = State { turn: now.state.turn, ..state })?;
        Ok((manifest, page))
    }

    /// Makes it, and its folder.
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
        let now = Mutex::new(Now { file, known, state, oldest: 0 });
        Ok((Manifest { identity: identity.clone(), now }, page))
    }

    /// Writes the file again where it is not what it was, or `always`; the page is another one then. Called by the processor, whose last
    /// record is `appended`. Its folder has to be there: one that was moved away is not made again in its old place.
    pub fn renew(&self, appended: u64, always: bool) -> std::result::Result<Option<Page>, Errno> {
        let mut now = self.now.lock().expect("no holder panics");
        if !always && now.known.is_there(&*self.identity.system)? {
            return Ok(None);
        }
        let (file, known, page) = write_new(&self.identity, &now.state, appended)?;
        (now.file, now.known) = (file, known);
        Ok(Some(page))
    }

    /// Whether the file is what it was.
    pub fn is_there(&self) -> std::result::Result<bool, Errno> {
        self.now.lock().expect("no holder panics").known.is_there(&*self.identity.system)
    }

    /// Whose it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The first commit in a segment is durable.
    pub fn committed_in(
        &self,
        segment: (u64, u64),
        committed: u64,
    ) -> std::result::Result<(), Errno> {
        if bug(Bug::NoManifest) {
            return Ok(());
        }
        self.change(|now| {
            if segment.0 >= now.oldest {
                now.state.segment = segment;
            }
            now.state.committed = now.state.committed.max(committed);
        })
    }

    /// A checkpoint has its name, and covers the records up to `covered`. Once this has succeeded, what is older may be
    /// removed, and segments before `oldest`.
    pub fn checkpointed(
        &self,
        checkpoint: (u64, u32),
        covered: u64,
        oldest: u64,
    ) -> std::result::Result<(), Errno> {
        if bug(Bug::NoManifest) {
            return Ok(());
        }
        self.change(|now| {
            now.oldest = oldest;
            now.state.checkpoint = checkpoint;
            now.state.committed = now.state.committed.max(covered);
            if now.state.segment.0 < oldest {
                now.state.segment = (0, 0);
            }
        })
    }

    fn change(&self, change: impl FnOnce(&mut Now)) -> std::result::Result<(), Errno> {
        let mut now = self.now.lock().expect("no holder panics");
        let before = now.state.turn;
        change(&mut now);
        now.state.turn = before + 1;
        let at = COPY_OFFSETS[(now.state.turn % 2) as usize];
        // What could not be made durable may be there all the same, so what it says is kept; its turn is used again (MF3).
        let written = now.file.write(&encode(&now.state, &self.identity), at);
        let synced = written.and_then(|()| now.file.sync());
        let there = synced.and_then(|()| now.known.is_there(&*self.identity.system));
        let result = there.and_then(|there| if there { Ok(()) } else { Err(Errno::EIO) });
        if result.is_err() {
            now.state.turn = before;
        }
        result
    }
}

fn folder(identity: &Identity) -> &Path {
    identity.manifest.parent().unwrap_or(Path::new("/"))
}

/// Writes a file with both copies, the older one of which says the same, and gives it its name, durably.
fn write_new(
    identity: &Identity,
    state: &State,
    appended: u64,
) -> std::result::Result<(Arc<dyn File>, Known, Page), Errno> {
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
    let known = Known::fixed_length(&*identity.system, identity.manifest.clone())?;
    identity.system.sync_directory(folder(identity))?;
    Ok((file, known, page))
}
