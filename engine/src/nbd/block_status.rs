//! Block status: the chunks that answer a BLOCK_STATUS, one for each context that was selected.
//!
//! Invariants        each chunk's extents begin where the request does, leave no gap and end no later than it.

use crate::nbd::wire::{
    BASE_ALLOCATION_ID, CHANGED_SINCE_ID, STATE_DIRTY, STATE_HOLE, STATE_ZERO, chunk, next_chunk,
    only_chunk,
};
use crate::request::{ChangedRun, Request};

/// All chunks, the last one marked as such.
pub fn chunks(request: &Request) -> Vec<u8> {
    let contexts = request.contexts.as_deref();
    let mut payloads = Vec::new();
    if contexts.is_none_or(|contexts| contexts.allocation) {
        payloads.push(allocation(request));
    }
    let since = contexts.map_or(0, |contexts| contexts.since.len());
    let changes = request.take_changes();
    let mut runs = changes.chunk_by(|a, b| a.context == b.context).peekable();
    for context in 0..since {
        let ours = runs.next_if(|runs| runs.iter().all(|run| usize::from(run.context) == context));
        payloads.push(changed(request, CHANGED_SINCE_ID + context as u32, ours.unwrap_or(&[])));
    }
    let mut bytes = Vec::new();
    let last = payloads.len().saturating_sub(1);
    for (number, payload) in payloads.into_iter().enumerate() {
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let header = if number == last { only_chunk } else { next_chunk };
        bytes.extend_from_slice(&header(chunk::BLOCK_STATUS, request.cookie, length));
        bytes.extend_from_slice(&payload);
    }
    bytes
}

/// What is allocated.
fn allocation(request: &Request) -> Vec<u8> {
    let mut payload = Payload::new(request, BASE_ALLOCATION_ID);
    for extent in request.take_status().into_iter().filter(|extent| extent.length > 0) {
        if extent.offset != payload.at {
            break;
        }
        let hole = if extent.hole { STATE_HOLE } else { 0 };
        let zero = if extent.zero { STATE_ZERO } else { 0 };
        payload.push(extent.offset + extent.length, hole | zero);
    }
    payload.end()
}

/// What has changed; blocks between the runs have not.
fn changed(request: &Request, id: u32, runs: &[ChangedRun]) -> Vec<u8> {
    let mut payload = Payload::new(request, id);
    for run in runs {
        payload.push(run.offset, 0);
        payload.push(run.offset + run.length, STATE_DIRTY);
    }
    payload.push(request.answered_to(), 0);
    payload.end()
}

/// A chunk's payload.
struct Payload {
    bytes: Vec<u8>,
    /// Where the next extent begins.
    at: u64,
    end: u64,
    extents_left: usize,
}

impl Payload {
    fn new(request: &Request, id: u32) -> Payload {
        Payload {
            bytes: id.to_be_bytes().to_vec(),
            at: request.offset,
            end: request.answered_to(),
            extents_left: request.extents_max,
        }
    }

    /// Adds an extent from the end of the last one to `to`, if it is not empty and there is room for it.
    fn push(&mut self, to: u64, flags: u32) {
        let to = to.min(self.end);
        if to <= self.at || self.extents_left == 0 {
            return;
        }
        let length = u32::try_from(to - self.at).unwrap_or(u32::MAX);
        self.bytes.extend_from_slice(&length.to_be_bytes());
        self.bytes.extend_from_slice(&flags.to_be_bytes());
        self.at += u64::from(length);
        self.extents_left -= 1;
    }

    /// The payload; if nothing was pushed, the whole range is reported as data, because nothing else is known of it.
    fn end(mut self) -> Vec<u8> {
        if self.bytes.len() == size_of::<u32>() {
            self.push(self.end, 0);
        }
        self.bytes
    }
}
