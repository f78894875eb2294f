//! The flusher: each waiter is answered by a sync that began after it arrived (F1), also while another's job is ending,
//! or a sync outside of the pool, which ends before the flusher has stopped.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;

use loom::thread;

use super::check;
use crate::processor::durable::Durable;
use crate::processor::flusher::{Flusher, Waiter};
use crate::sync::Mutex;
use crate::system::pool::{Job, Lane, Pool, Runner};

/// A pool that runs each job on a thread of its own.
#[derive(Default)]
struct Threads(Mutex<Vec<thread::JoinHandle<()>>>);

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Threads")
    }
}

impl Runner for Threads {
    fn run(&self, _: Lane, job: Job) {
        self.0.lock().unwrap().push(thread::spawn(job));
    }

    fn stop(&self, _: &dyn Fn(Lane) -> bool) {
        let threads = std::mem::take(&mut *self.0.lock().unwrap());
        for thread in threads {
            thread.join().unwrap();
        }
    }
}

#[test]
fn each_waiter_is_answered() {
    check(|| {
        let pool = Pool::new(Arc::new(Threads::default()));
        let flusher = Arc::new(Flusher::on(
            pool,
            Arc::new(Durable::default()),
            Box::new(|| 0),
            &Arc::default(),
        ));
        let (sender, receiver) = channel();
        let (theirs, their_sender) = (Arc::clone(&flusher), sender.clone());
        let other = thread::spawn(move || theirs.push(Waiter::Call(their_sender)));
        flusher.push(Waiter::Call(sender));
        flusher.stop();
        other.join().unwrap();
        let answers: Vec<_> = receiver.try_iter().collect();
        assert_eq!(answers.len(), 2);
        assert!(answers.iter().any(|answer| answer.is_ok()), "our waiter arrived before the stop");
    });
}

#[test]
fn an_inline_sync_leaves_no_waiter_and_nothing_in_flight() {
    check(|| {
        let pool = Pool::new(Arc::new(Threads::default()));
        let readings = Arc::new(AtomicU64::new(0));
        let clock = Arc::clone(&readings);
        let clock = Box::new(move || clock.fetch_add(1, Ordering::Relaxed));
        let flusher =
            Arc::new(Flusher::on(pool, Arc::new(Durable::default()), clock, &Arc::default()));
        flusher.assume_short();
        let (sender, receiver) = channel();
        let (theirs, their_sender) = (Arc::clone(&flusher), sender.clone());
        let other = thread::spawn(move || theirs.push_and_wait(Waiter::Call(their_sender)));
        flusher.push(Waiter::Call(sender));
        flusher.stop();
        let read = readings.load(Ordering::Relaxed);
        assert!(read.is_multiple_of(2), "each sync reads it when it begins and when it ends");
        other.join().unwrap();
        assert_eq!(readings.load(Ordering::Relaxed), read, "nothing begins after the stop");
        let answers: Vec<_> = receiver.try_iter().collect();
        assert_eq!(answers.len(), 2);
        assert!(answers.iter().any(|answer| answer.is_ok()), "our waiter arrived before the stop");
    });
}
