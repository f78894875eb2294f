//! Log orders: the log areas that each partition of a share uses for redirected blocks, in the order to try.
//!
//! How it works      [Rules](crate::change_log::log_rules) match ranges of partitions, so a share has a list of ranges,
//!                   each with the order of one rule. It is made again when the rules in force change, or an area is
//!                   added, comes back or turns out to be bad.
//! Invariants        LX1 every partition number is in one range; an order has areas of the volume, each once, and only
//!                       those that its rule allows.
//! Owner and locks   the share's processor.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::change_log::log_rules::{ANY, LogRule, LogRules, VolumeRules};
use crate::change_log::space::{AreaBits, LogArea};
use crate::mutants::{Bug, bug};
use crate::processor::share::Share;
use crate::units::{Epoch, PartitionIndex};

/// The log areas of one rule, in the order to try.
#[derive(Debug, Default)]
pub(super) struct LogOrder {
    /// The areas.
    pub(super) areas: Vec<Arc<LogArea>>,
    /// How many of the first ones have equal priority.
    pub(super) equal: usize,
    /// Their bits; all, if there is no area: then any that is added may help.
    pub(super) bits: AreaBits,
}

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct LogOrders {
    /// The first partition of each range, in order, and the index of its order.
    ranges: Vec<(PartitionIndex, usize)>,
    orders: Vec<LogOrder>,
    several_areas: bool,
}

impl LogOrders {
    /// Whether the volume has more than one log area.
    pub(super) fn has_several_areas(&self) -> bool {
        self.several_areas
    }

    /// The order of a partition.
    pub(super) fn of(&self, partition: PartitionIndex) -> &LogOrder {
        let range = match &self.ranges[..] {
            [_] => 0,
            ranges => ranges.partition_point(|(first, _)| *first <= partition) - 1, // LX1
        };
        &self.orders[self.ranges[range].1]
    }

    /// The number of areas in the longest order.
    pub(super) fn longest(&self) -> usize {
        self.orders.iter().map(|order| order.areas.len()).max().unwrap_or(0)
    }

    /// The orders of these rules; `order` makes that of one rule.
    fn new(rules: &[&LogRule], mut order: impl FnMut(&LogRule) -> LogOrder) -> LogOrders {
        // The partitions at which a rule begins or ends to match. Of the rules that match, the first one counts.
        let mut borders: Vec<(PartitionIndex, bool, usize)> = Vec::new();
        for (index, rule) in rules.iter().enumerate() {
            let (first, last) = rule.partitions.unwrap_or((0, PartitionIndex::MAX));
            borders.push((first, true, index));
            if last < PartitionIndex::MAX {
                borders.push((last + 1, false, index));
            }
        }
        borders.sort_unstable();
        let mut made = LogOrders::default();
        let mut order_of: Vec<Option<usize>> = vec![None; rules.len() + 1];
        let mut matching = BTreeSet::new();
        let mut next = 0;
        let mut at = 0;
        loop {
            while let Some((_, begins, index)) = borders.get(next).filter(|border| border.0 == at) {
                if *begins {
                    matching.insert(*index)
                } else {
                    matching.remove(index)
                };
                next += 1;
            }
            let index = matching.first().copied().unwrap_or(rules.len());
            let number = *order_of[index].get_or_insert_with(|| {
                made.orders.push(order(rules.get(index).copied().unwrap_or(&ANY)));
                made.orders.len() - 1
            });
            if made.ranges.last().is_none_or(|(_, last)| *last != number) {
                made.ranges.push((at, number));
            }
            match borders.get(next) {
                Some((border, ..)) => at = *border,
                None => return made,
            }
        }
    }
}

impl Share {
    fn rules_in_force(&self) -> LogRules {
        self.rules.in_force(self.history.snapshots().last().copied()).clone()
    }

    /// Sets the rules of the volume, and of these snapshots, as far as they exist. There may be a new log area, too.
    pub fn set_log_rules(&mut self, rules: VolumeRules) {
        self.rules.volume = rules.volume;
        for (epoch, rules) in rules.snapshots {
            if self.history.has(epoch) {
                self.rules.set(epoch, rules);
            }
        }
        self.order_logs();
        self.refresh_devices();
    }

    /// Notes the rules of a new snapshot.
    pub(super) fn add_snapshot_rules(&mut self, epoch: Epoch, rules: LogRules) {
        self.rules.set(epoch, rules);
        self.follow_rules();
    }

    /// Forgets the rules of snapshots that the history does not have any more.
    pub(super) fn forget_snapshot_rules(&mut self) {
        self.rules.snapshots.retain(|(epoch, _)| self.history.has(*epoch));
        self.follow_rules();
    }

    /// Sorts the areas again if other rules are in force.
    fn follow_rules(&mut self) {
        if self.rules_in_force() != self.ordered_by {
            self.order_logs();
        }
    }

    /// Makes the order of each rule in force: the areas that it names, then the others, if it allows them. Each
    /// processor begins with another one of these, because two processors that write to one file wait for each other.
    pub(super) fn order_logs(&mut self) {
        let rules = self.rules_in_force();
        let logs = self.space.logs();
        let ours: Vec<&LogRule> = rules.iter().filter(|rule| rule.is_for(self.processor)).collect();
        self.log_orders = LogOrders::new(&ours, |rule| self.order(rule, &logs));
        self.log_orders.several_areas = logs.len() > 1;
        self.ordered_by = rules;
    }

    fn order(&self, rule: &LogRule, logs: &[Arc<LogArea>]) -> LogOrder {
        let find = |number: &u16| logs.iter().find(|log| log.number == *number).cloned();
        let mut areas: Vec<Arc<LogArea>> = rule.logs.iter().filter_map(find).collect();
        if (rule.any || bug(Bug::AnyArea)) && !logs.is_empty() {
            let (before, after) = logs.split_at(self.ordinal % logs.len());
            for log in after.iter().chain(before) {
                if !rule.logs.contains(&log.number) {
                    areas.push(Arc::clone(log));
                }
            }
        }
        if bug(Bug::AnyArea) {
            areas.reverse();
        }
        areas.sort_by_key(|log| self.is_last(log));
        let named = |log: &Arc<LogArea>| rule.logs.contains(&log.number);
        let first = areas.first().map(|log| self.is_last(log));
        let equal = |log: &&Arc<LogArea>| Some(self.is_last(log)) == first && !named(log);
        let equal = areas.iter().take_while(equal).count();
        let equal = equal.max(usize::from(!areas.is_empty()));
        let bits = areas.iter().fold(0, |bits, area| bits | area.bit());
        LogOrder { areas, equal, bits: if bits == 0 { AreaBits::MAX } else { bits } }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rules() -> impl Strategy<Value = Vec<LogRule>> {
        let partitions =
            prop::option::of((0..20u32, 0..20u32).prop_map(|(a, b)| (a.min(b), a.max(b))));
        let rule = (partitions, prop::option::of(prop::collection::vec(0..3u32, 1..3)));
        let rule = rule.prop_map(|(partitions, processors)| LogRule {
            partitions,
            processors,
            ..ANY.clone()
        });
        let number =
            |(index, rule): (usize, LogRule)| LogRule { logs: vec![index as u16 + 1], ..rule };
        prop::collection::vec(rule, 0..8)
            .prop_map(move |rules| rules.into_iter().enumerate().map(number).collect())
    }

    proptest! {
        #[test]
        fn each_partition_has_the_order_of_its_first_rule(rules in rules(), processor in 0..3u32) {
            let all = LogRules::from(rules);
            let ours: Vec<_> = all.iter().filter(|rule| rule.is_for(processor)).collect();
            let mut made: Vec<u16> = Vec::new();
            let orders = LogOrders::new(&ours, |rule| {
                made.push(rule.logs.first().copied().unwrap_or(0));
                LogOrder { equal: made.len(), ..LogOrder::default() } // identifies it
            });
            for partition in (0..25).chain([PartitionIndex::MAX]) {
                let wanted = all.rule(partition, processor).logs.first().copied().unwrap_or(0);
                prop_assert_eq!(made[orders.of(partition).equal - 1], wanted, "partition {}", partition);
            }
            prop_assert!(made.len() <= ours.len() + 1);
        }
    }
}
