//! Buffer pool: free lists of buffers for reuse. Large buffers are pooled because the kernel would have to clear new
//! pages; small ones of a few size classes because the allocator is slower than a free list.
//!
//! How it works      The buffer of a finished request is pooled if nothing else refers to it, and the next request of
//!                   exactly that length gets it. Its contents are undefined, as in any new buffer.
//! Invariants        at most [`SPARE_BYTES_MAX`] of large buffers are pooled, the oldest are dropped first; at most
//!                   [`SIZE_CLASS_BYTES_MAX`] of each size class.
//! Owner and locks   a lock for the large buffers and one for the size classes, each taken alone.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::buffer::{Buffer, Inbox};
use crate::nbd::budget::{INBOX_PAYLOAD_MAX, SPARE_BYTES_MAX, lock};
use crate::request::Request;
use crate::sync::Mutex;

/// Smallest large buffer, bytes.
const LARGE_BYTES_MIN: usize = INBOX_PAYLOAD_MAX + 1;
/// log2 of the smallest size class, bytes; each further class is twice as large as the one before.
const SIZE_CLASS_SHIFT: u32 = 12;
/// Number of size classes.
const SIZE_CLASSES: usize = 4;
/// Bytes that are pooled of each size class.
const SIZE_CLASS_BYTES_MAX: usize = 1 << 20;

const _: () =
    assert!(cfg!(fuzzing) || 1 << (SIZE_CLASS_SHIFT as usize + SIZE_CLASSES - 1) < LARGE_BYTES_MIN);

/// The free buffers of one server.
#[derive(Debug, Default)]
pub struct BufferPool {
    large: Mutex<FreeList>,
    classes: Mutex<[Vec<Buffer>; SIZE_CLASSES]>,
}

#[derive(Debug, Default)]
struct FreeList {
    buffers: VecDeque<Buffer>,
    bytes: usize,
}

/// The size class of a length, if it is one.
fn size_class(length: usize) -> Option<usize> {
    let number = length.trailing_zeros().wrapping_sub(SIZE_CLASS_SHIFT) as usize;
    (length.is_power_of_two() && number < SIZE_CLASSES).then_some(number)
}

/// Whether buffers of this length are pooled as large ones.
fn is_large(length: usize) -> bool {
    (LARGE_BYTES_MIN..=SPARE_BYTES_MAX / 4).contains(&length)
}

impl BufferPool {
    /// A pooled buffer of `length` bytes, if there is one.
    pub fn take(&self, length: usize) -> Option<Buffer> {
        if let Some(number) = size_class(length) {
            return lock(&self.classes)[number].pop();
        }
        if !is_large(length) {
            return None;
        }
        let mut kept = lock(&self.large);
        let at = kept.buffers.iter().rposition(|buffer| buffer.len() == length)?;
        kept.bytes -= length;
        kept.buffers.remove(at)
    }

    /// An inbox over a pooled buffer of `length` bytes, or over a new one.
    pub fn inbox(&self, length: usize) -> Inbox {
        self.take(length).and_then(Inbox::over).unwrap_or_else(|| Inbox::new(length))
    }

    /// Pools a large buffer that turned out not to be needed.
    pub fn put(&self, buffer: Buffer) {
        if is_large(buffer.len()) {
            self.keep_large(buffer);
        }
    }

    /// Pools the buffer of a finished request, if its length is a pooled one and no other thread has the request.
    pub fn keep(&self, request: Arc<Request>) {
        let length = request.data.len();
        let number = size_class(length);
        if number.is_none() && !is_large(length) {
            return;
        }
        let Some(Request { data, .. }) = Arc::into_inner(request) else { return };
        match number {
            Some(number) => self.keep_class(number, data),
            None => self.keep_large(data),
        }
    }

    fn keep_class(&self, number: usize, buffer: Buffer) {
        // A small write's buffer is a part of an inbox, not a buffer of its own.
        if !buffer.is_whole() {
            return;
        }
        let mut kept = lock(&self.classes);
        let room = SIZE_CLASS_BYTES_MAX >> (number + SIZE_CLASS_SHIFT as usize);
        if kept[number].len() < room {
            kept[number].push(buffer);
        }
    }

    fn keep_large(&self, buffer: Buffer) {
        let mut gone = Vec::new(); // dropped after the lock
        let mut kept = lock(&self.large);
        kept.bytes += buffer.len();
        kept.buffers.push_back(buffer);
        while kept.bytes > SPARE_BYTES_MAX {
            let Some(oldest) = kept.buffers.pop_front() else { break };
            kept.bytes -= oldest.len();
            gone.push(oldest);
        }
        drop(kept);
    }
}
