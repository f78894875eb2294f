//! Connection: the state of a connection in transmission, for the threads that share it.
//!
//! How it works      One reader thread (`reader.rs`) receives requests and owns the connection's life. Finished
//!                   requests return through [`Connection`], which is their sink (`sending.rs`).
//! Invariants        CN1 `submitted` counts requests that a target has; the attachment is released at 0;
//!                   CN2 once broken, nothing is sent on a connection again, and finished requests are dropped;
//!                   CN3 it is aborted or released, never both: a released one has nothing in flight and nothing to
//!                       send, and its socket belongs to another process.
//! Owner and locks   `outbox`, then `state`, then the pool. `state` is never held across a system call.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::buffer::Inbox;
use crate::nbd::budget::{
    Account, HOLD_MAX, INBOX_BYTES, PROVEN_BYTES, Pool, Reservation, Waiter, grace_period, lock,
};
use crate::nbd::buffer_pool::BufferPool;
use crate::nbd::peer::Peer;
use crate::nbd::reply::{Outbox, Reply};
use crate::nbd::request::Agreed;
use crate::request::Contexts;
use crate::sync::{AtomicBool, Mutex, MutexGuard, Ordering};

/// The longest that a waiting reader sleeps before it checks again without a wake-up.
const WAIT_AT_MOST: Duration = Duration::from_millis(30);

/// How long a frozen connection may take to become quiet.
#[derive(Clone, Copy, Debug)]
pub struct QuiesceTimeouts {
    /// Upper bound until everything is answered and sent.
    pub total: Duration,
    /// Longest time in which the peer receives no byte, once the target has no requests.
    pub stalled: Duration,
}

/// What the connections of one server share.
pub struct Common {
    /// Memory beyond the guaranteed amount of each.
    pub pool: Pool,
    /// Buffers for the next requests.
    pub buffers: BufferPool,
    /// Makes the sender thread watch peers while there is something to watch.
    pub watch_peers: Box<dyn Fn() + Send + Sync>,
}

/// One connection in transmission.
pub struct Connection {
    /// The other end.
    pub peer: Box<dyn Peer>,
    /// The name of its export.
    pub export: String,
    /// When this process began to serve it.
    pub since: SystemTime,
    /// What the handshake agreed on.
    pub agreed: Agreed,
    /// The metadata contexts that were selected, if any was.
    pub contexts: Option<Arc<Contexts>>,
    /// The server's part.
    pub common: Arc<Common>,
    /// What changes.
    pub state: Mutex<State>,
    /// What is being sent.
    pub outbox: Mutex<Outbox>,
    /// Wakes the reader.
    pub waiter: Arc<Waiter>,
    /// The reader is to stop between two requests.
    freezing: AtomicBool,
}

/// The changing part of a connection.
#[derive(Default)]
pub struct State {
    /// Replies whose sending has not begun.
    pub queue: Vec<Reply>,
    /// A thread is sending, or the sender thread will send.
    pub sending: bool,
    /// The connection is over (CN2).
    pub broken: bool,
    /// The peer sent NBD_CMD_DISC: its earlier requests are still served, also if it is gone before they end.
    pub disconnected: bool,
    /// Another process has its socket (CN3).
    released: bool,
    /// Requests that the target has (CN1).
    pub submitted: usize,
    /// The reader waits for a change of this state.
    pub reader_waits: bool,
    /// The reader is in the middle of a payload with a buffer of its own.
    pub receiving: bool,
    /// Bytes sent and received since the start, also by the processes before this one.
    pub moved: u64,
    /// Bytes of these that earlier processes moved.
    moved_before: u64,
    /// Bytes received by this process.
    pub received: u64,
    account: Account,
    /// Full inboxes whose payloads are still in use; each counts as held.
    retired: Vec<Inbox>,
    /// When it became the peer's turn to read or to send, and what it had moved by then.
    turn: Option<(Instant, u64)>,
}

impl State {
    /// Notes that it is the peer's turn, if it was not already.
    pub fn begin_turn(&mut self) {
        if self.turn.is_none() {
            self.turn = Some((Instant::now(), self.moved));
        }
    }

    /// Ends the peer's turn, unless it still has something to do.
    pub fn end_turn(&mut self) {
        if !self.sending && !self.receiving {
            self.turn = None;
        }
    }

    /// Adds the bytes that earlier processes have moved.
    pub fn add_earlier_bytes(&mut self, moved: u64) {
        self.moved = moved;
        self.moved_before = moved;
    }

    /// Counts bytes that were received.
    pub fn count_received(&mut self, bytes: u64) {
        self.moved += bytes;
        self.received += bytes;
    }

    /// Bytes sent by this process.
    pub fn sent(&self) -> u64 {
        self.moved - self.moved_before - self.received
    }

    fn is_quiet(&self) -> bool {
        self.submitted == 0 && !self.sending && self.queue.is_empty()
    }

    fn reserve_bytes(&mut self, pool: &Pool, needed: u64, wanted: u64) -> Reservation {
        self.account.reserve(pool, needed, wanted, self.moved >= PROVEN_BYTES)
    }
}

impl Connection {
    /// A connection from which nothing was read yet.
    pub fn new(
        peer: Box<dyn Peer>,
        export: String,
        agreed: Agreed,
        contexts: Option<Arc<Contexts>>,
        common: Arc<Common>,
    ) -> Connection {
        let account = Account::of(common.pool.group(&export));
        Connection {
            peer,
            export,
            since: SystemTime::now(),
            agreed,
            contexts,
            common,
            state: Mutex::new(State { account, ..State::default() }),
            outbox: Mutex::default(),
            waiter: Arc::default(),
            freezing: AtomicBool::new(false),
        }
    }

    /// Ends the connection from any thread: nothing more is received or sent (CN2). Does nothing to a released one
    /// (CN3).
    pub fn abort(&self) {
        let mut state = lock(&self.state);
        if state.released {
            return;
        }
        state.broken = true;
        drop(state);
        self.peer.shut_down();
        self.waiter.changed.notify_all();
    }

    /// Notes that the peer sent NBD_CMD_DISC.
    pub fn note_disconnect(&self) {
        lock(&self.state).disconnected = true;
    }

    /// Makes the reader stop between two requests, whatever it waits for; its socket may need a wake-up too.
    pub fn freeze(&self) {
        let state = lock(&self.state); // a reader that is about to wait has checked before, or will
        self.freezing.store(true, Ordering::SeqCst);
        drop(state);
        self.waiter.changed.notify_all();
    }

    /// Whether the reader is to stop.
    pub fn is_freezing(&self) -> bool {
        self.freezing.load(Ordering::Relaxed)
    }

    /// Takes the socket out of a quiet connection, for another process; `None` if the connection is broken, or not
    /// quiet, or has more state than its socket. Nothing reads from the socket afterwards.
    pub fn release(&self) -> Option<OwnedFd> {
        let mut state = lock(&self.state);
        if state.broken || !state.is_quiet() {
            return None;
        }
        state.released = true; // CN3
        drop(state);
        let socket = self.peer.release();
        if socket.is_none() {
            lock(&self.state).released = false;
        }
        socket
    }

    /// Releases what `requests` answered requests held.
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

    /// Releases the retired inboxes that no payload needs any more.
    fn sweep(&self, state: &mut State) {
        let before = state.retired.len();
        state.retired.retain_mut(|inbox| !inbox.is_unshared());
        let gone = before - state.retired.len();
        if gone > 0 {
            state.account.give_back(&self.common.pool, (gone * INBOX_BYTES) as u64);
        }
    }

    /// Reserves, without waiting, up to `requests` requests and `wanted` bytes, at least one and `needed`.
    pub fn try_reserve(&self, needed: u64, wanted: u64, requests: u32) -> Option<(u64, u32)> {
        let mut state = lock(&self.state);
        let requests = requests.min(state.account.requests_left());
        if requests == 0 {
            return None;
        }
        match state.reserve_bytes(&self.common.pool, needed, wanted) {
            Reservation::Bytes(bytes) => {
                state.account.start(requests);
                Some((bytes, requests))
            }
            _ => None,
        }
    }

    /// Reserves one more request and `needed` bytes, or up to `wanted`; waits until it can. Returns how many bytes were
    /// reserved; `None` when the connection is broken or freezes.
    pub fn reserve(&self, needed: u64, wanted: u64, requests: u32) -> Option<u64> {
        self.wait_for(|state| {
            if state.account.requests_left() < requests {
                return Err(None);
            }
            match state.reserve_bytes(&self.common.pool, needed, wanted) {
                Reservation::Bytes(bytes) => {
                    state.account.start(requests);
                    Ok(bytes)
                }
                Reservation::OwnLimit => Err(None),
                Reservation::PoolShort => Err(Some(needed)),
            }
        })
    }

    /// Reserves what one more inbox costs, and retires `full` until its payloads are done. If `full` itself becomes
    /// free during the wait, it is returned for reuse.
    pub fn change_inbox(&self, full: Inbox) -> Option<Inbox> {
        let mut full = Some(full);
        self.wait_for(|state| {
            let Some(mut inbox) = full.take() else { return Err(None) };
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
            let taken = state.reserve_bytes(&self.common.pool, needed, needed);
            if let Reservation::Bytes(_) = taken {
                state.retired.push(inbox);
                (self.common.watch_peers)();
                return Ok(Inbox::new(INBOX_BYTES));
            }
            full = Some(inbox);
            Err((taken == Reservation::PoolShort).then_some(needed))
        })
    }

    /// Waits until `attempt` succeeds; its error is what it needs from the pool, if the pool was short. `None` when the
    /// connection is broken or freezes.
    fn wait_for<T>(
        &self,
        mut attempt: impl FnMut(&mut State) -> Result<T, Option<u64>>,
    ) -> Option<T> {
        let mut left = false;
        let mut state = lock(&self.state);
        loop {
            if state.broken || self.is_freezing() {
                return None;
            }
            let short_by = match attempt(&mut state) {
                Ok(value) => return Some(value),
                Err(short_by) => short_by,
            };
            if !std::mem::replace(&mut left, true) {
                drop(state);
                self.peer.leave();
                state = lock(&self.state);
                continue;
            }
            let without_memory = short_by.filter(|_| state.account.reserved() == 0);
            if short_by.is_some() {
                self.common.pool.wake_on_release(&self.waiter);
            }
            if let Some(needed) = without_memory {
                self.common.pool.count_memory_waiters(needed, true);
                (self.common.watch_peers)();
            }
            state.broken |= self.peer.is_gone();
            state = self.sleep(state, WAIT_AT_MOST);
            if let Some(needed) = without_memory {
                self.common.pool.count_memory_waiters(needed, false);
            }
        }
    }

    /// Sleeps until something of the connection has changed.
    fn sleep<'a>(
        &self,
        mut state: MutexGuard<'a, State>,
        at_most: Duration,
    ) -> MutexGuard<'a, State> {
        state.reader_waits = true;
        let woken = self.waiter.changed.wait_timeout(state, at_most);
        let (mut state, _) = woken.unwrap_or_else(std::sync::PoisonError::into_inner);
        state.reader_waits = false;
        state
    }

    /// Releases what was reserved and not used.
    pub fn release_unused(&self, bytes: u64, requests: u32) {
        let mut state = lock(&self.state);
        state.account.give_back(&self.common.pool, bytes);
        state.account.end(requests);
    }

    /// Waits until the target has none of its requests (CN1), and, as long as the connection is not broken,
    /// at most `linger` longer until all replies are sent. If the peer is gone, the target need not finish them.
    pub fn drain(&self, linger: Duration) {
        self.peer.leave();
        let mut state = lock(&self.state);
        while state.submitted > 0 {
            state.broken |= self.peer.is_gone();
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

    /// Waits until it is quiet: the target has none of its requests and every reply is sent. Returns whether that
    /// happened in time.
    pub fn quiesce(&self, timeouts: QuiesceTimeouts) -> bool {
        let until = Instant::now() + timeouts.total;
        self.peer.leave();
        let mut state = lock(&self.state);
        while state.submitted > 0 && !state.broken && Instant::now() < until {
            state = self.sleep(state, WAIT_AT_MOST);
        }
        drop(state);
        self.send_queued();
        let mut state = lock(&self.state);
        let mut moved = (state.moved, Instant::now());
        while !state.broken && state.submitted == 0 && !state.is_quiet() {
            let now = Instant::now();
            if state.moved != moved.0 {
                moved = (state.moved, now);
            }
            if now >= until || now.duration_since(moved.1) >= timeouts.stalled {
                break;
            }
            state = self.sleep(state, WAIT_AT_MOST);
        }
        state.is_quiet() && !state.broken
    }

    /// Whether it has full inboxes whose payloads are still in use.
    pub fn has_retired(&self) -> bool {
        !lock(&self.state).retired.is_empty()
    }

    /// What it holds, bytes.
    #[cfg(all(test, feature = "loom"))]
    pub fn held(&self) -> u64 {
        lock(&self.state).account.bytes()
    }

    /// Releases inboxes that payloads no longer need; called periodically.
    pub fn sweep_retired(&self) {
        let mut state = lock(&self.state);
        if !state.retired.is_empty() {
            self.sweep(&mut state);
        }
    }

    /// How long the peer will hold its reservation at its present rate, and how large that is, bytes; `None` if it is
    /// not its turn, or not for much longer. Called while the pool is short.
    pub fn will_hold(&self, now: Instant) -> Option<(Duration, u64)> {
        let mut state = lock(&self.state);
        let (since, before) = state.turn?;
        let reserved = state.account.reserved();
        let took = now.saturating_duration_since(since);
        if reserved == 0 || took < grace_period(before) || state.broken {
            return None;
        }
        let moved = state.moved - before;
        if moved >= reserved {
            state.turn = Some((now, state.moved));
            return None;
        }
        let left = took.mul_f64(reserved as f64 / moved.max(1) as f64);
        (left > HOLD_MAX).then_some((left, reserved))
    }

    /// Ends the connection and releases at once what its replies hold.
    pub fn evict(&self) {
        self.abort();
        self.drop_unsent();
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        let held = state.account.bytes();
        state.account.give_back(&self.common.pool, held);
    }
}
