//! Model: the allowed contents of every sector of the volume and of its snapshots.
//!
//! How it works      Each write gives each of its sectors a unique value ([`tag`]); 0 is zeroes. A sector is plain: it
//!                   has one durable value; or it is [`Odd`]: then `now` are the values that a read may find, and
//!                   `base` and `later` those that may be found after a power loss: `base` what the last flush covered,
//!                   `later` every write since then. A read that finds one of several values decides which it is.
//! What is allowed   acknowledged: the new value; failed, or in flight at a crash: old or new; after a power loss: what
//!                   a flush covered, or any later value.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::change_log::log_rules::LogRules;

/// A sector's number within the volume.
pub type Sector = u32;

const SECTOR_BITS: u32 = 24;

/// The value that write `id` gives a sector; `id` 0 writes zeroes.
pub fn tag(id: u64, sector: Sector) -> u64 {
    if id == 0 { 0 } else { id << SECTOR_BITS | u64::from(sector) }
}

#[derive(Clone, Copy, Debug)]
struct Later {
    value: u64,
    /// When it was acknowledged.
    ended: u64,
    /// It was certainly made, after everything before it.
    sure: bool,
}

#[derive(Clone, Debug)]
struct Odd {
    base: Vec<u64>,
    later: Vec<Later>,
    now: Vec<u64>,
    /// The values that were there after a kill and restart of the process, and that no flush has covered since.
    outlived: Option<Vec<u64>>,
}

fn add(set: &mut Vec<u64>, value: u64) {
    if !set.contains(&value) {
        set.push(value);
    }
}

/// A write during a cut.
#[derive(Clone, Debug)]
struct Window {
    id: u64,
    sectors: Range<Sector>,
    began: u64,
    ended: Option<u64>,
}

/// The allowed contents of a snapshot.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Its epoch.
    pub epoch: u64,
    /// The log rules for writes after it.
    pub rules: LogRules,
    plain: Vec<u64>,
    odd: BTreeMap<Sector, Vec<u64>>,
    window: Vec<Window>,
}

/// See the module's head.
#[derive(Clone, Debug)]
pub struct Model {
    plain: Vec<u64>,
    odd: BTreeMap<Sector, Odd>,
    /// The cut that is being made.
    pub cutting: Option<Snapshot>,
}

impl Model {
    /// The model of a volume of `sectors` sectors, all zero.
    pub fn new(sectors: Sector) -> Model {
        let plain = vec![0; sectors as usize];
        Model { plain, odd: BTreeMap::new(), cutting: None }
    }

    /// The values that a read may find.
    pub fn now(&self, sector: Sector) -> &[u64] {
        match self.odd.get(&sector) {
            Some(odd) => &odd.now,
            None => std::slice::from_ref(&self.plain[sector as usize]),
        }
    }

    fn odd(&mut self, sector: Sector) -> &mut Odd {
        let plain = self.plain[sector as usize];
        self.odd.entry(sector).or_insert_with(|| Odd {
            base: vec![plain],
            later: Vec::new(),
            now: vec![plain],
            outlived: None,
        })
    }

    fn settle(&mut self, sector: Sector) {
        let Some(odd) = self.odd.get(&sector) else { return };
        if odd.later.is_empty() && odd.base.len() == 1 && odd.now == odd.base {
            self.plain[sector as usize] = odd.base[0];
            self.odd.remove(&sector);
        }
    }

    /// Notes that a write begins: a cut in progress may have it.
    pub fn begin(&mut self, id: u64, sectors: Range<Sector>, time: u64) {
        if let Some(snapshot) = &mut self.cutting {
            snapshot.may_have(id, sectors.clone());
            snapshot.window.push(Window { id, sectors, began: time, ended: None });
        }
    }

    /// Notes that a write has ended at `time`; `sure` if it was acknowledged, and no other was in flight in its
    /// sectors.
    pub fn end(&mut self, id: u64, sectors: Range<Sector>, time: u64, sure: bool) {
        if let Some(snapshot) = &mut self.cutting
            && sure
        {
            let ended = snapshot.window.iter_mut().find(|write| write.id == id && id != 0);
            ended.into_iter().for_each(|write| write.ended = Some(time));
        }
        for sector in sectors {
            let value = tag(id, sector);
            let odd = self.odd(sector);
            odd.later.push(Later { value, ended: time, sure });
            if sure {
                odd.now.clear();
            }
            add(&mut odd.now, value);
        }
    }

    /// Notes that writes acknowledged before `time` are durable, in these sectors or in all.
    pub fn flushed(&mut self, time: u64, within: Option<Range<Sector>>) {
        let range = within.unwrap_or(0..Sector::MAX);
        let mut settled = Vec::new();
        for (sector, odd) in self.odd.range_mut(range) {
            let covered = |write: &Later| write.sure && write.ended < time;
            if let Some(last) = odd.later.iter().rposition(covered) {
                odd.base = vec![odd.later[last].value];
                odd.later.drain(..=last);
                odd.outlived = None;
                settled.push(*sector);
            } else if let Some(outlived) = odd.outlived.take() {
                odd.base = outlived;
                settled.push(*sector);
            }
        }
        settled.into_iter().for_each(|sector| self.settle(sector));
    }

    /// Notes a power loss. Writes in flight were ended as unsure before.
    pub fn power_lost(&mut self) {
        for odd in self.odd.values_mut() {
            let Odd { base, later, now, outlived } = odd;
            later.drain(..).for_each(|write| add(base, write.value));
            now.clone_from(base);
            *outlived = None;
        }
        self.settle_all();
    }

    /// Notes that the volume is served again. Recovered values are durable after the next flush; after a power loss
    /// they already are.
    pub fn restarted(&mut self) {
        for odd in self.odd.values_mut().filter(|odd| !odd.later.is_empty()) {
            let Odd { base, later, now, outlived } = odd;
            later.drain(..).for_each(|write| add(base, write.value));
            *outlived = Some(now.clone());
        }
        self.settle_all();
    }

    fn settle_all(&mut self) {
        let sectors: Vec<Sector> = self.odd.keys().copied().collect();
        sectors.into_iter().for_each(|sector| self.settle(sector));
    }

    /// Notes the value that a read found, and that no request in flight explains; `Err` with the allowed values.
    pub fn found(&mut self, sector: Sector, value: u64) -> Result<(), Vec<u64>> {
        let Some(odd) = self.odd.get_mut(&sector) else {
            let plain = self.plain[sector as usize];
            return if plain == value { Ok(()) } else { Err(vec![plain]) };
        };
        if !odd.now.contains(&value) {
            return Err(odd.now.clone());
        }
        odd.now = vec![value];
        if odd.later.is_empty() {
            *odd.outlived.as_mut().unwrap_or(&mut odd.base) = vec![value];
        }
        self.settle(sector);
        Ok(())
    }

    /// Notes that a cut begins; these writes are in flight.
    pub fn begin_cut(&mut self, in_flight: impl Iterator<Item = (u64, Range<Sector>)>) {
        let odd = self.odd.iter().map(|(sector, odd)| (*sector, odd.now.clone())).collect();
        let window = Vec::new();
        let mut snapshot = Snapshot {
            epoch: 0,
            rules: LogRules::default(),
            plain: self.plain.clone(),
            odd,
            window,
        };
        in_flight.for_each(|(id, sectors)| snapshot.may_have(id, sectors));
        self.cutting = Some(snapshot);
    }

    /// Notes that the cut was made.
    pub fn end_cut(&mut self, epoch: u64, rules: LogRules) -> Option<Snapshot> {
        let snapshot = self.cutting.take()?;
        Some(Snapshot { epoch, rules, ..snapshot })
    }
}

impl Snapshot {
    fn may_have(&mut self, id: u64, sectors: Range<Sector>) {
        for sector in sectors {
            let plain = self.plain[sector as usize];
            let set = self.odd.entry(sector).or_insert_with(|| vec![plain]);
            add(set, tag(id, sector));
        }
    }

    /// Notes the value that a read found; it never changes from now on. `Err` with the allowed values.
    pub fn found(&mut self, sector: Sector, value: u64) -> Result<(), Vec<u64>> {
        let plain = &mut self.plain[sector as usize];
        let allowed = match self.odd.get(&sector) {
            Some(set) => set.contains(&value),
            None => *plain == value,
        };
        if !allowed {
            return Err(self.odd.get(&sector).cloned().unwrap_or(vec![*plain]));
        }
        *plain = value;
        self.odd.remove(&sector);
        Ok(())
    }

    /// After all of it was read: fails if it has a write that began after the end of another one that it does not have.
    pub fn is_one_instant(&self) -> Result<(), String> {
        let alone = |write: &Window, sector: Sector| {
            self.window.iter().filter(|other| other.sectors.contains(&sector)).count() == 1
                && write.id != 0
        };
        let has = |write: &Window, wanted: bool| {
            write.sectors.clone().any(|sector| {
                let has = self.plain[sector as usize] == tag(write.id, sector);
                alone(write, sector) && has == wanted
            })
        };
        for later in self.window.iter().filter(|write| has(write, true)) {
            let before = |write: &&Window| write.ended.is_some_and(|ended| ended < later.began);
            if let Some(missing) = self.window.iter().filter(before).find(|write| has(write, false))
            {
                let what = format!(
                    "snapshot {} has write {} without write {}, which had ended before",
                    self.epoch, later.id, missing.id
                );
                return Err(what);
            }
        }
        Ok(())
    }
}
