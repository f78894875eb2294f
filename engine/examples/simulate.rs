//! simulate: runs simulations from seeds, on the given number of threads, until one fails or the time is over.
//!
//! How it works      `simulate [--seeds A..B] [--minutes M] [--jobs J] [--bug NAME] [--kind K] [--keep-going]
//!                   [--trace]`. Seeds are run in order; without an upper end, until the minutes are over. It prints a
//!                   line of progress every five seconds; the last line is `seeds N failures M`.
//! Errors            exit code 1 if a seed failed, with the seed and how to run it again; 2 for invalid arguments.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use polyvol_engine::mutants::{ALL, Bug};
use polyvol_engine::simulator::{self, Options, counts::Counts};

struct Arguments {
    from: u64,
    to: u64,
    minutes: Option<f64>,
    jobs: u64,
    bug: Option<Bug>,
    kind: Option<u64>,
    keep_going: bool,
    trace: bool,
}

fn parse() -> Option<Arguments> {
    let mut arguments = Arguments {
        from: 0,
        to: 1000,
        minutes: None,
        jobs: 1,
        bug: None,
        kind: None,
        keep_going: false,
        trace: false,
    };
    let mut words = std::env::args().skip(1);
    let mut bounded = false;
    while let Some(word) = words.next() {
        match word.as_str() {
            "--seeds" => {
                let value = words.next()?;
                let (from, to) = value.split_once("..")?;
                arguments.from = from.parse().ok()?;
                arguments.to = to.parse().ok()?;
                bounded = true;
            }
            "--minutes" => arguments.minutes = Some(words.next()?.parse().ok()?),
            "--jobs" => arguments.jobs = words.next()?.parse().ok().filter(|jobs| *jobs > 0)?,
            "--bug" => {
                let name = words.next()?;
                let found = ALL.into_iter().find(|bug| format!("{bug:?}") == name);
                arguments.bug = Some(found?);
            }
            "--kind" => arguments.kind = Some(words.next()?.parse().ok()?),
            "--keep-going" => arguments.keep_going = true,
            "--trace" => arguments.trace = true,
            _ => return None,
        }
    }
    if arguments.minutes.is_some() && !bounded {
        arguments.to = u64::MAX;
    }
    Some(arguments)
}

#[derive(Default)]
struct Progress {
    done: AtomicU64,
    failures: AtomicU64,
    stop: AtomicBool,
    next: AtomicU64,
    counts: Mutex<Counts>,
}

fn work(arguments: &Arguments, progress: &Progress, until: Option<Instant>) {
    loop {
        let late = until.is_some_and(|until| Instant::now() >= until);
        if late || progress.stop.load(Ordering::Relaxed) {
            return;
        }
        let seed = progress.next.fetch_add(1, Ordering::Relaxed);
        if seed >= arguments.to {
            return;
        }
        let options =
            Options { seed, trace: arguments.trace, bug: arguments.bug, kind: arguments.kind };
        let outcome = simulator::run(&options);
        progress.done.fetch_add(1, Ordering::Relaxed);
        progress.counts.lock().expect("no holder panics").add(&outcome.counts);
        if arguments.trace {
            println!("seed {seed}: trace {:016x}", outcome.trace);
        }
        if let Some(failure) = outcome.failure {
            progress.failures.fetch_add(1, Ordering::Relaxed);
            println!(
                "seed {seed}: {failure}\n  again: simulate --seeds {seed}..{} --trace",
                seed + 1
            );
            if !arguments.keep_going {
                progress.stop.store(true, Ordering::Relaxed);
            }
        }
    }
}

fn main() -> ExitCode {
    let Some(arguments) = parse() else {
        eprintln!(
            "usage: simulate [--seeds A..B] [--minutes M] [--jobs J] [--bug NAME] [--kind K] [--keep-going] [--trace]"
        );
        return ExitCode::from(2);
    };
    let progress = Progress { next: AtomicU64::new(arguments.from), ..Progress::default() };
    let began = Instant::now();
    let until = arguments.minutes.map(|minutes| began + Duration::from_secs_f64(minutes * 60.0));
    let running = AtomicU64::new(arguments.jobs);
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs {
            scope.spawn(|| {
                work(&arguments, &progress, until);
                running.fetch_sub(1, Ordering::Relaxed);
            });
        }
        let mut said = Instant::now();
        while running.load(Ordering::Relaxed) > 0 {
            std::thread::sleep(Duration::from_millis(20));
            if said.elapsed() >= Duration::from_secs(5) {
                said = Instant::now();
                let done = progress.done.load(Ordering::Relaxed);
                eprintln!(
                    "{done} seeds, {:.0} a second",
                    done as f64 / began.elapsed().as_secs_f64()
                );
            }
        }
    });
    let failures = progress.failures.load(Ordering::Relaxed);
    println!("{:?}", progress.counts.lock().expect("no holder panics"));
    println!("seeds {} failures {failures}", progress.done.load(Ordering::Relaxed));
    if failures > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
