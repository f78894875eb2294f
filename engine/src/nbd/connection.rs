//! Connection: what a connection in transmission is, for the threads that share it.
//!
//! How it works      One reader thread (`reader.rs`) brings requests in and owns the connection's life. Its
//!                   requests come back through [`Connection`], which is their sink (`reply.rs`).
//! Invariants        CN1 `submitted` counts requests that a target has; the attachment is released at 0;
//!                   CN2 once broken, a connection is never sent to again, and what comes back is dropped;
//!                   CN3 it is broken off or released, never both: a released one has nothing in flight and
//!                      nothing to send, and its socket is another's.
//! Owner and locks   `outbox`, then `state`, then the pool. `state` is never held across a system call.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::buffer::Inbox;
use crate::nbd::budget::{
    Account, HOLD, INBOX_BYTES, PROVEN_BYTES, Pool, Taken, Waiter, grace_period, lock,
};
use crate::nbd::buffer_pool::BufferPool;
use crate::nbd::peer::Peer;
use crate::nbd::reply::{Outbox, Reply};
use crate::nbd::request::Agreed;
use crate::sync::{AtomicBool, Mutex, MutexGuard, Ordering};
use crate::volume::request::Contexts;

/// The longest that a waiting reader sleeps before it looks again by itself.
const WAIT_AT_MOST: Duration = Duration::from_millis(30);

/// How long one that is frozen may take to become quiet.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Until everything is answered and sent.
    pub all: Duration,
    /// Without a byte that the peer takes, once the target has no requests.
    pub still: Duration,
}

/// What the connections of one server share.
pub struct Common {
    /// What they hold beyond their shares.
    pub pool: Pool,
    /// Buffers for the next requests.
    pub buffers: BufferPool,
    /// Has the sender thread watch peers as long as there is something to watch.
    pub watch_peers: Box<dyn Fn() + Send + Sync>,
}

/// One connection in transmission.
pub struct Connection {
    /// The other end.
    pub peer: Box<dyn Peer>,
    /// The name of its export.
    pub export: String,
    /// Since when this process serves it.
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
    /// The reader is to stop where it stands, between two requests.
    freezing: AtomicBool,
}

/// What changes about a connection.
#[derive(Default)]
pub struct State {
    /// Replies whose sending has not begun.
    pub queue: Vec<Reply>,
    /// A thread sends, or the sender thread will.
    pub sending: bool,
    /// The connection is over (CN2).
    pub broken: bool,
    /// Its peer has said that it disconnects: what it asked for before is done, also if it is gone before that.
    pub disconnected: bool,
    /// Its socket continues elsewhere (CN3).
    released: bool,
    /// Requests that the target has (CN1).
    pub submitted: usize,
    /// The reader waits for something here.
    pub reader_waits: bool,
    /// The reader is in the middle of a payload with a buffer of its own.
    pub receiving: bool,
    /// Bytes sent and received since the start, also by the processes before this one.
    pub moved: u64,
    /// Bytes of these that those before have moved.
    moved_before: u64,
    /// Bytes received by this process.
    pub received: u64,
    account: Account,
    /// Full inboxes whose payloads are still in use; each counts as held.
    retired: Vec<Inbox>,
    /// Since when it is the peer's turn to read or to send, and what it had moved then.
    turn: Option<(Instant, u64)>,
}

impl State {
    /// It is the peer's turn now, if it was not already.
    pub fn begin_turn(&mut self) {
        if self.turn.is_none() {
            self.turn = Some((Instant::now(), self.moved));
        }
    }

    /// The peer has done what it had to, unless there is something else.
    pub fn end_turn(&mut self) {
        if !self.sending && !self.receiving {
            self.turn = None;
        }
    }

    /// Adds the bytes that earlier processes have moved.
    pub fn go_on_after(&mut self, moved: u64) {
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

    /// Ends the connection from any thread: nothing more is received or sent (CN2). One that was released is no longer
    /// anybody's to end (CN3).
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

    /// Its peer has said that it disconnects.
    pub fn note_disconnect(&self) {
        lock(&self.state).disconnected = true;
    }

    /// Has the reader stop where it stands, whatever it waits for; its socket may have to be told too.
    pub fn freeze(&self) {
        let state = lock(&self.state); // a reader that is about to wait has looked before, or will
        self.freezing.store(true, Ordering::SeqCst);
        drop(state);
        self.waiter.changed.notify_all();
    }

    /// Whether the reader is to stop.
    pub fn is_freezing(&self) -> bool {
        self.freezing.load(Ordering::Relaxed)
    }

    /// Takes the socket out of a connection that is quiet, for another process; `None` if it is not available: the
    /// connection is broken, or not quiet, or not only a socket. Nothing reads from it from here on.
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
    /// were taken; `None` when the connection is broken or freezes.
    pub fn take(&self, needed: u64, wanted: u64, requests: u32) -> Option<u64> {
        self.wait_for(|state| {
            if state.account.requests_left() < requests {
                return Err(None);
            }
            match state.take_bytes(&self.common.pool, needed, wanted) {
                Taken::Bytes(bytes) => {
                    state.account.start(requests);
                    Ok(bytes)
                }
                Taken::OwnLimit => Err(None),
                Taken::PoolShort => Err(Some(needed)),
            }
        })
    }

    /// Takes what one more inbox costs and keeps `full` until its payloads are done. While it waits, it asks
    /// whether `full` itself has become free: then it is given back, to be started over.
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
            let taken = state.take_bytes(&self.common.pool, needed, needed);
            if let Taken::Bytes(_) = taken {
                state.retired.push(inbox);
                (self.common.watch_peers)();
                return Ok(Inbox::new(INBOX_BYTES));
            }
            full = Some(inbox);
            Err((taken == Taken::PoolShort).then_some(needed))
        })
    }

    /// Waits until `attempt` succeeds; its error says what it needs of the pool, if that was too short. `None` when
    /// the connection is broken or freezes.
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
            let without_memory = short_by.filter(|_| state.account.drawn() == 0);
            if short_by.is_some() {
                self.common.pool.call_back(&self.waiter);
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

    /// Gives back what was taken and not used.
    pub fn put_back(&self, bytes: u64, requests: u32) {
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

    /// Waits until it is quiet: the target has none of its requests and every reply is sent; whether it came to that
    /// in time.
    pub fn quiesce(&self, patience: Patience) -> bool {
        let until = Instant::now() + patience.all;
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
            if now >= until || now.duration_since(moved.1) >= patience.still {
                break;
            }
            state = self.sleep(state, WAIT_AT_MOST);
        }
        state.is_quiet() && !state.broken
    }

    /// Whether it has inboxes that payloads still need.
    pub fn has_retired(&self) -> bool {
        !lock(&self.state).retired.is_empty()
    }

    /// What it holds, bytes.
    #[cfg(all(test, loom))]
    pub fn held(&self) -> u64 {
        lock(&self.state).account.bytes()
    }

    /// Gives back inboxes that payloads no longer need; called now and then.
    pub fn sweep_retired(&self) {
        let mut state = lock(&self.state);
        if !state.retired.is_empty() {
            self.sweep(&mut state);
        }
    }

    /// How long the peer will hold what it has drawn, at the rate at which it moves, and how much that is; `None` if it
    /// is not at its turn, or will not be for much longer. Asked while the pool is short.
    pub fn will_hold(&self, now: Instant) -> Option<(Duration, u64)> {
        let mut state = lock(&self.state);
        let (since, before) = state.turn?;
        let drawn = state.account.drawn();
        let took = now.saturating_duration_since(since);
        if drawn == 0 || took < grace_period(before) || state.broken {
            return None;
        }
        let moved = state.moved - before;
        if moved >= drawn {
            state.turn = Some((now, state.moved));
            return None;
        }
        let left = took.mul_f64(drawn as f64 / moved.max(1) as f64);
        (left > HOLD).then_some((left, drawn))
    }

    /// Ends the connection and gives back at once what its replies hold.
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
