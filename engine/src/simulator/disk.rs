//! Disk: every file of a simulated machine, in memory, with a page cache, faults and crashes.
//!
//! How it works      Each call counts as one operation; before it, a crash may be due, or the kernel writes something
//!                   back. After a crash the disk is dead, with the contents for the next start, until [`Disk::start`].
//! A kill            leaves the page cache. A write during which it comes is done in part.
//! A power loss      leaves what was synced, some other sectors, and the first few operations on names.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::contents::{Contents, Memory, PAGE, SECTOR, Survival};
use super::faults::{Injected, Rates, Role};
use super::names::{NameChange, apply};
use super::random::Random;
use crate::error::Errno;
use crate::system::{Cached, Result};

/// When the machine crashes, and how.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The number of the operation.
    pub at: u64,
    /// The power is lost; else the process is killed.
    pub power: bool,
}

pub(super) struct Inode {
    pub(super) role: Role,
    pub(super) contents: Contents,
}

/// See the module's head.
pub struct Disk {
    pub(super) inodes: Vec<Inode>,
    pub(super) names: BTreeMap<PathBuf, usize>,
    pub(super) durable_names: BTreeMap<PathBuf, usize>,
    pending: Vec<NameChange>,
    directories: BTreeSet<PathBuf>,
    remembered: BTreeMap<PathBuf, Vec<u8>>,
    pub(super) random: Random,
    /// The rates of its faults.
    pub rates: Rates,
    /// Whether it injects faults.
    pub failing: bool,
    /// The next crash.
    pub plan: Option<Plan>,
    /// The faults injected so far.
    pub injected: Injected,
    /// Operations so far.
    pub operations: u64,
    /// A hash of all operations and notes.
    pub trace: u64,
    /// Print operations.
    pub verbose: bool,
    pub(super) hung: Option<(usize, u64)>,
    /// It has crashed, and was not restarted.
    pub dead: bool,
    /// Starts of the machine.
    pub boots: u64,
}

impl Disk {
    /// An empty disk.
    pub fn new(random: Random, rates: Rates) -> Disk {
        Disk {
            inodes: Vec::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            pending: Vec::new(),
            directories: BTreeSet::new(),
            remembered: BTreeMap::new(),
            random,
            injected: Injected::beginning(&rates),
            rates,
            failing: false,
            plan: None,
            operations: 0,
            trace: 0xcbf2_9ce4_8422_2325,
            verbose: false,
            hung: None,
            dead: false,
            boots: 1,
        }
    }

    /// Adds a device of `length` bytes, all hole.
    pub fn add_device(&mut self, path: &str, length: u64, role: Role) {
        let number = self.inodes.len();
        self.inodes.push(Inode { role, contents: Contents::hole(length) });
        self.names.insert(PathBuf::from(path), number);
        self.durable_names.insert(PathBuf::from(path), number);
    }

    /// Adds an operation to the trace.
    pub fn note(&mut self, what: &str, a: u64, b: u64, c: u64) {
        if self.verbose {
            println!("{:6} {what} {a} {b} {c}", self.operations);
        }
        let mut hash = self.trace;
        for word in [what.len() as u64, a, b, c] {
            hash = (hash ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
        }
        self.trace = hash;
    }

    /// Restarts the machine or the process.
    pub fn start(&mut self) {
        assert!(self.dead, "it was stopped or has crashed");
        self.dead = false;
    }

    /// Crashes now.
    pub fn crash(&mut self, power: bool) {
        self.note("crash", u64::from(power), 0, 0);
        self.hung = None;
        self.dead = true;
        self.plan = None;
        if !power {
            self.inodes.iter_mut().for_each(|inode| inode.contents.kill());
            return;
        }
        self.boots += 1;
        let reached_disk = self.random.below(self.pending.len() as u64 + 1) as usize;
        for change in self.pending.drain(..).take(reached_disk) {
            apply(&mut self.durable_names, change);
        }
        self.names.clone_from(&self.durable_names);
        if self.random.coin() {
            self.remembered.clear();
        }
        let overall = self.random.below(4);
        for inode in &mut self.inodes {
            let survival = match if overall == 3 { self.random.below(3) } else { overall } {
                0 => Survival::None,
                1 => Survival::All,
                _ => Survival::Some(self.random.below(1_000_000)),
            };
            inode.contents.lose_power(&mut self.random, survival);
        }
    }

    /// A point between operations at which a crash may be due.
    pub fn maybe_crash(&mut self) {
        if let Some(plan) = self.plan
            && self.operations + 1 >= plan.at
            && self.random.coin()
        {
            self.crash(plan.power);
        }
    }

    /// Begins an operation; returns the plan of a crash, if one is due in it.
    fn begin(
        &mut self,
        what: &str,
        inode: usize,
        offset: u64,
        length: u64,
    ) -> Result<Option<Plan>> {
        if self.dead {
            return Err(Errno::EIO);
        }
        self.operations += 1;
        self.note(what, inode as u64, offset, length);
        if self.random.chance(self.rates.write_back) && !self.inodes.is_empty() {
            let other = self.random.below(self.inodes.len() as u64) as usize;
            self.inodes[other].contents.write_back_some(&mut self.random);
        }
        if self.failing && self.random.chance(self.rates.rot) {
            self.rot();
        }
        Ok(self.plan.filter(|plan| self.operations >= plan.at))
    }

    /// Begins an operation without effects.
    fn begin_query(&mut self, what: &str, inode: usize, offset: u64, length: u64) -> Result<()> {
        match self.begin(what, inode, offset, length)? {
            None => Ok(()),
            Some(plan) => {
                self.crash(plan.power);
                Err(Errno::EIO)
            }
        }
    }

    fn rot(&mut self) {
        let logs: Vec<usize> = (0..self.inodes.len())
            .filter(|number| self.inodes[*number].role == Role::Log)
            .collect();
        let number = logs[self.random.below(logs.len() as u64) as usize];
        let contents = &mut self.inodes[number].contents;
        let page = self.random.below(contents.length / PAGE as u64) as usize;
        if !contents.is_hole(page) {
            contents.rot(page, self.random.below(PAGE as u64 * 8) as usize);
            self.injected.damage += 1;
        }
    }

    fn fails(&mut self, inode: usize, rate: u64) -> bool {
        self.role_fails(self.inodes[inode].role, rate)
    }

    fn role_fails(&mut self, role: Role, rate: u64) -> bool {
        let fails = self.failing && self.rates.roles[role as usize] && self.random.chance(rate);
        if fails {
            self.injected.errors += 1;
            self.note("fault", 0, 0, 0);
        }
        fails
    }

    /// Reads.
    pub fn read(&mut self, inode: usize, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.begin_query("read", inode, offset, buffer.len() as u64)?;
        if self.fails(inode, self.rates.read) {
            buffer.fill(0xee);
            return Err(Errno::EIO);
        }
        let inside = self.inodes[inode].contents.read(offset, buffer);
        if inside { Ok(()) } else { Err(Errno::EIO) }
    }

    /// Reads, if that needs no waiting.
    pub fn read_cached(&mut self, inode: usize, buffer: &mut [u8], offset: u64) -> Result<Cached> {
        if self.random.chance(self.rates.would_wait) {
            return Ok(Cached::WouldWait);
        }
        self.read(inode, buffer, offset).map(|()| Cached::Done)
    }

    /// Writes some of the sectors of a write.
    fn write_some(&mut self, inode: usize, bytes: &[u8], offset: u64) {
        let all = self.random.below(3) == 0;
        for (index, sector) in bytes.chunks(SECTOR).enumerate() {
            if all || self.random.coin() {
                let at = offset + (index * SECTOR) as u64;
                self.inodes[inode].contents.write(at, sector);
            }
        }
    }

    /// Writes.
    pub fn write(&mut self, inode: usize, bytes: &[u8], offset: u64) -> Result<()> {
        if let Some(plan) = self.begin("write", inode, offset, bytes.len() as u64)? {
            self.write_some(inode, bytes, offset);
            self.crash(plan.power);
            return Err(Errno::EIO);
        }
        let length = self.inodes[inode].contents.length;
        let outside = offset + bytes.len() as u64 > length;
        // A write extends a device's file; but if no device becomes shorter, a write there is an error.
        if outside && self.inodes[inode].role != Role::State && self.injected.short == 0 {
            return Err(Errno::EIO);
        }
        if self.fails(inode, self.rates.write) {
            self.write_some(inode, bytes, offset);
            return Err(Errno::EIO);
        }
        if self.fails(inode, self.rates.no_space) {
            let part = self.random.below(bytes.len() as u64 + 1) as usize / SECTOR * SECTOR;
            self.inodes[inode].contents.write(offset, &bytes[..part]);
            return Err(Errno::ENOSPC);
        }
        if self.inodes[inode].role == Role::Log && self.failing {
            if self.random.chance(self.rates.lost) {
                self.injected.damage += 1;
                return Ok(());
            }
            if self.random.chance(self.rates.misdirected) {
                self.injected.damage += 1;
                let pages = (length - bytes.len() as u64) / PAGE as u64 + 1;
                let elsewhere = self.random.below(pages) * PAGE as u64;
                self.inodes[inode].contents.write(elsewhere, bytes);
                return Ok(());
            }
        }
        self.inodes[inode].contents.write(offset, bytes);
        Ok(())
    }

    /// Punches a hole, or writes zeroes.
    pub fn clear(&mut self, inode: usize, offset: u64, length: u64, hole: bool) -> Result<()> {
        let plan = self.begin("clear", inode, offset, length)?;
        let fails = plan.is_none() && self.fails(inode, self.rates.write);
        let mut length = length;
        if plan.is_some() || fails {
            length = self.random.below(length / PAGE as u64 + 1) * PAGE as u64;
        }
        // The size does not change.
        length = length.min(self.inodes[inode].contents.length.saturating_sub(offset));
        if hole {
            self.inodes[inode].contents.punch(offset, length);
        } else {
            self.inodes[inode].contents.write(offset, &vec![0; length as usize]);
        }
        if let Some(plan) = plan {
            self.crash(plan.power);
        }
        if plan.is_some() || fails { Err(Errno::EIO) } else { Ok(()) }
    }

    /// Syncs a file.
    pub fn sync(&mut self, inode: usize) -> Result<()> {
        if let Some(plan) = self.begin("sync", inode, 0, 0)? {
            self.inodes[inode].contents.write_back_some(&mut self.random);
            self.crash(plan.power);
            return Err(Errno::EIO);
        }
        if self.fails(inode, self.rates.sync) {
            self.injected.syncs += 1;
            self.injected.holes += 1;
            self.inodes[inode].contents.fail_sync(&mut self.random);
            return Err(if self.random.coin() { Errno::EIO } else { Errno::ENOSPC });
        }
        self.inodes[inode].contents.sync();
        Ok(())
    }

    /// Length of the run from `offset`, at most `limit` bytes, and whether it is a hole; EIO beyond the end.
    pub fn allocation(&mut self, inode: usize, offset: u64, limit: u64) -> Result<(u64, bool)> {
        let contents = &self.inodes[inode].contents;
        let left = contents.length.saturating_sub(offset);
        if left == 0 {
            return Err(Errno::EIO);
        }
        let limit = limit.min(left);
        let first = offset as usize / PAGE;
        let hole = contents.is_hole(first);
        let mut index = first + 1;
        while ((index * PAGE) as u64) < offset + limit && contents.is_hole(index) == hole {
            index += 1;
        }
        Ok((((index * PAGE) as u64 - offset).min(limit), hole))
    }

    /// Makes a device shorter, or long again: then the range beyond reads as zeroes.
    pub fn set_device_length(&mut self, path: &str, length: u64) {
        self.note("size", length, 0, 0);
        let inode = self.names[Path::new(path)];
        let contents = &mut self.inodes[inode].contents;
        self.injected.short += u64::from(length < contents.length);
        contents.set_length(length);
    }

    /// Whether a change of a device's size is due.
    pub fn changes_size(&mut self) -> bool {
        self.failing && self.rates.size > 0 && self.random.chance(self.rates.size)
    }

    /// A file's length.
    pub fn length(&mut self, inode: usize) -> Result<u64> {
        if self.inodes[inode].role == Role::State {
            self.begin_query("length", inode, 0, 0)?;
        }
        Ok(self.inodes[inode].contents.length)
    }

    /// Maps a file.
    pub fn map(&mut self, inode: usize, length: usize) -> Result<Arc<Memory>> {
        self.begin_query("map", inode, 0, length as u64)?;
        if self.fails(inode, self.rates.no_space) {
            return Err(Errno::ENOSPC);
        }
        Ok(self.inodes[inode].contents.map(length))
    }

    /// Whether there is space for a page of a mapping.
    pub fn has_page(&mut self, inode: usize) -> bool {
        self.dead || !self.fails(inode, self.rates.no_space)
    }

    /// Opens a file.
    pub fn open(&mut self, path: &Path) -> Result<usize> {
        self.begin_query("open", 0, 0, 0)?;
        self.names.get(path).copied().ok_or(Errno::new(libc::ENOENT))
    }

    /// Creates a file, and replaces one of its name.
    pub fn create(&mut self, path: &Path) -> Result<usize> {
        let number = self.inodes.len();
        self.inodes.push(Inode { role: Role::State, contents: Contents::default() });
        let mut rate = self.rates.name;
        if self.random.coin() {
            rate += self.rates.no_space;
        }
        self.name("create", NameChange::Set(path.to_owned(), number), rate)?;
        Ok(number)
    }

    /// Renames a file.
    pub fn rename(&mut self, from: &Path, to: &Path) -> Result<()> {
        if !self.dead && !self.names.contains_key(from) {
            return Err(Errno::new(libc::ENOENT));
        }
        let change = NameChange::Rename(from.to_owned(), to.to_owned());
        self.name("rename", change, self.rates.name)
    }

    /// Removes a file.
    pub fn remove(&mut self, path: &Path) -> Result<()> {
        if !self.dead && !self.names.contains_key(path) {
            return Err(Errno::new(libc::ENOENT));
        }
        self.name("remove", NameChange::Remove(path.to_owned()), self.rates.name)
    }

    fn name(&mut self, what: &str, change: NameChange, rate: u64) -> Result<()> {
        let plan = self.begin(what, 0, 0, 0)?;
        if plan.is_none() && self.role_fails(Role::State, rate) {
            return Err(if self.random.coin() { Errno::EIO } else { Errno::ENOSPC });
        }
        if plan.is_none() || self.random.coin() {
            apply(&mut self.names, change.clone());
            self.pending.push(change);
        }
        match plan {
            None => Ok(()),
            Some(plan) => {
                self.crash(plan.power);
                Err(Errno::EIO)
            }
        }
    }

    /// Stores bytes until the machine stops, and perhaps longer.
    pub fn remember(&mut self, path: &Path, bytes: &[u8]) -> Result<()> {
        if self.dead {
            return Err(Errno::EIO);
        }
        self.note("remember", bytes.len() as u64, 0, 0);
        self.remembered.insert(path.to_owned(), bytes.to_vec());
        Ok(())
    }

    /// What is reached_disk.
    pub fn recall(&self, path: &Path) -> Option<Vec<u8>> {
        self.remembered.get(path).cloned()
    }

    /// Removes them.
    pub fn forget(&mut self, path: &Path) -> Result<()> {
        if !self.dead {
            self.remembered.remove(path);
        }
        Ok(())
    }

    /// Everything in a directory.
    pub fn list(&mut self, directory: &Path) -> Result<Vec<PathBuf>> {
        self.begin_query("list", 0, 0, 0)?;
        if self.role_fails(Role::State, self.rates.read) {
            return Err(Errno::EIO);
        }
        if !self.directories.contains(directory) {
            return Err(Errno::new(libc::ENOENT));
        }
        let inside = |path: &&PathBuf| path.parent() == Some(directory);
        let mut found: Vec<PathBuf> = self.names.keys().filter(inside).cloned().collect();
        if self.random.coin() {
            found.reverse();
        }
        Ok(found)
    }

    /// Makes a directory.
    pub fn make_directory(&mut self, path: &Path) -> Result<()> {
        self.begin_query("make_directory", 0, 0, 0)?;
        self.directories.insert(path.to_owned());
        Ok(())
    }

    /// Makes names durable.
    pub fn sync_directory(&mut self) -> Result<()> {
        self.begin_query("sync_directory", 0, 0, 0)?;
        if self.role_fails(Role::State, self.rates.sync) {
            self.injected.syncs += 1;
            return Err(Errno::EIO);
        }
        for change in self.pending.drain(..) {
            apply(&mut self.durable_names, change);
        }
        Ok(())
    }

    /// Names of the state directory, for reports.
    pub fn names(&self) -> Vec<String> {
        self.names.keys().map(|path| path.display().to_string()).collect()
    }

    /// A random number of the machine.
    pub fn number(&mut self) -> u64 {
        self.random.number()
    }

    /// Whether another thread has a turn during an operation.
    pub fn pauses(&mut self) -> bool {
        !self.dead && self.random.chance(self.rates.pause)
    }
}
