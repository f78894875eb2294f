//! Names: changes of the simulated directories' names, which reach the disk in order.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// A change of one or two names.
#[derive(Clone, Debug)]
pub enum NameChange {
    /// A file was created.
    Set(PathBuf, usize),
    /// A file was renamed.
    Rename(PathBuf, PathBuf),
    /// A file was removed.
    Remove(PathBuf),
}

/// Applies a change.
pub fn apply(names: &mut BTreeMap<PathBuf, usize>, change: NameChange) {
    match change {
        NameChange::Set(path, inode) => {
            names.insert(path, inode);
        }
        NameChange::Rename(from, to) => {
            if let Some(inode) = names.remove(&from) {
                names.insert(to, inode);
            }
        }
        NameChange::Remove(path) => {
            names.remove(&path);
        }
    }
}
