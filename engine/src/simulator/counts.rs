//! Counts: what happened in a simulation.

/// Counts of one simulation.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Engines started.
    pub starts: u64,
    /// Crashes.
    pub crashes: u64,
    /// Snapshots taken.
    pub snapshots: u64,
    /// Blocks relocated.
    pub relocated: u64,
    /// Blocks that only snapshots saw, relocated to slots.
    pub relocated_away: u64,
    /// Requests made.
    pub requests: u64,
    /// Operations on the disk.
    pub operations: u64,
    /// Faults injected.
    pub faults: u64,
}

impl Counts {
    /// Adds the counts of another simulation.
    pub fn add(&mut self, other: &Counts) {
        self.starts += other.starts;
        self.crashes += other.crashes;
        self.snapshots += other.snapshots;
        self.relocated += other.relocated;
        self.relocated_away += other.relocated_away;
        self.requests += other.requests;
        self.operations += other.operations;
        self.faults += other.faults;
    }
}
