//! Copies a directory whose files an engine may be changing, as a kill leaves it: all files at one instant.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn contents(from: &Path, to: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let paths = std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path());
    // A file that disappeared during the pass is missing in the next one too.
    paths
        .filter_map(|path| Some((to.join(path.file_name()?), std::fs::read(&path).ok()?)))
        .collect()
}

/// Copies a directory of files, at one instant.
pub fn copy_directory(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    let (mut before, mut found) = (BTreeMap::new(), contents(from, to));
    while before != found {
        (before, found) = (found, contents(from, to));
    }
    found.iter().for_each(|(path, bytes)| std::fs::write(path, bytes).unwrap());
}
