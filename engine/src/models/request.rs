//! A request whose parts end on two threads: exactly one of them gets it, and sees the results of all parts (R1, R3).

use std::sync::Arc;

use loom::thread;

use super::check;
use crate::buffer::Buffer;
use crate::error::Errno;
use crate::request::{Request, Sink, Verb};

struct Nowhere;

impl Sink for Nowhere {
    fn complete(&self, _: Arc<Request>) {}
    fn kick(&self) {}
}

/// Ends a part; returns the result if this thread is the owner.
fn end(request: &Request, result: Result<(), Errno>) -> Option<Result<(), Errno>> {
    if let Err(errno) = result {
        request.fail(errno);
    }
    request.end_part().then(|| request.result())
}

fn ends(first: Result<(), Errno>, second: Result<(), Errno>) -> Vec<Result<(), Errno>> {
    let request = Request::new(Verb::Read, 0, 2, Buffer::empty(), Arc::new(Nowhere));
    let request = Arc::new(request);
    request.expect_parts(2);
    let theirs = Arc::clone(&request);
    let other = thread::spawn(move || end(&theirs, first));
    let ours = end(&request, second);
    [other.join().unwrap(), ours].into_iter().flatten().collect()
}

#[test]
fn one_thread_gets_it_and_sees_the_error_of_the_other() {
    check(|| assert_eq!(ends(Err(Errno::EIO), Ok(())), [Err(Errno::EIO)]));
    check(|| assert_eq!(ends(Ok(()), Ok(())), [Ok(())]));
    check(|| {
        let seen = ends(Err(Errno::EIO), Err(Errno::ENOSPC));
        assert!(seen == [Err(Errno::EIO)] || seen == [Err(Errno::ENOSPC)]);
    });
}
