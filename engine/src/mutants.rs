//! Mutants: deliberate bugs (as in mutation testing) that are put into the engine, to show that the simulator and the
//! torture of a real polyvold detect them.
//!
//! How it works      Each guarded place calls [`bug`]. The simulator chooses one for its thread. A build with the feature
//!                   `mutants` has the one that the variable `POLYVOL_BUG` names. In every other build the answer is
//!                   `false` at compile time.

/// The deliberate bugs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A flush does not sync the devices.
    NoDeviceSync,
    /// A commit mark covers records that came after the devices' sync.
    MarkTooFar,
    /// Slots are reused as soon as the record that frees them was appended.
    EarlyReuse,
    /// A write in place does not keep the map of the snapshot before it.
    NoFreeze,
    /// Processors advance when they are asked to stop, without waiting for the others.
    EarlyAdvance,
    /// A processor continues starting writes between its stop and its advance.
    NoHold,
    /// A cut counts as settled at once.
    NoSettle,
    /// A checkpoint is renamed before what it covers is durable.
    EarlyCheckpoint,
    /// The directory is not synced when a journal gets a new segment.
    NoDirectorySync,
    /// A commit does not sync the segments before the newest one.
    NoSealedSync,
    /// After a power loss, records that no mark covers count.
    PastTheMark,
    /// Freed base places are punched at once.
    EarlyPunch,
    /// A failed sync is forgotten.
    ForgetFailedSync,
    /// A failed sync is forgotten at a restart of the process.
    ForgetAtRestart,
    /// Recovered maps are not made durable before they are served.
    NoRecoverySync,
    /// Checksums are not compared.
    NoChecksum,
    /// The journal is removed before the checkpoint is renamed.
    EarlyRemoval,
    /// After a power loss, some of the records between two marks count.
    BetweenMarks,
    /// Slots stay young although a sync has begun.
    YoungForEver,
    /// Slots stay young although a cut has ended their epoch.
    YoungTooLong,
    /// A rollback that no checkpoint covers is forgotten.
    EarlyForget,
    /// The size of a device is not checked.
    NoSizeCheck,
    /// A device that was found short is used again once its file is long enough.
    ForgetShort,
    /// The range beyond the end of a device is reported as a hole.
    EndIsHole,
    /// A manifest is not changed after it was made.
    NoManifest,
    /// A missing or damaged record ends a journal.
    QuietEnd,
    /// A write that was given up is forgotten: later ones may pass it.
    ForgetGivenUp,
    /// No record says that a snapshot was dropped.
    NoDropRecord,
    /// No record says what was counted of a partition at a cut.
    NoStateRecord,
    /// Redirected blocks go to any log area, whatever the rule of their partition.
    AnyArea,
    /// A block is written at its base place although a snapshot sees that.
    TakenBase,
    /// A block is relocated to its base place although a snapshot sees that.
    TakenHome,
    /// A base place is used although the record that moved its contents away is not durable.
    UseHeldBase,
    /// A slot is free as soon as its block was copied, before that is recorded durably.
    FreeBeforeHome,
    /// A relocation is recorded although a write has changed the block.
    MoveOverWrite,
    /// Slots are free while they are punched.
    UnownedPunch,
    /// Blocks are copied to their base places without being reserved: the copy may come after a host's write.
    LateCopy,
    /// Base places that were freed are punched although a block has come back.
    PunchSeenBase,
    /// A slot is free although a record says that a block was moved there.
    FreeAwaySlot,
}

/// Every one of them.
pub const ALL: [Bug; 39] = [
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
    Bug::NoSizeCheck,
    Bug::ForgetShort,
    Bug::EndIsHole,
    Bug::NoManifest,
    Bug::QuietEnd,
    Bug::ForgetGivenUp,
    Bug::NoDropRecord,
    Bug::NoStateRecord,
    Bug::AnyArea,
    Bug::TakenBase,
    Bug::TakenHome,
    Bug::UseHeldBase,
    Bug::FreeBeforeHome,
    Bug::MoveOverWrite,
    Bug::UnownedPunch,
    Bug::LateCopy,
    Bug::PunchSeenBase,
    Bug::FreeAwaySlot,
];

#[cfg(feature = "simulator")]
thread_local! {
    static CHOSEN: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Chooses a bug for this thread.
#[cfg(feature = "simulator")]
pub fn set(bug: Option<Bug>) {
    CHOSEN.set(bug);
}

/// Whether this bug is active.
#[cfg(feature = "simulator")]
pub fn bug(bug: Bug) -> bool {
    CHOSEN.get() == Some(bug)
}

/// Whether this is the bug that the environment names; none, if it names none.
#[cfg(all(feature = "mutants", not(feature = "simulator")))]
pub fn bug(bug: Bug) -> bool {
    static CHOSEN: std::sync::OnceLock<Option<Bug>> = std::sync::OnceLock::new();
    let named = |name: String| {
        let found = ALL.iter().find(|one| format!("{one:?}") == name);
        *found.unwrap_or_else(|| panic!("POLYVOL_BUG names no deliberate bug: {name}"))
    };
    *CHOSEN.get_or_init(|| std::env::var("POLYVOL_BUG").ok().map(named)) == Some(bug)
}

/// Whether this bug is active: never.
#[cfg(not(any(feature = "simulator", feature = "mutants")))]
#[inline(always)]
pub const fn bug(_: Bug) -> bool {
    false
}
