//! Peer: the other end of a connection, as its reader and its senders use it.
//!
//! How it works      [`Socket`] is the real one. What parses, answers and counts knows only [`Peer`], so that the same
//!                   code can be given bytes from memory ([`crate::fuzz`]) and every order of its steps (models).
//! Errors            the system's, as they come: INTR to try again, AGAIN where sending would have to wait, anything
//!                   else ends the connection.

use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::epoll;
use rustix::io::Errno as SystemErrno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, recv, sendmsg, shutdown};

/// See the module's head.
pub trait Peer: Send + Sync {
    /// Puts what has come into `space` and says how many bytes; waits for the first. 0: it will send nothing more.
    fn receive(&self, space: &mut [u8]) -> Result<usize, SystemErrno>;
    /// Sends the beginning of `parts`, as much as it takes now, and says how many bytes.
    fn send(&self, parts: &[IoSlice<'_>]) -> Result<usize, SystemErrno>;
    /// Has somebody go on sending ([`super::connection::Connection::send_on`]) once, as soon as it takes more.
    fn send_later(&self) -> Result<(), SystemErrno>;
    /// Ends both directions; who waits in `receive` comes back.
    fn shut_down(&self);
}

/// A peer behind a socket.
pub struct Socket {
    socket: OwnedFd,
    /// Its connection's number, which the sender thread is told.
    number: u64,
    /// The sender thread's epoll set.
    sender: Arc<OwnedFd>,
}

impl Socket {
    /// The peer of connection `number`; `sender` is the epoll set of the thread that sends later.
    pub fn new(socket: OwnedFd, number: u64, sender: Arc<OwnedFd>) -> Socket {
        Socket { socket, number, sender }
    }
}

impl Peer for Socket {
    fn receive(&self, space: &mut [u8]) -> Result<usize, SystemErrno> {
        recv(&self.socket, space, RecvFlags::empty()).map(|(received, _)| received)
    }

    fn send(&self, parts: &[IoSlice<'_>]) -> Result<usize, SystemErrno> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        sendmsg(&self.socket, parts, &mut SendAncillaryBuffer::default(), flags)
    }

    fn send_later(&self) -> Result<(), SystemErrno> {
        let flags = epoll::EventFlags::OUT | epoll::EventFlags::ONESHOT;
        let data = epoll::EventData::new_u64(self.number);
        match epoll::modify(&*self.sender, &self.socket, data, flags) {
            Err(SystemErrno::NOENT) => epoll::add(&*self.sender, &self.socket, data, flags),
            other => other,
        }
    }

    fn shut_down(&self) {
        // Refused when the peer is gone already, which is what is wanted.
        let _ = shutdown(&self.socket, Shutdown::Both);
    }
}
