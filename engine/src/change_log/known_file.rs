//! Known file: a file that a start would read, with its status when this process made or read it.
//!
//! How it works      Other programs can remove, rename, replace or truncate a file that this process has open. Calls on
//!                   it still succeed (except a store after the end of a truncated one), and the next start does not
//!                   find what they stored. So the file at the path is compared with the known one:
//!                   [`super::shared_journal`] does that before a commit succeeds
//!                   ([why](../../../docs/decisions/0040-files-changed-from-outside.md)).
//! Errors            the system's, if it cannot say what is at the path.

use std::path::PathBuf;

use crate::error::Errno;
use crate::system::{FileStatus, System};

/// See the module's head.
#[derive(Debug)]
pub struct KnownFile {
    /// Its path.
    pub path: PathBuf,
    /// `None`: it did not exist when it was first checked.
    status: Option<FileStatus>,
    /// Its bytes do not change any more.
    finished: bool,
}

impl KnownFile {
    /// A file whose contents may change, but not its length.
    pub fn fixed_length(system: &dyn System, path: PathBuf) -> Result<KnownFile, Errno> {
        Ok(KnownFile { status: system.stat(&path)?, path, finished: false })
    }

    /// A file whose contents do not change any more.
    pub fn finished(system: &dyn System, path: PathBuf) -> Result<KnownFile, Errno> {
        Ok(KnownFile { status: system.stat(&path)?, path, finished: true })
    }

    /// Whether it is still at its path with the same length and, if it is finished, the same time of change.
    pub fn is_there(&self, system: &dyn System) -> Result<bool, Errno> {
        let now = system.stat(&self.path)?;
        Ok(self.status.zip(now).is_some_and(|(status, now)| {
            let same = status.file == now.file && status.length == now.length;
            same && (!self.finished || status.changed == now.changed)
        }))
    }
}
