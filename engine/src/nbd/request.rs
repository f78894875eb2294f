//! Requests of the transmission phase: parsed and validated. What the protocol or the export forbids is refused here; the
//! target may still fail it.
//!
//! How it works      [`check`] turns a header into a [`Command`] that any target may be given, or into the
//!                   errno that its reply carries. It also returns how much payload follows, refused or not, so that
//!                   the stream stays in step.
//! Errors            EPERM for a write to a read-only export; ENOSPC for a write past the end; EINVAL for
//!                   anything else that is wrong: unknown command or flag, no bytes, too many, past the end.

use crate::error::Errno;
use crate::limits::REQUEST_BYTES_MAX;
use crate::nbd::wire::{RequestHeader, command, command_flag};
use crate::request::{EXTENTS_MAX, Verb};

/// The result of the handshake that requests depend on.
#[derive(Clone, Copy, Debug)]
pub struct Agreed {
    /// Size of the export, bytes.
    pub size: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether replies may have chunks.
    pub structured: bool,
    /// Whether a metadata context was selected.
    pub status: bool,
}

/// A header's meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// The peer disconnects (NBD_CMD_DISC).
    Disconnect,
    /// A request that may be submitted.
    Command(Command),
    /// A request that is answered with an error, after `payload` bytes were read and discarded.
    Refused {
        /// Bytes after the header.
        payload: u32,
        /// What it is answered with.
        errno: Errno,
    },
}

/// A valid request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    /// What is requested.
    pub verb: Verb,
    /// Whether the reply waits for durability.
    pub fua: bool,
}

/// Parses and validates one header.
pub fn check(header: &RequestHeader, agreed: &Agreed) -> Parsed {
    if header.command == command::DISC {
        return Parsed::Disconnect;
    }
    match command_of(header, agreed) {
        Ok(command) => Parsed::Command(command),
        Err(errno) => {
            let payload = if header.command == command::WRITE { header.length } else { 0 };
            Parsed::Refused { payload, errno }
        }
    }
}

fn command_of(header: &RequestHeader, agreed: &Agreed) -> Result<Command, Errno> {
    let verb = verb_of(header)?;
    let allowed = flags_of(verb, agreed) | command_flag::FUA;
    if header.flags & !allowed != 0 {
        return Err(Errno::EINVAL);
    }
    if verb.is_write() && agreed.read_only {
        return Err(Errno::EPERM);
    }
    if verb == Verb::BlockStatus && !(agreed.status && agreed.structured) {
        return Err(Errno::EINVAL);
    }
    check_range(verb, header.offset, u64::from(header.length), agreed.size)?;
    let fua = verb.is_write() && header.flags & command_flag::FUA != 0;
    Ok(Command { verb, fua })
}

fn verb_of(header: &RequestHeader) -> Result<Verb, Errno> {
    Ok(match header.command {
        command::READ => Verb::Read,
        command::WRITE => Verb::Write,
        command::FLUSH => Verb::Flush,
        command::TRIM => Verb::Trim,
        command::CACHE => Verb::Cache,
        command::WRITE_ZEROES => Verb::Zero {
            no_hole: header.flags & command_flag::NO_HOLE != 0,
            fast: header.flags & command_flag::FAST_ZERO != 0,
        },
        command::BLOCK_STATUS => Verb::BlockStatus,
        _ => return Err(Errno::EINVAL),
    })
}

/// Upper bound of the extents in the answer to a BLOCK_STATUS with these flags, for each context.
pub fn extents_max(flags: u16) -> usize {
    if flags & command_flag::REQ_ONE != 0 { 1 } else { EXTENTS_MAX }
}

/// The flags that a command may carry in addition to FUA, which every command may carry.
fn flags_of(verb: Verb, agreed: &Agreed) -> u16 {
    match verb {
        Verb::Read if agreed.structured => command_flag::DF,
        Verb::Zero { .. } => command_flag::NO_HOLE | command_flag::FAST_ZERO,
        Verb::BlockStatus => command_flag::REQ_ONE,
        _ => 0,
    }
}

fn check_range(verb: Verb, offset: u64, length: u64, size: u64) -> Result<(), Errno> {
    if verb == Verb::Flush {
        return if offset == 0 && length == 0 { Ok(()) } else { Err(Errno::EINVAL) };
    }
    if length == 0 {
        return Err(Errno::EINVAL);
    }
    if matches!(verb, Verb::Read | Verb::Write) && length > REQUEST_BYTES_MAX {
        return Err(Errno::EINVAL);
    }
    let inside = offset.checked_add(length).is_some_and(|end| end <= size);
    match verb {
        _ if inside => Ok(()),
        Verb::Write | Verb::Zero { .. } => Err(Errno::ENOSPC),
        _ => Err(Errno::EINVAL),
    }
}
