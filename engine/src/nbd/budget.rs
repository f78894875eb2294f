//! Budget: how much memory and how many requests connections may hold, so that none starves another.
//!
//! How it works      Each connection has a share of its own ([`SHARE_BYTES`]). What it holds beyond that it
//!                   draws from one pool, as long as the draw of all connections to its volume is at most what stays free:
//!                   the clients of one volume, whose disk may hang, leave those of others as much as they hold themselves.
//!                   A connection that waits for no answer may take what its next request costs, if the pool has that, so
//!                   that the largest request is possible. A part of the pool is kept for proven peers, which have
//!                   shown that they send and read: strangers that never read cannot take it. A second part is kept
//!                   for requests up to [`MODEST_BYTES`] of strangers: otherwise such a request waits behind all
//!                   larger ones, of which the pool holds only a few at a time. A connection that gets nothing waits.
//!                   While one waits that has drawn nothing, the pool is short: then peers that will hold what they have drawn
//!                   for longest are closed, as many as it takes ([`evict`]).
//! Invariants        BG1 free + all draws = [`POOL_BYTES`];
//!                   BG2 a connection's draw is what it holds beyond its share, and its group's is what all of the group hold.
//! Owner and locks   the pool's lock comes after a connection's own, and is held for a few instructions.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use crate::limits::REQUEST_BYTES_MAX;
use crate::nbd::wire::REQUEST_HEADER_BYTES;
use crate::sync::{AtomicBool, AtomicU64, Condvar, Mutex, MutexGuard, Ordering};
use crate::units::BLOCK_SIZE;
use crate::volume::request::{ChangedRun, Contexts, EXTENTS_MAX, StatusExtent, Verb};

/// What a connection may hold without drawing from the pool, bytes.
pub const SHARE_BYTES: u64 = 64 << 10;
/// What all connections together may hold beyond their shares, bytes.
pub const POOL_BYTES: u64 = 192 << 20;
/// What is left in the pool for proven peers, bytes.
pub const RESERVE_BYTES: u64 = 64 << 20;
/// What requests of strangers above [`MODEST_BYTES`] leave in the pool in addition, for those up to it, bytes.
pub const MODEST_RESERVE_BYTES: u64 = 32 << 20;
/// A request of a stranger up to this waits for no larger one, bytes: copies usually read or write no more at once.
pub const MODEST_BYTES: u64 = 2 << 20;
/// A peer is proven once it has sent or taken this much: more than sockets hold on the way, bytes.
pub const PROVEN_BYTES: u64 = 4 << 20;
/// What either end of a socket may hold, bytes (the kernel doubles it).
pub const SOCKET_BYTES: usize = 1 << 20;
/// The same for a unix socket: what is on the way then stays in the processors' caches, between two copies of it.
pub const UNIX_SOCKET_BYTES: usize = 208 << 10;
/// What one connection may hold in requests and replies, bytes.
pub const CONNECTION_BYTES_MAX: u64 = 64 << 20;
/// Requests of one connection that are not yet answered.
pub const CONNECTION_REQUESTS_MAX: u32 = 1024;
/// Connections in transmission.
pub const CONNECTIONS_MAX: usize = 1024;
/// A connection's inbox, bytes. The first is the connection's own, further ones count as held.
pub const INBOX_BYTES: usize = 128 << 10;
/// Payloads up to here share the inbox; larger ones get a buffer of their own, bytes.
pub const PAYLOAD_SHARED_MAX: usize = if cfg!(fuzzing) { 1 << 10 } else { 32 << 10 };
/// What handshakes may buffer together, bytes.
pub const HANDSHAKES_BYTES_MAX: u64 = 48 << 20;
/// What is kept in buffers for the next requests, bytes.
pub const SPARE_BYTES_MAX: usize = 16 << 20;
/// What a request costs beside its bytes: itself, its reply, the allocator's share.
pub const REQUEST_OVERHEAD_BYTES: u64 = 512;
/// The most that a BLOCK_STATUS looks at; a longer one is answered for its beginning, bytes.
pub const STATUS_BYTES_MAX: u64 = 256 << 20;
/// What one extent of the answer to a BLOCK_STATUS costs, bytes: what was found, in a list that may have twice the room.
const EXTENT_BYTES: u64 = 2 * size_of::<StatusExtent>() as u64;
/// The whole server's memory under attack, bytes.
pub const SERVER_BYTES_MAX: u64 = 512 << 20;

const _: () = assert!(REQUEST_HEADER_BYTES + PAYLOAD_SHARED_MAX <= INBOX_BYTES / 2);
const _: () = assert!(
    CONNECTIONS_MAX as u64 * (INBOX_BYTES as u64 + SHARE_BYTES)
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
            Verb::Write if length <= PAYLOAD_SHARED_MAX as u64 => 0,
            Verb::Write => length + BLOCK_SIZE,
            Verb::BlockStatus => extents_at_most(length) * EXTENT_BYTES,
            _ => 0,
        }
}

/// How many extents the answer to a BLOCK_STATUS may have, for each context.
const fn extents_at_most(length: u64) -> u64 {
    let blocks = length / BLOCK_SIZE + 2;
    if blocks < EXTENTS_MAX as u64 { blocks } else { EXTENTS_MAX as u64 }
}

/// As [`cost`]; a BLOCK_STATUS has one answer for each of the connection's contexts.
pub fn cost_with(contexts: Option<&Contexts>, verb: Verb, length: u64) -> u64 {
    let more = match (verb, contexts) {
        (Verb::BlockStatus, Some(contexts)) => contexts.times() - 1,
        _ => 0,
    };
    cost(verb, length) + more * extents_at_most(length) * EXTENT_BYTES
}

/// How much of a request's range is looked at, bytes: a CACHE, which is a hint, reads no more ahead than a READ may read.
pub const fn looked_at_most(verb: Verb) -> u64 {
    match verb {
        Verb::BlockStatus => STATUS_BYTES_MAX,
        Verb::Cache => REQUEST_BYTES_MAX,
        _ => u64::MAX,
    }
}

/// A waiter for memory: a connection's reader, woken when some was given back.
#[derive(Debug, Default)]
pub struct Waiter {
    /// Signalled when it is worth another try.
    pub changed: Condvar,
    queued: AtomicBool,
}

/// The pool of one server.
#[derive(Debug)]
pub struct Pool {
    free: Mutex<u64>,
    waiters: Mutex<VecDeque<Arc<Waiter>>>,
    /// What waiters that have drawn nothing need, bytes.
    memory_waiters_bytes: AtomicU64,
    groups: Mutex<HashMap<String, Weak<Group>>>,
}

/// What connections to one volume have drawn together, bytes: changed with the pool's lock.
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

    /// What those need who wait and have drawn nothing, bytes; 0 without such a waiter.
    pub fn memory_waiters_bytes(&self) -> u64 {
        self.memory_waiters_bytes.load(Ordering::Relaxed)
    }

    /// Says that a connection which needs so much waits without having drawn anything, or no longer does.
    pub fn count_memory_waiters(&self, needed: u64, begins: bool) {
        if begins {
            self.memory_waiters_bytes.fetch_add(needed, Ordering::Relaxed);
        } else {
            self.memory_waiters_bytes.fetch_sub(needed, Ordering::Relaxed);
        }
    }

    /// Has `waiter` woken, once, when bytes are given back. It may miss that: it waits a bounded time.
    pub fn call_back(&self, waiter: &Arc<Waiter>) {
        if !waiter.queued.swap(true, Ordering::SeqCst) {
            lock(&self.waiters).push_back(Arc::clone(waiter));
        }
    }

    /// Draws `more` bytes for a connection of this group.
    fn draw(&self, group: &Group, more: u64, who: Who) -> bool {
        if more == 0 {
            return true;
        }
        let mut free = lock(&self.free);
        let Some(left) = free.checked_sub(more) else { return false };
        let floor = match () {
            () if who.proven => 0,
            () if more <= cost(Verb::Write, MODEST_BYTES) => RESERVE_BYTES,
            () => RESERVE_BYTES + MODEST_RESERVE_BYTES,
        };
        let Some(above) = left.checked_sub(floor) else { return false };
        let drawn = group.0.load(Ordering::Relaxed);
        let granted = who.alone || drawn + more <= above;
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
        debug_assert!(*free <= POOL_BYTES, "BG1: more given back than was drawn");
        drop(free);
        let waiter = lock(&self.waiters).pop_front();
        if let Some(waiter) = waiter {
            waiter.queued.store(false, Ordering::SeqCst);
            waiter.changed.notify_all();
        }
    }

    /// Free memory, bytes.
    #[cfg(any(test, fuzzing))]
    pub fn free(&self) -> u64 {
        *lock(&self.free)
    }
}

/// Locks, whatever became of an earlier holder: every change under these locks is complete at once.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// While the pool is short, a peer whose turn it is for longer may be closed: one that has moved nothing yet, and any.
const PATIENCE: [Duration; 2] = [Duration::from_millis(40), Duration::from_secs(2)];
/// What a peer moves to be granted a second of patience, bytes.
const PATIENCE_BYTES: u64 = 32 << 20;
/// While the pool is short: a peer that will give back what it has drawn within this time, at the rate at which it
/// moves, is not closed.
pub const HOLD: Duration = Duration::from_secs(1);

/// How long a peer that has moved so many bytes may do nothing while the pool is short: strangers have little time, for
/// a peer that waits for them may be a stranger too.
pub fn grace_period(moved: u64) -> Duration {
    let earned = Duration::from_secs(1).mul_f64(moved as f64 / PATIENCE_BYTES as f64);
    earned.clamp(PATIENCE[0], PATIENCE[1])
}

/// Which of these connections are closed while the pool is short by `needed` bytes: of each, how long it will hold
/// what it has drawn, and how much that is. Those that would hold it for longest go, no more than it takes.
pub fn evict(mut held: Vec<(Duration, u64, usize)>, needed: u64) -> Vec<usize> {
    held.sort_unstable_by(|a, b| b.cmp(a));
    let mut freed = 0;
    let enough = |(_, drawn, _): &(Duration, u64, usize)| {
        let goes = freed < needed;
        freed += drawn;
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

/// Who draws from the pool.
#[derive(Clone, Copy)]
struct Who {
    /// It has moved [`PROVEN_BYTES`].
    proven: bool,
    /// It waits for no answer, and draws no more than one request needs.
    alone: bool,
}

/// What [`Account::take`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// That many bytes are held now.
    Bytes(u64),
    /// The connection's own requests must end first.
    OwnLimit,
    /// The pool has too little.
    PoolShort,
}

impl Account {
    /// Of a connection of this group, which holds nothing yet.
    pub fn of(group: Arc<Group>) -> Account {
        Account { group, ..Account::default() }
    }

    /// What it has drawn from the pool (BG2).
    pub fn drawn(&self) -> u64 {
        self.bytes.saturating_sub(SHARE_BYTES)
    }

    /// Requests that may be started before the limit.
    pub fn requests_left(&self) -> u32 {
        CONNECTION_REQUESTS_MAX.saturating_sub(self.requests)
    }

    /// Takes `wanted` bytes, or at least `needed`; `proven`: the peer has moved [`PROVEN_BYTES`].
    pub fn take(&mut self, pool: &Pool, needed: u64, wanted: u64, proven: bool) -> Taken {
        for bytes in [wanted.max(needed), needed] {
            let after = self.bytes + bytes;
            if after > CONNECTION_BYTES_MAX {
                continue;
            }
            let more = after.saturating_sub(SHARE_BYTES) - self.drawn();
            let who = Who { proven, alone: self.requests == 0 && bytes == needed };
            if pool.draw(&self.group, more, who) {
                self.bytes = after;
                return Taken::Bytes(bytes);
            }
        }
        if self.bytes + needed > CONNECTION_BYTES_MAX { Taken::OwnLimit } else { Taken::PoolShort }
    }

    /// Gives bytes back.
    pub fn give_back(&mut self, pool: &Pool, bytes: u64) {
        let before = self.drawn();
        self.bytes = self.bytes.saturating_sub(bytes);
        pool.give_back(&self.group, before - self.drawn());
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
        Account, CONNECTION_BYTES_MAX, MODEST_BYTES, POOL_BYTES, Pool, RESERVE_BYTES, SHARE_BYTES,
        Taken, cost, evict,
    };
    use std::time::Duration;

    use crate::limits::REQUEST_BYTES_MAX;
    use crate::volume::request::Verb;

    /// Takes one request after the other until there is no more; says what came last.
    fn take_all(account: &mut Account, pool: &Pool, each: u64, proven: bool) -> Taken {
        loop {
            let taken = account.take(pool, each, each, proven);
            let Taken::Bytes(_) = taken else { return taken };
            account.start(1);
        }
    }

    #[test]
    fn whatever_is_taken_comes_back() {
        let pool = Pool::new();
        let mut account = Account::default();
        assert_eq!(take_all(&mut account, &pool, 10_000, true), Taken::OwnLimit);
        assert!(account.bytes() > CONNECTION_BYTES_MAX - 10_000);
        assert_eq!(pool.free(), POOL_BYTES - account.drawn());
        while account.bytes() > 0 {
            account.give_back(&pool, 10_000);
        }
        assert_eq!(pool.free(), POOL_BYTES);
    }

    #[test]
    fn those_who_would_hold_for_longest_go_and_no_more_than_it_takes() {
        let held = |seconds, drawn, index| (Duration::from_secs(seconds), drawn, index);
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
            take_all(account, &pool, 1 << 20, true);
        }
        let left = pool.free();
        assert!(left >= POOL_BYTES / 2 - (4 << 20), "{left}");
        let mut good = of("good");
        assert_eq!(good.take(&pool, large, large, true), Taken::Bytes(large));
        drop(hung);
    }

    #[test]
    fn large_requests_of_strangers_leave_memory_for_their_small_ones() {
        let pool = Pool::new();
        let large = cost(Verb::Read, REQUEST_BYTES_MAX);
        let modest = cost(Verb::Write, MODEST_BYTES);
        let mut greedy: Vec<Account> = (0..100).map(|_| Account::default()).collect();
        for account in &mut greedy {
            take_all(account, &pool, large, false);
        }
        let mut lesser: Vec<Account> = (0..8).map(|_| Account::default()).collect();
        for account in &mut lesser {
            assert_eq!(account.take(&pool, modest, modest, false), Taken::Bytes(modest));
        }
        let mut another = Account::default();
        assert_eq!(another.take(&pool, large, large, false), Taken::PoolShort);
    }

    #[test]
    fn greedy_strangers_leave_everybody_a_share_and_proven_peers_a_reserve() {
        let pool = Pool::new();
        let large = cost(Verb::Read, REQUEST_BYTES_MAX);
        let mut greedy: Vec<Account> = (0..1000).map(|_| Account::default()).collect();
        for (index, account) in greedy.iter_mut().enumerate() {
            take_all(account, &pool, if index % 2 == 0 { large } else { 70_000 }, false);
        }
        assert!(pool.free() >= RESERVE_BYTES);
        let mut stranger = Account::default();
        assert_eq!(stranger.take(&pool, large, large, false), Taken::PoolShort);
        assert_eq!(stranger.take(&pool, SHARE_BYTES, 1 << 20, false), Taken::Bytes(SHARE_BYTES));
        let mut good = Account::default();
        assert_eq!(good.take(&pool, large, large, true), Taken::Bytes(large));
    }
}
