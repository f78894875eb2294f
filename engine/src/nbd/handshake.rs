//! The handshake: from the first byte to the export that a connection serves, as a pure state machine.
//!
//! How it works      Bytes of the peer go in with [`Handshake::feed`], bytes for it come out of
//!                   [`Handshake::output`]; no socket, clock or thread is in here. Options are answered one
//!                   by one. No further option is handled while much output waits to be sent, so a long list of exports
//!                   is made piece by piece.
//! Invariants        HN1 exactly an option's length is consumed, whatever is in it;
//!                   HN2 at most [`INPUT_BYTES_MAX`] of input and [`OUTPUT_BYTES_MAX`] of output are held, in addition
//!                       to the list of exports;
//!                   HN3 nothing is attached to before an option that ends the handshake was found valid.
//! Errors            an error reply where the protocol has one; for anything else the connection is closed: a wrong
//!                   magic, unknown client flags, an exceeded limit.

pub(in crate::nbd) mod contexts;
pub(in crate::nbd) mod options;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use self::contexts::Selected;
use crate::limits::NAME_BYTES_MAX;
use crate::nbd::wire::{
    EXPORT_NAME_ZEROES, MAGIC, OPTION_HEADER_BYTES, OPTION_MAGIC, OPTION_REPLY_HEADER_BYTES,
    OPTION_REPLY_MAGIC, handshake_flag, option, option_reply, take_u32, take_u64,
};
use crate::request::Contexts;
use crate::volume::export::{Attachment, Export, ExportTable};

/// Longest payload of an option, bytes.
pub const OPTION_BYTES_MAX: usize = 64 << 10;
/// What a peer may send in longer payloads, which are discarded, before it is closed, bytes.
pub const SKIPPED_BYTES_MAX: u64 = 1 << 20;
/// Options in one handshake; a list of exports with two questions about each fits.
pub const OPTIONS_MAX: u32 = 16 << 10;
/// Lists of exports, or of all contexts of one, in one handshake.
pub const LISTS_MAX: u32 = 16;
/// Output at which no further option is handled, bytes.
pub const OUTPUT_BYTES_HIGH: usize = 16 << 10;
/// The most that one step adds to the output, bytes: an INFO with name and description.
const STEP_BYTES_MAX: usize = 5 * OPTION_REPLY_HEADER_BYTES + 2 * NAME_BYTES_MAX + 256;
/// The most output that is held, bytes.
pub const OUTPUT_BYTES_MAX: usize = OUTPUT_BYTES_HIGH + STEP_BYTES_MAX;
/// The most input in one call of [`Handshake::feed`], bytes.
pub const FEED_BYTES_MAX: usize = 16 << 10;
/// The most input that is held, bytes.
pub const INPUT_BYTES_MAX: usize = OPTION_HEADER_BYTES + OPTION_BYTES_MAX + FEED_BYTES_MAX;
/// The protocol's limit for a text, bytes.
const TEXT_BYTES_MAX: usize = 4096;

const _: () = assert!(OPTION_BYTES_MAX >= 2 * (4 + NAME_BYTES_MAX) + 4);
const _: () = assert!(SKIPPED_BYTES_MAX > OPTION_BYTES_MAX as u64);

/// Result of a step of the handshake.
pub enum Step {
    /// More input is needed, or the output must be taken first.
    More,
    /// The connection ends once the output is sent.
    Close,
    /// Transmission begins once the output is sent.
    Done(Agreement),
}

/// Result of a handshake.
pub struct Agreement {
    /// An attachment to the export that was asked for.
    pub attachment: Attachment,
    /// Whether replies may have chunks.
    pub structured: bool,
    /// The metadata contexts that were selected, if any.
    pub selection: Option<Selection>,
    /// Bytes received that already belong to the transmission phase.
    pub rest: Vec<u8>,
}

/// Metadata contexts that were selected.
pub struct Selection {
    /// The contexts.
    pub contexts: Arc<Contexts>,
    /// An attachment to each snapshot that they compare with.
    pub held: Vec<Attachment>,
}

/// What the handshake needs to know about the server.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The exports.
    pub exports: &'a ExportTable,
    /// No more connections may enter transmission.
    pub full: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    ClientFlags,
    Options,
    Skipping { option: u32, left: u64 },
    Closed,
}

/// One handshake.
pub struct Handshake {
    phase: Phase,
    input: Vec<u8>,
    output: Vec<u8>,
    fixed: bool,
    no_zeroes: bool,
    structured: bool,
    selected: Option<Selected>,
    listing: Option<Listing>,
    options: u32,
    lists: u32,
    skipped: u64,
}

impl Default for Handshake {
    fn default() -> Handshake {
        Handshake::new()
    }
}

impl Handshake {
    /// A handshake whose output is the server's greeting.
    pub fn new() -> Handshake {
        let mut output = Vec::with_capacity(64);
        output.extend_from_slice(&MAGIC.to_be_bytes());
        output.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
        let flags = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
        output.extend_from_slice(&flags.to_be_bytes());
        Handshake {
            phase: Phase::ClientFlags,
            input: Vec::new(),
            output,
            fixed: false,
            no_zeroes: false,
            structured: false,
            selected: None,
            listing: None,
            options: 0,
            lists: 0,
            skipped: 0,
        }
    }

    /// The bytes to send to the peer.
    pub fn output(&self) -> &[u8] {
        &self.output
    }

    /// Notes that the first `length` bytes of the output were sent.
    pub fn sent(&mut self, length: usize) {
        self.output.drain(..length.min(self.output.len()));
        if self.output.is_empty() && self.output.capacity() > 1024 {
            self.output = Vec::new();
        }
    }

    /// Memory that it holds, bytes.
    pub fn held_bytes(&self) -> usize {
        let listing =
            self.listing.as_ref().map_or(0, |list| list.exports.len() * size_of::<usize>());
        self.input.capacity() + self.output.capacity() + listing
    }

    /// Accepts at most [`FEED_BYTES_MAX`] bytes from the peer and proceeds as far as possible with them. Call it with
    /// none to continue after output was sent, and with some only when all output was sent.
    pub fn feed(&mut self, bytes: &[u8], context: Context) -> Step {
        self.input.extend_from_slice(bytes);
        let mut consumed = 0;
        let step = loop {
            if self.phase == Phase::Closed {
                break Step::Close;
            }
            if self.output.len() >= OUTPUT_BYTES_HIGH {
                break Step::More;
            }
            if self.listing.is_some() {
                self.list_next();
                continue;
            }
            match self.next(&mut consumed, context) {
                Some(Step::More) => {}
                Some(step) => break step,
                None => break Step::More,
            }
        };
        debug_assert!(self.output.len() <= OUTPUT_BYTES_MAX, "HN2");
        self.input.drain(..consumed.min(self.input.len()));
        if self.input.is_empty() && self.input.capacity() > 1024 {
            self.input = Vec::new();
        }
        if let Step::Done(mut agreement) = step {
            agreement.rest = std::mem::take(&mut self.input);
            return Step::Done(agreement);
        }
        step
    }

    /// Handles the input at `consumed` and advances it; `None` if more input is needed.
    fn next(&mut self, consumed: &mut usize, context: Context) -> Option<Step> {
        let mut rest = &self.input[*consumed..];
        match self.phase {
            Phase::Closed => Some(Step::Close),
            Phase::ClientFlags => {
                let flags = take_u32(&mut rest)?;
                *consumed += 4;
                Some(self.client_flags(flags))
            }
            Phase::Skipping { option, left } => {
                let here = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                *consumed += here;
                let left = left - here as u64;
                if left > 0 {
                    self.phase = Phase::Skipping { option, left };
                    return None;
                }
                self.phase = Phase::Options;
                self.refuse(option, option_reply::ERR_TOO_BIG, "the option is too long");
                Some(Step::More)
            }
            Phase::Options => {
                if rest.len() < OPTION_HEADER_BYTES {
                    return None;
                }
                let (magic, number) = (take_u64(&mut rest)?, take_u32(&mut rest)?);
                let length = take_u32(&mut rest)?;
                self.option_header(magic, number, length, consumed, context)
            }
        }
    }

    fn client_flags(&mut self, flags: u32) -> Step {
        let fixed = u32::from(handshake_flag::FIXED_NEWSTYLE);
        let no_zeroes = u32::from(handshake_flag::NO_ZEROES);
        if flags & !(fixed | no_zeroes) != 0 {
            return self.close();
        }
        self.fixed = flags & fixed != 0;
        self.no_zeroes = flags & no_zeroes != 0;
        self.phase = Phase::Options;
        Step::More
    }

    fn option_header(
        &mut self,
        magic: u64,
        number: u32,
        length: u32,
        consumed: &mut usize,
        context: Context,
    ) -> Option<Step> {
        let only_old = !self.fixed && number != option::EXPORT_NAME;
        if magic != OPTION_MAGIC || only_old || self.options >= OPTIONS_MAX {
            return Some(self.close());
        }
        let length = length as usize;
        if number == option::EXPORT_NAME && length > NAME_BYTES_MAX {
            return Some(self.close());
        }
        if length > OPTION_BYTES_MAX {
            self.skipped += length as u64;
            if self.skipped > SKIPPED_BYTES_MAX {
                return Some(self.close());
            }
            self.options += 1;
            *consumed += OPTION_HEADER_BYTES;
            self.phase = Phase::Skipping { option: number, left: length as u64 };
            return Some(Step::More);
        }
        let start = *consumed + OPTION_HEADER_BYTES;
        if self.input.len() - start < length {
            return None;
        }
        self.options += 1;
        // The input is lent to the option's handler and put back, so that the handler may change the rest.
        let input = std::mem::take(&mut self.input);
        let step = self.option(number, &input[start..start + length], context);
        self.input = input;
        *consumed = start + length; // HN1
        Some(step)
    }

    fn close(&mut self) -> Step {
        self.phase = Phase::Closed;
        Step::Close
    }

    fn reply(&mut self, option: u32, kind: u32, parts: &[&[u8]]) {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        self.output.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
        self.output.extend_from_slice(&option.to_be_bytes());
        self.output.extend_from_slice(&kind.to_be_bytes());
        self.output.extend_from_slice(&length.to_be_bytes());
        for part in parts {
            self.output.extend_from_slice(part);
        }
    }

    fn refuse(&mut self, option: u32, kind: u32, text: &str) {
        self.reply(option, kind, &[cut(text).as_bytes()]);
    }

    /// Answers EXPORT_NAME, which has no error reply.
    fn export_name_answer(&mut self, size: u64, flags: u16) {
        self.output.extend_from_slice(&size.to_be_bytes());
        self.output.extend_from_slice(&flags.to_be_bytes());
        if !self.no_zeroes {
            self.output.extend_from_slice(&[0; EXPORT_NAME_ZEROES]);
        }
    }

    fn list_next(&mut self) {
        let Some(list) = &mut self.listing else { return };
        let option = list.option;
        let Some(export) = list.exports.next() else {
            self.listing = None;
            self.reply(option, option_reply::ACK, &[]);
            return;
        };
        if option == option::LIST_META_CONTEXT {
            return self.changed_since(option, 0, &export);
        }
        let name = cut(&export.name).as_bytes();
        let length = u32::try_from(name.len()).unwrap_or(0).to_be_bytes();
        self.reply(option, option_reply::SERVER, &[&length, name]);
    }
}

/// A list that is being sent: of exports, or of contexts that compare with them.
struct Listing {
    option: u32,
    exports: std::vec::IntoIter<Arc<Export>>,
}

/// The beginning of a text, no longer than the protocol allows.
fn cut(text: &str) -> &str {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
