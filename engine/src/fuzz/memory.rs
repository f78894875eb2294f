//! Memory: a volume in memory that ends each request synchronously, for tests of code that reads requests.
//!
//! Promises          R2: it receives no invalid request.

use std::sync::Arc;

use crate::request::{ChangedRun, Request, Target, Verb};
use crate::sync::Mutex;
use crate::units::{Epoch, VolumeId};

/// A volume in memory that ends each request at once.
pub struct Memory {
    /// Its contents.
    pub(super) bytes: Mutex<Vec<u8>>,
    read_only: bool,
}

impl Memory {
    /// A volume of `size` bytes, whose contents depend on the offset.
    pub fn new(size: usize, read_only: bool) -> Memory {
        Memory { bytes: Mutex::new(contents(size)), read_only }
    }

    fn serve(&self, request: &Request) {
        let mut bytes = self.bytes.lock().expect("no holder panics");
        let range = request.offset as usize..(request.offset + request.length) as usize;
        assert!(range.end <= bytes.len(), "R2: past the end");
        assert!(!range.is_empty() || request.verb == Verb::Flush, "R2: empty");
        assert!(!(self.read_only && request.verb.is_write()), "R2: not allowed");
        match request.verb {
            Verb::Read => {
                // SAFETY: B3: the request's only part.
                let buffer = unsafe { request.data.part_mut(0, range.len()) };
                buffer.copy_from_slice(&bytes[range]);
            }
            Verb::Write => bytes[range].copy_from_slice(request.data.as_slice()),
            Verb::Zero { .. } => bytes[range].fill(0),
            Verb::BlockStatus => {
                let (offset, length) = (request.offset, request.length.div_ceil(2));
                request.add_changes(&[ChangedRun { context: 1, offset, length }]);
            }
            Verb::Trim | Verb::Flush | Verb::Cache => {}
        }
    }
}

impl Target for Memory {
    fn size(&self) -> u64 {
        self.bytes.lock().expect("no holder panics").len() as u64
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn instant(&self) -> Option<(VolumeId, Option<Epoch>)> {
        Some((1, self.read_only.then_some(1)))
    }

    fn submit(&self, batch: &mut Vec<Arc<Request>>) {
        for request in batch.drain(..) {
            self.serve(&request);
            let sink = Arc::clone(request.sink());
            request.complete();
            sink.kick();
        }
    }
}

/// The initial contents of one of this size.
pub(super) fn contents(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at ^ (at >> 8)) as u8).collect()
}
