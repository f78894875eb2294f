//! What each option of a handshake means, and how it is answered.
//!
//! How it works      [`Handshake::option`] is given exactly one option's payload. It appends the answer to the output
//!                   and updates what was agreed on. A payload that does not parse is answered with ERR_INVALID.

use std::sync::Arc;

use super::{Agreement, Context, Handshake, LISTS_MAX, Listing, Step, cut};
use crate::limits::{NAME_BYTES_MAX, REQUEST_BYTES_MAX};
use crate::nbd::wire::{info, option, option_reply, take_string, take_u16, transmission_flag};
use crate::units::BLOCK_SIZE;
use crate::volume::export::{Attachment, Export};

/// Smallest block size that is offered, bytes.
const BLOCK_BYTES_MIN: u32 = 1;
/// Preferred block size, bytes.
const BLOCK_BYTES_PREFERRED: u32 = BLOCK_SIZE as u32;
/// Largest payload that is offered, bytes.
const BLOCK_BYTES_MAX: u32 = REQUEST_BYTES_MAX as u32;

const _: () = assert!(REQUEST_BYTES_MAX <= u32::MAX as u64);

/// An export's transmission flags.
pub fn transmission_flags(read_only: bool) -> u16 {
    let always = transmission_flag::HAS_FLAGS
        | transmission_flag::SEND_FLUSH
        | transmission_flag::SEND_DF
        | transmission_flag::SEND_CACHE
        | transmission_flag::CAN_MULTI_CONN;
    if read_only {
        return always | transmission_flag::READ_ONLY;
    }
    always
        | transmission_flag::SEND_FUA
        | transmission_flag::SEND_TRIM
        | transmission_flag::SEND_WRITE_ZEROES
        | transmission_flag::SEND_FAST_ZERO
}

/// An option that could not be served: the kind of reply and the text.
pub(super) struct Refusal(pub(super) u32, pub(super) &'static str);

pub(super) const MALFORMED: Refusal =
    Refusal(option_reply::ERR_INVALID, "the option's data is malformed");
pub(super) const NO_EXPORT: Refusal = Refusal(option_reply::ERR_UNKNOWN, "no export has this name");
pub(super) const NO_STRUCTURE: Refusal =
    Refusal(option_reply::ERR_INVALID, "structured replies must be negotiated first");
const FULL: Refusal = Refusal(option_reply::ERR_POLICY, "the server has too many connections");
pub(super) const TOO_MANY_LISTS: Refusal =
    Refusal(option_reply::ERR_POLICY, "too many lists were asked for");
const NO_TLS: Refusal = Refusal(option_reply::ERR_UNSUP, "TLS is not offered here");
const UNKNOWN: Refusal = Refusal(option_reply::ERR_UNSUP, "the server does not know this option");

impl Handshake {
    /// Serves one option with exactly its payload.
    pub(super) fn option(&mut self, number: u32, data: &[u8], context: Context) -> Step {
        let result = match number {
            option::EXPORT_NAME => return self.export_name(data, context),
            option::ABORT => {
                self.reply(number, option_reply::ACK, &[]);
                return self.close();
            }
            option::GO => match self.go(data, context) {
                Ok(agreement) => return Step::Done(agreement),
                Err(refusal) => Err(refusal),
            },
            option::INFO => self.describe(number, data, context).map(|_| ()),
            option::LIST => self.list(data, context),
            option::STRUCTURED_REPLY => self.structured_reply(data),
            option::LIST_META_CONTEXT => self.list_meta_context(data, context),
            option::SET_META_CONTEXT => self.set_meta_context(data, context),
            option::STARTTLS => Err(NO_TLS),
            _ => Err(UNKNOWN),
        };
        if let Err(Refusal(kind, text)) = result {
            self.refuse(number, kind, text);
        }
        Step::More
    }

    fn export_name(&mut self, data: &[u8], context: Context) -> Step {
        let found = std::str::from_utf8(data).ok().filter(|_| !context.full);
        let Some(attachment) = found.and_then(|name| context.exports.attach(name)) else {
            return self.close();
        };
        let target = &attachment.target;
        let (size, flags) = (target.size(), transmission_flags(target.read_only()));
        match self.agreement(attachment, context) {
            Ok(agreement) => {
                self.export_name_answer(size, flags);
                Step::Done(agreement)
            }
            Err(_) => self.close(),
        }
    }

    fn go(&mut self, data: &[u8], context: Context) -> Result<Agreement, Refusal> {
        if context.full {
            return Err(FULL);
        }
        let before = self.output.len();
        let name = self.describe(option::GO, data, context)?;
        // The export may have been removed since it was found; then its description is removed from the output.
        let attachment = context.exports.attach(&name).ok_or(NO_EXPORT);
        let agreement = attachment.and_then(|attachment| self.agreement(attachment, context));
        agreement.inspect_err(|_| self.output.truncate(before))
    }

    fn agreement(&self, attachment: Attachment, context: Context) -> Result<Agreement, Refusal> {
        let selection = self.selected_for(&attachment, context)?;
        Ok(Agreement { attachment, structured: self.structured, selection, rest: Vec::new() })
    }

    /// Answers INFO and GO with the information that was asked for; returns the export's name.
    fn describe(&mut self, number: u32, data: &[u8], context: Context) -> Result<String, Refusal> {
        let mut rest = data;
        let name = take_string(&mut rest).ok_or(MALFORMED)?;
        let count = usize::from(take_u16(&mut rest).ok_or(MALFORMED)?);
        if rest.len() != 2 * count {
            return Err(MALFORMED);
        }
        let export = find(name, context)?;
        let (mut wants_name, mut wants_description) = (false, false);
        while let Some(item) = take_u16(&mut rest) {
            wants_name |= item == info::NAME;
            wants_description |= item == info::DESCRIPTION;
        }
        let size = export.target.size().to_be_bytes();
        let flags = transmission_flags(export.target.read_only()).to_be_bytes();
        self.info(number, info::EXPORT, &[&size, &flags]);
        if wants_name {
            self.info(number, info::NAME, &[cut(&export.name).as_bytes()]);
        }
        if wants_description {
            self.info(number, info::DESCRIPTION, &[cut(&export.description).as_bytes()]);
        }
        let sizes = [BLOCK_BYTES_MIN, BLOCK_BYTES_PREFERRED, BLOCK_BYTES_MAX].map(u32::to_be_bytes);
        self.info(number, info::BLOCK_SIZE, &[&sizes[0], &sizes[1], &sizes[2]]);
        self.reply(number, option_reply::ACK, &[]);
        Ok(export.name.clone())
    }

    fn info(&mut self, number: u32, item: u16, parts: &[&[u8]]) {
        let item = item.to_be_bytes();
        let mut all: [&[u8]; 4] = [&item, &[], &[], &[]];
        all[1..=parts.len()].copy_from_slice(parts);
        self.reply(number, option_reply::INFO, &all);
    }

    fn list(&mut self, data: &[u8], context: Context) -> Result<(), Refusal> {
        if !data.is_empty() {
            return Err(MALFORMED);
        }
        if self.lists >= LISTS_MAX {
            return Err(TOO_MANY_LISTS);
        }
        self.lists += 1;
        let exports = context.exports.listed().into_iter();
        self.listing = Some(Listing { option: option::LIST, exports });
        Ok(())
    }

    fn structured_reply(&mut self, data: &[u8]) -> Result<(), Refusal> {
        if !data.is_empty() {
            return Err(MALFORMED);
        }
        self.structured = true;
        self.reply(option::STRUCTURED_REPLY, option_reply::ACK, &[]);
        Ok(())
    }
}

pub(super) fn find(name: &[u8], context: Context) -> Result<Arc<Export>, Refusal> {
    if name.len() > NAME_BYTES_MAX {
        return Err(MALFORMED);
    }
    let name = std::str::from_utf8(name).map_err(|_| MALFORMED)?;
    context.exports.find(name).ok_or(NO_EXPORT)
}
