//! Mutants: deliberate bugs (as in mutation testing) that the simulator puts into the engine, to show that it would see them.
//!
//! How it works      A place that matters asks [`bug`]; in everything but the simulator's build the answer is `false`
//!                   at compile time.

/// What is done wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A flush does not sync the devices.
    NoDeviceSync,
    /// A commit mark covers records that came after the devices' sync.
    MarkTooFar,
    /// Slots are used again as soon as the record that frees them was appended.
    EarlyReuse,
    /// A write in place does not keep the map of the snapshot before it.
    NoFreeze,
    /// Processors advance when they are told to stop, without waiting for the others.
    EarlyAdvance,
    /// A processor continues starting writes between its stop and its advance.
    NoHold,
    /// A cut is settled at once.
    NoSettle,
    /// A checkpoint gets its name before what it covers is durable.
    EarlyCheckpoint,
    /// The directory is not synced when a journal continues in a new segment.
    NoDirectorySync,
    /// A commit does not sync the segments before the newest.
    NoSealedSync,
    /// After a power loss records count that no mark covers.
    PastTheMark,
    /// Freed base places are punched at once.
    EarlyPunch,
    /// A failed sync is forgotten.
    ForgetFailedSync,
    /// A failed sync is forgotten when the process is started again.
    ForgetAtRestart,
    /// What was read back is not made durable before it is served.
    NoRecoverySync,
    /// Checksums are not compared.
    NoChecksum,
    /// The journal is removed before the checkpoint has its name.
    EarlyRemoval,
    /// After a power loss some of the records between two marks count.
    BetweenMarks,
    /// Slots stay young although a sync has begun.
    YoungForEver,
    /// Slots stay young although a cut has ended their epoch.
    YoungTooLong,
    /// A rollback is forgotten that no checkpoint covers.
    EarlyForget,
    /// The size of a device is not looked at.
    NoLook,
    /// A device that was found short is used again once its file is long enough.
    ForgetShort,
    /// What lies beyond the end of a device is reported as a hole.
    EndIsHole,
    /// A manifest is not changed after it was made.
    NoManifest,
    /// What is missing or damaged in a journal ends it.
    QuietEnd,
    /// A write that was given up is forgotten: what comes later may pass it.
    ForgetGivenUp,
}

/// Every one of them.
pub const ALL: [Bug; 27] = [
    Bug::NoDeviceSync,
    Bug::MarkTooFar,
    Bug::EarlyReuse,
    Bug::NoFreeze,
    Bug::EarlyAdvance,
    Bug::NoHold,
    Bug::NoSettle,
    Bug::EarlyCheckpoint,
    Bug::NoDirectorySync,
    Bug::NoSealedSync,
    Bug::PastTheMark,
    Bug::EarlyPunch,
    Bug::ForgetFailedSync,
    Bug::ForgetAtRestart,
    Bug::NoRecoverySync,
    Bug::NoChecksum,
    Bug::EarlyRemoval,
    Bug::BetweenMarks,
    Bug::YoungForEver,
    Bug::YoungTooLong,
    Bug::EarlyForget,
    Bug::NoLook,
    Bug::ForgetShort,
    Bug::EndIsHole,
    Bug::NoManifest,
    Bug::QuietEnd,
    Bug::ForgetGivenUp,
];

#[cfg(feature = "simulator")]
thread_local! {
    static CHOSEN: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Chooses a bug for what this thread runs.
#[cfg(feature = "simulator")]
pub fn set(bug: Option<Bug>) {
    CHOSEN.set(bug);
}

/// Whether this is to be done wrong.
#[cfg(feature = "simulator")]
pub fn bug(bug: Bug) -> bool {
    CHOSEN.get() == Some(bug)
}

/// Whether this is to be done wrong: never.
#[cfg(not(feature = "simulator"))]
#[inline(always)]
pub const fn bug(_: Bug) -> bool {
    false
}
