//! Request: one request's header, parsed and validated: the only place where a request is refused.
//!
//! Errors            EPERM: a write to a read-only export. EINVAL: unknown command or flags, length 0, a range outside
//!                   the export, a READ or WRITE longer than the maximum. ENOSPC: a WRITE or WRITE_ZEROES outside
//!                   the export. A refused WRITE still has its payload behind it.

use super::wire::*;
use crate::error::Errno;
use crate::limits::REQUEST_BYTES_MAX;
use crate::volume::request::Verb;

/// A request's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub flags: u16,
    pub command: u16,
    pub cookie: u64,
    pub offset: u64,
    pub length: u32,
}

/// What a header asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// End of the connection.
    Disconnect,
    /// A request to serve.
    Serve(Verb),
    /// A request to refuse.
    Refuse(Errno),
}

/// What validation needs to know of the connection.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    pub size: u64,
    pub read_only: bool,
    pub structured: bool,
    pub allocation: bool,
}

impl Header {
    /// From its bytes; `None` if the peer does not speak the protocol.
    pub fn parse(bytes: &[u8]) -> Option<Header> {
        if bytes.len() < REQUEST_BYTES || u32_at(bytes, 0) != REQUEST_MAGIC {
            return None;
        }
        Some(Header {
            flags: u16_at(bytes, 4),
            command: u16_at(bytes, 6),
            cookie: u64_at(bytes, 8),
            offset: u64_at(bytes, 16),
            length: u32_at(bytes, 24),
        })
    }

    /// Bytes of payload behind it.
    pub fn payload(&self) -> usize {
        if self.command == CMD_WRITE { self.length as usize } else { 0 }
    }

    /// What it asks for on these terms.
    pub fn validate(&self, terms: &Terms) -> Asked {
        let Some((verb, flags)) = self.verb() else {
            return match self.command {
                CMD_DISC => Asked::Disconnect,
                _ => Asked::Refuse(Errno::EINVAL),
            };
        };
        match self.refusal(verb, flags, terms) {
            Some(errno) => Asked::Refuse(errno),
            None => Asked::Serve(verb),
        }
    }

    /// The verb, and the flags that it may have.
    fn verb(&self) -> Option<(Verb, u16)> {
        let zero = Verb::Zero {
            no_hole: self.flags & CMD_FLAG_NO_HOLE != 0,
            fast: self.flags & CMD_FLAG_FAST_ZERO != 0,
        };
        Some(match self.command {
            CMD_READ => (Verb::Read, CMD_FLAG_FUA | CMD_FLAG_DF),
            CMD_WRITE => (Verb::Write, CMD_FLAG_FUA),
            CMD_FLUSH => (Verb::Flush, CMD_FLAG_FUA),
            CMD_TRIM => (Verb::Trim, CMD_FLAG_FUA),
            CMD_CACHE => (Verb::Cache, CMD_FLAG_FUA),
            CMD_WRITE_ZEROES => (zero, CMD_FLAG_FUA | CMD_FLAG_NO_HOLE | CMD_FLAG_FAST_ZERO),
            CMD_BLOCK_STATUS => (Verb::BlockStatus, CMD_FLAG_FUA | CMD_FLAG_REQ_ONE),
            _ => return None,
        })
    }

    fn refusal(&self, verb: Verb, flags: u16, terms: &Terms) -> Option<Errno> {
        if self.flags & !flags != 0 || (self.flags & CMD_FLAG_DF != 0 && !terms.structured) {
            return Some(Errno::EINVAL);
        }
        if verb == Verb::Flush {
            return (self.offset != 0 || self.length != 0).then_some(Errno::EINVAL);
        }
        if terms.read_only && verb.is_write() {
            return Some(Errno::EPERM);
        }
        let bounded = matches!(verb, Verb::Read | Verb::Write);
        if self.length == 0 || (bounded && u64::from(self.length) > REQUEST_BYTES_MAX) {
            return Some(Errno::EINVAL);
        }
        if verb == Verb::BlockStatus && !(terms.structured && terms.allocation) {
            return Some(Errno::EINVAL);
        }
        let end = self.offset.checked_add(u64::from(self.length));
        if end.is_none_or(|end| end > terms.size) {
            let grows = matches!(verb, Verb::Write | Verb::Zero { .. });
            return Some(if grows { Errno::ENOSPC } else { Errno::EINVAL });
        }
        None
    }
}
