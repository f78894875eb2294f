//! Fuzz: bytes of peers and of disks, made up by a fuzzer, against the code that reads them.
//!
//! How it works      Each [`Target`] is a function from bytes; it panics where a promise is broken. `engine/fuzz` has the
//!                   fuzzer (libFuzzer, guided by what code an input reaches; `scripts/fuzz` runs it). An ordinary
//!                   `cargo test` tries every input in `engine/fuzz/corpus` and, for ever, every input in
//!                   `engine/fuzz/found` that once broke something. Readers that check checksums would turn away all
//!                   that a fuzzer makes up, so those targets put the checksums right first, unless the first byte says
//!                   not to.
//! Invariants        a target gives the same verdict for the same bytes, whatever ran before it.

mod checkpoint;
mod damage;
pub(crate) mod files;
mod hand_over;
mod handshake;
mod journal;
mod memory;
mod random;
mod transmission;
#[cfg(test)]
pub use memory::Memory;

/// One reader of untrusted bytes.
#[derive(Clone, Copy)]
pub struct Target {
    /// What it is called: the name of its folder in the corpus.
    pub name: &'static str,
    /// Tries one input. Panics if it breaks a promise.
    pub run: fn(&[u8]),
    /// Inputs to begin with, made by the code that writes such bytes.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// The longest input that is worth a try, bytes.
    pub bytes_max: usize,
}

/// All of them.
pub const TARGETS: [Target; 6] = [
    handshake::TARGET,
    transmission::TARGET,
    hand_over::TARGET,
    journal::TARGET,
    checkpoint::TARGET,
    damage::TARGET,
];

#[cfg(test)]
mod tests {
    use super::TARGETS;
    use std::path::{Path, PathBuf};

    fn folder(kind: &str, target: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(kind).join(target)
    }

    /// The files of a folder, which need not be there.
    fn inputs(folder: &Path) -> Vec<PathBuf> {
        let found = std::fs::read_dir(folder).into_iter().flatten();
        found.map(|entry| entry.unwrap().path()).collect()
    }

    #[test]
    fn every_input_that_was_ever_kept_is_survived() {
        for target in TARGETS {
            let corpus = inputs(&folder("corpus", target.name));
            assert!(!corpus.is_empty(), "no corpus for {}", target.name);
            for path in corpus.into_iter().chain(inputs(&folder("found", target.name))) {
                println!("{}", path.display()); // seen when it fails
                (target.run)(&std::fs::read(&path).unwrap());
            }
        }
    }

    #[test]
    fn every_seed_and_every_beginning_of_it_is_survived() {
        for target in TARGETS {
            for seed in (target.seeds)() {
                assert!(seed.len() <= target.bytes_max, "a seed of {} is too long", target.name);
                (0..=seed.len()).for_each(|end| (target.run)(&seed[..end]));
            }
        }
    }

    /// Writes the corpus again: `cargo test --no-default-features write_the_seeds -- --ignored`.
    #[test]
    #[ignore = "writes into the source tree"]
    fn write_the_seeds() {
        for target in TARGETS {
            let folder = folder("corpus", target.name);
            std::fs::create_dir_all(&folder).unwrap();
            for (number, seed) in (target.seeds)().into_iter().enumerate() {
                std::fs::write(folder.join(format!("seed-{number:02}")), seed).unwrap();
            }
        }
    }
}
