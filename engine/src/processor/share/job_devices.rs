//! Job devices: the devices that a job waits for.

use std::sync::Arc;

use crate::error::Errno;
use crate::geometry::Partition;
use crate::io::device::Device;
use crate::processor::io_job::{Job, NewPlace, Old, Step, Target};
use crate::system::pool::Lane;
use crate::units::BLOCK_SIZE;

/// The devices that a job waits for.
#[derive(Default)]
pub(super) enum Devices {
    #[default]
    None,
    One(Arc<Device>),
    Several(Vec<Arc<Device>>),
}

impl Devices {
    pub(super) fn add(&mut self, device: &Arc<Device>) {
        match self {
            Devices::None => *self = Devices::One(Arc::clone(device)),
            Devices::One(one) if one.id == device.id => {}
            Devices::One(one) => {
                *self = Devices::Several(vec![Arc::clone(one), Arc::clone(device)]);
            }
            Devices::Several(all) if all.iter().any(|other| other.id == device.id) => {}
            Devices::Several(all) => all.push(Arc::clone(device)),
        }
    }

    pub(super) fn add_all(&mut self, others: Devices) {
        match self {
            Devices::None => *self = others,
            _ => others.as_slice().iter().for_each(|device| self.add(device)),
        }
    }

    pub(super) fn as_slice(&self) -> &[Arc<Device>] {
        match self {
            Devices::None => &[],
            Devices::One(one) => std::slice::from_ref(one),
            Devices::Several(all) => all,
        }
    }

    /// The lane of a job with these devices.
    pub(super) fn lane(&self, share: u32) -> Lane {
        match self.as_slice() {
            [one] => Lane::Device(one.id),
            _ => Lane::Share(share),
        }
    }
}

impl Job {
    /// The devices that its steps wait for.
    pub(super) fn devices(&self) -> Devices {
        let own = &self.geometry.partitions[self.partition as usize];
        let mut found = Devices::default();
        let mut base = |partition: &Partition, offset: u64, length: u64| {
            let result = partition.pieces(offset, length, |device, _, _, _| {
                found.add(device);
                Ok::<(), Errno>(())
            });
            assert!(result.is_ok(), "nothing was read");
        };
        let mut slots = Devices::default();
        for step in &self.steps {
            match step {
                Step::ReadBase { of, offset, length, .. }
                | Step::Allocation { of, offset, length, .. }
                | Step::AheadBase { of, offset, length } => {
                    base(self.base(of.as_ref(), own), *offset, *length);
                }
                Step::ReadZero { .. } => {}
                Step::CopyHome { first, slots: from } => {
                    let blocks: usize = from.iter().map(|(_, sums)| sums.len()).sum();
                    base(own, u64::from(*first) * BLOCK_SIZE, blocks as u64 * BLOCK_SIZE);
                    from.iter().for_each(|(spot, _)| slots.add(&spot.device));
                }
                Step::CopyAway { change, to } => {
                    let NewPlace { first, count, .. } = self.changes[*change];
                    let (start, length) = (u64::from(first), u64::from(count));
                    base(own, start * BLOCK_SIZE, length * BLOCK_SIZE);
                    slots.add(&to.device);
                }
                Step::ReadSlots { spot, .. } | Step::AheadSlots { spot, .. } => {
                    slots.add(&spot.device);
                }
                Step::WriteInPlace { offset, length, .. } | Step::Clear { offset, length, .. } => {
                    base(own, *offset, *length);
                }
                Step::WriteWhole { change, target, .. }
                | Step::WritePartial { change, target, .. } => {
                    let NewPlace { first, count, .. } = self.changes[*change];
                    let start = u64::from(first) * BLOCK_SIZE;
                    match target {
                        Target::Base => base(own, start, u64::from(count) * BLOCK_SIZE),
                        Target::Slots(spot) => slots.add(&spot.device),
                    }
                    match step {
                        Step::WritePartial { old: Old::Base(of), .. } => {
                            base(self.base(of.as_ref(), own), start, BLOCK_SIZE);
                        }
                        Step::WritePartial { old: Old::Slot(_, spot, _), .. } => {
                            slots.add(&spot.device);
                        }
                        _ => {}
                    }
                }
            }
        }
        found.add_all(slots);
        found
    }
}
