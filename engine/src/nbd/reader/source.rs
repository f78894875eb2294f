//! Source: the bytes that a connection's reader consumes.
//!
//! Owner             the reader.

use std::io::IoSliceMut;

use rustix::io::Errno as SystemErrno;

use super::End;
use crate::nbd::budget::lock;
use crate::nbd::connection::Connection;

/// First the bytes that an earlier reader or a wrong guess left, then the peer's.
pub(super) struct Source<'a> {
    pub(super) connection: &'a Connection,
    pub(super) first: Vec<u8>,
    pub(super) used: usize,
}

impl Source<'_> {
    /// Receives something; an end of the stream is [`End::Disconnected`].
    pub(super) fn receive(&mut self, space: &mut [u8]) -> Result<usize, End> {
        loop {
            if self.connection.is_freezing() {
                return Err(End::Frozen);
            }
            let first = &self.first[self.used..];
            if !first.is_empty() {
                let length = first.len().min(space.len());
                space[..length].copy_from_slice(&first[..length]);
                self.used += length;
                return Ok(length);
            }
            self.first = Vec::new();
            self.used = 0;
            let idle = lock(&self.connection.state).submitted == 0;
            match self.connection.peer.receive(space, idle) {
                Ok(0) => return Err(End::Disconnected),
                Ok(received) => return Ok(received),
                Err(SystemErrno::INTR | SystemErrno::AGAIN) => {}
                Err(_) => return Err(End::Broken),
            }
        }
    }

    /// Whether only the peer has more.
    pub(super) fn is_drained(&self) -> bool {
        self.used == self.first.len()
    }

    /// Receives what the peer has already sent, perhaps nothing, into one space after the other.
    pub(super) fn receive_now(&mut self, spaces: &mut [IoSliceMut<'_>]) -> Result<usize, End> {
        assert!(self.is_drained(), "the stored bytes come first");
        if self.connection.is_freezing() {
            return Err(End::Frozen);
        }
        match self.connection.peer.receive_now(spaces) {
            Ok(0) => Err(End::Disconnected),
            Ok(received) => Ok(received),
            Err(SystemErrno::INTR | SystemErrno::AGAIN) => Ok(0),
            Err(_) => Err(End::Broken),
        }
    }

    /// Puts `bytes` in front, to be received next.
    pub(super) fn put_back(&mut self, mut bytes: Vec<u8>) {
        if !bytes.is_empty() {
            bytes.extend_from_slice(&self.first[self.used..]);
            (self.first, self.used) = (bytes, 0);
        }
    }
}
