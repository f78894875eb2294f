//! Rules: which log areas the volume's partitions may have used, to check where redirected blocks lie and which
//! writes may fail for lack of slots.
//!
//! How it works      The rules in force change at a cut, and when the newest snapshot is deleted or turns out not to
//!                   exist. They are noted before they are passed to the engine. What was written since the newest
//!                   snapshot is in slots of areas that one of the rules allows that were in force since then.

use std::collections::BTreeMap;
use std::ops::Range;

use super::inbox::Inbox;
use super::shape::{Areas, Shape, VOLUME};
use crate::block_map::diff::slots_not_in;
use crate::change_log::log_rules::LogRules;
use crate::engine::Engine;
use crate::processor::messages::Control;
use crate::processor::queue::ask;
use crate::units::{Epoch, PartitionIndex};

/// See the module's head.
#[derive(Debug)]
pub struct Rules {
    shape: Shape,
    /// The rules that were in force while a snapshot was the newest one (0: there was none).
    after: BTreeMap<Epoch, Vec<LogRules>>,
    /// Times, each with the rules that are in force from then on.
    since: Vec<(u64, LogRules)>,
}

impl Rules {
    /// Those of a volume of this shape, none noted yet.
    pub fn new(shape: Shape) -> Rules {
        Rules { shape, after: BTreeMap::new(), since: Vec::new() }
    }

    /// Notes the rules that are in force from `time` on, with these snapshots.
    pub fn note(&mut self, time: u64, snapshots: &[(Epoch, LogRules)]) {
        let newest = snapshots.last().map_or(0, |(epoch, _)| *epoch);
        let own = snapshots.last().map(|(_, rules)| rules).filter(|rules| !rules.is_empty());
        let its = own.unwrap_or(&self.shape.log_rules).clone();
        let later: Vec<Epoch> = self.after.range(newest + 1..).map(|(epoch, _)| *epoch).collect();
        let gone = later.into_iter().filter_map(|epoch| self.after.remove(&epoch));
        let mut all: Vec<LogRules> = gone.flatten().collect();
        all.push(its.clone());
        self.after.entry(newest).or_default().extend(all);
        self.since.push((time, its));
    }

    /// The areas that are allowed to a partition by each of the rules in force at `time` or later; one earlier rule
    /// counts too, because the engine gets a new one a little later.
    fn allowed_since(&self, time: u64, partition: PartitionIndex) -> impl Iterator<Item = Areas> {
        let at = self.since.partition_point(|(since, _)| *since <= time).saturating_sub(2);
        self.since[at..].iter().map(move |(_, rules)| self.shape.allowed(rules, partition))
    }

    /// Whether a write of these bytes, which began at `time`, may have found less than `slots` slots.
    pub fn may_lack(&self, inbox: &Inbox, time: u64, bytes: Range<u64>, slots: u64) -> bool {
        self.shape.partitions_of(bytes).any(|partition| {
            let mut allowed = self.allowed_since(time, partition);
            allowed.any(|areas| inbox.fewest_free_since(time, areas) < slots)
        })
    }

    /// The areas in which what a partition has written since the newest snapshot may be.
    fn allowed_now(&self, partition: PartitionIndex) -> Areas {
        let (_, rules) = self.after.last_key_value().expect("it was noted before");
        rules.iter().fold(0, |areas, rules| areas | self.shape.allowed(rules, partition))
    }

    /// Checks that each live map's slots that its newest snapshot does not see are where the rules allow.
    pub(super) fn check(&self, engine: &Engine) -> Result<(), String> {
        let volume = engine.volume(VOLUME).map_err(|e| e.to_string())?;
        for share in &volume.shares {
            let page = ask(&*engine.system, &share.queue, |answer| {
                Control::Versions(volume.share, 0..u32::MAX, answer)
            });
            let Ok(page) = page else { continue }; // the machine has crashed
            let newest = page.history.snapshots().last().copied();
            for (partition, versions) in &page.versions {
                let frozen = versions.frozen().last().map(|frozen| frozen.last_epoch);
                if frozen < newest {
                    continue; // it was not written since
                }
                let allowed = self.allowed_now(*partition);
                let mut wrong = None;
                slots_not_in(&versions.live, versions.parent(&page.history), |_, place| {
                    if allowed & (1 << place.log()) == 0 {
                        wrong = Some(place);
                    }
                });
                if let Some(place) = wrong {
                    return Err(format!(
                        "partition {partition} has {place:?}, allowed are areas {allowed:b}"
                    ));
                }
            }
        }
        Ok(())
    }
}
