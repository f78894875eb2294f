//! Buffers: the memory that a request's bytes live in, shared without a copy.
//!
//! How it works      A [`Block`] is one allocation. An [`Inbox`] fills a block from a socket and returns [`Buffer`]s of
//!                   the filled part; a read request owns a whole block as its buffer.
//! Invariants        B1 bytes below an inbox's `filled` are never written again by the inbox;
//!                   B2 bytes at or above `filled` are in no buffer;
//!                   B3 a buffer that parts of a request write to is owned by that request alone, and its
//!                      parts are disjoint ranges.
//! Owner and locks   none: B1..B3 keep every byte with one writer.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::Arc;

/// Alignment of every block, bytes (what O_DIRECT asks for at most).
pub const ALIGNMENT: usize = 4096;

/// One allocation, at a fixed address, aligned to [`ALIGNMENT`] when it is at least that large.
#[derive(Debug)]
struct Block {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a Block is plain memory; B1..B3 define which thread may touch which byte.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

impl Block {
    fn new(length: usize) -> Block {
        let align = if length >= ALIGNMENT { ALIGNMENT } else { 16 };
        let layout = Layout::from_size_align(length.max(1), align).expect("a buffer's length fits");
        // SAFETY: the layout's size is not 0.
        let start = unsafe { alloc(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Block { start, layout }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// A range of bytes of a block: a write's payload or a read's destination.
///
/// Contents are undefined until written, so [`Buffer::as_slice`] may be called only on a buffer that was
/// filled: a payload, or a read that succeeded.
#[derive(Debug)]
pub struct Buffer {
    block: Option<Arc<Block>>,
    start: usize,
    length: usize,
}

impl Buffer {
    /// A buffer of no bytes, which allocates nothing.
    pub const fn empty() -> Buffer {
        Buffer { block: None, start: 0, length: 0 }
    }

    /// A buffer of its own of `length` bytes, all zero.
    pub fn zeroed(length: usize) -> Buffer {
        let buffer = Buffer::uninit(length);
        // SAFETY: no other thread has this buffer yet.
        unsafe { buffer.part_mut(0, length) }.fill(0);
        buffer
    }

    /// A buffer of its own of `length` uninitialized bytes: for reads that fill all of it or fail.
    pub fn uninit(length: usize) -> Buffer {
        if length == 0 {
            return Buffer::empty();
        }
        Buffer { block: Some(Arc::new(Block::new(length))), start: 0, length }
    }

    /// A buffer of its own with a copy of `bytes`.
    pub fn copy_of(bytes: &[u8]) -> Buffer {
        let buffer = Buffer::uninit(bytes.len());
        // SAFETY: no other thread has this buffer yet.
        unsafe { buffer.part_mut(0, bytes.len()) }.copy_from_slice(bytes);
        buffer
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether it holds no bytes.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Whether it is all of its block, not a part of an inbox.
    pub fn is_whole(&self) -> bool {
        self.block.as_ref().is_some_and(|block| block.layout.size() == self.length)
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        let Some(block) = &self.block else { return &[] };
        // SAFETY: in range by construction; B1 and B3: the writer of these bytes is done.
        unsafe { std::slice::from_raw_parts(block.start.as_ptr().add(self.start), self.length) }
    }

    /// `length` bytes from `offset` on, for writing.
    ///
    /// # Safety
    /// B3: only the caller accesses this range, until the request's last part is done.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn part_mut(&self, offset: usize, length: usize) -> &mut [u8] {
        assert!(
            offset <= self.length && length <= self.length - offset,
            "B3: part outside its buffer"
        );
        let Some(block) = &self.block else { return &mut [] };
        // SAFETY: in range, just asserted; exclusive by the caller's promise.
        unsafe {
            let start = block.start.as_ptr().add(self.start + offset);
            std::slice::from_raw_parts_mut(start, length)
        }
    }
}

/// Fills a block from a socket and returns buffers of the filled part.
#[derive(Debug)]
pub struct Inbox {
    block: Arc<Block>,
    filled: usize,
}

impl Inbox {
    /// An inbox over a new block of `length` bytes.
    pub fn new(length: usize) -> Inbox {
        Inbox { block: Arc::new(Block::new(length)), filled: 0 }
    }

    /// An inbox over the block of a buffer that is no longer used; `None` if another buffer shares the block.
    pub fn over(buffer: Buffer) -> Option<Inbox> {
        let mut block = buffer.block?;
        Arc::get_mut(&mut block)?;
        Some(Inbox { block, filled: 0 })
    }

    /// How many bytes were filled since the start of the block.
    pub fn filled(&self) -> usize {
        self.filled
    }

    /// The bytes `from..filled`.
    pub fn bytes(&self, from: usize) -> &[u8] {
        assert!(from <= self.filled, "B1: beyond what was filled");
        // SAFETY: in range, just asserted; B1: no longer written.
        unsafe {
            std::slice::from_raw_parts(self.block.start.as_ptr().add(from), self.filled - from)
        }
    }

    /// The free space after `filled`, to receive into. Its contents are undefined.
    pub fn space(&mut self) -> &mut [u8] {
        let free = self.block.layout.size() - self.filled;
        // SAFETY: in range; B2: in no buffer, and `&mut self` keeps others out.
        unsafe { std::slice::from_raw_parts_mut(self.block.start.as_ptr().add(self.filled), free) }
    }

    /// Counts `length` bytes of [`Inbox::space`] as filled.
    pub fn advance(&mut self, length: usize) {
        assert!(length <= self.block.layout.size() - self.filled, "B2: beyond the block");
        self.filled += length;
    }

    /// Bytes `start..start + length`, which must be filled, as a buffer that shares the block.
    pub fn share(&self, start: usize, length: usize) -> Buffer {
        assert!(start <= self.filled && length <= self.filled - start, "B1: not filled yet");
        Buffer { block: Some(Arc::clone(&self.block)), start, length }
    }

    /// Everything filled so far as one buffer; the inbox ends here.
    pub fn into_buffer(self) -> Buffer {
        let length = self.filled;
        Buffer { block: Some(self.block), start: 0, length }
    }

    /// All of its block as one buffer, whose contents are undefined; the inbox ends here.
    pub fn into_whole(self) -> Buffer {
        let length = self.block.layout.size();
        Buffer { block: Some(self.block), start: 0, length }
    }

    /// Whether no buffer shares the block any more; then [`Inbox::clear`] can reuse it.
    pub fn is_unshared(&mut self) -> bool {
        Arc::get_mut(&mut self.block).is_some()
    }

    /// Reuses the block from its start, if no buffer shares it; returns whether it did.
    pub fn clear(&mut self) -> bool {
        let unshared = self.is_unshared();
        if unshared {
            self.filled = 0;
        }
        unshared
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inbox_returns_what_it_received_and_is_reused_only_when_unshared() {
        let mut inbox = Inbox::new(8192);
        inbox.space()[..5].copy_from_slice(b"hello");
        inbox.advance(5);
        let shared = inbox.share(1, 3);
        inbox.space()[..1].copy_from_slice(b"!");
        inbox.advance(1);
        assert_eq!(shared.as_slice(), b"ell");
        assert!(!inbox.clear());
        drop(shared);
        assert!(inbox.clear());
        assert_eq!(inbox.filled(), 0);
    }

    #[test]
    #[should_panic(expected = "B3")]
    fn a_part_outside_its_buffer_is_refused() {
        let buffer = Buffer::zeroed(10);
        // SAFETY: refused before any memory is touched.
        let _ = unsafe { buffer.part_mut(8, 3) };
    }
}
