//! Prefetch: speculative receive of large writes: a scatter receive into buffers for payloads that are predicted.
//!
//! How it works      A peer that has sent [`PREDICT_AFTER`] large writes of one length is expected to send more of
//!                   them. A receive then has space for more headers and payloads of exactly that length, each payload
//!                   in a buffer of its own. So one receive empties the socket, and the peer fills it again while the
//!                   writes are made; nothing is copied. If a header is not the predicted one, all guesses are undone:
//!                   their bytes are parsed again from memory, in order.
//! Invariants        PF1 in the stream, the bytes of guesses come after all that the inbox and the current payload
//!                   hold, and before all that the source still has; PF2 there is a guess only between a receive and
//!                   the next one that may wait, and its whole cost was reserved.
//! Owner             the reader.

use std::collections::VecDeque;
use std::io::IoSliceMut;

use crate::buffer::Inbox;
use crate::nbd::budget::cost;
use crate::nbd::connection::Connection;
use crate::nbd::wire::REQUEST_HEADER_BYTES;
use crate::request::Verb;

/// Large writes of one length after which the next one is predicted.
const PREDICT_AFTER: u32 = 2;
/// Bytes that are received speculatively: more than a socket buffer holds by default.
const PREFETCH_BYTES: usize = if cfg!(fuzzing) { 8 << 10 } else { 256 << 10 };

/// A predicted request.
struct Guess {
    header: [u8; REQUEST_HEADER_BYTES],
    /// Bytes of the header that were received.
    here: usize,
    payload: Inbox,
}

/// See the module's head.
#[derive(Default)]
pub struct Prefetch {
    guesses: VecDeque<Guess>,
    /// Length of the last large writes, and how many in a row had it.
    length: usize,
    repeated: u32,
}

impl Prefetch {
    /// Notes a request: the length of a large write's payload, or 0 for any other.
    pub fn note(&mut self, length: usize) {
        assert!(self.guesses.is_empty() || length == self.length, "the guess was right");
        self.repeated = if length > 0 && length == self.length { self.repeated + 1 } else { 1 };
        self.length = length;
    }

    /// Whether nothing was prefetched.
    pub fn is_empty(&self) -> bool {
        self.guesses.is_empty()
    }

    /// Makes guesses, if the last writes had one length and the connection may hold as much.
    pub fn guess(&mut self, connection: &Connection) -> bool {
        assert!(self.guesses.is_empty(), "PF2");
        if self.length == 0 || self.repeated < PREDICT_AFTER {
            return false;
        }
        let wanted = PREFETCH_BYTES.div_ceil(self.length) as u32;
        let each = self.cost();
        let bytes = each * u64::from(wanted);
        let Some((_, requests)) = connection.try_reserve(bytes, bytes, wanted) else {
            return false;
        };
        connection.release_unused(each * u64::from(wanted - requests), 0);
        for _ in 0..requests {
            let payload = connection.common.buffers.inbox(self.length);
            self.guesses.push_back(Guess { header: [0; REQUEST_HEADER_BYTES], here: 0, payload });
        }
        true
    }

    fn cost(&self) -> u64 {
        cost(Verb::Write, self.length as u64)
    }

    /// The spaces to receive into, in order.
    pub fn spaces<'a>(&'a mut self, first: &'a mut [u8]) -> Vec<IoSliceMut<'a>> {
        let mut spaces = Vec::with_capacity(1 + 2 * self.guesses.len());
        if !first.is_empty() {
            spaces.push(IoSliceMut::new(first));
        }
        for guess in &mut self.guesses {
            spaces.push(IoSliceMut::new(&mut guess.header));
            spaces.push(IoSliceMut::new(guess.payload.space()));
        }
        spaces
    }

    /// Counts `received` bytes as received into the guesses, and releases the guesses without any. The bytes of an
    /// incomplete header are not a guess; they are returned.
    pub fn settle(&mut self, connection: &Connection, mut received: usize) -> Vec<u8> {
        for guess in &mut self.guesses {
            guess.here = received.min(REQUEST_HEADER_BYTES);
            received -= guess.here;
            let here = received.min(self.length);
            guess.payload.advance(here);
            received -= here;
        }
        assert_eq!(received, 0, "there was no space for more");
        let whole =
            self.guesses.iter().take_while(|guess| guess.here == REQUEST_HEADER_BYTES).count();
        self.give_back(connection, whole)
    }

    /// The next header.
    pub fn header(&self) -> Option<&[u8; REQUEST_HEADER_BYTES]> {
        self.guesses.front().map(|guess| &guess.header)
    }

    /// The next header and its payload, if it has `length` bytes, as was guessed. Its cost stays reserved.
    pub fn take(&mut self, length: usize) -> Option<([u8; REQUEST_HEADER_BYTES], Inbox)> {
        let guess = if length == self.length { self.guesses.pop_front() } else { None };
        guess.map(|guess| (guess.header, guess.payload))
    }

    /// Releases all guesses but the first `kept`; returns their bytes.
    pub fn give_back(&mut self, connection: &Connection, kept: usize) -> Vec<u8> {
        let gone = self.guesses.len() - kept;
        let mut bytes = Vec::new();
        for guess in self.guesses.drain(kept..) {
            bytes.extend_from_slice(&guess.header[..guess.here]);
            bytes.extend_from_slice(guess.payload.bytes(0));
            connection.common.buffers.put(guess.payload.into_whole());
        }
        if gone > 0 {
            connection.release_unused(self.cost() * gone as u64, gone as u32);
        }
        bytes
    }
}
