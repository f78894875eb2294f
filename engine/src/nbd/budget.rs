//! Budget: how many bytes of requests and replies may be in memory.
//!
//! How it works      Each connection has a share of its own, which nobody can take from it, so that a client with
//!                   small requests is served whatever the others do. Beyond it, it draws on a pool that all share.
//!                   While somebody waits for the pool, the sender thread closes connections that hold some of it
//!                   and whose peer has not taken a byte for [`STUCK_AFTER`].
//! Invariants        G1 what is drawn is given back; G2 a connection alone can draw one largest request;
//!                   G3 shares and pool together are less than 512 MiB.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use crate::limits::REQUEST_BYTES_MAX;

/// Connections in transmission.
pub const CONNECTIONS_MAX: usize = 1024;
/// Bytes that each connection may always have in flight.
pub const SHARE_BYTES: usize = 128 << 10;
/// Bytes that all connections together may have in flight beyond their shares.
pub const POOL_BYTES: usize = 224 << 20;
/// Bytes that one connection may have in flight.
pub const CONNECTION_BYTES_MAX: usize = 64 << 20;
/// Requests that one connection may have in flight, unsent replies included.
pub const CONNECTION_REQUESTS_MAX: usize = 1024;
/// Bytes of a connection's receiving buffer.
pub const INBOX_BYTES: usize = 128 << 10;
/// How long a peer may leave replies untaken while others wait for memory.
pub const STUCK_AFTER: Duration = Duration::from_millis(50);

const _: () = assert!(POOL_BYTES >= CONNECTION_BYTES_MAX);
const _: () = assert!(CONNECTION_BYTES_MAX >= REQUEST_BYTES_MAX as usize); // G2
const _: () = assert!(CONNECTIONS_MAX * (SHARE_BYTES + INBOX_BYTES) + POOL_BYTES < 512 << 20); // G3

/// The pool that all connections share.
#[derive(Default)]
pub struct Pool {
    drawn: Mutex<usize>,
    returned: Condvar,
    waiting: AtomicUsize,
}

impl Pool {
    /// Draws so many bytes if there are.
    fn draw(&self, bytes: usize) -> bool {
        let mut drawn = self.drawn.lock().expect("no holder panics");
        let fits = *drawn + bytes <= POOL_BYTES;
        if fits {
            *drawn += bytes;
        }
        fits
    }

    fn give_back(&self, bytes: usize) {
        if bytes > 0 {
            let mut drawn = self.drawn.lock().expect("no holder panics");
            assert!(*drawn >= bytes, "G1");
            *drawn -= bytes;
            self.returned.notify_all();
        }
    }

    /// Waits a little for somebody to give back.
    pub fn wait(&self) {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        let drawn = self.drawn.lock().expect("no holder panics");
        let _ = self.returned.wait_timeout(drawn, Duration::from_millis(20));
        self.waiting.fetch_sub(1, Ordering::AcqRel);
    }

    /// Whether somebody waits.
    pub fn is_short(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > 0
    }
}

/// What one connection has in flight. Guarded by the connection's lock.
#[derive(Default)]
pub struct InFlight {
    bytes: usize,
    requests: usize,
}

impl InFlight {
    fn beyond_share(bytes: usize) -> usize {
        bytes.saturating_sub(SHARE_BYTES)
    }

    /// Whether one more request of so many bytes is over the connection's own bounds.
    pub fn is_full(&self, bytes: usize) -> bool {
        let over = self.bytes > 0 && self.bytes + bytes > CONNECTION_BYTES_MAX;
        self.requests >= CONNECTION_REQUESTS_MAX || over
    }

    /// Counts one more request, if the pool has what its share does not.
    pub fn admit(&mut self, bytes: usize, pool: &Pool) -> bool {
        let more = Self::beyond_share(self.bytes + bytes) - Self::beyond_share(self.bytes);
        if more > 0 && !pool.draw(more) {
            return false;
        }
        self.bytes += bytes;
        self.requests += 1;
        true
    }

    /// Counts a request as gone: its reply was sent, or nobody will.
    pub fn release(&mut self, bytes: usize, pool: &Pool) {
        assert!(self.requests > 0 && self.bytes >= bytes, "G1");
        let less = Self::beyond_share(self.bytes) - Self::beyond_share(self.bytes - bytes);
        self.bytes -= bytes;
        self.requests -= 1;
        pool.give_back(less);
    }

    /// Whether nothing is in flight.
    pub fn is_empty(&self) -> bool {
        self.requests == 0
    }

    /// Whether it holds some of the pool.
    pub fn holds_pool(&self) -> bool {
        self.bytes > SHARE_BYTES
    }
}
