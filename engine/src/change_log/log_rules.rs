//! Log rules: which log areas the change logs of which partitions use, in which order.
//!
//! How it works      The rules of a volume, or of a snapshot for what is written after it, are a list. The first rule
//!                   that matches a partition is the partition's; one that no rule matches may use any area.
//! Owner and locks   immutable; shared.

use std::sync::Arc;

use crate::units::{Epoch, PartitionIndex, ProcessorIndex};

/// One rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogRule {
    /// It matches partitions from the first to the second one; `None`: all.
    pub partitions: Option<(PartitionIndex, PartitionIndex)>,
    /// It matches partitions of these processors; `None`: of all.
    pub processors: Option<Vec<ProcessorIndex>>,
    /// Numbers of the log areas to use, in order.
    pub logs: Vec<u16>,
    /// After those: any other area of the volume, by number, beginning with a different one on each processor.
    pub any: bool,
}

/// The rule of partitions that no rule matches.
pub static ANY: LogRule =
    LogRule { partitions: None, processors: None, logs: Vec::new(), any: true };

impl LogRule {
    /// Whether it matches partitions of this processor.
    pub fn is_for(&self, processor: ProcessorIndex) -> bool {
        self.processors.as_ref().is_none_or(|processors| processors.contains(&processor))
    }

    /// Whether it matches this partition, if that belongs to a processor that it matches.
    pub fn has(&self, partition: PartitionIndex) -> bool {
        self.partitions.is_none_or(|(first, last)| (first..=last).contains(&partition))
    }
}

/// A list of rules. If it is empty: a volume's partitions may use any area; for a snapshot the rules of its volume
/// count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogRules(Arc<[LogRule]>);

impl LogRules {
    /// One rule for all partitions: these areas, then any other.
    pub fn first(logs: Vec<u16>) -> LogRules {
        LogRules::from(vec![LogRule { logs, ..ANY.clone() }])
    }

    /// One rule for all partitions: these areas only.
    pub fn only(logs: Vec<u16>) -> LogRules {
        LogRules::from(vec![LogRule { logs, any: false, ..ANY.clone() }])
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The rules, in order.
    pub fn iter(&self) -> std::slice::Iter<'_, LogRule> {
        self.0.iter()
    }

    /// The rule of a partition of this processor.
    pub fn rule(&self, partition: PartitionIndex, processor: ProcessorIndex) -> &LogRule {
        let found = self.0.iter().find(|rule| rule.is_for(processor) && rule.has(partition));
        found.unwrap_or(&ANY)
    }

    /// Why they cannot be used by a volume with these areas, if they cannot.
    pub fn wrong(&self, known: impl Fn(u16) -> bool) -> Option<String> {
        self.0.iter().find_map(|rule| {
            if let Some(number) = rule.logs.iter().find(|number| !known(**number)) {
                return Some(format!("it has no log area {number}"));
            }
            if rule.logs.is_empty() && !rule.any {
                return Some("a log rule allows no log area".to_owned());
            }
            let times = |one| rule.logs.iter().filter(|other| *other == one).count();
            if let Some(number) = rule.logs.iter().find(|number| times(*number) > 1) {
                return Some(format!("a log rule has log area {number} twice"));
            }
            let backwards = rule.partitions.is_some_and(|(first, last)| first > last);
            backwards.then(|| "the partitions of a log rule are not in order".to_owned())
        })
    }
}

/// The rules of a volume and of its snapshots.
#[derive(Clone, Debug, Default)]
pub struct VolumeRules {
    /// The volume's.
    pub volume: LogRules,
    /// Those of snapshots that have some.
    pub snapshots: Vec<(Epoch, LogRules)>,
}

impl VolumeRules {
    /// Sets the rules of a snapshot; the empty list: it has none.
    pub fn set(&mut self, snapshot: Epoch, rules: LogRules) {
        self.snapshots.retain(|(epoch, _)| *epoch != snapshot);
        if !rules.is_empty() {
            self.snapshots.push((snapshot, rules));
        }
    }

    /// Why they cannot be used by a volume with these areas, if they cannot.
    pub fn wrong(&self, known: impl Fn(u16) -> bool + Copy) -> Option<String> {
        let snapshots = self.snapshots.iter().map(|(_, rules)| rules);
        std::iter::once(&self.volume).chain(snapshots).find_map(|rules| rules.wrong(known))
    }

    /// The rules in force: of the newest snapshot, if it has any, else of the volume.
    pub fn in_force(&self, newest: Option<Epoch>) -> &LogRules {
        let its = self.snapshots.iter().find(|(epoch, _)| Some(*epoch) == newest);
        its.map_or(&self.volume, |(_, rules)| rules)
    }
}

impl From<LogRules> for VolumeRules {
    fn from(volume: LogRules) -> VolumeRules {
        VolumeRules { volume, snapshots: Vec::new() }
    }
}

impl From<Vec<LogRule>> for LogRules {
    fn from(rules: Vec<LogRule>) -> LogRules {
        LogRules(rules.into())
    }
}
