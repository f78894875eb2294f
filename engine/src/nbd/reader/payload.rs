//! Payload: large payloads, each received into a buffer of its own, and what is [received
//! speculatively](super::prefetch) with them.

use super::{End, Next, Reader};
use crate::buffer::{Buffer, Inbox};
use crate::nbd::budget::lock;
use crate::nbd::request::{Command, Parsed, check};
use crate::nbd::wire::{REQUEST_HEADER_BYTES, parse_request};
use crate::request::Verb;

impl Reader<'_> {
    /// Receives a large payload into a buffer of its own: what the inbox has of it, and the rest from the socket.
    pub(super) fn receive_payload(&mut self, length: usize) -> Result<Buffer, End> {
        let mut payload = self.connection.common.buffers.inbox(length);
        let here = self.bytes().len().min(length);
        let header_at = self.at - REQUEST_HEADER_BYTES;
        payload.space()[..here].copy_from_slice(&self.bytes()[..here]);
        payload.advance(here);
        self.at += here;
        let header: [u8; REQUEST_HEADER_BYTES] =
            *self.bytes_from(header_at).first_chunk().expect("it was parsed");
        self.receive_rest(&header, payload, length)
    }

    /// Receives the payload of `header`, of which some may be in the inbox.
    fn receive_rest(
        &mut self,
        header: &[u8; REQUEST_HEADER_BYTES],
        mut payload: Inbox,
        length: usize,
    ) -> Result<Buffer, End> {
        if payload.filled() == length {
            return Ok(payload.into_buffer());
        }
        self.submit(); // RQ2
        self.put_credit_back();
        let mut state = lock(&self.connection.state);
        state.receiving = true;
        state.begin_turn();
        drop(state);
        while payload.filled() < length {
            let received = match self.receive_on(payload.space()) {
                Ok(received) => received,
                Err(end) => {
                    self.incomplete = header.to_vec();
                    self.incomplete.extend_from_slice(payload.bytes(0));
                    return Err(end);
                }
            };
            payload.advance(received);
            lock(&self.connection.state).count_received(received as u64);
        }
        let mut state = lock(&self.connection.state);
        state.receiving = false;
        state.end_turn();
        drop(state);
        Ok(payload.into_buffer())
    }

    /// Receives into `space`, and prefetches what follows if it is there; returns how many bytes are in `space`, at
    /// least one.
    fn receive_on(&mut self, space: &mut [u8]) -> Result<usize, End> {
        match self.receive_and_prefetch(space)? {
            0 => self.source.receive(space),
            received => Ok(received.min(space.len())),
        }
    }

    /// Receives into `first` and prefetches, without waiting; returns the number of bytes in both.
    pub(super) fn receive_and_prefetch(&mut self, first: &mut [u8]) -> Result<usize, End> {
        if !self.source.is_drained() || !self.prefetch.guess(self.connection) {
            return Ok(0);
        }
        let result = self.source.receive_now(&mut self.prefetch.spaces(first));
        let received = *result.as_ref().unwrap_or(&0);
        let prefetched = received.saturating_sub(first.len());
        self.received += prefetched as u64;
        let rest = self.prefetch.settle(self.connection, prefetched);
        self.source.put_back(rest);
        result
    }

    /// Handles the prefetched request; if the guess was wrong, its bytes are parsed again.
    pub(super) fn next_prefetched(&mut self) -> Result<Next, End> {
        let header = self.prefetch.header().expect("there is one");
        let header = parse_request(header).ok_or(End::Broken)?;
        let length = header.length as usize;
        if let Parsed::Command(command @ Command { verb: Verb::Write, .. }) =
            check(&header, &self.agreed)
            && let Some((bytes, payload)) = self.prefetch.take(length)
        {
            self.prefetch.note(length);
            let data = self.receive_rest(&bytes, payload, length)?;
            self.begin(&header, command, header.length.into(), data);
        } else {
            let bytes = self.prefetch.give_back(self.connection, 0);
            self.source.put_back(bytes);
        }
        Ok(Next::Parse)
    }
}
