//! Failed sync: a persistent record of a failed fsync (known as "fsyncgate"), valid for this boot.
//!
//! How it works      After a failed fsync the kernel may mark pages as clean that never reached the disk. The first
//!                   fsync of the next process would then succeed, and a flush would be answered although data was
//!                   lost. A small file in the volume's directory, a header that names the boot, records that a device
//!                   or a journal has failed a sync; the next process treats it as failed. The file is not synced:
//!                   after a reboot nothing is left of the old page cache.
//! Invariants        FS1 the record is made before the caller of the sync gets its error, and removed after the data
//!                   that may be lost is no longer needed, or the loss was reported to hosts.
//! Owner and locks   one lock, held while the file changes.
//! Errors            if the file cannot be written, only this process knows of the failure. A file that cannot be read,
//!                   or is damaged, counts as set.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::files::Identity;
use super::format::{FAILED_SYNC_MAGIC, FORMAT_VERSION, Header};
use crate::error::Errno;
use crate::log::{Level, Line, log};
use crate::mutants::{Bug, bug};
use crate::system::System;
use crate::units::DeviceId;

/// See the module's head.
#[derive(Debug)]
pub struct FailedSync {
    system: Arc<dyn System>,
    path: PathBuf,
    header: Header,
    set: Mutex<bool>,
}

impl FailedSync {
    /// The record of a journal.
    pub fn of_journal(identity: &Identity) -> FailedSync {
        FailedSync::at(identity, format!("p{:03}.failed-sync", identity.processor), 1)
    }

    /// The record of a device.
    pub fn of_device(identity: &Identity, device: DeviceId) -> FailedSync {
        FailedSync::at(identity, format!("d{device:06}.failed-sync"), device)
    }

    fn at(identity: &Identity, name: String, number: u64) -> FailedSync {
        let header = Header {
            version: FORMAT_VERSION,
            volume_uuid: identity.volume_uuid,
            boot_id: identity.boot_id,
            processor: identity.processor,
            number,
            first_seq: 1,
            incarnation: 0,
            previous: 0,
        };
        let path = identity.directory.join(name);
        let system = Arc::clone(&identity.system);
        let set = match system.recall(&path) {
            Ok(None) => false,
            Ok(Some(bytes)) => match Header::decode(&bytes, FAILED_SYNC_MAGIC) {
                Ok(found) => found.boot_id == identity.boot_id,
                // Empty or zeroes: the result of a power loss. Anything else is damaged, or from a later version:
                // whether it is of this boot is unknown.
                Err(_) => bytes.iter().any(|byte| *byte != 0),
            },
            Err(_) => true,
        };
        let failed = FailedSync { system, path, header, set: Mutex::new(set) };
        if !set {
            failed.system.forget(&failed.path);
        }
        failed
    }

    /// Whether a sync has failed since the machine was started, and the failure still matters.
    pub fn is_set(&self) -> bool {
        *self.set.lock().expect("no holder panics")
    }

    /// Records that a sync has failed.
    pub fn set(&self) {
        let mut set = self.set.lock().expect("no holder panics");
        if !*set && !bug(Bug::ForgetAtRestart) {
            // What is not remembered would be forgotten by a restart: the next sync that fails tries again.
            match self.system.remember(&self.path, &self.header.encode(FAILED_SYNC_MAGIC)) {
                Ok(()) => *set = true,
                Err(errno) => log(not_remembered(&self.path, errno)),
            }
        }
    }

    /// Removes the record, if it is set and `unimportant` returns true; that is called under the lock.
    pub fn forget_if(&self, unimportant: impl FnOnce() -> bool) {
        let mut set = self.set.lock().expect("no holder panics");
        if *set && unimportant() {
            *set = false;
            self.system.forget(&self.path);
        }
    }
}

fn not_remembered(path: &Path, errno: Errno) -> Line {
    let path = path.display();
    let text = format!(
        "a sync has failed, and {path}, which says so after a restart, cannot be written: {errno:?}"
    );
    Line::new(Level::Warning, "failed-sync-not-remembered", text).with(errno.raw())
}
