//! The fuzzer: libFuzzer around one of the engine's fuzz targets. `scripts/fuzz` builds and runs it.
//!
//! How it works      POLYVOL_FUZZ_TARGET names the target. Everything else is libFuzzer's: arguments, corpus, what becomes
//!                   of an input that crashes. Any other name, or none, prints the targets' names, and with each the
//!                   longest input that is worth a try; then the exit code is 2.
#![no_main]

use std::process::exit;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use polyvol_engine::fuzz::{TARGETS, Target};

static TARGET: OnceLock<Target> = OnceLock::new();

fn chosen() -> Target {
    let wanted = std::env::var("POLYVOL_FUZZ_TARGET").unwrap_or_default();
    TARGETS.into_iter().find(|target| target.name == wanted).unwrap_or_else(|| {
        for target in TARGETS {
            println!("{} {}", target.name, target.bytes_max);
        }
        exit(2)
    })
}

fuzz_target!(|bytes: &[u8]| (TARGET.get_or_init(chosen).run)(bytes));
