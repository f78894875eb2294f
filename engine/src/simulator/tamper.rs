//! Tamper: damage that another program, or a bad disk, did to the state directory while no engine ran.
//!
//! How it works      Before a start, a bit of a file is flipped, or a file is removed, or a file, or all files of the
//!                   volume's directory, are replaced with those of an older time. The volume is then refused, and
//!                   nothing in the state directory has changed; or it is served, and all reads are right. After a
//!                   refusal the damage is undone, and the simulation continues.
//! Older catalog     In some starts, the catalog is an older copy: it has the snapshots that were deleted. The engine has to
//!                   return just these, and to serve the rest.
//! Not detected      after a power loss, that the newest segment is from a time between its first commit and its last
//!                   one: so older files are restored only after a kill, when the numbers of records are exact, or a
//!                   clean stop.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::contents::Contents;
use super::disk::{Disk, Inode};
use super::driver::{Catalog, Result, Simulation};
use super::faults::Role;
use super::shape::DIRECTORY;
use crate::engine::Engine;
use crate::io::device::Mode;

type Files = BTreeMap<PathBuf, Contents>;

/// Older files, and the state of the last run.
#[derive(Default)]
pub struct Older {
    files: Vec<Files>,
    /// Number of starts of the machine when the run began.
    pub run_boots: u64,
    /// It was stopped cleanly.
    pub clean: bool,
}

/// The state directory before and after.
pub struct Tampered {
    before: Files,
    after: BTreeMap<PathBuf, Vec<u8>>,
}

impl Disk {
    /// Every file of the state directory, in order of their names.
    pub fn state_files(&mut self) -> Vec<(PathBuf, &mut Contents)> {
        let Disk { names, inodes, .. } = self;
        let numbers: BTreeMap<usize, &PathBuf> =
            names.iter().map(|(path, number)| (*number, path)).collect();
        let mut found: Vec<_> = inodes
            .iter_mut()
            .enumerate()
            .filter(|(_, inode)| inode.role == Role::State)
            .filter_map(|(number, inode)| {
                numbers.get(&number).map(|path| ((*path).clone(), &mut inode.contents))
            })
            .collect();
        found.sort_by(|one, other| one.0.cmp(&other.0));
        found
    }

    /// Replaces the files in a directory with these, durably.
    pub fn restore_files(&mut self, directory: &Path, files: &BTreeMap<PathBuf, Contents>) {
        let outside = |path: &PathBuf, _: &mut usize| path.parent() != Some(directory);
        self.names.retain(outside);
        self.durable_names.retain(outside);
        for (path, contents) in files.iter().filter(|(path, _)| path.parent() == Some(directory)) {
            self.replace_file(path, contents.clone());
        }
    }

    /// Replaces a file, durably.
    pub fn replace_file(&mut self, path: &Path, contents: Contents) {
        let number = self.inodes.len();
        self.inodes.push(Inode { role: Role::State, contents });
        self.names.insert(path.to_owned(), number);
        self.durable_names.insert(path.to_owned(), number);
    }

    /// Removes a file, durably.
    pub fn remove_file_durably(&mut self, path: &Path) {
        self.names.remove(path);
        self.durable_names.remove(path);
    }
}

impl Simulation {
    /// Has an engine serve the volume, by the catalog or by an `older` copy, of which it has to tell what is wrong.
    pub(super) fn serve(&self, engine: &Engine, older: bool) -> crate::error::Result<()> {
        for device in &self.shape.devices {
            let mode = Mode { sparse: device.sparse, size: device.length, ..Mode::default() };
            if self.lost.contains(&device.id) {
                engine.absent_device(device.id, mode, false)?;
            } else {
                engine.open_device(device.id, Path::new(&device.path), mode)?;
            }
        }
        let Catalog { mut snapshots, next_epoch, served, deleted } = self.catalog.clone();
        let deleted = if older { deleted } else { BTreeMap::new() };
        snapshots.extend(deleted.iter().map(|(epoch, rules)| (*epoch, rules.clone())));
        snapshots.sort_unstable_by_key(|(epoch, _)| *epoch);
        let found = engine.add_volume(self.shape.volume(snapshots, next_epoch, served))?;
        if !self.disk.lock().dead && !deleted.keys().eq(&found) {
            let what = format!("snapshots {:?} were deleted, found: {found:?}", deleted.keys());
            self.host.lock().failure = Some(what);
        }
        Ok(())
    }

    fn state_files(&self) -> Files {
        let mut disk = self.disk.lock();
        let files = disk.state_files().into_iter();
        files.map(|(path, contents)| (path, contents.clone())).collect()
    }

    fn state_bytes(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut disk = self.disk.lock();
        disk.state_files().into_iter().map(|(path, contents)| (path, contents.all())).collect()
    }

    /// Does some damage, perhaps.
    pub(super) fn tamper(&mut self) -> Option<Tampered> {
        let rate = self.disk.lock().rates.tamper;
        if rate == 0 || self.older.run_boots == 0 {
            return None;
        }
        let before = self.state_files();
        let done = self.random.chance(rate) && self.do_something(&before);
        self.older.files.push(before.clone());
        done.then(|| Tampered { before, after: self.state_bytes() })
    }

    fn do_something(&mut self, before: &Files) -> bool {
        let paths: Vec<&PathBuf> = before.keys().collect();
        let path = paths[self.random.below(paths.len() as u64) as usize];
        let exact = self.disk.lock().boots == self.older.run_boots || self.older.clean;
        let older = self.older.files.len() as u64;
        self.disk.lock().injected.damage += 1;
        match self.random.below(4) {
            0 => {
                self.disk.lock().note("remove file", 0, 0, 0);
                self.disk.lock().remove_file_durably(path);
                true
            }
            1 if exact && older > 0 => {
                let files = &self.older.files[self.random.below(older) as usize];
                let mut disk = self.disk.lock();
                disk.note("older files", 0, 0, 0);
                match files.get(path) {
                    Some(contents) if self.random.coin() => {
                        disk.replace_file(path, contents.clone())
                    }
                    _ => disk.restore_files(Path::new(DIRECTORY), files),
                }
                true
            }
            _ => self.flip(path),
        }
    }

    /// Flips a bit of a file, usually in its first page.
    fn flip(&mut self, path: &Path) -> bool {
        let mut disk = self.disk.lock();
        let mut files = disk.state_files();
        let found = files.iter_mut().find(|(other, _)| other == path);
        let Some((_, contents)) = found.filter(|(_, contents)| contents.length > 0) else {
            return false;
        };
        let bytes = contents.all();
        // Usually a byte that is used.
        let used: Vec<u64> =
            (0..bytes.len()).filter(|at| bytes[*at] != 0).map(|at| at as u64).collect();
        let first = used.iter().take_while(|at| **at < 2048).count() as u64;
        let at = match self.random.below(4) {
            0 => self.random.below(bytes.len() as u64),
            1 if first > 0 => used[self.random.below(first) as usize],
            _ if !used.is_empty() => used[self.random.below(used.len() as u64) as usize],
            _ => return false,
        };
        let flipped = contents.flip(at, self.random.below(8) as u32);
        disk.note("flip", at, 0, 0);
        flipped
    }

    /// The volume was refused: checks that nothing was changed, and undoes the damage.
    pub(super) fn refused(&mut self, tampered: Tampered) -> Result<()> {
        if self.state_bytes() != tampered.after {
            return Err("a start that refuses a volume has changed its files".to_owned());
        }
        let mut disk = self.disk.lock();
        disk.note("refused", 0, 0, 0);
        for path in tampered.after.keys() {
            disk.remove_file_durably(path);
        }
        for (path, contents) in tampered.before {
            disk.replace_file(&path, contents);
        }
        Ok(())
    }
}
