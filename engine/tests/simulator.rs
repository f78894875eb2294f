//! Simulator: a bounded number of simulated machines, the seeds that once found a bug, and the mutants that are
//! detected soonest. More: `examples/simulate.rs`, docs/decisions/0011-the-simulator.md.

use polyvol_engine::mutants::Bug;
use polyvol_engine::simulator::{Options, run};

/// Seeds that once found a bug, with a description.
const REGRESSIONS: [(u64, &str); 4] = [
    (100_216, "a segment's mark reached the disk without its header, and the volume was refused"),
    (
        304,
        "slots quarantined after a failed write counted as in flight: waiters for slots waited forever",
    ),
    (461, "the same as 304"),
    (11, "an older manifest after a clean stop and a power loss: the last checkpoint was left out"),
];

fn wrong(seed: u64, bug: Option<Bug>) -> Option<String> {
    run(&Options { seed, bug, ..Options::default() }).failure
}

#[test]
fn nothing_is_lost_in_a_hundred_simulated_lives() {
    for seed in 1_000..1_100 {
        assert_eq!(wrong(seed, None), None, "simulate --seeds {seed}..{} --trace", seed + 1);
    }
}

#[test]
fn seeds_that_once_failed_pass() {
    for (seed, what) in REGRESSIONS {
        assert_eq!(wrong(seed, None), None, "seed {seed}: {what}");
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 2_000..2_015 {
        let options = Options { seed, ..Options::default() };
        let (once, again) = (run(&options), run(&options));
        assert_eq!(once.trace, again.trace, "seed {seed}");
        assert_eq!(once.counts.operations, again.counts.operations, "seed {seed}");
    }
}

/// The other mutants are detected too, but take longer: see docs/decisions/0011-the-simulator.md.
#[test]
fn mutants_are_detected() {
    let soon = [
        Bug::NoDeviceSync,
        Bug::NoFreeze,
        Bug::EarlyAdvance,
        Bug::NoHold,
        Bug::NoDirectorySync,
        Bug::NoSealedSync,
        Bug::EarlyCheckpoint,
        Bug::PastTheMark,
        Bug::YoungTooLong,
        Bug::NoManifest,
        Bug::QuietEnd,
        Bug::NoDropRecord,
        Bug::NoStateRecord,
        Bug::AnyArea,
        Bug::TakenBase,
        Bug::TakenHome,
        Bug::MoveOverWrite,
        Bug::UnownedPunch,
        Bug::LateCopy,
        Bug::PunchSeenBase,
        Bug::FreeAwaySlot,
    ];
    for bug in soon {
        let seen = (0..300).any(|seed| wrong(seed, Some(bug)).is_some());
        assert!(seen, "{bug:?} is not detected");
    }
}
