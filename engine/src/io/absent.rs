//! Absent: the file of a device that is not there: every call fails with EIO.

use crate::error::Errno;
use crate::system::mapping::Mapping;
use crate::system::{Cached, File, Result};

/// See the module's head.
#[derive(Debug)]
pub struct Absent;

impl File for Absent {
    fn read_cached(&self, _: &mut [u8], _: u64) -> Result<Cached> {
        Err(Errno::EIO)
    }

    fn read(&self, _: &mut [u8], _: u64) -> Result<()> {
        Err(Errno::EIO)
    }

    fn write(&self, _: &[u8], _: u64) -> Result<()> {
        Err(Errno::EIO)
    }

    fn punch(&self, _: u64, _: u64) -> Result<()> {
        Err(Errno::EIO)
    }

    fn zero_range(&self, _: u64, _: u64) -> Result<()> {
        Err(Errno::EIO)
    }

    fn sync(&self) -> Result<()> {
        Err(Errno::EIO)
    }

    fn will_need(&self, _: u64, _: u64) {}

    /// All is data, which is no statement about the contents: only a read could make one, and it fails.
    fn allocation(&self, _: u64, limit: u64) -> Result<(u64, bool)> {
        Ok((limit, false))
    }

    fn length(&self) -> Result<u64> {
        Err(Errno::EIO)
    }

    fn map(&self, _: usize) -> Result<Mapping> {
        Err(Errno::EIO)
    }
}
