//! Part: one processor's part of a request: a range of one partition.
//!
//! Owner and locks   the queue that it is in, then the processor that takes it, or the thread that does its job.

use std::sync::Arc;

use crate::request::Request;
use crate::system::ticks::Tick;
use crate::units::{BLOCK_SHIFT, Epoch, LocalIndex};

/// The part of a request that lies in one partition.
pub struct Part {
    /// The request.
    pub request: Arc<Request>,
    /// The snapshot's epoch, or 0 for the live volume.
    pub view: Epoch,
    /// The volume's share on the processor.
    pub share: u32,
    /// The partition's number on the share.
    pub local: LocalIndex,
    /// First byte within the partition.
    pub offset: u32,
    /// Length in bytes, at least 1.
    pub length: u32,
    /// Bytes of the partition after it that are done when it is done (see [pieces](super::share)).
    pub rest: u32,
    /// Offset of the part in the request, bytes.
    pub at: u64,
    /// Number of its failed attempts to write slots.
    pub tried: u8,
    /// It reads data that the page cache does not have.
    pub cold: bool,
    /// The tick in which its processor first took it; 0: not yet.
    pub since: Tick,
}

impl Part {
    /// Leaves the range from `offset` in the partition on for the next piece.
    pub fn cut(&mut self, offset: u32) {
        let end = self.offset + self.length;
        assert!(self.offset < offset && offset <= end, "a piece is not empty");
        self.length = offset - self.offset;
        self.rest += end - offset;
    }

    /// Its offset in the volume, bytes.
    pub fn start(&self) -> u64 {
        self.request.offset + self.at
    }

    /// First and last block that it touches.
    pub fn blocks(&self) -> (u32, u32) {
        (self.offset >> BLOCK_SHIFT, (self.offset + (self.length - 1)) >> BLOCK_SHIFT)
    }
}
