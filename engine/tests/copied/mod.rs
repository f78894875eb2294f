//! What a kill leaves of a directory whose files an engine may be changing: all of them as they are at one instant.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn contents(from: &Path, to: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let paths = std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path());
    // One that has gone meanwhile is missing the next time, too.
    paths
        .filter_map(|path| Some((to.join(path.file_name()?), std::fs::read(&path).ok()?)))
        .collect()
}

/// Copies a directory of files, as it is at one instant.
pub fn copy_directory(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    let (mut before, mut found) = (BTreeMap::new(), contents(from, to));
    while before != found {
        (before, found) = (found, contents(from, to));
    }
    found.iter().for_each(|(path, bytes)| std::fs::write(path, bytes).unwrap());
}
