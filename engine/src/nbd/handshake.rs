//! Handshake: fixed newstyle negotiation as a pure state machine: bytes in, bytes out.
//!
//! How it works      [`Handshake::advance`] takes from the start of the input what it can use, and appends answers to
//!                   the output. It knows no socket and no clock: who calls it bounds time and unread output.
//! Invariants        N1 an option is used up exactly, whatever is in it; N2 nothing is attached before GO or
//!                   EXPORT_NAME; N3 the input that it asks to be kept is at most [`INPUT_BYTES_MAX`].
//! Errors            an option that is wrong in itself gets its error reply; a peer that does not speak the protocol,
//!                   or says too much, is closed.

use std::sync::Arc;

use super::wire::*;
use crate::limits::{NAME_BYTES_MAX, REQUEST_BYTES_MAX};
use crate::units::BLOCK_SIZE;
use crate::volume::export::{Attachment, Export, ExportTable};

/// Largest payload of an option.
pub const OPTION_BYTES_MAX: usize = 64 << 10;
/// Options in one handshake.
pub const OPTIONS_MAX: u32 = 256;
/// Most input that has to be kept for [`Handshake::advance`].
pub const INPUT_BYTES_MAX: usize = OPTION_HEADER_BYTES + OPTION_BYTES_MAX;
/// Payload bytes of too large options that are read past in one handshake.
const SKIP_BYTES_MAX: u64 = 1 << 20;
const OPTION_HEADER_BYTES: usize = 16;
const CLIENT_FLAGS_BYTES: usize = 4;

const _: () = assert!(NAME_BYTES_MAX < OPTION_BYTES_MAX);

/// What was negotiated.
pub struct Negotiated {
    /// The export.
    pub attachment: Attachment,
    /// READ and BLOCK_STATUS are answered in structured chunks.
    pub structured: bool,
    /// BLOCK_STATUS may be asked.
    pub allocation: bool,
}

/// What is to be done next.
pub enum Next {
    /// Give more input.
    More,
    /// Send the output, then close.
    Close,
    /// Send the output, then serve requests; what is left of the input are the first ones.
    Enter(Box<Negotiated>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    ClientFlags,
    Options,
}

/// See the module's head.
pub struct Handshake {
    exports: Arc<ExportTable>,
    state: State,
    no_zeroes: bool,
    structured: bool,
    /// The export that base:allocation was chosen for.
    context: Option<String>,
    options: u32,
    /// Payload bytes of a refused option that are still to come.
    skip: u64,
    skipped: u64,
}

impl Handshake {
    /// A handshake; `output` gets the greeting.
    pub fn new(exports: Arc<ExportTable>, output: &mut Vec<u8>) -> Handshake {
        output.extend_from_slice(&INIT_MAGIC.to_be_bytes());
        output.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
        let flags = HANDSHAKE_FIXED_NEWSTYLE | HANDSHAKE_NO_ZEROES;
        output.extend_from_slice(&flags.to_be_bytes());
        Handshake {
            exports,
            state: State::ClientFlags,
            no_zeroes: false,
            structured: false,
            context: None,
            options: 0,
            skip: 0,
            skipped: 0,
        }
    }

    /// Uses up what it can of `input`, at most one option, and appends answers to `output`. Says how many bytes were
    /// used; with [`Next::More`] and none used, more input is needed.
    pub fn advance(&mut self, input: &[u8], output: &mut Vec<u8>) -> (usize, Next) {
        if self.skip > 0 {
            let used = self.skip.min(input.len() as u64);
            self.skip -= used;
            return (used as usize, Next::More);
        }
        match self.state {
            State::ClientFlags => self.client_flags(input),
            State::Options => self.option(input, output),
        }
    }

    fn client_flags(&mut self, input: &[u8]) -> (usize, Next) {
        if input.len() < CLIENT_FLAGS_BYTES {
            return (0, Next::More);
        }
        let flags = u32_at(input, 0);
        if flags & !u32::from(HANDSHAKE_FIXED_NEWSTYLE | HANDSHAKE_NO_ZEROES) != 0 {
            return (CLIENT_FLAGS_BYTES, Next::Close);
        }
        self.no_zeroes = flags & u32::from(HANDSHAKE_NO_ZEROES) != 0;
        self.state = State::Options;
        (CLIENT_FLAGS_BYTES, Next::More)
    }

    fn option(&mut self, input: &[u8], output: &mut Vec<u8>) -> (usize, Next) {
        if input.len() < OPTION_HEADER_BYTES {
            return (0, Next::More);
        }
        if u64_at(input, 0) != OPTION_MAGIC {
            return (input.len(), Next::Close);
        }
        let (option, length) = (u32_at(input, 8), u32_at(input, 12));
        if length as usize > OPTION_BYTES_MAX {
            self.skipped += u64::from(length);
            if option == OPT_EXPORT_NAME || self.skipped > SKIP_BYTES_MAX {
                return (input.len(), Next::Close);
            }
            self.skip = u64::from(length);
            error(output, option, REP_ERR_TOO_BIG, "the option is too large");
            return (OPTION_HEADER_BYTES, Next::More);
        }
        let whole = OPTION_HEADER_BYTES + length as usize;
        if input.len() < whole {
            return (0, Next::More);
        }
        self.options += 1;
        if self.options > OPTIONS_MAX {
            return (whole, Next::Close);
        }
        let payload = &input[OPTION_HEADER_BYTES..whole];
        (whole, self.answer(option, payload, output)) // N1
    }

    fn answer(&mut self, option: u32, payload: &[u8], output: &mut Vec<u8>) -> Next {
        match option {
            OPT_EXPORT_NAME => return self.export_name(payload, output),
            OPT_ABORT => {
                reply(output, option, REP_ACK, &[]);
                return Next::Close;
            }
            OPT_LIST if payload.is_empty() => self.list(output),
            OPT_INFO | OPT_GO => return self.info(option, payload, output),
            OPT_STRUCTURED_REPLY if payload.is_empty() => {
                self.structured = true;
                reply(output, option, REP_ACK, &[]);
            }
            OPT_LIST | OPT_STRUCTURED_REPLY => {
                error(output, option, REP_ERR_INVALID, "the option takes no data");
            }
            OPT_LIST_META_CONTEXT | OPT_SET_META_CONTEXT => {
                self.meta_context(option, payload, output);
            }
            _ => error(output, option, REP_ERR_UNSUP, "the option is not supported"),
        }
        Next::More
    }

    fn list(&self, output: &mut Vec<u8>) {
        for export in self.exports.list() {
            let mut bytes = (export.name.len() as u32).to_be_bytes().to_vec();
            bytes.extend_from_slice(export.name.as_bytes());
            reply(output, OPT_LIST, REP_SERVER, &bytes);
        }
        reply(output, OPT_LIST, REP_ACK, &[]);
    }

    fn export_name(&mut self, payload: &[u8], output: &mut Vec<u8>) -> Next {
        // There is no error reply to this option.
        let name = std::str::from_utf8(payload).ok().filter(|name| name.len() <= NAME_BYTES_MAX);
        let Some(attachment) = name.and_then(|name| self.exports.attach(name)) else {
            return Next::Close;
        };
        output.extend_from_slice(&attachment.target.size().to_be_bytes());
        output.extend_from_slice(&transmission_flags(&attachment).to_be_bytes());
        if !self.no_zeroes {
            output.extend_from_slice(&[0; 124]);
        }
        self.enter(attachment)
    }

    fn enter(&mut self, attachment: Attachment) -> Next {
        let structured = self.structured;
        let chosen = self.context.take();
        let allocation = chosen.is_some_and(|name| name == attachment.name);
        Next::Enter(Box::new(Negotiated { attachment, structured, allocation }))
    }

    fn info(&mut self, option: u32, payload: &[u8], output: &mut Vec<u8>) -> Next {
        let Some((name, wanted)) = parse_info(payload) else {
            error(output, option, REP_ERR_INVALID, "the option's data is malformed");
            return Next::More;
        };
        let Some(export) = self.exports.find(name) else {
            error(output, option, REP_ERR_UNKNOWN, &format!("there is no export '{name}'"));
            return Next::More;
        };
        if option == OPT_INFO {
            describe(&export, option, wanted, output);
            reply(output, option, REP_ACK, &[]);
            return Next::More;
        }
        // N2. It may have gone since it was found.
        let Some(attachment) = self.exports.attach(name) else {
            error(output, option, REP_ERR_SHUTDOWN, &format!("export '{name}' has just gone"));
            return Next::More;
        };
        describe(&attachment, option, wanted, output);
        reply(output, option, REP_ACK, &[]);
        self.enter(attachment)
    }

    fn meta_context(&mut self, option: u32, payload: &[u8], output: &mut Vec<u8>) {
        if option == OPT_SET_META_CONTEXT {
            self.context = None; // each one replaces the one before, errors included
        }
        let Some((name, queries)) = parse_queries(payload) else {
            return error(output, option, REP_ERR_INVALID, "the option's data is malformed");
        };
        if !self.structured {
            let text = "structured replies must be negotiated first";
            return error(output, option, REP_ERR_INVALID, text);
        }
        let Some(export) = self.exports.find(name) else {
            let text = format!("there is no export '{name}'");
            return error(output, option, REP_ERR_UNKNOWN, &text);
        };
        let listing = option == OPT_LIST_META_CONTEXT;
        let asked = |query: &&[u8]| {
            *query == CONTEXT_ALLOCATION.as_bytes() || (listing && *query == b"base:")
        };
        if queries.iter().any(asked) || (listing && queries.is_empty()) {
            let mut bytes = CONTEXT_ALLOCATION_ID.to_be_bytes().to_vec();
            bytes.extend_from_slice(CONTEXT_ALLOCATION.as_bytes());
            reply(output, option, REP_META_CONTEXT, &bytes);
            if !listing {
                self.context = Some(export.name.clone());
            }
        }
        reply(output, option, REP_ACK, &[]);
    }
}

/// The export's transmission flags.
pub fn transmission_flags(export: &Export) -> u16 {
    let always = FLAG_HAS_FLAGS
        | FLAG_SEND_FLUSH
        | FLAG_SEND_FUA
        | FLAG_SEND_DF
        | FLAG_SEND_CACHE
        | FLAG_CAN_MULTI_CONN;
    let writes = FLAG_SEND_TRIM | FLAG_SEND_WRITE_ZEROES | FLAG_SEND_FAST_ZERO;
    always | if export.target.read_only() { FLAG_READ_ONLY } else { writes }
}

struct Wanted {
    name: bool,
    description: bool,
}

fn describe(export: &Export, option: u32, wanted: Wanted, output: &mut Vec<u8>) {
    let mut bytes = INFO_EXPORT.to_be_bytes().to_vec();
    bytes.extend_from_slice(&export.target.size().to_be_bytes());
    bytes.extend_from_slice(&transmission_flags(export).to_be_bytes());
    reply(output, option, REP_INFO, &bytes);
    let mut bytes = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
    for size in [1, BLOCK_SIZE as u32, REQUEST_BYTES_MAX as u32] {
        bytes.extend_from_slice(&size.to_be_bytes());
    }
    reply(output, option, REP_INFO, &bytes);
    let texts = [
        (wanted.name, INFO_NAME, &export.name),
        (
            wanted.description && !export.description.is_empty(),
            INFO_DESCRIPTION,
            &export.description,
        ),
    ];
    for (_, kind, text) in texts.into_iter().filter(|(wanted, _, _)| *wanted) {
        let mut bytes = kind.to_be_bytes().to_vec();
        bytes.extend_from_slice(cut_text(text).as_bytes());
        reply(output, option, REP_INFO, &bytes);
    }
}

/// Takes `length` bytes from the front.
fn take<'a>(input: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = input.split_at_checked(length)?;
    *input = rest;
    Some(taken)
}

fn take_u32(input: &mut &[u8]) -> Option<u32> {
    take(input, 4).map(|bytes| u32_at(bytes, 0))
}

fn take_name<'a>(input: &mut &'a [u8]) -> Option<&'a str> {
    let length = take_u32(input)? as usize;
    let name = take(input, length).filter(|_| length <= NAME_BYTES_MAX)?;
    std::str::from_utf8(name).ok()
}

fn parse_info(mut payload: &[u8]) -> Option<(&str, Wanted)> {
    let name = take_name(&mut payload)?;
    let count = u16_at(take(&mut payload, 2)?, 0);
    if payload.len() != usize::from(count) * 2 {
        return None;
    }
    let wants = |kind: u16| payload.chunks_exact(2).any(|info| u16_at(info, 0) == kind);
    Some((name, Wanted { name: wants(INFO_NAME), description: wants(INFO_DESCRIPTION) }))
}

fn parse_queries(mut payload: &[u8]) -> Option<(&str, Vec<&[u8]>)> {
    let name = take_name(&mut payload)?;
    let count = take_u32(&mut payload)? as usize;
    // Each query has at least its length, so this bounds the list by what was sent.
    if count > payload.len() / 4 {
        return None;
    }
    let mut queries = Vec::with_capacity(count);
    for _ in 0..count {
        let length = take_u32(&mut payload)? as usize;
        queries.push(take(&mut payload, length)?);
    }
    payload.is_empty().then_some((name, queries))
}

fn reply(output: &mut Vec<u8>, option: u32, kind: u32, data: &[u8]) {
    output.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    output.extend_from_slice(&option.to_be_bytes());
    output.extend_from_slice(&kind.to_be_bytes());
    output.extend_from_slice(&(data.len() as u32).to_be_bytes());
    output.extend_from_slice(data);
}

fn error(output: &mut Vec<u8>, option: u32, kind: u32, text: &str) {
    reply(output, option, kind, cut_text(text).as_bytes());
}

/// A text cut to what the protocol allows.
fn cut_text(text: &str) -> &str {
    let mut end = text.len().min(NAME_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
