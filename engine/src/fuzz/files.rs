//! Files: a system that has only a directory of files in memory, for code that only reads and writes files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::change_log::files::Identity;
use crate::error::Errno;
use crate::system::mapping::Mapping;
use crate::system::pool::Pool;
use crate::system::{Cached, File, Result, System, Task, TaskHandle, Urgency};

/// The volume that every file belongs to.
pub const VOLUME_UUID: [u8; 16] = [9; 16];
/// The processor that every file belongs to.
pub const PROCESSOR: u32 = 2;
/// The boot in which files are read.
pub const BOOT_ID: [u8; 16] = [1; 16];

type Bytes = Arc<Mutex<Vec<u8>>>;

/// See the module's head.
#[derive(Debug, Default)]
pub struct Files(Mutex<BTreeMap<PathBuf, Bytes>>);

#[derive(Debug)]
struct MemoryFile(Bytes);

impl Files {
    /// Adds a file.
    pub fn put(&self, path: PathBuf, bytes: Vec<u8>) {
        self.files().insert(path, Arc::new(Mutex::new(bytes)));
    }

    /// A file's contents.
    pub fn bytes(&self, path: &Path) -> Option<Vec<u8>> {
        let file = self.files().get(path).cloned()?;
        Some(file.lock().expect("no holder panics").clone())
    }

    fn files(&self) -> std::sync::MutexGuard<'_, BTreeMap<PathBuf, Bytes>> {
        self.0.lock().expect("no holder panics")
    }
}

/// The identity of the journal with these files.
pub fn identity(files: &Arc<Files>) -> Identity {
    Identity {
        system: Arc::clone(files) as Arc<dyn System>,
        directory: PathBuf::from("/volume"),
        manifest: PathBuf::from("/manifests/p002.manifest"),
        volume_uuid: VOLUME_UUID,
        processor: PROCESSOR,
        boot_id: BOOT_ID,
    }
}

impl File for MemoryFile {
    fn read_cached(&self, buffer: &mut [u8], offset: u64) -> Result<Cached> {
        self.read(buffer, offset).map(|()| Cached::Done)
    }
    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let bytes = self.0.lock().expect("no holder panics");
        let from = bytes.get(offset as usize..).ok_or(Errno::EIO)?;
        buffer.copy_from_slice(from.get(..buffer.len()).ok_or(Errno::EIO)?);
        Ok(())
    }
    fn write(&self, new: &[u8], offset: u64) -> Result<()> {
        let mut bytes = self.0.lock().expect("no holder panics");
        let end = offset as usize + new.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[offset as usize..end].copy_from_slice(new);
        Ok(())
    }
    fn punch(&self, _offset: u64, _length: u64) -> Result<()> {
        Err(Errno::ENOTSUP)
    }
    fn zero_range(&self, _offset: u64, _length: u64) -> Result<()> {
        Err(Errno::ENOTSUP)
    }
    fn sync(&self) -> Result<()> {
        Ok(())
    }
    fn will_need(&self, _offset: u64, _length: u64) {}
    fn allocation(&self, _offset: u64, limit: u64) -> Result<(u64, bool)> {
        Ok((limit, false))
    }
    fn length(&self) -> Result<u64> {
        Ok(self.0.lock().expect("no holder panics").len() as u64)
    }
    fn map(&self, _length: usize) -> Result<Mapping> {
        Err(Errno::ENOTSUP)
    }
}

impl System for Files {
    fn open(&self, path: &Path, _writable: bool) -> Result<Arc<dyn File>> {
        let file = self.files().get(path).cloned().ok_or(Errno::new(libc::ENOENT))?;
        Ok(Arc::new(MemoryFile(file)))
    }
    fn create(&self, path: &Path) -> Result<Arc<dyn File>> {
        self.put(path.to_owned(), Vec::new());
        self.open(path, true)
    }
    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        let mut files = self.files();
        let file = files.remove(from).ok_or(Errno::new(libc::ENOENT))?;
        files.insert(to.to_owned(), file);
        Ok(())
    }
    fn remove(&self, path: &Path) -> Result<()> {
        self.files().remove(path).map(|_| ()).ok_or(Errno::new(libc::ENOENT))
    }
    fn remember(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        self.put(path.to_owned(), bytes.to_vec());
        Ok(())
    }
    fn recall(&self, path: &Path) -> Result<Option<Vec<u8>>> {
        let file = self.files().get(path).cloned();
        Ok(file.map(|bytes| bytes.lock().expect("no holder panics").clone()))
    }
    fn forget(&self, path: &Path) {
        self.files().remove(path);
    }
    fn list(&self, directory: &Path) -> Result<Vec<PathBuf>> {
        let files = self.files();
        let inside = files.keys().filter(|path| path.parent() == Some(directory));
        Ok(inside.cloned().collect())
    }
    fn make_directory(&self, _path: &Path) -> Result<()> {
        Ok(())
    }
    fn sync_directory(&self, _directory: &Path) -> Result<()> {
        Ok(())
    }
    fn boot_id(&self) -> Result<[u8; 16]> {
        Ok(BOOT_ID)
    }
    fn random(&self) -> Result<u64> {
        Ok(0)
    }
    fn monotonic_ns(&self) -> u64 {
        0
    }
    fn wall_ns(&self) -> u64 {
        0
    }
    fn pool(&self, _name: &str, _threads_max: usize, _urgency: Urgency) -> Result<Pool> {
        Err(Errno::ENOTSUP)
    }
    fn drive(&self, _name: &str, _driven: Arc<dyn Task>) -> Result<Box<dyn TaskHandle>> {
        Err(Errno::ENOTSUP)
    }
    fn threaded(&self) -> bool {
        false
    }
    fn run_others(&self) -> bool {
        false
    }
}
