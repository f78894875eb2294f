//! Spare buffers: great buffers that were used and will be again, so that the system need not clear new pages.
//!
//! How it works      A finished request's buffer is kept when nobody else has it, and given to the next
//!                   request of just that length. What is in it is undefined, as in any new buffer.
//! Invariants        at most [`SPARE_BYTES_MAX`] are kept; the oldest go first.
//! Owner and locks   one lock, taken alone, for requests above [`SPARE_BYTES_MIN`] only.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::buffer::Buffer;
use crate::nbd::budget::{PAYLOAD_SHARED_MAX, SPARE_BYTES_MAX, lock};
use crate::sync::Mutex;
use crate::volume::request::Request;

/// Smaller buffers are not kept: the allocator has those at hand, bytes.
const SPARE_BYTES_MIN: usize = PAYLOAD_SHARED_MAX + 1;

/// The spare buffers of one server.
#[derive(Debug, Default)]
pub struct Spares(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    buffers: VecDeque<Buffer>,
    bytes: usize,
}

impl Spares {
    /// Whether buffers of this length are kept at all.
    fn keeps(length: usize) -> bool {
        (SPARE_BYTES_MIN..=SPARE_BYTES_MAX / 4).contains(&length)
    }

    /// A spare buffer of `length` bytes, if there is one.
    pub fn take(&self, length: usize) -> Option<Buffer> {
        if !Spares::keeps(length) {
            return None;
        }
        let mut kept = lock(&self.0);
        let at = kept.buffers.iter().rposition(|buffer| buffer.len() == length)?;
        kept.bytes -= length;
        kept.buffers.remove(at)
    }

    /// Keeps the buffer of a request that is done, if it is worth it and nobody else has the request.
    pub fn keep(&self, request: Arc<Request>) {
        if !Spares::keeps(request.data.len()) {
            return;
        }
        let Some(request) = Arc::into_inner(request) else { return };
        let mut gone = Vec::new(); // dropped after the lock
        let mut kept = lock(&self.0);
        kept.bytes += request.data.len();
        kept.buffers.push_back(request.data);
        while kept.bytes > SPARE_BYTES_MAX {
            let Some(oldest) = kept.buffers.pop_front() else { break };
            kept.bytes -= oldest.len();
            gone.push(oldest);
        }
        drop(kept);
    }
}
