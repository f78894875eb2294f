//! Faults: the faults of the simulated disk, and their rates.

use super::random::Random;

/// Kinds of seeds, by their faults: 0, 1 reads; 2, 3 writes; 4 no space; 5, 6 syncs; 7 names; 8 lost, 9 misdirected
/// writes; 10 rot; 11 several; 12, 13 a device that becomes shorter; 14 to 16 files of the state directory that are
/// damaged, missing or older at a start; 17, 18 a device that hangs; others none.
pub const KINDS: u64 = 20;

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A device with extents of partitions.
    Base,
    /// A device with slots.
    Log,
    /// A file of the state directory.
    State,
}

/// Rates, in a million operations.
#[derive(Clone, Debug, Default)]
pub struct Rates {
    /// Reads that fail.
    pub read: u64,
    /// Writes that fail with EIO, perhaps half done.
    pub write: u64,
    /// Writes that fail for lack of space.
    pub no_space: u64,
    /// Syncs that fail.
    pub sync: u64,
    /// Operations on names that fail.
    pub name: u64,
    /// Writes to slots that are acknowledged and not made.
    pub lost: u64,
    /// Writes to slots that are made somewhere else.
    pub misdirected: u64,
    /// Starts before which a file of the state directory was damaged, removed, or replaced by an older one.
    pub tamper: u64,
    /// Operations at which a bit of a slot rots.
    pub rot: u64,
    /// Control calls at which a device becomes shorter, or long again.
    pub size: u64,
    /// Reads that would wait.
    pub would_wait: u64,
    /// Operations at which the kernel writes something back without a sync.
    pub write_back: u64,
    /// Operations during which another thread has a turn.
    pub pause: u64,
    /// Operations on devices at which one begins to hang, for longer than requests may last.
    pub hang: u64,
    /// Whether calls on devices ever wait.
    pub waits: bool,
    /// The roles whose operations fail: base, log, state.
    pub roles: [bool; 3],
}

impl Rates {
    /// Rates for one seed: most seeds have only crashes, or one kind of fault.
    pub fn choose(random: &mut Random, kind: Option<u64>) -> Rates {
        let mut rates = Rates {
            would_wait: [0, 100_000, 500_000, 1_000_000][random.below(4) as usize],
            write_back: [0, 2_000, 20_000, 100_000][random.below(4) as usize],
            pause: [0, 20_000, 100_000, 300_000][random.below(4) as usize],
            roles: [true; 3],
            ..Rates::default()
        };
        if random.coin() {
            rates.roles = [random.coin(), random.coin(), random.coin()];
        }
        let often = [500, 2_000, 8_000][random.below(3) as usize];
        let chosen = random.below(KINDS);
        match kind.unwrap_or(chosen) {
            0 | 1 => rates.read = often,
            2 | 3 => rates.write = often,
            4 => rates.no_space = often,
            5 | 6 => rates.sync = often * 4,
            7 => rates.name = often * 5,
            8 => rates.lost = often,
            9 => rates.misdirected = often,
            10 => rates.rot = often,
            11 => {
                (rates.read, rates.write, rates.no_space) = (often, often, often);
                (rates.sync, rates.name) = (often, often);
            }
            12 | 13 => rates.size = 200_000,
            14..=16 => rates.tamper = 600_000,
            17 | 18 => rates.hang = often * 2,
            _ => {}
        }
        rates.waits = rates.hang > 0 || random.coin();
        rates
    }

    /// Whether slots may have other contents than were written.
    pub fn damages(&self) -> bool {
        self.lost + self.misdirected + self.rot > 0
    }
}

impl Injected {
    /// No faults; but if devices may hang, requests may last too long for any reason.
    pub fn beginning(rates: &Rates) -> Injected {
        Injected { hangs: u64::from(rates.hang > 0), ..Injected::default() }
    }
}

/// The faults injected so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Injected {
    /// All faults except damage.
    pub errors: u64,
    /// Syncs that failed, of files and directories.
    pub syncs: u64,
    /// Syncs of files that failed.
    pub holes: u64,
    /// Slots that were damaged.
    pub damage: u64,
    /// Devices that have become shorter.
    pub short: u64,
    /// Times a device hung.
    pub hangs: u64,
}
