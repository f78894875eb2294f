//! Check: recovers a volume that is not served, and compares its maps with its log areas; changes nothing.
//!
//! How it works      Recovery reads each processor's checkpoint and journal, as it would before serving. Every slot
//!                   that a map refers to has to be inside its log, and be referred to once, however many versions see
//!                   it. With `data`, every slot is read from its device and checked. No engine is needed.
//! Errors            what is wrong is a problem in the report, not an error.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use crate::block_map::versions::Versions;
use crate::change_log::files::Identity;
use crate::change_log::past::{Past, RecordedCut, Stale};
use crate::change_log::recover::{Recovered, recover};
use crate::change_log::space::LogArea;
use crate::checksum;
use crate::engine::recovery::without_stale;
use crate::engine::spec::{VolumeSpec, check as check_spec};
use crate::error::{Error, Result};
use crate::io::device::{Device, Mode};
use crate::io::extent::Extent;
use crate::processor::share::scrub::{SlotRun, for_each_slot_run};
use crate::system::System;
use crate::units::{BLOCK_SIZE, DeviceId, Epoch, PartitionIndex};

const BLOCK: usize = BLOCK_SIZE as usize;
/// Upper bound of described problems; all are counted.
const DESCRIBED_MAX: usize = 100;

/// Result of a check.
#[derive(Clone, Debug, Default)]
pub struct CheckReport {
    /// Problems, one sentence each.
    pub problems: Vec<String>,
    /// Number of further problems.
    pub more_problems: u64,
    /// Epochs of snapshots that the catalog has although the journals say that they were deleted.
    pub deleted_snapshots: Vec<Epoch>,
    /// Files that a crash left, and that the next start removes.
    pub leftovers: Vec<PathBuf>,
    /// Slots that maps refer to.
    pub slots: u64,
    /// Records after the checkpoints.
    pub records: u64,
    /// Bytes of slots that were read and checked.
    pub checked_bytes: u64,
    /// What each processor has recorded of the snapshots' cuts, with the first epoch whose cut must be recorded.
    pub cuts: Vec<(u32, Epoch, Vec<RecordedCut>)>,
}

struct LogCheck {
    log: LogArea,
    used: Vec<u64>,
}

struct Check {
    spec: VolumeSpec,
    data: bool,
    logs: BTreeMap<u16, LogCheck>,
    report: CheckReport,
}

/// Checks a volume. `devices` are the paths of the devices that are present.
pub fn check_volume(
    system: &Arc<dyn System>,
    spec: &VolumeSpec,
    devices: &BTreeMap<DeviceId, PathBuf>,
    data: bool,
) -> Result<CheckReport> {
    let mut check =
        Check { spec: spec.clone(), data, logs: BTreeMap::new(), report: CheckReport::default() };
    let opened = check.open_devices(system, devices);
    if let Err(error) = check_spec(spec).and_then(|()| check.add_logs(&opened)) {
        check.problem(error.what);
        return Ok(check.report);
    }
    let boot_id =
        system.boot_id().map_err(|e| Error::io("the host's boot id cannot be read", e))?;
    let mut processors: Vec<u32> = spec.partitions.iter().map(|(owner, _)| *owner).collect();
    processors.sort_unstable();
    processors.dedup();
    let recover_all = |spec: &VolumeSpec| {
        let identity = |processor: &u32| spec.identity(system, *processor, boot_id);
        let one = |processor: &u32| recover_one(spec, &identity(processor));
        Ok(processors.iter().map(one).collect())
    };
    let (found, stale): (Vec<Result<Recovered>>, Stale) =
        without_stale(&mut check.spec, recover_all, |one| one.as_ref().ok())?;
    check.report.deleted_snapshots = stale.snapshots;
    for (processor, one) in processors.iter().zip(found) {
        match one {
            Ok(recovered) => {
                let Past { counted_from, cuts, .. } = &recovered.past;
                check.report.cuts.push((*processor, *counted_from, cuts.clone()));
                check.maps(recovered);
            }
            Err(error) => check.problem(error.what),
        }
    }
    Ok(check.report)
}

fn recover_one(spec: &VolumeSpec, identity: &Identity) -> Result<Recovered> {
    recover(identity, &spec.catalog_state(identity.processor), |partition| {
        let (owner, _) = spec.partitions.get(partition as usize)?;
        let bytes = spec.partition_bytes(partition);
        (*owner == identity.processor).then(|| spec.shape(partition, (bytes / BLOCK_SIZE) as u32))
    })
}

impl Check {
    /// Opens the devices of log areas, read-only. One without a path is missing, which the caller has reported; one
    /// that cannot be opened is a problem, and its slots are not checked.
    fn open_devices(
        &mut self,
        system: &Arc<dyn System>,
        paths: &BTreeMap<DeviceId, PathBuf>,
    ) -> BTreeMap<DeviceId, Arc<Device>> {
        let extents = self.spec.logs.iter().flat_map(|(_, extents)| extents);
        let ids: BTreeSet<DeviceId> = extents.map(|extent| extent.device).collect();
        let mode = Mode { read_only: true, ..Mode::SPARSE };
        let mut opened = BTreeMap::new();
        for id in ids {
            let found = paths.get(&id).map(|path| Device::open(system, id, path, mode));
            let device = match found {
                Some(Ok(device)) => device,
                Some(Err(error)) => {
                    self.problem(error.what);
                    Device::absent(system, id, mode, true)
                }
                None => Device::absent(system, id, mode, true),
            };
            opened.insert(id, Arc::new(device));
        }
        opened
    }

    fn problem(&mut self, what: String) {
        if self.report.problems.len() < DESCRIBED_MAX {
            self.report.problems.push(what);
        } else {
            self.report.more_problems += 1;
        }
    }

    fn add_logs(&mut self, devices: &BTreeMap<DeviceId, Arc<Device>>) -> Result<()> {
        for (number, extents) in &self.spec.logs {
            let resolve = |spec: &crate::engine::spec::ExtentSpec| Extent {
                device: Arc::clone(&devices[&spec.device]),
                offset: spec.offset,
                length: spec.length,
            };
            let log = LogArea::new(*number, extents.iter().map(resolve).collect())?;
            let used = vec![0; log.size().div_ceil(64) as usize];
            self.logs.insert(*number, LogCheck { log, used });
        }
        Ok(())
    }

    fn maps(&mut self, recovered: Recovered) {
        self.report.records += recovered.replayed;
        self.report.leftovers.extend(recovered.leftovers);
        for (partition, versions) in &recovered.partitions {
            self.partition(*partition, versions);
        }
    }

    fn partition(&mut self, partition: PartitionIndex, versions: &Versions) {
        let mut runs = Vec::new();
        for_each_slot_run(versions, &self.spec.history(), |run| runs.push(run));
        for run in &runs {
            if self.claim(partition, run) && self.data {
                self.read(partition, run);
            }
        }
    }

    /// Marks the slots of a run; `false` if one of them is not in a log.
    fn claim(&mut self, partition: PartitionIndex, run: &SlotRun) -> bool {
        let mut inside = true;
        for index in 0..run.sums.len() as u32 {
            let (block, place) = (run.block + index, run.place.step(index));
            let (number, slot) = (place.log(), place.slot_number().0);
            let at = format!("partition {partition} block {block}");
            self.report.slots += 1;
            let Some(LogCheck { log, used }) = self.logs.get_mut(&number) else {
                self.problem(format!("{at} is in log area {number}, which does not exist"));
                inside = false;
                continue;
            };
            if slot >= log.size() {
                self.problem(format!("{at} is in slot {slot}, beyond log area {number}"));
                inside = false;
                continue;
            }
            let (word, bit) = (slot as usize / 64, 1 << (slot % 64));
            let taken = used[word] & bit != 0;
            used[word] |= bit;
            if taken {
                self.problem(format!("{at} is in slot {slot} of log area {number}, used twice"));
            }
        }
        inside
    }

    /// Reads the slots of a run, chunk by chunk, because two chunks may lie in two extents.
    fn read(&mut self, partition: PartitionIndex, run: &SlotRun) {
        let mut done = 0;
        let mut wrong = Vec::new();
        while done < run.sums.len() {
            let place = run.place.step(done as u32);
            let left = place.slot_number().left_in_chunk() as usize;
            let count = left.min(run.sums.len() - done);
            let (device, offset) = self.logs[&place.log()].log.locate(place.slot_number());
            if device.is_present() {
                self.report.checked_bytes += (count * BLOCK) as u64;
                for index in 0..count {
                    let mut block = [0; BLOCK];
                    let read = device.read(&mut block, offset + (index * BLOCK) as u64);
                    let why = match read {
                        Err(e) => e.words(),
                        Ok(()) if checksum::crc32c(&block) != run.sums[done + index] => {
                            "its checksum does not match".to_owned()
                        }
                        Ok(()) => continue,
                    };
                    let (slot, log) = (place.slot_number().0 + index as u64, place.log());
                    let block = run.block as usize + done + index;
                    wrong.push(format!(
                        "partition {partition} block {block}, slot {slot} of log area {log}: {why}"
                    ));
                }
            }
            done += count;
        }
        wrong.into_iter().for_each(|what| self.problem(what));
    }
}
