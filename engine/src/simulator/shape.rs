//! Shape: the machine and the volume of a seed.

use std::ops::Range;
use std::path::PathBuf;

use super::disk::Disk;
use super::faults::Role;
use super::random::Random;
use crate::change_log::log_rules::{LogRule, LogRules};
use crate::engine::spec::{ExtentSpec, Manifests, VolumeSpec};
use crate::units::{BLOCK_SIZE, DeviceId, Epoch, PartitionIndex, VolumeId};

const MIB: u64 = 1 << 20;
/// Directory of its journals.
pub const DIRECTORY: &str = "/state/volume";
/// Directory of their manifests.
pub const MANIFESTS: &str = "/state/manifests";
/// The volume's number.
pub const VOLUME: VolumeId = 7;

/// A set of log areas: area `n` is bit `n`.
pub type Areas = u64;

/// A device of the machine.
#[derive(Clone, Debug)]
pub struct DeviceShape {
    /// Its number.
    pub id: DeviceId,
    /// Its path.
    pub path: String,
    /// Freed space is punched out of it.
    pub sparse: bool,
    /// Its required length, bytes.
    pub length: u64,
    role: Role,
}

/// See the module's head.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Processors.
    pub processors: u32,
    /// Devices.
    pub devices: Vec<DeviceShape>,
    /// The volume's size in bytes.
    pub size: u64,
    partition_size: u64,
    partitions: Vec<(u32, Vec<ExtentSpec>)>,
    logs: Vec<(u16, Vec<ExtentSpec>)>,
    /// The volume's log rules.
    pub log_rules: LogRules,
}

impl Shape {
    /// Chooses the shape for a seed.
    pub fn choose(random: &mut Random) -> Shape {
        let processors = random.within(1, 3) as u32;
        let partition_size = [MIB, MIB, 2 * MIB, 4 * MIB][random.below(4) as usize];
        let blocks = random.within(256, 1280);
        let size = blocks * BLOCK_SIZE;
        let mut devices = Vec::new();
        let bases = random.within(1, 2);
        let sparse = random.below(3) > 0;
        for number in 1..=bases {
            let path = format!("/dev/base{number}");
            devices.push(DeviceShape { id: number, path, sparse, length: 0, role: Role::Base });
        }
        let mut partitions = Vec::new();
        for number in 0..size.div_ceil(partition_size) {
            let length = (size - number * partition_size).min(partition_size);
            let first = random.below(length / BLOCK_SIZE + 1) * BLOCK_SIZE;
            let extents = [first, length - first].into_iter().filter(|length| *length > 0);
            let extents = extents.map(|length| {
                let device = &mut devices[random.below(bases) as usize];
                let offset = device.length;
                device.length += length;
                ExtentSpec { device: device.id, offset, length }
            });
            partitions.push(((number % u64::from(processors)) as u32, extents.collect()));
        }
        let mut logs = Vec::new();
        for number in 1..=random.within(1, 3) {
            let chunks = random.within(1, 3);
            let id = 10 + number;
            let length = chunks * 4 * MIB;
            let sparse = random.coin();
            let path = format!("/dev/log{number}");
            devices.push(DeviceShape { id, path, sparse, length, role: Role::Log });
            logs.push((number as u16, vec![ExtentSpec { device: id, offset: 0, length }]));
        }
        let log_rules = LogRules::default();
        let mut shape =
            Shape { processors, devices, size, partition_size, partitions, logs, log_rules };
        shape.log_rules = shape.choose_rules(random);
        shape
    }

    /// Adds the devices to a disk.
    pub fn make(&self, disk: &mut Disk) {
        for device in &self.devices {
            disk.add_device(&device.path, device.length, device.role);
        }
    }

    /// Whether a trim always leaves zeroes.
    pub fn trims(&self) -> bool {
        self.devices.iter().all(|device| device.role != Role::Base || device.sparse)
    }

    /// Log rules for a cut: often none.
    pub fn snapshot_rules(&self, random: &mut Random) -> LogRules {
        if random.coin() { LogRules::default() } else { self.choose_rules(random) }
    }

    /// The areas that rules allow to a partition.
    pub fn allowed(&self, rules: &LogRules, partition: PartitionIndex) -> Areas {
        let rule = rules.rule(partition, self.partitions[partition as usize].0);
        let all = self.logs.iter().map(|(number, _)| number);
        let allowed = all.filter(|number| rule.any || rule.logs.contains(number));
        allowed.fold(0, |areas, number| areas | 1 << number)
    }

    /// The partitions that have these bytes.
    pub fn partitions_of(&self, bytes: Range<u64>) -> impl Iterator<Item = PartitionIndex> {
        let size = self.partition_size;
        (bytes.start / size..bytes.end.div_ceil(size)).map(|partition| partition as u32)
    }

    /// Up to 3 rules, each for some partitions or processors or for all.
    fn choose_rules(&self, random: &mut Random) -> LogRules {
        let (count, partitions) = (random.below(4), self.partitions.len() as u64);
        let mut rule = || {
            let first = random.below(partitions);
            let range = (first as u32, random.within(first, partitions - 1) as u32);
            let processor = random.below(u64::from(self.processors)) as u32;
            let mut logs: Vec<u16> = self.logs.iter().map(|(number, _)| *number).collect();
            let from = random.below(logs.len() as u64) as usize;
            logs.rotate_left(from);
            logs.truncate(random.within(0, logs.len() as u64) as usize);
            LogRule {
                partitions: random.coin().then_some(range),
                processors: random.coin().then(|| vec![processor]),
                any: logs.is_empty() || random.coin(),
                logs,
            }
        };
        (0..count).map(|_| rule()).collect::<Vec<_>>().into()
    }

    /// The volume's specification, in a catalog with these snapshots.
    pub fn volume(
        &self,
        snapshots: Vec<(Epoch, LogRules)>,
        next_epoch: Epoch,
        served: bool,
    ) -> VolumeSpec {
        let manifests = Manifests {
            partitions: if served { self.partitions.len() } else { 0 },
            ..Manifests::new(PathBuf::from(MANIFESTS))
        };
        VolumeSpec {
            id: VOLUME,
            uuid: [7; 16],
            name: "volume".to_owned(),
            size: self.size,
            partition_size: self.partition_size,
            partitions: self.partitions.clone(),
            logs: self.logs.clone(),
            log_rules: self.log_rules.clone(),
            directory: PathBuf::from(DIRECTORY),
            manifests,
            snapshots,
            rollbacks: Vec::new(),
            origin: None,
            next_epoch,
            bounds: Vec::new(),
        }
    }
}
