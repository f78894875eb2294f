//! Peer: the other end of a connection, as its reader and its senders use it.
//!
//! How it works      [`Socket`] is the real one. What parses, answers and counts knows only [`Peer`], so that the same
//!                   code can be given bytes from memory ([`crate::fuzz`]) and every order of its steps (models).
//!                   A reader blocks in one system call on its socket alone as long as bytes arrive.
//!                   After [`FREEZE_POLL_INTERVAL`] without bytes it also waits for the signal to freeze.
//!                   If the last bytes came quickly, it busy-polls the socket before it blocks ([`BUSY_POLL_SOCKET`]),
//!                   but only while busy-polling readers use less than half of the cores, because the senders need
//!                   some, and not while other threads work on its requests. While any reads that bypass the page cache
//!                   are in flight, it polls both the socket and their completions ([`BUSY_POLL_PER_READ`]), unless
//!                   another thread does ([`crate::system::reaper`]).
//! Errors            the system's, unchanged: INTR to try again, AGAIN where sending would block, and where receiving
//!                   has waited for a while; any other one ends the connection.

use std::io::{IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::io::{Errno as SystemErrno, fcntl_dupfd_cloexec};
use rustix::net::sockopt::{self, Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown,
    getpeername, recv, recvmsg, sendmsg, shutdown,
};

use crate::system::credentials;
use crate::system::reaper::{Reaper, Reaping, Turn};

/// Busy-poll the socket for up to this long before blocking, if the last receive was that quick: a wake-up takes longer
/// than such a wait.
const BUSY_POLL_SOCKET: Duration = Duration::from_micros(50);
/// Busy-poll for completions for up to this long for each read in flight, if the last ones ended that quickly: the most
/// processor time that polling may cost a read.
const BUSY_POLL_PER_READ: Duration = Duration::from_micros(32);
/// Upper bound of that for all reads in flight together.
const BUSY_POLL_MAX: Duration = Duration::from_millis(1);
/// Spin-loop hints between two polls: they leave the core to its other hardware thread.
const PAUSES: u32 = 50;
/// How often an idle reader checks whether its connection freezes.
const FREEZE_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// A process of this host; `pid` is that of the process that connected, as far as this one can see it.
    Local {
        /// The process.
        pid: Option<u32>,
        /// Its user's number.
        uid: u32,
    },
    /// A peer on the network.
    Remote(SocketAddr),
    /// The socket does not say, because it is not connected any more.
    Unknown,
}

/// See the module's head.
pub trait Peer: Send + Sync {
    /// Receives into `space` and returns the number of bytes. It waits for the first byte, but returns AGAIN from time
    /// to time, and at once when its connection freezes. 0: the peer will send nothing more. `idle`: no earlier request
    /// is still being served.
    fn receive(&self, space: &mut [u8], idle: bool) -> Result<usize, SystemErrno>;
    /// Notes that `receive` is not called for a while, although other threads are at work.
    fn leave(&self) {}
    /// Receives without waiting into `spaces`, one after the other, and returns the number of bytes; AGAIN if there are
    /// none.
    fn receive_now(&self, spaces: &mut [IoSliceMut<'_>]) -> Result<usize, SystemErrno>;
    /// Sends as much of `parts` as the socket accepts now, and returns the number of bytes.
    fn send(&self, parts: &[IoSlice<'_>]) -> Result<usize, SystemErrno>;
    /// Makes the sender thread continue ([`super::connection::Connection::send_on`]) once, as soon as the socket
    /// accepts more.
    fn send_later(&self) -> Result<(), SystemErrno>;
    /// Who it is.
    fn who(&self) -> Who {
        Who::Unknown
    }
    /// Whether it has closed both directions, as far as that can be known: it receives no answer any more.
    fn is_gone(&self) -> bool {
        false
    }
    /// Shuts down both directions; a blocked `receive` returns.
    fn shut_down(&self);
    /// The socket, for another process; `None` if the peer has more state than its socket. The caller does not use this
    /// peer any more.
    fn release(&self) -> Option<OwnedFd>;
}

/// A peer behind a socket.
pub struct Socket {
    socket: OwnedFd,
    /// Its connection's number, by which the sender thread knows it.
    number: u64,
    /// The sender thread's epoll set.
    sender: Arc<OwnedFd>,
    /// Readable once all connections freeze.
    freeze: Arc<OwnedFd>,
    /// The last receive was quick; used by its reader alone.
    was_quick: AtomicBool,
    /// The last disk reads were quick; used by its reader alone.
    reads_were_quick: AtomicBool,
    /// The completions of disk reads.
    reaping: Arc<dyn Reaping>,
}

/// Readers that do not sleep, and the most of them at which a reader still busy-polls.
static BUSY_POLLERS: AtomicUsize = AtomicUsize::new(0);
static BUSY_POLLERS_MAX: LazyLock<usize> =
    LazyLock::new(|| std::thread::available_parallelism().map_or(0, |cores| cores.get() / 2));

impl Socket {
    /// The peer of connection `number`; `sender` is the epoll set of the thread that sends later, `freeze` becomes
    /// readable when all connections are to freeze; `reaping` has the disk reads in flight.
    ///
    /// # Errors
    /// The system's, if the socket refuses its settings.
    pub fn new(
        socket: OwnedFd,
        number: u64,
        sender: Arc<OwnedFd>,
        freeze: Arc<OwnedFd>,
        reaping: Arc<dyn Reaping>,
    ) -> Result<Socket, SystemErrno> {
        rustix::io::ioctl_fionbio(&socket, false)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(FREEZE_POLL_INTERVAL))?;
        BUSY_POLLERS.fetch_add(1, Ordering::Relaxed);
        Ok(Socket {
            socket,
            number,
            sender,
            freeze,
            was_quick: AtomicBool::new(false),
            reads_were_quick: AtomicBool::new(true),
            reaping,
        })
    }
}

impl Socket {
    /// Receives into `space` without waiting; AGAIN if there is nothing.
    fn try_receive(&self, space: &mut [u8]) -> Result<usize, SystemErrno> {
        recv(&self.socket, space, RecvFlags::DONTWAIT).map(|(received, _)| received)
    }

    /// Busy-polls the socket until [`BUSY_POLL_SOCKET`] after `started`; AGAIN if no bytes came.
    fn busy_poll(&self, space: &mut [u8], started: Instant) -> Result<usize, SystemErrno> {
        let mut found = Err(SystemErrno::AGAIN);
        while found == Err(SystemErrno::AGAIN)
            && BUSY_POLLERS.load(Ordering::Relaxed) <= *BUSY_POLLERS_MAX
            && started.elapsed() < BUSY_POLL_SOCKET
        {
            (0..PAUSES).for_each(|_| std::hint::spin_loop());
            found = self.try_receive(space);
        }
        found
    }

    /// Waits for bytes and for completions of reads, and reaps the completions; AGAIN after some were reaped, or if
    /// none are in flight.
    fn receive_and_reap(&self, space: &mut [u8], turn: &Turn<'_>) -> Result<usize, SystemErrno> {
        let started = Instant::now();
        loop {
            let reaped = turn.reap();
            let found = self.try_receive(space);
            let left = u32::try_from(turn.left()).unwrap_or(u32::MAX);
            if reaped > 0 || found != Err(SystemErrno::AGAIN) || left == 0 {
                return found;
            }
            let limit = BUSY_POLL_PER_READ.saturating_mul(left).min(BUSY_POLL_MAX);
            let polls = self.reads_were_quick.load(Ordering::Relaxed)
                && BUSY_POLLERS.load(Ordering::Relaxed) <= *BUSY_POLLERS_MAX
                && started.elapsed() < limit;
            if !polls {
                let ended = turn.sleep([&self.socket, &self.freeze], Asleep::begin);
                let were_quick = started.elapsed() < limit;
                if ended > 0 || !were_quick {
                    self.reads_were_quick.store(were_quick, Ordering::Relaxed);
                }
                return self.try_receive(space);
            }
            std::thread::yield_now(); // leave the core to a thread that needs it
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        BUSY_POLLERS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts a reader as asleep while this value exists.
struct Asleep;

impl Asleep {
    fn begin() -> Asleep {
        BUSY_POLLERS.fetch_sub(1, Ordering::Relaxed);
        Asleep
    }
}

impl Drop for Asleep {
    fn drop(&mut self) {
        BUSY_POLLERS.fetch_add(1, Ordering::Relaxed);
    }
}

impl Peer for Socket {
    fn receive(&self, space: &mut [u8], idle: bool) -> Result<usize, SystemErrno> {
        if let Some(turn) = self.reaping.reaper().and_then(Reaper::turn) {
            return self.receive_and_reap(space, &turn);
        }
        let started = Instant::now();
        if idle && self.was_quick.load(Ordering::Relaxed) {
            match self.busy_poll(space, started) {
                Err(SystemErrno::AGAIN) => {}
                other => return other,
            }
        }
        let _asleep = Asleep::begin();
        let found = recv(&self.socket, space, RecvFlags::empty());
        self.was_quick.store(started.elapsed() < BUSY_POLL_SOCKET, Ordering::Relaxed);
        match found {
            Err(SystemErrno::AGAIN) => {}
            other => return other.map(|(received, _)| received),
        }
        let wait_for = [&self.socket, &*self.freeze];
        poll(&mut wait_for.map(|file| PollFd::new(file, PollFlags::IN)), None)?;
        Err(SystemErrno::AGAIN)
    }

    fn leave(&self) {
        self.reaping.reaper().inspect(|reaper| reaper.leave());
    }

    fn receive_now(&self, spaces: &mut [IoSliceMut<'_>]) -> Result<usize, SystemErrno> {
        let mut control = RecvAncillaryBuffer::default();
        recvmsg(&self.socket, spaces, &mut control, RecvFlags::DONTWAIT).map(|found| found.bytes)
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

    fn who(&self) -> Who {
        if sockopt::socket_domain(&self.socket) == Ok(AddressFamily::UNIX) {
            let found = credentials::of_peer(self.socket.as_fd());
            return found.map_or(Who::Unknown, |(pid, uid)| Who::Local { pid, uid });
        }
        let address = getpeername(&self.socket).ok().flatten();
        let address = address.and_then(|any| SocketAddr::try_from(any).ok());
        address.map_or(Who::Unknown, Who::Remote)
    }

    fn is_gone(&self) -> bool {
        let mut files = [PollFd::new(&self.socket, PollFlags::empty())];
        let found = poll(&mut files, Some(&Timespec::default()));
        found == Ok(1) && files[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }

    fn shut_down(&self) {
        // Fails if the peer is already gone, which has the same result.
        let _ = shutdown(&self.socket, Shutdown::Both);
    }

    fn release(&self) -> Option<OwnedFd> {
        // The socket is in the set only if `send_later` was called before.
        let _ = epoll::delete(&*self.sender, &self.socket);
        fcntl_dupfd_cloexec(&self.socket, 0).ok()
    }
}
