//! Connection: what a connection in transmission is, for the threads that share it.
//!
//! How it works      One reader thread (`reader.rs`) brings requests in and owns the connection's life. Its
//!                   requests come back through [`Connection`], which is their sink (`reply.rs`).
//! Invariants        N1 `submitted` counts requests that a target has; the attachment is let go at 0;
//!                   N2 once broken, a connection is never sent to again, and what comes back is dropped.
//! Owner and locks   `outbox`, then `state`, then the pool. `state` is never held across a system call.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::buffer::Inbox;
use crate::nbd::budget::{Account, INBOX_BYTES, PROVEN_BYTES, Pool, Taken, Waiter, lock};
use crate::nbd::peer::Peer;
use crate::nbd::reply::{Outbox, Reply};
use crate::nbd::request::Agreed;
use crate::nbd::spare::Spares;

/// The longest that a waiting reader sleeps before it looks again by itself.
const WAIT_AT_MOST: Duration = Duration::from_millis(30);
/// While the pool is short, a peer must move [`MOVED_BYTES_MIN`] in this time.
const STALL_AFTER: Duration = Duration::from_secs(2);
/// See [`STALL_AFTER`].
const MOVED_BYTES_MIN: u64 = 256 << 10;

/// What the connections of one server share.
pub struct Common {
    /// What they hold beyond their shares.
    pub pool: Pool,
    /// Buffers for the next requests.
    pub spares: Spares,
    /// Has the sender thread look after peers for as long as there is something to look after.
    pub watch_peers: Box<dyn Fn() + Send + Sync>,
}

/// One connection in transmission.
pub struct Connection {
    /// The other end.
    pub peer: Box<dyn Peer>,
    /// The name of its export.
    pub export: String,
    /// What the handshake agreed on.
    pub agreed: Agreed,
    /// The server's part.
    pub common: Arc<Common>,
    /// What changes.
    pub state: Mutex<State>,
    /// What is being sent.
    pub outbox: Mutex<Outbox>,
    /// Wakes the reader.
    pub waiter: Arc<Waiter>,
}

/// What changes about a connection.
#[derive(Default)]
pub struct State {
    /// Replies that nobody has begun to send.
    pub queue: Vec<Reply>,
    /// Somebody sends, or the sender thread will.
    pub sending: bool,
    /// The connection is over (N2).
    pub broken: bool,
    /// Requests that the target has (N1).
    pub submitted: usize,
    /// The reader waits for something here.
    pub reader_waits: bool,
    /// The reader is in the middle of a payload with a buffer of its own.
    pub receiving: bool,
    /// Bytes sent and received since the start.
    pub moved: u64,
    account: Account,
    /// Full inboxes whose payloads are still in use; each counts as held.
    retired: Vec<Inbox>,
    /// Since when the peer is watched, and what it had moved then.
    watched: Option<(Instant, u64)>,
}

impl State {
    fn take_bytes(&mut self, pool: &Pool, needed: u64, wanted: u64) -> Taken {
        self.account.take(pool, needed, wanted, self.moved >= PROVEN_BYTES)
    }
}

impl Connection {
    /// A connection that nothing was read from yet.
    pub fn new(
        peer: Box<dyn Peer>,
        export: String,
        agreed: Agreed,
        common: Arc<Common>,
    ) -> Connection {
        Connection {
            peer,
            export,
            agreed,
            common,
            state: Mutex::default(),
            outbox: Mutex::default(),
            waiter: Arc::default(),
        }
    }

    /// Ends the connection from any thread: nothing more is received or sent (N2).
    pub fn break_off(&self) {
        lock(&self.state).broken = true;
        self.peer.shut_down();
        self.waiter.changed.notify_all();
    }

    /// Gives back what `requests` answered requests held.
    pub fn give_back(&self, state: &mut State, bytes: u64, requests: u32) {
        state.account.give_back(&self.common.pool, bytes);
        state.account.end(requests);
        if !state.retired.is_empty() {
            self.sweep(state);
        }
        if state.reader_waits && (bytes > 0 || requests > 0) {
            self.waiter.changed.notify_all();
        }
    }

    /// Gives back the retired inboxes that no payload needs any more.
    fn sweep(&self, state: &mut State) {
        let before = state.retired.len();
        state.retired.retain_mut(|inbox| !inbox.is_unshared());
        let gone = before - state.retired.len();
        if gone > 0 {
            state.account.give_back(&self.common.pool, (gone * INBOX_BYTES) as u64);
        }
    }

    /// Takes, without waiting, up to `requests` requests and `wanted` bytes, at least one and `needed`.
    pub fn try_take(&self, needed: u64, wanted: u64, requests: u32) -> Option<(u64, u32)> {
        let mut state = lock(&self.state);
        let requests = requests.min(state.account.requests_left());
        if requests == 0 {
            return None;
        }
        match state.take_bytes(&self.common.pool, needed, wanted) {
            Taken::Bytes(bytes) => {
                state.account.start(requests);
                Some((bytes, requests))
            }
            _ => None,
        }
    }

    /// Takes one request more and `needed` bytes, or up to `wanted`; waits until it can. Gives how many bytes
    /// were taken; `None` when the connection is broken.
    pub fn take(&self, needed: u64, wanted: u64, requests: u32) -> Option<u64> {
        self.wait_for(|state| {
            if state.account.requests_left() < requests {
                return Err(false);
            }
            match state.take_bytes(&self.common.pool, needed, wanted) {
                Taken::Bytes(bytes) => {
                    state.account.start(requests);
                    Ok(bytes)
                }
                Taken::OwnLimit => Err(false),
                Taken::PoolShort => Err(true),
            }
        })
    }

    /// Takes what one more inbox costs and keeps `full` until its payloads are done. While it waits, it asks
    /// whether `full` itself has become free: then it is given back, to be started over.
    pub fn change_inbox(&self, full: Inbox) -> Option<Inbox> {
        let mut full = Some(full);
        self.wait_for(|state| {
            let Some(mut inbox) = full.take() else { return Err(false) };
            if inbox.is_unshared() {
                return Ok(inbox);
            }
            if let Some(at) = state.retired.iter_mut().position(Inbox::is_unshared) {
                let mut free = state.retired.swap_remove(at);
                free.clear();
                state.retired.push(inbox);
                (self.common.watch_peers)();
                return Ok(free);
            }
            let needed = INBOX_BYTES as u64;
            let taken = state.take_bytes(&self.common.pool, needed, needed);
            if let Taken::Bytes(_) = taken {
                state.retired.push(inbox);
                (self.common.watch_peers)();
                return Ok(Inbox::new(INBOX_BYTES));
            }
            full = Some(inbox);
            Err(taken == Taken::PoolShort)
        })
    }

    /// Waits until `attempt` succeeds; it says with an error whether the pool was too short. `None` when the
    /// connection is broken.
    fn wait_for<T>(&self, mut attempt: impl FnMut(&mut State) -> Result<T, bool>) -> Option<T> {
        let mut state = lock(&self.state);
        loop {
            if state.broken {
                return None;
            }
            let pool_short = match attempt(&mut state) {
                Ok(value) => return Some(value),
                Err(pool_short) => pool_short,
            };
            let starving = pool_short && state.account.drawn() == 0;
            if pool_short {
                self.common.pool.call_back(&self.waiter);
            }
            if starving {
                self.common.pool.count_starving(true);
                (self.common.watch_peers)();
            }
            state = self.sleep(state, WAIT_AT_MOST);
            if starving {
                self.common.pool.count_starving(false);
            }
        }
    }

    /// Sleeps until something of the connection has changed.
    fn sleep<'a>(
        &self,
        mut state: std::sync::MutexGuard<'a, State>,
        at_most: Duration,
    ) -> std::sync::MutexGuard<'a, State> {
        state.reader_waits = true;
        let woken = self.waiter.changed.wait_timeout(state, at_most);
        let (mut state, _) = woken.unwrap_or_else(std::sync::PoisonError::into_inner);
        state.reader_waits = false;
        state
    }

    /// Gives back what was taken and not used.
    pub fn put_back(&self, bytes: u64, requests: u32) {
        let mut state = lock(&self.state);
        state.account.give_back(&self.common.pool, bytes);
        state.account.end(requests);
    }

    /// Waits until the target has none of its requests (N1), and, as long as the connection is not broken,
    /// at most `linger` longer until all replies are sent.
    pub fn drain(&self, linger: Duration) {
        let mut state = lock(&self.state);
        while state.submitted > 0 {
            state = self.sleep(state, WAIT_AT_MOST);
        }
        drop(state);
        self.send_queued();
        let until = Instant::now() + linger;
        let mut state = lock(&self.state);
        while !state.broken && (state.sending || !state.queue.is_empty()) && Instant::now() < until
        {
            state = self.sleep(state, WAIT_AT_MOST);
        }
    }

    /// Whether it has inboxes that payloads still need.
    pub fn has_retired(&self) -> bool {
        !lock(&self.state).retired.is_empty()
    }

    /// Called now and then: ends a connection whose peer holds much and does not move while the pool is short.
    pub fn watch(&self, now: Instant) {
        let mut state = lock(&self.state);
        if !state.retired.is_empty() {
            self.sweep(&mut state);
        }
        let peers_turn = state.sending || state.receiving;
        if !self.common.pool.short() || state.account.drawn() == 0 || !peers_turn {
            state.watched = None;
            return;
        }
        let moved = state.moved;
        match state.watched {
            None => state.watched = Some((now, moved)),
            Some((since, before)) if now.duration_since(since) >= STALL_AFTER => {
                state.watched = Some((now, moved));
                if moved - before < MOVED_BYTES_MIN {
                    drop(state);
                    self.break_off();
                }
            }
            Some(_) => {}
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        let held = state.account.bytes();
        state.account.give_back(&self.common.pool, held);
    }
}
