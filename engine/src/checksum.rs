//! Checksum: CRC-32C (Castagnoli) of blocks and of all other data on disk.
//!
//! How it works      The faster of two libraries on the machine's CPU: crc-fast if the CPU has the widest instructions
//!                   (a quarter of the time of the CRC instruction), else crc32c (two thirds of the time of crc-fast
//!                   for a block). Each start of the engine checks it ([`check`]), because the code path chosen for
//!                   this CPU may never have been tested.

use crc_fast::{CrcAlgorithm, Digest};

use crate::error::{Error, ErrorKind, Result};

const ALGORITHM: CrcAlgorithm = CrcAlgorithm::Crc32Iscsi;

/// Whether the CPU has the instructions with which crc-fast is faster.
#[cfg(target_arch = "x86_64")]
fn is_wide() -> bool {
    std::arch::is_x86_feature_detected!("avx512vl")
}

/// CRC-32C of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if !is_wide() {
        return ::crc32c::crc32c(bytes);
    }
    crc_fast::checksum(ALGORITHM, bytes) as u32
}

/// CRC-32C of data whose CRC-32C is `before`, followed by `bytes`.
pub fn crc32c_append(before: u32, bytes: &[u8]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if !is_wide() {
        return ::crc32c::crc32c_append(before, bytes);
    }
    let mut digest = Digest::new_with_init_state(ALGORITHM, u64::from(!before));
    digest.update(bytes);
    digest.finalize() as u32
}

/// CRC-32C by its definition, a bit at a time.
fn by_definition(before: u32, bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    let byte = |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc));
    !bytes.iter().fold(!before, byte)
}

/// Refuses a machine on which the library does not compute CRC-32C; takes less than a millisecond.
pub fn check() -> Result<()> {
    let bytes: Vec<u8> = (0..5000_u32).map(|at| ((at * at) >> 5) as u8).collect();
    let right = [1, 16, 100, 257, 1000, 4096].into_iter().all(|length| {
        let (bytes, first) = (&bytes[length % 64..][..length], length / 3);
        let whole = by_definition(0, bytes);
        let apart = crc32c_append(crc32c(&bytes[..first]), &bytes[first..]);
        crc32c(bytes) == whole && apart == whole
    });
    let what =
        "checksums are computed wrong on this machine's processor: report it, with its model";
    if right { Ok(()) } else { Err(Error::new(ErrorKind::Io, what)) }
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use super::{by_definition, check, crc32c, crc32c_append};

    #[test]
    fn it_matches_the_definition_at_any_length_and_alignment() {
        check().unwrap();
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        let bytes: Vec<u8> = (0..9000_u32).map(|at| ((at * at) >> 7) as u8).collect();
        let lengths = (0..1100).chain([4095, 4096, 4097, 8192]);
        for (number, length) in lengths.enumerate() {
            let bytes = &bytes[number % 67..][..length];
            assert_eq!(crc32c(bytes), by_definition(0, bytes), "{length} bytes");
            let (first, rest) = bytes.split_at(length / 3);
            assert_eq!(crc32c_append(crc32c(first), rest), crc32c(bytes), "{length} bytes in two");
        }
    }
}
