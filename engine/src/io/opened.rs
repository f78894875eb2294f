//! Opened: the present file of a device, and how a device is opened.
//!
//! Owner and locks   none: a thread that finds an unsupported operation notes it in an atomic flag.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::error::{Errno, Error, ErrorKind, Result};
use crate::mutants::{Bug, bug};
use crate::system::{File, System};

/// The present file of a device, and the operations that it turned out not to support.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) file: Arc<dyn File>,
    pub(super) present: bool,
    /// A write beyond its end extends it.
    pub(super) grows: bool,
    /// The shortest length found, if that was too short (D5), else [`WHOLE`].
    pub(super) short: AtomicU64,
    pub(super) no_punch: AtomicBool,
    pub(super) no_zero: AtomicBool,
    pub(super) no_nowait: AtomicBool,
    pub(super) no_write_nowait: AtomicBool,
}

/// A file that was never found short.
const WHOLE: u64 = u64::MAX;

impl Opened {
    /// How many of its first bytes are known not to be lost.
    pub(super) fn known(&self) -> u64 {
        if bug(Bug::ForgetShort) { WHOLE } else { self.short.load(Ordering::Acquire) }
    }

    pub(super) fn is_short(&self) -> bool {
        self.known() != WHOLE
    }

    pub(super) fn new(file: Arc<dyn File>, present: bool, sparse: bool) -> Arc<Opened> {
        Arc::new(Opened {
            grows: file.grows(),
            no_write_nowait: AtomicBool::new(!file.can_write_nowait()),
            file,
            present,
            short: AtomicU64::new(WHOLE),
            no_punch: AtomicBool::new(!sparse || !present),
            no_zero: AtomicBool::new(!present),
            no_nowait: AtomicBool::new(false),
        })
    }
}

/// How a device is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mode {
    /// Nothing is written to it.
    pub read_only: bool,
    /// Freed space is punched out of it.
    pub sparse: bool,
    /// Complete blocks use O_DIRECT: the caller waits for the disk.
    pub direct: bool,
    /// Least length of its file, bytes.
    pub size: u64,
}

impl Mode {
    /// A file that grows and shrinks.
    pub const SPARSE: Mode = Mode { read_only: false, sparse: true, direct: false, size: 0 };

    pub(super) fn open(self, system: &dyn System, path: &Path) -> Result<Arc<dyn File>> {
        let open = if self.direct { System::open_direct } else { System::open };
        let file = open(system, path, !self.read_only).map_err(|e| cannot_open(path, e))?;
        let length = if self.size == 0 { Ok(0) } else { file.length() };
        let length = length.map_err(|e| cannot_open(path, e))?;
        if length < self.size {
            let (path, size) = (path.display(), self.size);
            let what = format!("device file {path} is {length} bytes and must be {size}");
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        Ok(file)
    }
}

pub(super) fn cannot_open(path: &Path, errno: Errno) -> Error {
    Error::io(format!("device file {} cannot be opened", path.display()), errno)
}
