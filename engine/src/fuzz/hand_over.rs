//! Hand-over: any bytes in place of the state of a connection that one process passes to the next.
//!
//! How it works      The input is such a state. The checksum is corrected first, unless the first byte says not to.
//! Promises          it is refused with a reason, or it is a state whose encoding has the same bytes.

use super::Target;
use crate::checksum;
use crate::error::Errno;
use crate::limits::REQUEST_BYTES_MAX;
use crate::nbd::hand_over::State;
use crate::nbd::reader::{Refusal, ResumePoint};
use crate::nbd::request::Agreed;
use crate::request::Contexts;

/// See the module's head.
pub const TARGET: Target = Target { name: "hand_over", run, seeds, bytes_max: 4096 };

fn run(bytes: &[u8]) {
    let Some((honest, bytes)) = bytes.split_first() else { return };
    let mut bytes = bytes.to_vec();
    if honest & 1 == 0 && bytes.len() >= 16 {
        let crc = checksum::crc32c(&bytes[16..]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    }
    match State::decode(&bytes) {
        Ok(state) => {
            assert!(state.encode() == bytes, "encoded to other bytes");
            assert!(state.resume_point.skip <= REQUEST_BYTES_MAX);
        }
        Err(why) => assert!(!why.is_empty()),
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let refusal = Refusal { structured: true, cookie: 3, errno: Errno::ENOSPC };
    let standings = [
        ResumePoint::default(),
        ResumePoint { bytes: b"half a request".to_vec(), ..ResumePoint::default() },
        ResumePoint { bytes: Vec::new(), skip: 700, last: true, refusal: Some(refusal) },
    ];
    let mut seeds = Vec::new();
    for (number, resume_point) in standings.into_iter().enumerate() {
        let even = number % 2 == 0;
        let agreed = Agreed { size: 4096, read_only: even, structured: true, status: even };
        let since = if number == 2 { vec![1, 2] } else { Vec::new() };
        let contexts = even.then_some(Contexts { allocation: true, since });
        let (size, transmission_flags) = (4096, 0x10d);
        let state = State { agreed, contexts, size, transmission_flags, moved: 9, resume_point };
        seeds.push([&[number as u8][..], &state.encode()].concat());
    }
    seeds
}
