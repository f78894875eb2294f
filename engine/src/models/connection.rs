//! A connection and the threads that finish its requests: each reply is sent once and completely, also if the socket
//! accepts only part of it and the rest is sent later; a reader that waits is woken; all memory is released (RP1, RP2,
//! CN1); its socket is shut down or handed over, never both, and never handed over with a reply unsent (CN3).

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use loom::thread;
use rustix::io::Errno as SystemErrno;

use super::check;
use crate::buffer::Buffer;
use crate::nbd::budget::{
    CONNECTION_BYTES_MAX, GUARANTEED_BYTES, POOL_BYTES, Pool, REQUEST_OVERHEAD_BYTES,
};
use crate::nbd::buffer_pool::BufferPool;
use crate::nbd::connection::{Common, Connection, QuiesceTimeouts};
use crate::nbd::peer::Peer;
use crate::nbd::request::Agreed;
use crate::nbd::wire::SIMPLE_REPLY_BYTES;
use crate::request::{Request, Sink, Verb};
use crate::sync::Mutex;

/// What one of the requests here holds.
const COST: u64 = REQUEST_OVERHEAD_BYTES;

/// The replies that a connection sent.
#[derive(Default)]
struct Sent {
    bytes: Vec<u8>,
    /// The socket accepts no more bytes than this, until a thread continues sending.
    room: Option<usize>,
    /// Threads that continue sending.
    later: Vec<thread::JoinHandle<()>>,
    shut_down: bool,
    released: bool,
}

/// A socket of a given width, with a thread that sends later.
struct Narrow {
    sent: Arc<Mutex<Sent>>,
    connection: Arc<OnceLock<Weak<Connection>>>,
}

impl Peer for Narrow {
    fn receive(&self, _: &mut [u8], _: bool) -> Result<usize, SystemErrno> {
        Ok(0)
    }

    fn receive_now(&self, _: &mut [IoSliceMut<'_>]) -> Result<usize, SystemErrno> {
        Ok(0)
    }

    fn send(&self, parts: &[IoSlice<'_>]) -> Result<usize, SystemErrno> {
        let mut sent = self.sent.lock().unwrap();
        let all: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        let length = sent.room.map_or(all.len(), |room| room.min(all.len()));
        if length == 0 {
            return Err(SystemErrno::AGAIN);
        }
        sent.bytes.extend(&all[..length]);
        sent.room = sent.room.map(|room| room - length);
        Ok(length)
    }

    fn send_later(&self) -> Result<(), SystemErrno> {
        let connection = self.connection.get().unwrap().upgrade().unwrap();
        let mut sent = self.sent.lock().unwrap();
        sent.room = None;
        sent.later.push(thread::spawn(move || connection.send_on()));
        Ok(())
    }

    fn shut_down(&self) {
        self.sent.lock().unwrap().shut_down = true;
    }

    fn release(&self) -> Option<OwnedFd> {
        self.sent.lock().unwrap().released = true;
        std::fs::File::open("/dev/null").ok().map(OwnedFd::from)
    }
}

struct Scene {
    connection: Arc<Connection>,
    sent: Arc<Mutex<Sent>>,
}

/// A connection with so many requests in flight, on a socket that accepts `room` bytes at first.
fn scene(requests: usize, room: Option<usize>) -> Scene {
    let sent = Arc::new(Mutex::new(Sent { room, ..Sent::default() }));
    let known = Arc::new(OnceLock::new());
    let peer = Narrow { sent: Arc::clone(&sent), connection: Arc::clone(&known) };
    let common = Arc::new(Common {
        pool: Pool::new(),
        buffers: BufferPool::default(),
        watch_peers: Box::new(|| {}),
    });
    let agreed = Agreed { size: 1 << 20, read_only: false, structured: false, status: false };
    let connection =
        Arc::new(Connection::new(Box::new(peer), "v".to_owned(), agreed, None, common));
    known.set(Arc::downgrade(&connection)).unwrap();
    connection.state.lock().unwrap().submitted = requests;
    Scene { connection, sent }
}

impl Scene {
    /// Finishes the request of this cookie, as a processor does at the end of a batch.
    fn finish(connection: &Arc<Connection>, cookie: u64) {
        let sink = Arc::clone(connection) as Arc<dyn Sink>;
        let mut request = Request::new(Verb::Trim, 0, 512, Buffer::empty(), Arc::clone(&sink));
        request.cookie = cookie;
        Arc::new(request).complete();
        sink.kick();
    }

    /// Waits for what is sent later; returns the answered cookies, in order.
    fn cookies(&self) -> Vec<u64> {
        loop {
            let later = std::mem::take(&mut self.sent.lock().unwrap().later);
            if later.is_empty() {
                break;
            }
            later.into_iter().for_each(|thread| thread.join().unwrap());
        }
        let bytes = self.sent.lock().unwrap().bytes.clone();
        assert_eq!(bytes.len() % SIMPLE_REPLY_BYTES, 0, "a reply in pieces");
        let replies = bytes.chunks_exact(SIMPLE_REPLY_BYTES);
        let mut cookies: Vec<u64> =
            replies.map(|reply| u64::from_be_bytes(reply[8..].try_into().unwrap())).collect();
        cookies.sort_unstable();
        cookies
    }
}

#[test]
fn each_request_is_answered_once_by_any_sender() {
    for room in [None, Some(20)] {
        check(move || {
            let scene = scene(2, room);
            assert_eq!(scene.connection.reserve(3 * COST, 3 * COST, 2), Some(3 * COST));
            let theirs = Arc::clone(&scene.connection);
            let other = thread::spawn(move || Scene::finish(&theirs, 1));
            Scene::finish(&scene.connection, 2);
            other.join().unwrap();
            assert_eq!(scene.cookies(), [1, 2]);
            assert_eq!(scene.connection.held(), COST, "RP2");
        });
    }
}

#[test]
fn a_reader_that_leaves_waits_for_its_requests() {
    check(|| {
        let scene = scene(2, None);
        let processors = [1, 2].map(|cookie| {
            let theirs = Arc::clone(&scene.connection);
            thread::spawn(move || Scene::finish(&theirs, cookie))
        });
        scene.connection.drain(std::time::Duration::ZERO);
        assert_eq!(scene.connection.state.lock().unwrap().submitted, 0, "CN1");
        processors.into_iter().for_each(|processor| processor.join().unwrap());
        assert_eq!(scene.cookies(), [1, 2]);
    });
}

#[test]
fn an_abort_in_the_middle_of_a_reply_releases_everything() {
    check(|| {
        let scene = scene(1, Some(10));
        assert_eq!(
            scene.connection.reserve(GUARANTEED_BYTES + 512, GUARANTEED_BYTES + 512, 1),
            Some(GUARANTEED_BYTES + 512)
        );
        let theirs = Arc::clone(&scene.connection);
        let other = thread::spawn(move || Scene::finish(&theirs, 1));
        scene.connection.evict();
        other.join().unwrap();
        let _ = scene.sent.lock().map(|mut sent| std::mem::take(&mut sent.later)).map(|later| {
            later.into_iter().for_each(|thread| thread.join().unwrap());
        });
        let common = Arc::clone(&scene.connection.common);
        // Only the connection's guaranteed memory is still held.
        assert_eq!(common.pool.free(), POOL_BYTES, "RP2");
    });
}

#[test]
fn a_reader_that_waits_for_its_own_replies_is_woken() {
    check(|| {
        let scene = scene(1, None);
        // The connection is at its limit: another request has to wait for this one's answer.
        let all = CONNECTION_BYTES_MAX;
        assert_eq!(scene.connection.reserve(COST, COST, 1), Some(COST));
        let theirs = Arc::clone(&scene.connection);
        let other = thread::spawn(move || Scene::finish(&theirs, 1));
        assert_eq!(scene.connection.reserve(all, all, 1), Some(all));
        other.join().unwrap();
    });
}

/// QuiesceTimeouts that no model uses up.
const LONG: QuiesceTimeouts =
    QuiesceTimeouts { total: Duration::from_secs(3600), stalled: Duration::from_secs(3600) };

#[test]
fn a_handed_over_socket_has_all_replies_and_is_not_shut_down() {
    for room in [None, Some(20)] {
        check(move || {
            let scene = scene(2, room);
            scene.connection.freeze();
            let theirs = Arc::clone(&scene.connection);
            let processor = thread::spawn(move || {
                Scene::finish(&theirs, 1);
                Scene::finish(&theirs, 2);
            });
            assert!(scene.connection.quiesce(LONG));
            assert!(scene.connection.release().is_some());
            let bytes = scene.sent.lock().unwrap().bytes.len();
            assert_eq!(bytes, 2 * SIMPLE_REPLY_BYTES, "CN3: released with a reply unsent");
            scene.connection.abort();
            processor.join().unwrap();
            assert_eq!(scene.cookies(), [1, 2]);
            assert!(!scene.sent.lock().unwrap().shut_down, "CN3");
        });
    }
}

#[test]
fn a_connection_is_aborted_or_released_never_both() {
    check(|| {
        let scene = scene(1, None);
        scene.connection.freeze();
        let (theirs, others) = (Arc::clone(&scene.connection), Arc::clone(&scene.connection));
        let processor = thread::spawn(move || Scene::finish(&theirs, 1));
        let evicts = thread::spawn(move || others.evict());
        let quiet = scene.connection.quiesce(LONG);
        let released = quiet && scene.connection.release().is_some();
        processor.join().unwrap();
        evicts.join().unwrap();
        let sent = scene.sent.lock().unwrap();
        assert_eq!((sent.released, sent.shut_down), (released, !released), "CN3");
        assert!(!released || sent.bytes.len() == SIMPLE_REPLY_BYTES);
    });
}

#[test]
fn a_reader_that_waits_for_the_budget_is_woken_by_a_freeze() {
    check(|| {
        let scene = scene(1, None);
        assert_eq!(scene.connection.reserve(COST, COST, 1), Some(COST));
        let theirs = Arc::clone(&scene.connection);
        let other = thread::spawn(move || theirs.freeze());
        let all = CONNECTION_BYTES_MAX;
        assert_eq!(scene.connection.reserve(all, all, 1), None);
        other.join().unwrap();
    });
}
