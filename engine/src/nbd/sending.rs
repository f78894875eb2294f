//! Sending: replies of a connection go to its socket, without ever blocking a processor.
//!
//! How it works      A finished request becomes a [`Reply`] in its connection's queue. A kick sends all that
//!                   is queued: one `sendmsg` for many replies. When the socket accepts no more, or one kick has sent
//!                   much, the connection is passed to the server's sender thread, which waits for the socket (epoll,
//!                   one shot) and continues. Until then kicks only queue.
//! Invariants        RP1 one thread sends at a time: the one that set `sending`, or, once the connection is passed to
//!                   it, the sender thread; the thread that sends checks the queue again before it stops;
//!                   RP2 what a request holds is released once, when its reply is sent or dropped.
//! Owner and locks   the outbox's lock, then the connection's state, then the pool.
//! Errors            a failed send ends the peer's own connection.

use std::sync::Arc;

use rustix::io::Errno as SystemErrno;

use crate::nbd::budget::lock;
use crate::nbd::connection::{Connection, State};
use crate::nbd::reply::{Finished, Outbox, Reply};
use crate::request::{Request, Sink};

/// What one kick sends before it leaves the rest to the sender thread, bytes.
const BYTES_PER_TURN: usize = 1 << 20;
impl Connection {
    /// Queues a reply; a kick sends it.
    pub fn push(&self, reply: Reply) {
        let mut state = lock(&self.state);
        self.push_locked(&mut state, reply);
    }

    fn push_locked(&self, state: &mut State, reply: Reply) {
        if state.broken {
            self.give_back(state, reply.cost, reply.requests);
        } else {
            state.queue.push(reply);
        }
    }

    /// Sends what is queued, unless another thread is already sending.
    pub fn send_queued(&self) {
        {
            let mut state = lock(&self.state);
            if state.sending || state.queue.is_empty() {
                return;
            }
            state.sending = true;
        }
        self.send_on();
    }

    /// Continues sending; the caller is the sending thread (RP1).
    pub fn send_on(&self) {
        let mut outbox = lock(&self.outbox);
        let mut finished = Finished::default();
        let mut turn = 0;
        loop {
            if !self.refill(&mut outbox, &mut finished) {
                return;
            }
            if turn >= BYTES_PER_TURN {
                break;
            }
            match outbox.send(&*self.peer) {
                Ok(sent) => {
                    turn += sent;
                    outbox.advance(sent, &mut finished, &self.common.buffers);
                }
                Err(SystemErrno::INTR) => {}
                Err(SystemErrno::AGAIN) => break,
                Err(_) => self.abort(),
            }
        }
        lock(&self.state).begin_turn();
        // Unlocked first: the sender thread may continue before the next line has ended.
        drop(outbox);
        self.leave_to_sender();
    }

    /// Releases what was sent and takes what is queued. If nothing is queued, it ends the sending and returns false.
    fn refill(&self, outbox: &mut Outbox, finished: &mut Finished) -> bool {
        let mut state = lock(&self.state);
        if state.broken {
            outbox.clear(finished);
        }
        state.moved += finished.bytes as u64;
        self.give_back(&mut state, finished.cost, finished.requests);
        *finished = Finished::default();
        outbox.replies.extend(state.queue.drain(..));
        if outbox.replies.is_empty() {
            state.sending = false;
            state.end_turn();
            if state.reader_waits {
                self.waiter.changed.notify_all();
            }
            return false;
        }
        true
    }

    /// Leaves the rest to the sender thread.
    fn leave_to_sender(&self) {
        if self.peer.send_later().is_err() {
            // No memory for epoll: no thread would continue, so the connection ends here.
            self.abort();
            self.drop_unsent();
        }
    }

    /// Drops everything that is not sent yet, for a connection that is broken.
    pub fn drop_unsent(&self) {
        let mut finished = Finished::default();
        let mut outbox = lock(&self.outbox);
        outbox.clear(&mut finished);
        let mut state = lock(&self.state);
        state.sending = false;
        for reply in std::mem::take(&mut state.queue) {
            finished.count(&reply);
        }
        self.give_back(&mut state, finished.cost, finished.requests);
    }
}

impl Sink for Connection {
    fn complete(&self, request: Arc<Request>) {
        let reply = Reply::to(request, self.agreed.structured, &self.common.buffers);
        let mut state = lock(&self.state);
        state.submitted = state.submitted.saturating_sub(1);
        self.push_locked(&mut state, reply);
        if state.submitted == 0 && state.reader_waits {
            self.waiter.changed.notify_all();
        }
    }

    fn kick(&self) {
        self.send_queued();
    }

    fn is_gone(&self) -> bool {
        let state = lock(&self.state);
        state.broken && !state.disconnected
    }
}
