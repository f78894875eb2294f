//! Files: what a journal's files are named, and which there are.
//!
//! Owner and locks   none: an identity never changes.
//! Errors            a directory that cannot be read is reported by its path; one that does not exist has no files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Errno, Error, ErrorKind, Result};
use crate::system::System;

/// The identity of a journal: its writer and its paths.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The system with its files.
    pub system: Arc<dyn System>,
    /// The volume's directory.
    pub directory: PathBuf,
    /// The path of the processor's manifest, in another directory.
    pub manifest: PathBuf,
    /// The volume's UUID.
    pub volume_uuid: [u8; 16],
    /// The processor.
    pub processor: u32,
    /// The host's boot id.
    pub boot_id: [u8; 16],
}

impl Identity {
    /// The path of a segment.
    pub fn segment_path(&self, number: u64) -> PathBuf {
        self.directory.join(format!("p{:03}-{number:010}.journal", self.processor))
    }

    /// The path of a checkpoint.
    pub fn checkpoint_path(&self, number: u64) -> PathBuf {
        self.directory.join(format!("p{:03}-{number:010}.checkpoint", self.processor))
    }
}

/// Numbers and paths of this processor's files with this ending, in order; none if there is no directory.
pub fn files(identity: &Identity, ending: &str) -> Result<Vec<(u64, PathBuf)>> {
    let directory = &identity.directory;
    let failed =
        |e: Errno| Error::io(format!("directory {} cannot be read", directory.display()), e);
    let prefix = format!("p{:03}-", identity.processor);
    let mut found = Vec::new();
    let names = match identity.system.list(directory) {
        Err(errno) if errno.raw() == libc::ENOENT => return Ok(found),
        names => names.map_err(failed)?,
    };
    for path in names {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        let number = name
            .as_deref()
            .and_then(|name| name.strip_prefix(&prefix)?.strip_suffix(ending)?.parse().ok());
        if let Some(number) = number {
            found.push((number, path));
        }
    }
    found.sort();
    Ok(found)
}

/// The error of a file whose contents are not what was written.
pub(super) fn corrupt(path: &Path, what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Corrupt, format!("{} cannot be read back: {what}", path.display()))
}
