//! NBD server: connections of hosts, from the first byte of the handshake to the last reply.
//!
//! How it works      One negotiator thread ([`listener`]) accepts and does every handshake, non-blocking; the
//!                   handshake itself is a pure state machine ([`handshake`]: bytes in, bytes out). A connection
//!                   that enters transmission gets a reader thread ([`connection`]), which receives, parses
//!                   ([`request`]) and submits in batches. Replies ([`reply`]) are sent by whoever completes the last
//!                   request of a batch, without ever blocking; what a peer does not take is left to one sender
//!                   thread, which waits for all such peers.
//! Bounds            handshakes: number, time, bytes of an option, bytes of answers that wait. Connections: number;
//!                   each has so many requests and bytes in flight, replies that wait included; all together draw on
//!                   one pool of bytes beyond a small share of their own ([`budget`]).
//! Errors            whatever a peer sends ends as a protocol error or as the end of its own connection.
//! Owner and locks   a connection's outgoing queue has one lock, held for a push or a swap; only one thread sends
//!                   at a time. Nothing here looks behind [`crate::volume::request::Target`].
#![forbid(unsafe_code)]

mod budget;
mod connection;
mod handshake;
mod listener;
mod reply;
mod request;
mod wire;

pub use listener::Server;

#[cfg(test)]
mod tests;
