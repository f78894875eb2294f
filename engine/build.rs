//! The build script: tells the engine which compiler and which profile it is built with (`__rustc__` and `__profile__`
//! in `python/engine.pyi`). Nothing else of the machine gets in, so that the same sources give the same engine.

use std::env;
use std::process::Command;

fn main() {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("--version").output();
    let text = output
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default();
    let version = text.split_whitespace().nth(1).unwrap_or("unknown");
    let profile = env::var("PROFILE").unwrap_or_default();
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-env=POLYVOL_RUSTC={version}");
    println!("cargo:rustc-env=POLYVOL_PROFILE={profile}");
}
