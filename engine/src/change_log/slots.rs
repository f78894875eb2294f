//! Slots: what one processor has of a volume's change logs: which slots are free, used, or waiting to be free.
//!
//! How it works      A bitmap for each chunk that the processor has taken. Slots are handed out in runs, from
//!                   the newest log that was asked for, in the chunk that served last, then in any other with
//!                   room, then in a new one. A slot that is given back waits until its giving back is
//!                   durable (J4), then it can be handed out again; an empty chunk goes back to the log.
//! Invariants        S1 a slot is free, used or waiting, and never two of them;
//!                   S2 a chunk whose slots are all free is not kept.
//! Owner and locks   the processor alone.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::space::{CHUNK_BYTES, CHUNK_SLOTS, Log};
use crate::block_map::place::Place;

const WORDS: usize = CHUNK_SLOTS as usize / 64;

#[derive(Clone, Debug)]
struct Chunk {
    bits: [u64; WORDS],
    used: u32,
    /// It stands in `roomy`.
    listed: bool,
}

#[derive(Debug)]
struct LogShare {
    log: Arc<Log>,
    chunks: BTreeMap<u64, Chunk>,
    /// Chunks that may have room; the last one serves. Some may have been given back since.
    roomy: VecDeque<u64>,
}

impl LogShare {
    fn new(log: &Arc<Log>) -> LogShare {
        LogShare { log: Arc::clone(log), chunks: BTreeMap::new(), roomy: VecDeque::new() }
    }

    fn add_chunk(&mut self, number: u64) {
        self.chunks.insert(number, Chunk { bits: [0; WORDS], used: 0, listed: true });
        self.roomy.push_back(number);
    }

    /// Drops what `roomy` holds of chunks that are gone, when that is most of it.
    fn tidy(&mut self) {
        if self.roomy.len() > 2 * self.chunks.len() + 16 {
            self.roomy = self.chunks.iter().filter(|(_, c)| c.listed).map(|(n, _)| *n).collect();
        }
    }
}

#[derive(Debug)]
struct Waiting {
    seq: u64,
    place: Place,
    count: u32,
}

/// See the module's head.
#[derive(Debug, Default)]
pub struct Slots {
    log_shares: BTreeMap<u16, LogShare>,
    waiting: VecDeque<Waiting>,
    waiting_count: u64,
    used: u64,
}

/// A chunk that has become empty: its range can be punched, then it is to be given back to its log.
#[derive(Debug)]
pub struct EmptyChunk {
    /// The log.
    pub log: Arc<Log>,
    /// The chunk's number.
    pub chunk: u64,
}

impl EmptyChunk {
    /// Punches it out of its device, if that is sparse, and gives it back to its log.
    pub fn give_back(self) {
        let (device, offset) = self.log.locate(self.chunk * CHUNK_SLOTS);
        if device.can_punch() {
            // What stays allocated for an error is only space; the chunk is free all the same.
            let _ = device.punch(offset, CHUNK_BYTES);
        }
        self.give_back_as_it_is();
    }

    /// Gives it back to its log; its space stays allocated.
    pub fn give_back_as_it_is(self) {
        self.log.give_chunk(self.chunk);
    }
}

impl Slots {
    /// Hands out up to `want` consecutive slots of `log`; `None` when it has no room.
    pub fn take(&mut self, log: &Arc<Log>, want: u32) -> Option<(Place, u32)> {
        let log_share = self.log_shares.entry(log.number).or_insert_with(|| LogShare::new(log));
        loop {
            let Some(number) = log_share.roomy.back().copied() else {
                log_share.add_chunk(log.take_chunk()?);
                continue;
            };
            if let Some(chunk) = log_share.chunks.get_mut(&number) {
                if let Some((first, count)) = take_run(chunk, want) {
                    self.used += u64::from(count);
                    let slot = number * CHUNK_SLOTS + u64::from(first);
                    return Some((Place::slot(log.number, slot), count));
                }
                chunk.listed = false;
            }
            log_share.roomy.pop_back();
        }
    }

    /// Marks a run as used, at recovery; `false` if it is outside its log, or any of it is used already.
    pub fn take_exactly(&mut self, log: &Arc<Log>, place: Place, count: u32) -> bool {
        let log_share = self.log_shares.entry(log.number).or_insert_with(|| LogShare::new(log));
        for i in 0..count {
            let slot = place.step(i).slot_number();
            let number = slot / CHUNK_SLOTS;
            if !log_share.chunks.contains_key(&number) {
                if !log.take_exactly(number) {
                    return false;
                }
                log_share.add_chunk(number);
            }
            let chunk = log_share.chunks.get_mut(&number).expect("it was just put there");
            let bit = slot % CHUNK_SLOTS;
            if chunk.bits[bit as usize / 64] & (1 << (bit % 64)) != 0 {
                return false;
            }
            chunk.bits[bit as usize / 64] |= 1 << (bit % 64);
            chunk.used += 1;
        }
        self.used += u64::from(count);
        true
    }

    /// Gives a run back that a record of sequence number `seq`, or the catalog, no longer refers to.
    pub fn give_later(&mut self, seq: u64, place: Place, count: u32) {
        self.waiting.push_back(Waiting { seq, place, count });
        self.waiting_count += u64::from(count);
    }

    /// Gives a run back that no record ever spoke of.
    pub fn give_now(&mut self, place: Place, count: u32, empty: &mut Vec<EmptyChunk>) {
        let log_share = self.log_shares.get_mut(&place.log()).expect("the slot was taken here");
        self.used -= u64::from(count);
        let mut done = 0;
        while done < count {
            let slot = place.slot_number() + u64::from(done);
            let number = slot / CHUNK_SLOTS;
            let first = (slot % CHUNK_SLOTS) as u32;
            let here = (count - done).min(CHUNK_SLOTS as u32 - first);
            let chunk = log_share.chunks.get_mut(&number).expect("the slot was taken here");
            for bit in first..first + here {
                let mask = 1 << (bit % 64);
                assert!(chunk.bits[bit as usize / 64] & mask != 0, "S1: given back twice");
                chunk.bits[bit as usize / 64] &= !mask;
            }
            chunk.used -= here;
            if chunk.used == 0 {
                log_share.chunks.remove(&number); // S2
                log_share.tidy();
                empty.push(EmptyChunk { log: Arc::clone(&log_share.log), chunk: number });
            } else if !chunk.listed {
                chunk.listed = true;
                log_share.roomy.push_front(number);
            }
            done += here;
        }
    }

    /// Frees what waited for the commit of `committed` or an earlier record.
    pub fn release(&mut self, committed: u64, empty: &mut Vec<EmptyChunk>) {
        while self.waiting.front().is_some_and(|waiting| waiting.seq <= committed) {
            let Some(waiting) = self.waiting.pop_front() else { break };
            self.waiting_count -= u64::from(waiting.count);
            self.give_now(waiting.place, waiting.count, empty);
        }
    }

    /// Slots that wait for a commit.
    pub fn waiting(&self) -> u64 {
        self.waiting_count
    }

    /// Slots in use by log, those that wait included.
    pub fn used_by_log(&self) -> Vec<(u16, u64)> {
        let used = |log_share: &LogShare| {
            log_share.chunks.values().map(|chunk| u64::from(chunk.used)).sum()
        };
        self.log_shares.iter().map(|(number, log_share)| (*number, used(log_share))).collect()
    }

    /// Slots in use, those that wait included.
    pub fn used(&self) -> u64 {
        self.used
    }
}

/// Finds and takes the first free run of a chunk, at most `want` slots.
fn take_run(chunk: &mut Chunk, want: u32) -> Option<(u32, u32)> {
    if chunk.used == CHUNK_SLOTS as u32 {
        return None;
    }
    let word = chunk.bits.iter().position(|bits| *bits != u64::MAX)?;
    let first = word as u32 * 64 + (!chunk.bits[word]).trailing_zeros();
    let mut count = 0;
    while count < want && first + count < CHUNK_SLOTS as u32 {
        let bit = first + count;
        let mask = 1 << (bit % 64);
        if chunk.bits[bit as usize / 64] & mask != 0 {
            break;
        }
        chunk.bits[bit as usize / 64] |= mask;
        count += 1;
    }
    chunk.used += count;
    Some((first, count))
}
