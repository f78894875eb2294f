//! Expected: the files that must exist of a processor's journal, compared with the existing ones.
//!
//! How it works      The catalog says whether a [manifest](super::manifest), or any file, must exist; the manifest says
//!                   which checkpoint, and up to which record.
//! Errors            `Corrupt`, with the file's name. Nothing is changed.

use std::path::{Path, PathBuf};

use super::checkpoint::{self, Bad, Contents};
use super::files::Identity;
use super::files::{corrupt, files};
use super::manifest::Found;
use crate::error::{Errno, Error, ErrorKind, Result};
use crate::units::PartitionIndex;

/// What must exist of a processor's journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Nothing: it may never have been started.
    Nothing,
    /// A segment or a checkpoint: it may have been started by a version without manifests.
    Files,
    /// Its manifest.
    Manifest,
}

/// The processor's segments and checkpoints in the volume's directory, which need not exist if nothing is expected.
pub fn list(identity: &Identity, expect: Expect) -> Result<Vec<(u64, PathBuf)>> {
    let directory = &identity.directory;
    if expect != Expect::Nothing
        && let Err(errno) = identity.system.list(directory)
        && errno.raw() == libc::ENOENT
    {
        let what = format!("directory {} is missing", directory.display());
        return Err(Error::new(ErrorKind::Corrupt, what));
    }
    let mut names = files(identity, ".journal")?;
    names.extend(files(identity, ".checkpoint")?);
    Ok(names)
}

/// Refuses a processor whose manifest or files are missing although they must exist.
pub fn expect_files(identity: &Identity, expect: Expect, names: &[(u64, PathBuf)]) -> Result<()> {
    let missing = match expect {
        Expect::Manifest => format!("its manifest {} is missing", identity.manifest.display()),
        Expect::Files if names.is_empty() => {
            let (directory, processor) = (identity.directory.display(), identity.processor);
            format!("journal and checkpoint of processor {processor} are missing in {directory}")
        }
        _ => return Ok(()),
    };
    Err(Error::new(ErrorKind::Corrupt, missing))
}

/// Refuses a journal that ends before the last record in the manifest.
pub fn expect_records(identity: &Identity, found: &Found, reached: u64) -> Result<()> {
    let path = &identity.manifest;
    let missing = |least: u64| {
        let (directory, processor) = (identity.directory.display(), identity.processor);
        let what = format!(
            "records {} to {least} of processor {processor} are missing in {directory}, which {} says were there",
            reached + 1,
            path.display()
        );
        Err(Error::new(ErrorKind::Corrupt, what))
    };
    if reached < found.state.committed {
        return missing(found.state.committed);
    }
    if found.state.boot_id != identity.boot_id {
        return Ok(());
    }
    match found.appended {
        None => Err(corrupt(path, "the number of its last record is damaged")),
        Some(appended) if reached < appended => missing(appended),
        // One more may have been stored, and not counted.
        Some(appended) if reached > appended + 1 => {
            let what = format!(
                "it is older than the journal, which has {reached} records, not {appended}"
            );
            Err(corrupt(path, what))
        }
        Some(_) => Ok(()),
    }
}

/// Reads the newest checkpoint: its number and CRC-32C, 0 if there is none, and its contents. The one that the manifest
/// names must exist. A newer one is as good: it was renamed, but the manifest was not written after that, or is an
/// older copy.
pub fn read_checkpoint(
    identity: &Identity,
    named: Option<(u64, u32)>,
    names: &[(u64, PathBuf)],
    blocks_of: &impl Fn(PartitionIndex) -> Option<u32>,
) -> Result<((u64, u32), Contents)> {
    let is_checkpoint = |path: &Path| path.extension().is_some_and(|ending| ending == "checkpoint");
    let found = names.iter().filter(|(_, path)| is_checkpoint(path)).map(|(number, _)| *number);
    let none = Contents::first();
    let (named, named_crc) = named.unwrap_or((0, 0));
    let number = found.clone().max().unwrap_or(0);
    if named > 0 && !found.clone().any(|number| number == named) {
        return Err(corrupt(&identity.checkpoint_path(named), "it is missing"));
    }
    if number == 0 {
        return Ok(((0, 0), none));
    }
    let path = identity.checkpoint_path(number);
    let io = |e: Errno| Error::io(format!("{} cannot be read", path.display()), e);
    let file = identity.system.open(&path, false).map_err(io)?;
    let (header, contents, crc) =
        checkpoint::read_file(&*file, blocks_of).map_err(|bad| match bad {
            Bad::Io(errno) => io(errno),
            Bad::Corrupt(what) => corrupt(&path, what),
        })?;
    if header.volume_uuid != identity.volume_uuid || header.processor != identity.processor {
        return Err(corrupt(&path, "it belongs to another volume or processor"));
    }
    if header.number != number || (number == named && crc != named_crc) {
        return Err(corrupt(
            &path,
            "it is not the one that was written last, but one from another time",
        ));
    }
    Ok(((number, crc), contents))
}
