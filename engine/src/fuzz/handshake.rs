//! Handshake: any bytes from a peer before transmission.
//!
//! How it works      The input is what the peer sends. It is fed twice, in large pieces and in small ones, the output
//!                   taken each time as a socket would.
//! Promises          HN1..HN3 of the handshake: both ways give the same output and the same end, the memory held is
//!                   bounded, and the output consists of complete replies.

use std::sync::Arc;

use super::Target;
use super::memory::Memory;
use super::transmission::VOLUME;
use crate::nbd::handshake::{
    Context, FEED_BYTES_MAX, Handshake, INPUT_BYTES_MAX, OUTPUT_BYTES_MAX, Step,
};
use crate::nbd::wire::{
    EXPORT_NAME_ZEROES, OPTION_MAGIC, OPTION_REPLY_MAGIC, option, take_string, take_u32, take_u64,
};
use crate::volume::export::ExportTable;

/// See the module's head.
pub const TARGET: Target = Target { name: "handshake", run, seeds, bytes_max: 4096 };

/// How a handshake has ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Waits,
    Closed,
    /// The export, structured replies, block status, and the bytes of the transmission.
    Agreed(String, bool, bool, Vec<u8>),
}

fn exports() -> ExportTable {
    let table = ExportTable::default();
    for (name, read_only) in [(VOLUME, false), ("v@s", true), ("ünï", true)] {
        let target = Arc::new(Memory::new(4096, read_only));
        table.add(name, "a volume", target).expect("names differ");
    }
    table
}

/// Feeds `bytes` in pieces of `piece`; returns the output, and how it ended.
fn talk(table: &ExportTable, bytes: &[u8], piece: usize) -> (Vec<u8>, End) {
    let mut handshake = Handshake::new();
    let mut out = Vec::new();
    let mut fed = 0;
    let context = Context { exports: table, full: false };
    loop {
        assert!(handshake.output().len() <= OUTPUT_BYTES_MAX, "HN2: too much output");
        assert!(handshake.held_bytes() <= 2 * (INPUT_BYTES_MAX + OUTPUT_BYTES_MAX), "HN2: held");
        let idle = handshake.output().is_empty();
        out.extend_from_slice(handshake.output());
        handshake.sent(handshake.output().len());
        let step = if !idle {
            handshake.feed(&[], context)
        } else if fed < bytes.len() {
            let end = (fed + piece).min(bytes.len());
            let step = handshake.feed(&bytes[fed..end], context);
            fed = end;
            step
        } else {
            return (out, End::Waits);
        };
        let end = match step {
            Step::More => continue,
            Step::Close => End::Closed,
            Step::Done(agreement) => {
                let mut rest = agreement.rest;
                rest.extend_from_slice(&bytes[fed..]);
                let name = agreement.attachment.name.clone();
                End::Agreed(name, agreement.structured, agreement.selection.is_some(), rest)
            }
        };
        out.extend_from_slice(handshake.output());
        return (out, end);
    }
}

fn run(bytes: &[u8]) {
    let table = exports();
    let piece = 1 + bytes.first().map_or(0, |byte| usize::from(*byte));
    let (out, end) = talk(&table, bytes, piece);
    let (same, same_end) = talk(&table, bytes, FEED_BYTES_MAX);
    assert!(out == same && end == same_end, "HN1: the size of pieces must not matter");
    check_replies(&out, &end);
    for export in table.list() {
        assert_eq!(export.connections(), 0, "an attachment was leaked");
    }
}

/// Checks the greeting, then complete replies; the answer to EXPORT_NAME, which has no header, may come last.
fn check_replies(out: &[u8], end: &End) {
    let (greeting, mut rest) = out.split_at(18);
    assert!(greeting.starts_with(b"NBDMAGICIHAVEOPT"));
    let old_answers = [10, 10 + EXPORT_NAME_ZEROES];
    while !rest.is_empty() {
        if matches!(end, End::Agreed(..)) && old_answers.contains(&rest.len()) {
            let mut magic = rest;
            if take_u64(&mut magic) != Some(OPTION_REPLY_MAGIC) {
                return;
            }
        }
        assert_eq!(take_u64(&mut rest), Some(OPTION_REPLY_MAGIC));
        let _ = (take_u32(&mut rest).expect("an option"), take_u32(&mut rest).expect("a kind"));
        let payload = take_string(&mut rest).expect("a complete reply");
        assert!(payload.len() <= 8192, "a reply of {} bytes", payload.len());
    }
}

fn string(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat()
}

/// An option and its payload.
pub fn option_bytes(number: u32, data: &[u8]) -> Vec<u8> {
    [&OPTION_MAGIC.to_be_bytes()[..], &number.to_be_bytes(), &string(data)].concat()
}

/// The payload of INFO and GO.
pub fn go_data(name: &str, items: &[u16]) -> Vec<u8> {
    let mut data = string(name.as_bytes());
    data.extend((items.len() as u16).to_be_bytes());
    items.iter().for_each(|item| data.extend(item.to_be_bytes()));
    data
}

fn queries(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = string(name.as_bytes());
    data.extend((queries.len() as u32).to_be_bytes());
    queries.iter().for_each(|query| data.extend(string(query.as_bytes())));
    data
}

fn seeds() -> Vec<Vec<u8>> {
    let options: [(u32, Vec<u8>); 15] = [
        (option::LIST, Vec::new()),
        (option::STRUCTURED_REPLY, Vec::new()),
        (option::INFO, go_data("v", &[0, 1, 2, 3, 77])),
        (option::INFO, go_data("nothing", &[])),
        (option::LIST_META_CONTEXT, queries("v", &[])),
        (option::LIST_META_CONTEXT, queries("v", &["base:", "qemu:dirty-bitmap:x"])),
        (option::LIST_META_CONTEXT, queries("v", &["qemu:"])),
        (option::SET_META_CONTEXT, queries("v", &["qemu:dirty-bitmap:s", "base:allocation"])),
        (option::SET_META_CONTEXT, queries("v@s", &["base:allocation", "base:allocation"])),
        (option::SET_META_CONTEXT, queries("v", &["base:allocation"])),
        (option::STARTTLS, Vec::new()),
        (99, b"what is this".to_vec()),
        (option::GO, go_data("v", &[0, 1])),
        (option::EXPORT_NAME, b"v@s".to_vec()),
        (option::ABORT, Vec::new()),
    ];
    let mut seeds = Vec::new();
    let mut all = 3_u32.to_be_bytes().to_vec();
    for (number, data) in &options {
        let one = option_bytes(*number, data);
        all.extend(&one);
        seeds.push([&1_u32.to_be_bytes()[..], &one, b"rest"].concat());
    }
    let mut too_long = 3_u32.to_be_bytes().to_vec();
    too_long.extend(OPTION_MAGIC.to_be_bytes());
    too_long.extend([0, 0, 0, 7, 0, 1, 0, 1]);
    seeds.extend([all, too_long]);
    seeds
}
