//! Part: what one processor does of a request: a range of one partition.
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
    /// How many bytes of the partition come behind it that are done when it is done (see [pieces](super::share)).
    pub rest: u32,
    /// Where the part begins in the request, bytes.
    pub at: u64,
    /// How many slots it was given that could not be written.
    pub tried: u8,
    /// It reads what the page cache does not have.
    pub cold: bool,
    /// In which tick its processor took it first; 0: not yet.
    pub since: Tick,
}

impl Part {
    /// Leaves what comes from `offset` in the partition on for the next piece.
    pub fn cut(&mut self, offset: u32) {
        let end = self.offset + self.length;
        assert!(self.offset < offset && offset <= end, "a piece has something");
        self.length = offset - self.offset;
        self.rest += end - offset;
    }

    /// Where in the volume it begins, bytes.
    pub fn start(&self) -> u64 {
        self.request.offset + self.at
    }

    /// First and last block that it touches.
    pub fn blocks(&self) -> (u32, u32) {
        (self.offset >> BLOCK_SHIFT, (self.offset + (self.length - 1)) >> BLOCK_SHIFT)
    }
}
