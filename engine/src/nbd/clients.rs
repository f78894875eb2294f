//! Clients: the connections of a server as an administrator sees them, and disconnecting one.
//!
//! How it works      What does not change is in the connection; what does is read under its lock, one connection after
//!                   the other, so that nothing waits for the list. The peer's identity is read from its socket each
//!                   time.
//! Errors            None: a connection that ends during the listing is left out.

use std::time::SystemTime;

use crate::nbd::budget::lock;
use crate::nbd::connection::Connection;
use crate::nbd::peer::Who;
use crate::nbd::{STOP_WITHIN, Server};

/// A connection in transmission.
#[derive(Clone, Debug)]
pub struct Client {
    /// Its number in this server, never used again.
    pub number: u64,
    /// The name of its export.
    pub export: String,
    /// Whether it cannot write.
    pub read_only: bool,
    /// The other end.
    pub who: Who,
    /// When this process began to serve it.
    pub since: SystemTime,
    /// Unanswered requests.
    pub in_flight: usize,
    /// Bytes received since then.
    pub received: u64,
    /// Bytes sent since then.
    pub sent: u64,
}

impl Server {
    /// All connections in transmission, by number.
    pub fn clients(&self) -> Vec<Client> {
        let connections: Vec<_> = lock(&self.shared.connections)
            .iter()
            .map(|(number, one)| (*number, one.clone()))
            .collect();
        let mut clients: Vec<Client> =
            connections.iter().map(|(number, one)| client(*number, one)).collect();
        clients.sort_by_key(|client| client.number);
        clients
    }

    /// What is free of the memory that all connections share, bytes.
    pub fn memory_free(&self) -> u64 {
        self.shared.common.pool.free()
    }

    /// What connections wait for of it, bytes.
    pub fn memory_waited_for(&self) -> u64 {
        self.shared.common.pool.memory_waiters_bytes()
    }

    /// Closes the connection of this number, and waits until it has ended, at most 4 s. Returns whether there was one.
    pub fn disconnect_client(&self, number: u64) -> bool {
        let Some(connection) = lock(&self.shared.connections).get(&number).cloned() else {
            return false;
        };
        connection.abort();
        self.shared.wait_ended(STOP_WITHIN, |one| std::ptr::eq(one, &raw const *connection));
        true
    }
}

fn client(number: u64, connection: &Connection) -> Client {
    let state = lock(&connection.state);
    let (in_flight, received, sent) = (state.submitted, state.received, state.sent());
    drop(state);
    Client {
        number,
        export: connection.export.clone(),
        read_only: connection.agreed.read_only,
        who: connection.peer.who(),
        since: connection.since,
        in_flight,
        received,
        sent,
    }
}
