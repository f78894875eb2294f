//! Simulator: a bounded number of simulated machines, the seeds that once found something, and the deliberate bugs that
//! are seen soonest. More of it: `examples/simulate.rs`, docs/decisions/0011-the-simulator.md.

use polyvol_engine::mutants::Bug;
use polyvol_engine::simulator::{Options, run};

/// Seeds that found something once, with what it was.
const REGRESSIONS: [(u64, &str); 4] = [
    (100_216, "a segment's mark came to the disk without its header, and the volume was refused"),
    (
        304,
        "slots set aside after a failed write counted as under way: who wanted slots waited forever",
    ),
    (461, "as 304"),
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
fn what_was_found_once_stays_found() {
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

/// What is left out here is seen too, but takes longer: see docs/decisions/0011-the-simulator.md.
#[test]
fn deliberate_bugs_are_seen() {
    let soon = [
        Bug::NoDeviceSync,
        Bug::EarlyReuse,
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
    ];
    for bug in soon {
        let seen = (0..300).any(|seed| wrong(seed, Some(bug)).is_some());
        assert!(seen, "{bug:?} is not seen");
    }
}
