//! Leaf bytes: the encoding of one leaf in a checkpoint.
//!
//! How it works      A leaf is written in the form that it has in memory, so that reading one is little more than a
//!                   copy. docs/formats.md has the tables.
//! Errors            bytes that are not a leaf are refused; nothing larger than a leaf is ever allocated for them.

use super::format::{u16_at, u32_at, u64_at};
use crate::block_map::leaf::{LEAF_BLOCKS, Leaf, PRESENT_WORDS, Packed, PackedParts};
use crate::block_map::place::Place;

/// Upper bound of a leaf's bytes.
pub const LEAF_BYTES_MAX: usize = 12 << 10;
const FORM_RUNS: u16 = 1;
const FORM_PACKED: u16 = 2;
/// Bytes of a run before its checksums.
const RUN_BYTES: usize = 12;
/// Upper bound of the high halves of one leaf: as many as blocks, and those that no block uses any more.
const HIGHS_MAX: usize = LEAF_BLOCKS as usize + 16;

const _: () = assert!(LEAF_BYTES_MAX > 8 + LEAF_BLOCKS as usize * (RUN_BYTES + 4));
const _: () = assert!(LEAF_BYTES_MAX > 8 + HIGHS_MAX * 4 + 64 + LEAF_BLOCKS as usize * 10);

/// Appends a leaf's bytes to `out`.
pub fn encode(leaf: &Leaf, out: &mut Vec<u8>) {
    match leaf.as_packed() {
        Some(packed) => packed.with_parts(|parts| encode_packed(parts, out)),
        None => {
            let at = out.len();
            out.extend_from_slice(&FORM_RUNS.to_le_bytes());
            out.extend_from_slice(&[0; 2]);
            let mut runs: u16 = 0;
            leaf.for_each_run(|start, run| {
                runs += 1;
                out.extend_from_slice(&(start as u16).to_le_bytes());
                out.extend_from_slice(&(run.count as u16).to_le_bytes());
                out.extend_from_slice(&run.place.raw().to_le_bytes());
                put_u32s(run.checksums, out);
            });
            out[at + 2..at + 4].copy_from_slice(&runs.to_le_bytes());
        }
    }
}

fn encode_packed(parts: PackedParts<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(&FORM_PACKED.to_le_bytes());
    out.extend_from_slice(&(parts.lows.len() as u16).to_le_bytes());
    out.extend_from_slice(&(parts.highs.len() as u32).to_le_bytes());
    put_u32s(parts.highs, out);
    parts.present.iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
    put_u32s(parts.lows, out);
    put_u32s(parts.checksums, out);
    parts.of.iter().for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
}

fn put_u32s(numbers: &[u32], out: &mut Vec<u8>) {
    let at = out.len();
    out.resize(at + numbers.len() * 4, 0);
    for (bytes, number) in out[at..].chunks_exact_mut(4).zip(numbers) {
        bytes.copy_from_slice(&number.to_le_bytes());
    }
}

/// Decodes a leaf.
pub fn decode(bytes: &[u8]) -> Result<Leaf, &'static str> {
    let mut input = Bytes(bytes);
    let head = input.take(4)?;
    let count = usize::from(u16_at(head, 2));
    if count > LEAF_BLOCKS as usize {
        return Err("a leaf has more blocks than there are");
    }
    let leaf = match u16_at(head, 0) {
        FORM_RUNS => decode_runs(&mut input, count)?,
        FORM_PACKED => decode_packed(&mut input, count)?,
        _ => return Err("a leaf has an unknown form"),
    };
    if input.0.is_empty() { Ok(leaf) } else { Err("a leaf is longer than it says") }
}

fn decode_runs(input: &mut Bytes<'_>, runs: usize) -> Result<Leaf, &'static str> {
    let mut leaf = Leaf::uniform(Place::BASE);
    let mut sums = [0; LEAF_BLOCKS as usize];
    let mut end = 0;
    for _ in 0..runs {
        let run = input.take(RUN_BYTES)?;
        let (start, count) = (u32::from(u16_at(run, 0)), u32::from(u16_at(run, 2)));
        let place = Place::from_raw(u64_at(run, 4)).ok_or("a leaf has an invalid place")?;
        if count == 0 || start < end || start + count > LEAF_BLOCKS || !place.fits(count) {
            return Err("a leaf has an invalid run");
        }
        let sums = &mut sums[..if place.is_slot() { count as usize } else { 0 }];
        input.u32s(sums)?;
        leaf.set(start, count, place, sums);
        end = start + count;
    }
    Ok(leaf)
}

fn decode_packed(input: &mut Bytes<'_>, count: usize) -> Result<Leaf, &'static str> {
    let several = u32_at(input.take(4)?, 0) as usize;
    if several == 0 || several > HIGHS_MAX {
        return Err("a leaf has too many high halves, or none");
    }
    let mut highs = [0; HIGHS_MAX];
    input.u32s(&mut highs[..several])?;
    let mut present = [0; PRESENT_WORDS];
    for (word, bytes) in present.iter_mut().zip(input.take(PRESENT_WORDS * 8)?.chunks_exact(8)) {
        *word = u64_at(bytes, 0);
    }
    let (mut lows, mut checksums) = ([0; LEAF_BLOCKS as usize], [0; LEAF_BLOCKS as usize]);
    input.u32s(&mut lows[..count])?;
    input.u32s(&mut checksums[..count])?;
    let mut of = [0; LEAF_BLOCKS as usize];
    let numbered = if several > 1 { count } else { 0 };
    for (number, bytes) in of.iter_mut().zip(input.take(numbered * 2)?.chunks_exact(2)) {
        *number = u16_at(bytes, 0);
    }
    let parts = PackedParts {
        present: &present,
        checksums: &checksums[..count],
        lows: &lows[..count],
        highs: &highs[..several],
        of: &of[..numbered],
    };
    Packed::from_parts(parts).map(Leaf::packed).ok_or("a packed leaf is inconsistent")
}

/// The bytes left to read.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], &'static str> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or("a leaf ends too early")?;
        self.0 = rest;
        Ok(taken)
    }

    fn u32s(&mut self, into: &mut [u32]) -> Result<(), &'static str> {
        let bytes = self.take(into.len() * 4)?;
        for (number, bytes) in into.iter_mut().zip(bytes.chunks_exact(4)) {
            *number = u32_at(bytes, 0);
        }
        Ok(())
    }
}
