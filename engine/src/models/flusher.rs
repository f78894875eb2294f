//! The flusher: whoever waits is answered, by a sync that began after it came (F1), also while another's job is ending.

use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::channel;

use loom::thread;

use super::check;
use crate::sync::Mutex;
use crate::system::pool::{Job, Pool, Runner};
use crate::volume::flusher::{Durable, Flusher, Waiter};

/// A pool that runs each job on a thread of its own.
#[derive(Default)]
struct Threads(Mutex<Vec<thread::JoinHandle<()>>>);

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Threads")
    }
}

impl Runner for Threads {
    fn run(&self, job: Job) {
        self.0.lock().unwrap().push(thread::spawn(job));
    }

    fn stop(&self) {
        let threads = std::mem::take(&mut *self.0.lock().unwrap());
        for thread in threads {
            thread.join().unwrap();
        }
    }
}

#[test]
fn whoever_waits_is_answered() {
    check(|| {
        let pool = Pool::new(Arc::new(Threads::default()));
        let flusher = Arc::new(Flusher::on(pool, Arc::new(Durable::default())));
        let (sender, receiver) = channel();
        let (theirs, their_sender) = (Arc::clone(&flusher), sender.clone());
        let other = thread::spawn(move || theirs.push(Waiter::Call(their_sender)));
        flusher.push(Waiter::Call(sender));
        flusher.stop();
        other.join().unwrap();
        let answers: Vec<_> = receiver.try_iter().collect();
        assert_eq!(answers.len(), 2);
        assert!(answers.iter().any(|answer| answer.is_ok()), "ours came before the stop");
    });
}
