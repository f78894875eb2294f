//! Local client: blocking I/O on an export from within this process.
//!
//! How it works      A call makes a request, submits it, and blocks until its sink has it. Any number of threads may
//!                   call. Used from Python by tests and the nbdkit plugin.
//! Errors            requests are checked like in the NBD server, with the same results: outside the export EINVAL
//!                   (reads) or ENOSPC (writes), writes to a snapshot EPERM, length 0 EINVAL.

use std::sync::{Arc, Condvar, Mutex};

use crate::buffer::Buffer;
use crate::error::Errno;
use crate::request::{Request, Sink, StatusExtent, Verb};
use crate::volume::export::Attachment;

#[derive(Default)]
struct Waiting {
    done: Mutex<Option<Arc<Request>>>,
    wake: Condvar,
}

impl Sink for Waiting {
    fn complete(&self, request: Arc<Request>) {
        *self.done.lock().expect("no holder panics") = Some(request);
        self.wake.notify_one();
    }

    fn kick(&self) {}
}

/// See the module's head.
pub struct LocalClient(Attachment);

impl LocalClient {
    /// A client of this export, attached as long as it exists.
    pub fn new(attachment: Attachment) -> LocalClient {
        LocalClient(attachment)
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.0.target.size()
    }

    /// Whether writes are refused.
    pub fn read_only(&self) -> bool {
        self.0.target.read_only()
    }

    fn call(
        &self,
        verb: Verb,
        offset: u64,
        length: u64,
        data: Buffer,
        fua: bool,
    ) -> Result<Arc<Request>, Errno> {
        if verb != Verb::Flush {
            let inside = offset.checked_add(length).is_some_and(|end| end <= self.size());
            if verb.is_write() && self.read_only() {
                return Err(Errno::EPERM);
            }
            if length == 0 {
                return Err(Errno::EINVAL);
            }
            if !inside {
                let grows = matches!(verb, Verb::Write | Verb::Zero { .. });
                return Err(if grows { Errno::ENOSPC } else { Errno::EINVAL });
            }
        }
        let sink = Arc::new(Waiting::default());
        let ours: Arc<dyn Sink> = Arc::clone(&sink) as Arc<dyn Sink>;
        let mut request = Request::new(verb, offset, length, data, ours);
        request.fua = fua;
        self.0.target.submit(&mut vec![Arc::new(request)]);
        let mut done = sink.done.lock().expect("no holder panics");
        loop {
            if let Some(request) = done.take() {
                return request.result().map(|()| request);
            }
            done = sink.wake.wait(done).expect("no holder panics");
        }
    }

    /// Reads `length` bytes; the request's buffer holds them.
    pub fn read(&self, offset: u64, length: u64) -> Result<Arc<Request>, Errno> {
        let fits = offset.checked_add(length).is_some_and(|end| end <= self.size());
        let data = if fits { Buffer::uninit(length as usize) } else { Buffer::empty() };
        self.call(Verb::Read, offset, length, data, false)
    }

    /// Writes bytes.
    pub fn write(&self, offset: u64, bytes: &[u8], fua: bool) -> Result<(), Errno> {
        let data = Buffer::copy_of(bytes);
        self.call(Verb::Write, offset, bytes.len() as u64, data, fua).map(|_| ())
    }

    /// ZERO, TRIM or CACHE.
    pub fn range(&self, verb: Verb, offset: u64, length: u64, fua: bool) -> Result<(), Errno> {
        self.call(verb, offset, length, Buffer::empty(), fua).map(|_| ())
    }

    /// FLUSH.
    pub fn flush(&self) -> Result<(), Errno> {
        self.call(Verb::Flush, 0, 0, Buffer::empty(), false).map(|_| ())
    }

    /// BLOCK_STATUS, repeated from where each answer ends. If it fails after the beginning, the result ends there.
    pub fn block_status(&self, offset: u64, length: u64) -> Result<Vec<StatusExtent>, Errno> {
        let mut found: Vec<StatusExtent> = Vec::new();
        let (mut at, end) = (offset, offset.saturating_add(length));
        loop {
            let asked = self.call(Verb::BlockStatus, at, end - at, Buffer::empty(), false);
            let request = match asked {
                Err(errno) if found.is_empty() => return Err(errno),
                Err(_) => return Ok(found),
                Ok(request) => request,
            };
            let statuses = request.take_status();
            if statuses.is_empty() {
                return Ok(found);
            }
            for extent in statuses {
                at = extent.offset + extent.length;
                match found.last_mut() {
                    Some(last) if last.hole == extent.hole && last.zero == extent.zero => {
                        last.length += extent.length;
                    }
                    _ => found.push(extent),
                }
            }
            if at >= end {
                return Ok(found);
            }
        }
    }
}
