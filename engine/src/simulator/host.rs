//! Host: makes requests from a seed, keeps several in flight, and checks every answer against the model.
//!
//! How it works      A turn handles the ended requests, then submits new ones. Requests that overlap, one of them a
//!                   write, are only sometimes in flight together: the model knows less about them ("blurred").
//! Owner and locks   `State` is locked for a turn; a turn that begins during another one does nothing. Ended requests
//!                   go to the [`Inbox`], which is locked for a push.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::contents::SECTOR;
use super::faults::Injected;
use super::inbox::{Ended, Inbox};
use super::model::{Model, Sector, Snapshot, tag};
use super::random::Random;
use super::rules::Rules;
use super::scheduler;
use super::shape::Shape;
use super::system::Shelf;
use crate::buffer::Buffer;
use crate::error::Errno;
use crate::request::{Request, Sink, StatusExtent, Target, Verb};
use crate::units::{BLOCK_SIZE, Epoch};
use crate::volume::{View, Volume};

const BLOCK_SECTORS: u64 = BLOCK_SIZE / SECTOR as u64;

/// A request in flight.
#[derive(Clone, Debug)]
struct Operation {
    verb: Verb,
    /// Number of the write; 0 for one that writes zeroes.
    id: u64,
    fua: bool,
    sectors: Range<Sector>,
    view: Option<Epoch>,
    began: u64,
    injected: Injected,
    /// Other requests were in flight in its sectors.
    blurred: bool,
    /// What a blurred read may find in addition.
    extra: Vec<(Sector, u64)>,
}

/// State of the host.
pub struct State {
    /// The allowed contents of everything.
    pub model: Model,
    /// Snapshots that exist.
    pub snapshots: BTreeMap<Epoch, Snapshot>,
    /// The first failure.
    pub failure: Option<String>,
    /// Requests that may still be made.
    pub budget: u64,
    /// Requests made.
    pub requests: u64,
    random: Random,
    in_flight: BTreeMap<u64, Operation>,
    in_flight_max: usize,
    next_cookie: u64,
    next_id: u64,
    sectors: Sector,
    hot: Range<u64>,
    /// Whether a trim always leaves zeroes.
    trims: bool,
    volume: Option<(Arc<Volume>, Arc<Inbox>)>,
    /// The faults injected when serving the volume began.
    pub began: Injected,
    /// Failed syncs of files when the machine was started.
    pub holes_before: u64,
    /// Reads that failed.
    pub read_errors: u64,
    /// The log rules in force.
    pub rules: Rules,
}

/// See the module's head.
pub struct Host {
    state: Mutex<State>,
    disk: Shelf,
    /// Counts events.
    pub clock: Arc<AtomicU64>,
}

impl scheduler::Host for Host {
    fn turn(&self) -> bool {
        let Ok(mut state) = self.state.try_lock() else { return false };
        state.sample();
        let took = state.take_ended();
        let made = state.make_requests(&self.disk, &self.clock);
        took || made
    }
}

impl Host {
    /// The host of a volume of this shape.
    pub fn new(mut random: Random, disk: Shelf, shape: &Shape) -> Host {
        let (size, trims) = (shape.size, shape.trims());
        let sectors = (size / SECTOR as u64) as Sector;
        let blocks = size / BLOCK_SIZE;
        let first = random.below(blocks);
        let hot = first..(first + random.within(4, 128)).min(blocks);
        let state = State {
            model: Model::new(sectors),
            snapshots: BTreeMap::new(),
            failure: None,
            budget: 0,
            requests: 0,
            in_flight: BTreeMap::new(),
            in_flight_max: random.within(1, 12) as usize,
            next_cookie: 1,
            next_id: 1,
            sectors,
            hot,
            trims,
            volume: None,
            began: Injected::default(),
            holes_before: 0,
            read_errors: 0,
            rules: Rules::new(shape.clone()),
            random,
        };
        Host { state: Mutex::new(state), disk, clock: Arc::new(AtomicU64::new(1)) }
    }

    /// Locks its state, for a turn.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("a failure ends the simulation")
    }

    /// The time now.
    pub fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }

    /// Notes that a volume is served.
    pub fn attach(&self, volume: Arc<Volume>) {
        let (disk, clock) = (self.disk.clone(), Arc::clone(&self.clock));
        let inbox = Inbox::new(disk, clock, Arc::clone(&volume.space));
        let mut state = self.lock();
        state.volume = Some((volume, Arc::new(inbox)));
    }

    /// Notes that the volume is no longer served. Acknowledged writes were made; those in flight may or may not have
    /// been made.
    pub fn detach(&self) {
        let mut state = self.lock();
        state.take_ended();
        let in_flight = std::mem::take(&mut state.in_flight);
        let now = self.now();
        for operation in in_flight.into_values().filter(|operation| operation.verb.is_write()) {
            state.model.end(operation.id, operation.sectors, now, false);
        }
        state.model.cutting = None;
        state.volume = None;
    }

    /// Notes the faults so far: only a later fault explains a failure from now on.
    pub fn begin_run(&self) {
        let injected = self.disk.lock().injected;
        self.lock().began = injected;
    }

    /// Handles the ended requests; returns whether nothing is in flight.
    pub fn settle(&self) -> bool {
        let mut state = self.lock();
        state.take_ended();
        state.in_flight.is_empty()
    }

    /// Submits a read of these sectors.
    pub fn read(&self, sectors: Range<Sector>, view: Option<Epoch>) {
        let mut state = self.lock();
        let operation = state.operation(Verb::Read, sectors, view, &self.disk, &self.clock);
        state.submit(operation, &self.disk);
    }

    /// Submits a request without data on the whole volume, or a flush.
    pub fn submit_whole(&self, verb: Verb) {
        let mut state = self.lock();
        let sectors = if verb == Verb::Flush { 0..0 } else { 0..state.sectors };
        let operation = state.operation(verb, sectors, None, &self.disk, &self.clock);
        state.submit(operation, &self.disk);
    }
}

impl State {
    /// The writes that are in flight.
    pub fn writes_in_flight(&self) -> Vec<(u64, Range<Sector>)> {
        let writes = self.in_flight.values().filter(|operation| operation.verb.is_write());
        writes.map(|operation| (operation.id, operation.sectors.clone())).collect()
    }

    /// Whether a snapshot is being read.
    pub fn is_read(&self, epoch: Epoch) -> bool {
        self.is_read_all(Some(epoch))
    }

    /// Whether the volume or a snapshot is being read.
    pub fn is_read_all(&self, view: Option<Epoch>) -> bool {
        let reads = |operation: &Operation| operation.verb == Verb::Read && operation.view == view;
        self.in_flight.values().any(reads)
    }

    /// Restores a snapshot whose deletion failed.
    pub fn keep(&mut self, epoch: Epoch, snapshot: Snapshot) {
        self.snapshots.insert(epoch, snapshot);
    }

    /// Records a failure, unless there is one already.
    pub fn fail(&mut self, what: String) {
        self.failure.get_or_insert(what);
    }

    /// What is in flight, for reports.
    pub fn stuck(&self) -> String {
        format!("{:?}", self.in_flight)
    }

    /// Samples the number of free slots, before some are freed.
    pub fn sample(&self) {
        if let Some((_, inbox)) = &self.volume {
            inbox.sample();
        }
    }

    /// Whether there were too few free slots for a request at some time since it began.
    fn was_full(&self, operation: &Operation, request: &Request) -> bool {
        let Some((_, inbox)) = &self.volume else { return false };
        // Other parts of the request may have allocated their slots already.
        let blocks = (request.length / BLOCK_SIZE + 2) * 2;
        let sectors = &operation.sectors;
        let bytes = sectors.start as u64 * SECTOR as u64..sectors.end as u64 * SECTOR as u64;
        self.rules.may_lack(inbox, operation.began, bytes, blocks)
    }

    fn take_ended(&mut self) -> bool {
        let Some((_, inbox)) = &self.volume else { return false };
        let ended = inbox.take();
        let some = !ended.is_empty();
        for ended in ended {
            let cookie = ended.request.cookie;
            match self.in_flight.remove(&cookie) {
                Some(operation) => self.check(operation, &ended),
                None => self.fail(format!("request {cookie} has ended twice")),
            }
        }
        some
    }

    fn check(&mut self, operation: Operation, ended: &Ended) {
        let result = ended.request.result();
        if let Err(errno) = result
            && !self.explained(&operation, ended, errno)
        {
            self.fail(format!("request {} failed: {errno:?}: {operation:?}", ended.request.cookie));
        }
        match operation.verb {
            Verb::Read if result.is_err() => self.read_errors += 1,
            Verb::Read if result.is_ok() => {
                self.check_read(&operation, ended.request.data.as_slice())
            }
            Verb::BlockStatus if result.is_ok() => {
                self.check_status(&operation, &ended.request.take_status());
            }
            Verb::Flush if result.is_ok() => self.model.flushed(operation.began, None),
            verb if verb.is_write() => {
                let Operation { id, sectors, blurred, fua, .. } = operation;
                // A missing device releases no space.
                let trims = self.trims && ended.injected.short == 0;
                let sure = result.is_ok() && !blurred && (verb != Verb::Trim || trims);
                if verb == Verb::Trim {
                    // Only complete blocks; the rest of partial ones stays.
                    let whole = BLOCK_SECTORS as Sector;
                    let (from, to) =
                        (sectors.start.next_multiple_of(whole), sectors.end / whole * whole);
                    self.model.end(id, from..to.max(from), ended.time, sure);
                } else {
                    self.model.end(id, sectors.clone(), ended.time, sure);
                }
                if fua && sure {
                    self.model.flushed(ended.time + 1, Some(sectors));
                }
            }
            _ => {}
        }
    }

    /// Whether an injected fault, or a full log, explains an error.
    fn explained(&self, operation: &Operation, ended: &Ended, errno: Errno) -> bool {
        let (before, after) = (operation.injected, ended.injected);
        let sync_failed = after.syncs > self.began.syncs || after.holes > self.holes_before;
        // A write that waits for slots to be released fails like the sync for which it waits.
        let syncs = operation.verb == Verb::Flush || operation.verb.is_write();
        (errno == Errno::ENOSPC && self.was_full(operation, &ended.request))
            || after.errors > before.errors
            || (syncs && sync_failed)
            || (errno == Errno::EIO && after.damage + after.short + after.hangs > 0)
    }

    /// Checks that nothing is reported as zeroes that is not.
    fn check_status(&mut self, operation: &Operation, extents: &[StatusExtent]) {
        for extent in extents.iter().filter(|extent| extent.zero && !operation.blurred) {
            let sector = |at: u64| (at / SECTOR as u64) as Sector;
            let mut sectors = sector(extent.offset)..sector(extent.offset + extent.length);
            if let Some(sector) = sectors.find(|sector| !self.model.now(*sector).contains(&0)) {
                return self.fail(format!("sector {sector} is reported as zeroes, and is not"));
            }
        }
    }

    fn check_read(&mut self, operation: &Operation, bytes: &[u8]) {
        for (sector, bytes) in operation.sectors.clone().zip(bytes.chunks_exact(SECTOR)) {
            let mut words = bytes.chunks_exact(8).map(word);
            let value = word(&bytes[..8]);
            if words.any(|word| word != value) {
                return self.fail(format!("sector {sector} is torn within itself"));
            }
            let result = match operation.view {
                Some(epoch) => match self.snapshots.get_mut(&epoch) {
                    Some(snapshot) => snapshot.found(sector, value),
                    None => Ok(()),
                },
                None if operation.blurred => {
                    let extra = operation.extra.contains(&(sector, value));
                    let now = self.model.now(sector);
                    let fine = extra || now.contains(&value);
                    if fine { Ok(()) } else { Err(now.to_vec()) }
                }
                None => self.model.found(sector, value),
            };
            if let Err(allowed) = result {
                let (id, other) = (value >> 24, value & 0xff_ffff);
                let allowed: Vec<u64> = allowed.iter().map(|value| value >> 24).collect();
                return self.fail(format!(
                    "sector {sector} of {:?} holds write {id} (of sector {other}), allowed are writes {allowed:?}",
                    operation.view
                ));
            }
        }
    }

    fn make_requests(&mut self, disk: &Shelf, clock: &AtomicU64) -> bool {
        if self.volume.is_none() || self.failure.is_some() {
            return false;
        }
        let mut made = false;
        for _ in 0..self.random.within(1, 3) {
            if self.budget == 0 || self.in_flight.len() >= self.in_flight_max || disk.lock().dead {
                break;
            }
            self.budget -= 1;
            made = true;
            if let Some(operation) = self.choose(disk, clock) {
                self.submit(operation, disk);
            }
        }
        made
    }

    fn range(&mut self) -> Range<Sector> {
        let blocks = u64::from(self.sectors) / BLOCK_SECTORS;
        let hot = self.random.below(10) < 7;
        let first = if hot {
            self.random.within(self.hot.start, self.hot.end - 1)
        } else {
            self.random.below(blocks)
        };
        let length = match self.random.below(20) {
            0..=9 => self.random.within(1, 2),
            10..=15 => self.random.within(1, 16),
            16..=18 => self.random.within(8, 80),
            _ => self.random.within(64, 300),
        };
        let (mut from, mut to) =
            (first * BLOCK_SECTORS, (first + length).min(blocks) * BLOCK_SECTORS);
        if self.random.below(4) == 0 {
            from += self.random.below(BLOCK_SECTORS);
            to -= self.random.below(BLOCK_SECTORS.min(to - from));
        }
        from as Sector..to as Sector
    }

    fn choose(&mut self, disk: &Shelf, clock: &AtomicU64) -> Option<Operation> {
        let verb = match self.random.below(100) {
            0..=49 => Verb::Write,
            50..=69 => Verb::Read,
            70..=76 => Verb::Zero { no_hole: self.random.coin(), fast: false },
            77..=82 => Verb::Trim,
            83..=87 => Verb::Flush,
            88 => Verb::BlockStatus,
            _ => {
                let epochs: Vec<Epoch> = self.snapshots.keys().copied().collect();
                if epochs.is_empty() {
                    return None;
                }
                let epoch = epochs[self.random.below(epochs.len() as u64) as usize];
                let range = self.range();
                return Some(self.operation(Verb::Read, range, Some(epoch), disk, clock));
            }
        };
        let range = if verb == Verb::Flush { 0..0 } else { self.range() };
        let mut operation = self.operation(verb, range, None, disk, clock);
        operation.fua = verb.is_write() && self.random.below(15) == 0;
        let clashes = self.in_flight.values().any(|other| clash(&operation, other));
        (!clashes || self.random.below(30) == 0).then_some(operation)
    }

    fn operation(
        &self,
        verb: Verb,
        sectors: Range<Sector>,
        view: Option<Epoch>,
        disk: &Shelf,
        clock: &AtomicU64,
    ) -> Operation {
        let began = clock.fetch_add(1, Ordering::Relaxed);
        let injected = disk.lock().injected;
        let id = if verb == Verb::Write { self.next_id } else { 0 };
        let (blurred, extra) = (false, Vec::new());
        Operation { verb, id, fua: false, sectors, view, began, injected, blurred, extra }
    }

    /// Notes the overlaps of a request with those in flight.
    fn blur(&mut self, operation: &mut Operation) {
        for other in self.in_flight.values_mut() {
            if !clash(operation, other) {
                continue;
            }
            (operation.blurred, other.blurred) = (true, true);
            let both = operation.sectors.start.max(other.sectors.start)
                ..operation.sectors.end.min(other.sectors.end);
            for sector in both {
                let (ours, theirs) = (tag(operation.id, sector), tag(other.id, sector));
                let before = self.model.now(sector).iter().map(|value| (sector, *value));
                if operation.verb == Verb::Read {
                    operation.extra.push((sector, theirs));
                    operation.extra.extend(before);
                } else if other.verb == Verb::Read {
                    other.extra.push((sector, ours));
                    other.extra.extend(before);
                }
            }
        }
    }

    fn submit(&mut self, mut operation: Operation, disk: &Shelf) {
        let Some((volume, inbox)) = self.volume.clone() else { return };
        self.blur(&mut operation);
        let length = operation.sectors.len() * SECTOR;
        let data = match operation.verb {
            Verb::Write => {
                let mut bytes = vec![0; length];
                for (sector, bytes) in operation.sectors.clone().zip(bytes.chunks_exact_mut(SECTOR))
                {
                    let value = tag(operation.id, sector).to_le_bytes();
                    bytes.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&value));
                }
                self.next_id += 1;
                Buffer::copy_of(&bytes)
            }
            Verb::Read => Buffer::zeroed(length),
            _ => Buffer::empty(),
        };
        let offset = u64::from(operation.sectors.start) * SECTOR as u64;
        let sink: Arc<dyn Sink> = inbox;
        let mut request = Request::new(operation.verb, offset, length as u64, data, sink);
        request.cookie = self.next_cookie;
        request.fua = operation.fua;
        self.next_cookie += 1;
        self.requests += 1;
        let what = if operation.verb.is_write() { "submit write" } else { "submit" };
        disk.lock().note(what, request.cookie, offset, length as u64);
        if operation.verb.is_write() {
            let Operation { id, sectors, began, .. } = &operation;
            self.model.begin(*id, sectors.clone(), *began);
        }
        let epoch = operation.view;
        self.in_flight.insert(request.cookie, operation);
        View { volume, epoch }.submit(&mut vec![Arc::new(request)]);
    }
}

fn word(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("8 bytes"))
}

/// Whether two requests touch the same sectors, and one of them changes them.
fn clash(one: &Operation, other: &Operation) -> bool {
    // Blocks, not sectors: a partial block is written as a whole.
    let (first, last) = (one.sectors.start / 8, one.sectors.end.div_ceil(8));
    let (from, to) = (other.sectors.start / 8, other.sectors.end.div_ceil(8));
    one.view.is_none()
        && other.view.is_none()
        && first < to
        && from < last
        && (one.verb.is_write() || other.verb.is_write())
}
