//! Hand-over (live restart): open connections move from one process to the next, and their hosts see a pause.
//!
//! How it works      [`Server::hand_over`] stops accepting, lets handshakes that have begun end, and freezes every
//!                   connection: its reader stops where it would wait, requests in flight are answered, and what is
//!                   left is a socket and a [`State`]: the negotiated options, and where the next reader resumes. The
//!                   next process gives both to [`Server::adopt`]. Requests that arrive in between wait in the socket.
//!                   The caller passes descriptors and bytes between the processes, and makes sure that the first one
//!                   has ended.
//! Invariants        HO1 a socket is read by one process: frozen before it is given away, and given away once (CN3);
//!                   HO2 each request is answered by exactly one of the two processes: a state has every received byte
//!                       from which no request was made (RQ4), and nothing that is still to be sent;
//!                   HO3 what a host was promised in its handshake holds, or its connection is not adopted.
//! Owner and locks   `handed_over` is taken alone, by readers that end and by the thread that waits for them.
//! Errors            a connection that does not become quiet in time ([`crate::nbd::reader::QUIESCE_TIMEOUTS`]) is
//!                   closed, and so is one that the next process does not adopt; its host then reconnects.

mod state;

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::net::{SocketType, sockopt};

use crate::error::{Error, ErrorKind, Result};
use crate::nbd::budget::{CONNECTIONS_MAX, lock};
use crate::nbd::handshake::Selection;
use crate::nbd::handshake::options::transmission_flags;
use crate::nbd::listener::LISTENING;
use crate::nbd::reader::ResumePoint;
use crate::nbd::{Ending, Negotiated, Server, Shared};
use crate::system::signal;
use crate::volume::export::Attachment;
pub(crate) use state::State;

/// How long handshakes that have begun may take; connections are still served during this time.
const HANDSHAKES_WITHIN: Duration = Duration::from_secs(1);
/// Interval between checks whether they are over.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// How long all connections together may take to become quiet: the time-out of each, and some time to end.
const WITHIN: Duration = Duration::from_secs(12);

/// One connection for the next process to continue.
#[derive(Debug)]
pub struct Handed {
    /// The name of its export.
    pub export: String,
    /// Its socket, which is not read from.
    pub socket: OwnedFd,
    /// The bytes that [`Server::adopt`] needs with it.
    pub state: Vec<u8>,
}

/// The result for all connections.
#[derive(Debug, Default)]
pub struct HandedOver {
    /// Connections for the next process to continue.
    pub connections: Vec<Handed>,
    /// The exports of those that were closed because they did not quiesce in time.
    pub closed: Vec<String>,
}

impl Server {
    /// Takes all connections out of a server, which serves no client afterwards and is to be stopped. Returns when the
    /// slowest connection has its requests answered, after at most 13 s.
    pub fn hand_over(&self) -> HandedOver {
        let shared = &self.shared;
        shared.close_listeners();
        let until = Instant::now() + HANDSHAKES_WITHIN;
        while self.handshakes() > 0 && Instant::now() < until {
            std::thread::sleep(LOOK_EVERY);
        }
        // A connection that begins now sees this flag, or is found below.
        shared.freezing.store(true, Ordering::SeqCst);
        signal(&shared.freeze);
        shared.matching(|_| true).iter().for_each(|connection| connection.freeze());
        shared.wait_ended(WITHIN, |_| true);
        let late = shared.matching(|_| true);
        late.iter().for_each(|connection| connection.abort());
        let mut handed_over = std::mem::take(&mut *lock(&shared.handed_over));
        handed_over.closed.extend(late.iter().map(|connection| connection.export.clone()));
        handed_over
    }

    /// Resumes a connection that another server handed over. The caller guarantees that the export is the one that it
    /// was connected to; its size and its abilities are compared here.
    ///
    /// # Errors
    /// `Invalid` for a state that is incomplete, is of another version, or promises what this server does not do;
    /// `NotFound` if there is no such export; `Busy` if there are too many connections. The socket is closed then.
    pub fn adopt(&self, socket: OwnedFd, export: &str, state: &[u8]) -> Result<()> {
        let shared = &self.shared;
        let refused = |kind, why: &str| {
            let what = format!("a connection to {export} cannot be taken over: {why}");
            Err(Error::new(kind, what))
        };
        let state = match State::decode(state) {
            Ok(state) => state,
            Err(why) => return refused(ErrorKind::Invalid, &why),
        };
        if !sockopt::socket_type(&socket).is_ok_and(|kind| kind == SocketType::STREAM) {
            return refused(ErrorKind::Invalid, "what was handed over is not its socket");
        }
        if shared.is_ending() {
            return refused(ErrorKind::Invalid, "the NBD server was stopped already");
        }
        if lock(&shared.connections).len() >= CONNECTIONS_MAX {
            return refused(ErrorKind::Busy, "there are too many connections");
        }
        let Some(attachment) = shared.exports.attach(export) else {
            return refused(ErrorKind::NotFound, "the export is not there");
        };
        if let Some(why) = state.differs(&attachment) {
            return refused(ErrorKind::Invalid, why);
        }
        let State { agreed, contexts, resume_point, moved, .. } = state;
        let again = contexts.map(|one| Selection::again(&shared.exports, &attachment, one));
        let Ok(selection) = again.transpose() else {
            return refused(ErrorKind::NotFound, "a snapshot that it compares with is gone");
        };
        let number = shared.next.fetch_add(1, Ordering::Relaxed);
        let begin = |connection: &crate::nbd::connection::Connection| {
            lock(&connection.state).add_earlier_bytes(moved);
        };
        let negotiated = Negotiated { attachment, agreed, selection, resume_point };
        let served = Shared::serve(shared, socket, number, negotiated, begin);
        served.map_err(|e| Error::io(format!("a connection to {export} cannot be served"), e))
    }
}

impl State {
    /// Why a connection in this state cannot continue with this export (HO3), if it cannot.
    fn differs(&self, attachment: &Attachment) -> Option<&'static str> {
        let target = &attachment.target;
        // The export may have grown, and its host may know an even older size.
        if target.size() < self.size || self.agreed.size > self.size {
            return Some("the export is smaller than it was");
        }
        if target.read_only() != self.agreed.read_only {
            return Some("the export is read-only now, or no longer");
        }
        let flags = transmission_flags(target.read_only());
        (self.transmission_flags & !flags != 0)
            .then_some("its host relies on what is no longer offered")
    }
}

impl Shared {
    /// Stops accepting. New connections wait in the backlogs of the sockets.
    fn close_listeners(&self) {
        let listeners = lock(&self.listeners);
        self.closed.store(true, Ordering::SeqCst);
        for (index, socket) in listeners.iter().enumerate() {
            let data = epoll::EventData::new_u64(LISTENING | index as u64);
            // It fails only for a socket that is not in the set, and all are.
            let _ = epoll::modify(&self.listening, socket, data, epoll::EventFlags::empty());
        }
    }
}

impl Ending {
    /// Adds a frozen connection to those for the next process.
    pub(super) fn hand_over(&self, attachment: &Attachment, resume_point: ResumePoint) {
        let connection = &self.connection;
        let Some(socket) = connection.release() else { return self.note_closed() };
        let moved = lock(&connection.state).moved;
        let agreed = connection.agreed;
        let size = attachment.target.size();
        let transmission_flags = transmission_flags(agreed.read_only);
        let contexts = connection.contexts.as_deref().cloned();
        let state =
            State { agreed, contexts, size, transmission_flags, moved, resume_point }.encode();
        let handed = Handed { export: connection.export.clone(), socket, state };
        lock(&self.shared.handed_over).connections.push(handed);
    }

    /// Notes a connection that did not become quiet in time.
    pub(super) fn note_closed(&self) {
        lock(&self.shared.handed_over).closed.push(self.connection.export.clone());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{ResumePoint, State, transmission_flags};
    use crate::fuzz::Memory;
    use crate::nbd::request::Agreed;
    use crate::volume::export::ExportTable;

    /// Why a connection to an export of 4096 bytes cannot continue with one of this kind.
    fn why(size: usize, read_only: bool, change: impl FnOnce(&mut State)) -> Option<&'static str> {
        let agreed = Agreed { size: 4096, read_only: false, structured: true, status: true };
        let resume_point = ResumePoint::default();
        let transmission_flags = transmission_flags(false);
        let contexts = None;
        let mut state =
            State { agreed, contexts, size: 4096, transmission_flags, moved: 0, resume_point };
        change(&mut state);
        let table = ExportTable::default();
        table.add("v", "", Arc::new(Memory::new(size, read_only))).unwrap();
        state.differs(&table.attach("v").unwrap())
    }

    #[test]
    fn a_connection_resumes_only_with_what_its_host_was_promised() {
        assert_eq!(why(4096, false, |_| {}), None);
        assert_eq!(why(4096, false, |state| state.agreed.size = 512), None);
        assert_eq!(why(8192, false, |_| {}), None);
        let size = Some("the export is smaller than it was");
        assert_eq!(why(512, false, |_| {}), size);
        assert_eq!(why(4096, false, |state| state.agreed.size = 8192), size);
        assert!(why(4096, true, |_| {}).is_some());
        assert!(why(4096, false, |state| state.transmission_flags |= 1 << 15).is_some());
    }
}
