//! Recovering a volume's maps: all processors' at once, and without what only an older copy of the catalog has.
//!
//! How it works      Each processor's maps are recovered on a thread of their own. If a journal says that a snapshot was
//!                   deleted that the catalog has, all are recovered again without it: each processor has the same
//!                   history, whichever journals say so. Then the slots that maps refer to are marked as used.
//! Errors            those of [`recover`], and Corrupt for a slot that is outside its log area or in use twice.

use crate::block_map::history::History;
use crate::block_map::place::Place;
use crate::change_log::files::Identity;
use crate::change_log::past::Stale;
use crate::change_log::recover::{Recovered, recover};
use crate::change_log::slots::Slots;
use crate::change_log::space::Space;
use crate::change_log::used_slots::UsedSlots;
use crate::engine::spec::VolumeSpec;
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::Geometry;
use crate::units::{BLOCK_SIZE, ProcessorIndex};
use crate::volume::ShareRef;

/// The share of a volume that one processor gets.
pub(super) struct SharePlan {
    pub(super) share: ShareRef,
    pub(super) partitions: Vec<u32>,
    pub(super) identity: Identity,
}

/// Recovers every processor's maps, and marks the slots that they refer to as used. What the journals say is gone is
/// forgotten in `spec`, and returned.
pub(super) fn recover_all(
    plans: &[SharePlan],
    spec: &mut VolumeSpec,
    geometry: &Geometry,
    space: &Space,
    threads: bool,
) -> Result<(Vec<(Recovered, Slots)>, Stale)> {
    let once = |spec: &VolumeSpec| recover_once(plans, spec, geometry, threads);
    let (found, stale) = without_stale(spec, once, |recovered| Some(recovered))?;
    let history = spec.history();
    let processors = plans.iter().map(|plan| plan.share.processor);
    let found = found.into_iter().zip(processors).collect();
    let marked = on_threads(found, threads, &|(recovered, processor)| {
        let slots = mark_slots(&recovered, processor, &history, (space, &spec.name))?;
        Ok((recovered, slots))
    });
    marked.map(|found| (found, stale))
}

/// Recovers by `once` until no journal says that something of `spec` is gone; what one says is forgotten in it, and
/// returned. `recovered`: that of one processor, if it could be recovered.
pub(super) fn without_stale<T>(
    spec: &mut VolumeSpec,
    once: impl Fn(&VolumeSpec) -> Result<Vec<T>>,
    recovered: impl Fn(&T) -> Option<&Recovered>,
) -> Result<(Vec<T>, Stale)> {
    let mut all = Stale::default();
    loop {
        let found = once(spec)?;
        let mut stale = Stale::default();
        found.iter().filter_map(&recovered).for_each(|recovered| stale.add(&recovered.stale));
        if stale.is_empty() {
            return Ok((found, all));
        }
        spec.forget(&stale); // so the next round finds less
        all.add(&stale);
    }
}

fn recover_once(
    plans: &[SharePlan],
    spec: &VolumeSpec,
    geometry: &Geometry,
    threads: bool,
) -> Result<Vec<Recovered>> {
    on_threads(plans.iter().collect(), threads, &|plan: &SharePlan| {
        let catalog = spec.catalog_state(plan.share.processor);
        recover(&plan.identity, &catalog, |partition| {
            let owner = geometry.partitions.get(partition as usize)?;
            let blocks = geometry.partition_bytes(partition) / BLOCK_SIZE;
            let ours = owner.processor == plan.share.processor;
            ours.then(|| spec.shape(partition, blocks as u32))
        })
    })
}

/// Does something with each of these, each on a thread of its own.
fn on_threads<I: Send, T: Send>(
    items: Vec<I>,
    threads: bool,
    work: &(impl Fn(I) -> Result<T> + Sync),
) -> Result<Vec<T>> {
    if !threads {
        return items.into_iter().map(work).collect();
    }
    std::thread::scope(|scope| {
        let spawn = |item| scope.spawn(move || work(item));
        let threads: Vec<_> = items.into_iter().map(spawn).collect();
        let crashed = || Error::new(ErrorKind::Corrupt, "recovery has crashed");
        threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err(crashed()))).collect()
    })
}

fn mark_slots(
    recovered: &Recovered,
    processor: ProcessorIndex,
    history: &History,
    (space, volume): (&Space, &str),
) -> Result<Slots> {
    let bad = |place: Place, of: String| {
        let what =
            format!("volume {volume}: {place:?}{of} is outside its log area or in use twice");
        Error::new(ErrorKind::Corrupt, what)
    };
    let mut used = UsedSlots::new(space);
    for (partition, versions) in &recovered.partitions {
        used.add_partition(versions, history)
            .map_err(|place| bad(place, format!(" of partition {partition}")))?;
    }
    let mut slots = Slots::new(processor);
    slots.allocate_used(used).map_err(|place| bad(place, String::new()))?;
    Ok(slots)
}
