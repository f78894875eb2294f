//! What each option of a handshake means, and how it is answered.
//!
//! How it works      [`Handshake::option`] is given exactly one option's payload. It answers into the output
//!                   and changes what has been agreed on. Payloads that do not parse are ERR_INVALID.

use std::sync::Arc;

use super::{Agreement, Context, Handshake, LISTS_MAX, Step, cut};
use crate::limits::{NAME_BYTES_MAX, REQUEST_BYTES_MAX};
use crate::nbd::wire::{
    BASE_ALLOCATION, BASE_ALLOCATION_ID, info, option, option_reply, take_string, take_u16,
    take_u32, transmission_flag,
};
use crate::units::BLOCK_SIZE;
use crate::volume::export::Export;

/// Smallest block size that is offered, bytes.
const BLOCK_BYTES_MIN: u32 = 1;
/// Block size that serves best, bytes.
const BLOCK_BYTES_PREFERRED: u32 = BLOCK_SIZE as u32;
/// Largest payload that is offered, bytes.
const BLOCK_BYTES_MAX: u32 = REQUEST_BYTES_MAX as u32;

const _: () = assert!(REQUEST_BYTES_MAX <= u32::MAX as u64);

/// What an export can do, as its transmission flags say it.
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
struct Refusal(u32, &'static str);

const MALFORMED: Refusal = Refusal(option_reply::ERR_INVALID, "the option's data is malformed");
const NO_EXPORT: Refusal = Refusal(option_reply::ERR_UNKNOWN, "no export has this name");
const NO_STRUCTURE: Refusal =
    Refusal(option_reply::ERR_INVALID, "structured replies must be negotiated first");
const FULL: Refusal = Refusal(option_reply::ERR_POLICY, "the server has too many connections");
const TOO_MANY_LISTS: Refusal = Refusal(option_reply::ERR_POLICY, "too many lists were asked for");
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
        self.export_name_answer(size, flags);
        Step::Done(self.agreement(attachment))
    }

    fn go(&mut self, data: &[u8], context: Context) -> Result<Agreement, Refusal> {
        if context.full {
            return Err(FULL);
        }
        let before = self.output.len();
        let name = self.describe(option::GO, data, context)?;
        // The export may have been removed since it was found; then its description is taken back.
        let Some(attachment) = context.exports.attach(&name) else {
            self.output.truncate(before);
            return Err(NO_EXPORT);
        };
        Ok(self.agreement(attachment))
    }

    fn agreement(&self, attachment: crate::volume::export::Attachment) -> Agreement {
        let status = self.status_for.as_ref().is_some_and(|name| *name == attachment.name);
        Agreement { attachment, structured: self.structured, status, rest: Vec::new() }
    }

    /// Answers INFO and GO with what is asked about the export; gives its name.
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
        self.listing = Some(context.exports.list().into_iter());
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

    fn list_meta_context(&mut self, data: &[u8], context: Context) -> Result<(), Refusal> {
        if !self.structured {
            return Err(NO_STRUCTURE);
        }
        let queries = Queries::parse(data)?;
        find(queries.export, context)?;
        if queries.count == 0 || queries.namespace || queries.allocation {
            self.meta_context(option::LIST_META_CONTEXT, 0);
        }
        self.reply(option::LIST_META_CONTEXT, option_reply::ACK, &[]);
        Ok(())
    }

    fn set_meta_context(&mut self, data: &[u8], context: Context) -> Result<(), Refusal> {
        self.status_for = None;
        if !self.structured {
            return Err(NO_STRUCTURE);
        }
        let queries = Queries::parse(data)?;
        let export = find(queries.export, context)?;
        if queries.allocation {
            self.status_for = Some(export.name.clone());
            self.meta_context(option::SET_META_CONTEXT, BASE_ALLOCATION_ID);
        }
        self.reply(option::SET_META_CONTEXT, option_reply::ACK, &[]);
        Ok(())
    }

    fn meta_context(&mut self, number: u32, id: u32) {
        let parts = [&id.to_be_bytes()[..], BASE_ALLOCATION.as_bytes()];
        self.reply(number, option_reply::META_CONTEXT, &parts);
    }
}

/// The payload of the two options about metadata contexts.
struct Queries<'a> {
    export: &'a [u8],
    count: u32,
    /// All of `base:` was asked for.
    namespace: bool,
    /// `base:allocation` was asked for.
    allocation: bool,
}

impl Queries<'_> {
    fn parse(data: &[u8]) -> Result<Queries<'_>, Refusal> {
        let mut rest = data;
        let export = take_string(&mut rest).ok_or(MALFORMED)?;
        let count = take_u32(&mut rest).ok_or(MALFORMED)?;
        let mut queries = Queries { export, count, namespace: false, allocation: false };
        // Each query takes at least 4 bytes, so the loop ends with the data, whatever the count says.
        for _ in 0..count {
            let query = take_string(&mut rest).ok_or(MALFORMED)?;
            if query.len() > NAME_BYTES_MAX {
                return Err(MALFORMED);
            }
            queries.namespace |= query == b"base:";
            queries.allocation |= query == BASE_ALLOCATION.as_bytes();
        }
        if rest.is_empty() { Ok(queries) } else { Err(MALFORMED) }
    }
}

fn find(name: &[u8], context: Context) -> Result<Arc<Export>, Refusal> {
    if name.len() > NAME_BYTES_MAX {
        return Err(MALFORMED);
    }
    let name = std::str::from_utf8(name).map_err(|_| MALFORMED)?;
    context.exports.find(name).ok_or(NO_EXPORT)
}
