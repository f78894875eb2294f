//! Budget: limits on the memory and the requests that connections hold, so that no connection starves another.
//!
//! How it works      Each connection has some guaranteed memory ([`GUARANTEED_BYTES`]). It reserves what it holds
//!                   beyond that from one pool, as long as the reservations of all connections to its volume are at
//!                   most what stays free: the clients of one volume, whose disk may hang, leave the clients of other
//!                   volumes as much as they hold themselves. A connection with no unanswered request may reserve what
//!                   its next request costs, if the pool has that, so that the largest request is possible. A part of
//!                   the pool is set aside for proven peers, which have shown that they send and read: strangers that
//!                   never read cannot use it. A second part is set aside for requests up to [`MODEST_BYTES`] of
//!                   strangers: otherwise such a request waits behind all larger ones, of which the pool holds only a
//!                   few at a time. A connection that cannot reserve enough waits. The pool is short while a connection
//!                   waits that has reserved nothing. Then the peers that would hold their reservations for longest are
//!                   closed, no more than necessary ([`evict`]).
//! Invariants        BG1 free + all reservations = [`POOL_BYTES`];
//!                   BG2 a connection's reservation is what it holds beyond its guaranteed memory, and its group's is
//!                       the sum of those of its connections.
//! Owner and locks   the pool's lock comes after a connection's own, and is held for a few instructions.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use crate::limits::REQUEST_BYTES_MAX;
use crate::nbd::wire::REQUEST_HEADER_BYTES;
use crate::request::{ChangedRun, Contexts, EXTENTS_MAX, StatusExtent, Verb};
use crate::sync::{AtomicBool, AtomicU64, Condvar, Mutex, MutexGuard, Ordering};
use crate::units::BLOCK_SIZE;

/// What a connection may hold without reserving from the pool, bytes.
pub const GUARANTEED_BYTES: u64 = 64 << 10;
/// What all connections together may hold beyond their guaranteed memory, bytes.
pub const POOL_BYTES: u64 = 192 << 20;
/// What is left in the pool for proven peers, bytes.
pub const RESERVE_BYTES: u64 = 64 << 20;
/// What requests of strangers above [`MODEST_BYTES`] leave in the pool in addition, for those up to it, bytes.
pub const MODEST_RESERVE_BYTES: u64 = 32 << 20;
/// A request of a stranger up to this waits for no larger one, bytes: copies usually read or write no more at once.
pub const MODEST_BYTES: u64 = 2 << 20;
/// A peer is proven once it has sent or received this much: more than socket buffers hold, bytes.
pub const PROVEN_BYTES: u64 = 4 << 20;
/// Size of a socket's send and receive buffers, bytes (the kernel doubles it).
pub const SOCKET_BYTES: usize = 1 << 20;
/// The same for a unix socket: data in flight then stays in the CPU caches between its two copies.
pub const UNIX_SOCKET_BYTES: usize = 208 << 10;
/// What one connection may hold in requests and replies, bytes.
pub const CONNECTION_BYTES_MAX: u64 = 64 << 20;
/// Unanswered requests of one connection.
pub const CONNECTION_REQUESTS_MAX: u32 = 1024;
/// Connections in transmission.
pub const CONNECTIONS_MAX: usize = 1024;
/// A connection's inbox, bytes. The first is the connection's own, further ones count as held.
pub const INBOX_BYTES: usize = 128 << 10;
/// Payloads up to this length stay in the inbox; larger ones get a buffer of their own, bytes.
pub const INBOX_PAYLOAD_MAX: usize = if cfg!(fuzzing) { 1 << 10 } else { 32 << 10 };
/// What handshakes may buffer together, bytes.
pub const HANDSHAKES_BYTES_MAX: u64 = 48 << 20;
/// Upper bound of the buffer pool, bytes.
pub const SPARE_BYTES_MAX: usize = 16 << 20;
/// What a request costs in addition to its bytes: the request, its reply and the allocator's overhead.
pub const REQUEST_OVERHEAD_BYTES: u64 = 512;
/// Upper bound of the range that a BLOCK_STATUS examines; a longer one is answered for its beginning, bytes.
pub const STATUS_BYTES_MAX: u64 = 256 << 20;
/// What one extent of the answer to a BLOCK_STATUS costs, bytes: a list may have twice the capacity that it needs.
const EXTENT_BYTES: u64 = 2 * size_of::<StatusExtent>() as u64;
/// The whole server's memory under attack, bytes.
pub const SERVER_BYTES_MAX: u64 = 512 << 20;

const _: () = assert!(REQUEST_HEADER_BYTES + INBOX_PAYLOAD_MAX <= INBOX_BYTES / 2);
const _: () = assert!(
    CONNECTIONS_MAX as u64 * (INBOX_BYTES as u64 + GUARANTEED_BYTES)
        + POOL_BYTES
        + HANDSHAKES_BYTES_MAX
        + SPARE_BYTES_MAX as u64
        <= SERVER_BYTES_MAX - (64 << 20)
);
const _: () = assert!(
    cost(Verb::Write, REQUEST_BYTES_MAX) <= POOL_BYTES - RESERVE_BYTES - MODEST_RESERVE_BYTES
);
const _: () = assert!(cost(Verb::Write, REQUEST_BYTES_MAX) <= RESERVE_BYTES);
const _: () = assert!(PROVEN_BYTES >= 4 * SOCKET_BYTES as u64);
const _: () =
    assert!(cost(Verb::Write, REQUEST_BYTES_MAX) + INBOX_BYTES as u64 <= CONNECTION_BYTES_MAX);
const _: () = assert!(size_of::<ChangedRun>() <= size_of::<StatusExtent>());
const _: () = assert!(cost(Verb::BlockStatus, u32::MAX as u64) <= 256 << 10);

/// What a request holds from the time it is read until its reply is sent, bytes.
pub const fn cost(verb: Verb, length: u64) -> u64 {
    REQUEST_OVERHEAD_BYTES
        + match verb {
            // An aligned allocation loses up to a block.
            Verb::Read if length < BLOCK_SIZE => length,
            Verb::Read => length + BLOCK_SIZE,
            Verb::Write if length <= INBOX_PAYLOAD_MAX as u64 => 0,
            Verb::Write => length + BLOCK_SIZE,
            Verb::BlockStatus => extents_at_most(length) * EXTENT_BYTES,
            _ => 0,
        }
}

/// Upper bound of the extents in the answer to a BLOCK_STATUS, for each context.
const fn extents_at_most(length: u64) -> u64 {
    let blocks = length / BLOCK_SIZE + 2;
    if blocks < EXTENTS_MAX as u64 { blocks } else { EXTENTS_MAX as u64 }
}

/// Like [`cost`]; a BLOCK_STATUS has one answer for each of the connection's contexts.
pub fn cost_with(contexts: Option<&Contexts>, verb: Verb, length: u64) -> u64 {
    let more = match (verb, contexts) {
        (Verb::BlockStatus, Some(contexts)) => contexts.times() - 1,
        _ => 0,
    };
    cost(verb, length) + more * extents_at_most(length) * EXTENT_BYTES
}

/// How much of a request's range is examined, bytes: a CACHE, which is a hint, reads no more than a READ may read.
pub const fn examined_max(verb: Verb) -> u64 {
    match verb {
        Verb::BlockStatus => STATUS_BYTES_MAX,
        Verb::Cache => REQUEST_BYTES_MAX,
        _ => u64::MAX,
    }
}

/// A waiter for memory: a connection's reader, woken when memory is released.
#[derive(Debug, Default)]
pub struct Waiter {
    /// Signalled when another try may succeed.
    pub changed: Condvar,
    queued: AtomicBool,
}

/// The pool of one server.
#[derive(Debug)]
pub struct Pool {
    free: Mutex<u64>,
    waiters: Mutex<VecDeque<Arc<Waiter>>>,
    /// What waiters without a reservation need, bytes.
    memory_waiters_bytes: AtomicU64,
    groups: Mutex<HashMap<String, Weak<Group>>>,
}

/// What all connections to one volume have reserved, bytes. Protected by the pool's lock.
#[derive(Debug, Default)]
pub struct Group(AtomicU64);

impl Pool {
    /// A pool with all memory free.
    pub fn new() -> Pool {
        Pool {
            free: Mutex::new(POOL_BYTES),
            waiters: Mutex::new(VecDeque::new()),
            memory_waiters_bytes: AtomicU64::new(0),
            groups: Mutex::new(HashMap::new()),
        }
    }

    /// The group of connections to an export: that of its volume.
    pub fn group(&self, export: &str) -> Arc<Group> {
        let volume = export.split_once('@').map_or(export, |(volume, _)| volume);
        let mut groups = lock(&self.groups);
        if let Some(group) = groups.get(volume).and_then(Weak::upgrade) {
            return group;
        }
        groups.retain(|_, group| group.strong_count() > 0);
        let group = Arc::new(Group::default());
        groups.insert(volume.to_owned(), Arc::downgrade(&group));
        group
    }

    /// What waiters without a reservation need, bytes; 0 without such a waiter.
    pub fn memory_waiters_bytes(&self) -> u64 {
        self.memory_waiters_bytes.load(Ordering::Relaxed)
    }

    /// Counts a connection that needs `needed` bytes, and has reserved nothing, as waiting, or as no longer waiting.
    pub fn count_memory_waiters(&self, needed: u64, begins: bool) {
        if begins {
            self.memory_waiters_bytes.fetch_add(needed, Ordering::Relaxed);
        } else {
            self.memory_waiters_bytes.fetch_sub(needed, Ordering::Relaxed);
        }
    }

    /// Wakes `waiter`, once, when bytes are released. It may miss the wake-up: it waits a bounded time.
    pub fn wake_on_release(&self, waiter: &Arc<Waiter>) {
        if !waiter.queued.swap(true, Ordering::SeqCst) {
            lock(&self.waiters).push_back(Arc::clone(waiter));
        }
    }

    /// Reserves `more` bytes for a connection of this group.
    fn reserve(&self, group: &Group, more: u64, claim: Claim) -> bool {
        if more == 0 {
            return true;
        }
        let mut free = lock(&self.free);
        let Some(left) = free.checked_sub(more) else { return false };
        let floor = match () {
            () if claim.proven => 0,
            () if more <= cost(Verb::Write, MODEST_BYTES) => RESERVE_BYTES,
            () => RESERVE_BYTES + MODEST_RESERVE_BYTES,
        };
        let Some(above) = left.checked_sub(floor) else { return false };
        let reserved = group.0.load(Ordering::Relaxed);
        let granted = claim.alone || reserved + more <= above;
        if granted {
            *free = left;
            group.0.fetch_add(more, Ordering::Relaxed);
        }
        granted
    }

    fn give_back(&self, group: &Group, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let mut free = lock(&self.free);
        group.0.fetch_sub(bytes, Ordering::Relaxed);
        *free += bytes;
        debug_assert!(*free <= POOL_BYTES, "BG1: more released than was reserved");
        drop(free);
        let waiter = lock(&self.waiters).pop_front();
        if let Some(waiter) = waiter {
            waiter.queued.store(false, Ordering::SeqCst);
            waiter.changed.notify_all();
        }
    }

    /// Free memory, bytes.
    pub fn free(&self) -> u64 {
        *lock(&self.free)
    }
}

/// Locks, also if an earlier holder panicked: every change under these locks is complete at once.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Shortest and longest grace period: while the pool is short, a peer whose turn lasts longer may be closed. The first
/// is that of a peer that has moved nothing yet.
const GRACE_PERIODS: [Duration; 2] = [Duration::from_millis(40), Duration::from_secs(2)];
/// What a peer moves to earn a second of grace, bytes.
const GRACE_SECOND_BYTES: u64 = 32 << 20;
/// While the pool is short, a peer that will release its reservation within this time, at its present rate, is not
/// closed.
pub const HOLD_MAX: Duration = Duration::from_secs(1);

/// How long a peer that has moved `moved` bytes may do nothing while the pool is short. Strangers have little time,
/// because the peer that waits for them may be a stranger too.
pub fn grace_period(moved: u64) -> Duration {
    let earned = Duration::from_secs(1).mul_f64(moved as f64 / GRACE_SECOND_BYTES as f64);
    earned.clamp(GRACE_PERIODS[0], GRACE_PERIODS[1])
}

/// Which of these connections are closed while the pool is short by `needed` bytes. `held` has, for each, how long it
/// will hold its reservation, how large that is, and its index. Those that would hold theirs for longest are closed, no
/// more than necessary.
pub fn evict(mut held: Vec<(Duration, u64, usize)>, needed: u64) -> Vec<usize> {
    held.sort_unstable_by(|a, b| b.cmp(a));
    let mut freed = 0;
    let enough = |(_, reserved, _): &(Duration, u64, usize)| {
        let goes = freed < needed;
        freed += reserved;
        goes
    };
    held.into_iter().take_while(enough).map(|(_, _, index)| index).collect()
}

/// What one connection holds.
#[derive(Debug, Default)]
pub struct Account {
    bytes: u64,
    requests: u32,
    group: Arc<Group>,
}

/// What a reservation is judged by, in addition to its size.
#[derive(Clone, Copy)]
struct Claim {
    /// The peer has moved [`PROVEN_BYTES`].
    proven: bool,
    /// The connection has no unanswered request, and reserves no more than one request needs.
    alone: bool,
}

/// Result of [`Account::reserve`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reservation {
    /// So many bytes were reserved.
    Bytes(u64),
    /// The connection's own requests must end first.
    OwnLimit,
    /// The pool has too little.
    PoolShort,
}

impl Account {
    /// The account of a connection of this group, which holds nothing yet.
    pub fn of(group: Arc<Group>) -> Account {
        Account { group, ..Account::default() }
    }

    /// What it has reserved from the pool, bytes (BG2).
    pub fn reserved(&self) -> u64 {
        self.bytes.saturating_sub(GUARANTEED_BYTES)
    }

    /// Requests that may be started before the limit.
    pub fn requests_left(&self) -> u32 {
        CONNECTION_REQUESTS_MAX.saturating_sub(self.requests)
    }

    /// Reserves `wanted` bytes, or at least `needed`; `proven`: the peer has moved [`PROVEN_BYTES`].
    pub fn reserve(&mut self, pool: &Pool, needed: u64, wanted: u64, proven: bool) -> Reservation {
        for bytes in [wanted.max(needed), needed] {
            let after = self.bytes + bytes;
            if after > CONNECTION_BYTES_MAX {
                continue;
            }
            let more = after.saturating_sub(GUARANTEED_BYTES) - self.reserved();
            let claim = Claim { proven, alone: self.requests == 0 && bytes == needed };
            if pool.reserve(&self.group, more, claim) {
                self.bytes = after;
                return Reservation::Bytes(bytes);
            }
        }
        if self.bytes + needed > CONNECTION_BYTES_MAX {
            Reservation::OwnLimit
        } else {
            Reservation::PoolShort
        }
    }

    /// Releases bytes.
    pub fn give_back(&mut self, pool: &Pool, bytes: u64) {
        let before = self.reserved();
        self.bytes = self.bytes.saturating_sub(bytes);
        pool.give_back(&self.group, before - self.reserved());
    }

    /// Counts `requests` as started.
    pub fn start(&mut self, requests: u32) {
        self.requests += requests;
    }

    /// Counts `requests` as answered.
    pub fn end(&mut self, requests: u32) {
        self.requests = self.requests.saturating_sub(requests);
    }

    /// What it holds, bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::{
        Account, CONNECTION_BYTES_MAX, GUARANTEED_BYTES, MODEST_BYTES, POOL_BYTES, Pool,
        RESERVE_BYTES, Reservation, cost, evict,
    };
    use std::time::Duration;

    use crate::limits::REQUEST_BYTES_MAX;
    use crate::request::Verb;

    /// Reserves for one request after the other until one fails; returns that result.
    fn reserve_all(account: &mut Account, pool: &Pool, each: u64, proven: bool) -> Reservation {
        loop {
            let taken = account.reserve(pool, each, each, proven);
            let Reservation::Bytes(_) = taken else { return taken };
            account.start(1);
        }
    }

    #[test]
    fn everything_reserved_can_be_released() {
        let pool = Pool::new();
        let mut account = Account::default();
        assert_eq!(reserve_all(&mut account, &pool, 10_000, true), Reservation::OwnLimit);
        assert!(account.bytes() > CONNECTION_BYTES_MAX - 10_000);
        assert_eq!(pool.free(), POOL_BYTES - account.reserved());
        while account.bytes() > 0 {
            account.give_back(&pool, 10_000);
        }
        assert_eq!(pool.free(), POOL_BYTES);
    }

    #[test]
    fn peers_that_would_hold_for_longest_are_evicted_and_no_more_than_necessary() {
        let held = |seconds, reserved, index| (Duration::from_secs(seconds), reserved, index);
        let all = vec![held(2, 50, 0), held(9, 10, 1), held(1000, 30, 2), held(9, 20, 3)];
        assert_eq!(evict(all.clone(), 1), [2]);
        assert_eq!(evict(all.clone(), 31), [2, 3]);
        assert_eq!(evict(all, 1 << 40), [2, 3, 1, 0]);
    }

    #[test]
    fn clients_of_one_volume_leave_those_of_another_as_much_as_they_hold() {
        let pool = Pool::new();
        let large = cost(Verb::Read, REQUEST_BYTES_MAX);
        let of = |export: &str| Account::of(pool.group(export));
        let mut hung: Vec<Account> =
            (0..4).map(|n| of(if n % 2 == 0 { "hung" } else { "hung@s" })).collect();
        for account in &mut hung {
            reserve_all(account, &pool, 1 << 20, true);
        }
        let left = pool.free();
        assert!(left >= POOL_BYTES / 2 - (4 << 20), "{left}");
        let mut good = of("good");
        assert_eq!(good.reserve(&pool, large, large, true), Reservation::Bytes(large));
        drop(hung);
    }

    #[test]
    fn large_requests_of_strangers_leave_memory_for_their_small_ones() {
        let pool = Pool::new();
        let large = cost(Verb::Read, REQUEST_BYTES_MAX);
        let modest = cost(Verb::Write, MODEST_BYTES);
        let mut greedy: Vec<Account> = (0..100).map(|_| Account::default()).collect();
        for account in &mut greedy {
            reserve_all(account, &pool, large, false);
        }
        let mut lesser: Vec<Account> = (0..8).map(|_| Account::default()).collect();
        for account in &mut lesser {
            assert_eq!(account.reserve(&pool, modest, modest, false), Reservation::Bytes(modest));
        }
        let mut another = Account::default();
        assert_eq!(another.reserve(&pool, large, large, false), Reservation::PoolShort);
    }

    #[test]
    fn greedy_strangers_leave_every_connection_its_guarantee_and_proven_peers_a_reserve() {
        let pool = Pool::new();
        let large = cost(Verb::Read, REQUEST_BYTES_MAX);
        let mut greedy: Vec<Account> = (0..1000).map(|_| Account::default()).collect();
        for (index, account) in greedy.iter_mut().enumerate() {
            reserve_all(account, &pool, if index % 2 == 0 { large } else { 70_000 }, false);
        }
        assert!(pool.free() >= RESERVE_BYTES);
        let mut stranger = Account::default();
        assert_eq!(stranger.reserve(&pool, large, large, false), Reservation::PoolShort);
        assert_eq!(
            stranger.reserve(&pool, GUARANTEED_BYTES, 1 << 20, false),
            Reservation::Bytes(GUARANTEED_BYTES)
        );
        let mut good = Account::default();
        assert_eq!(good.reserve(&pool, large, large, true), Reservation::Bytes(large));
    }
}
