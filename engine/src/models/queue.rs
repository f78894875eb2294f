//! The queue and the runner of a processor: every event is run exactly once, in the order of pushes, by one thread at a
//! time, and none is left in the queue (Q1 to Q4).

use std::sync::Arc;

use loom::thread;

use super::check;
use crate::buffer::Buffer;
use crate::processor::messages::{Control, Event};
use crate::processor::part::Part;
use crate::processor::queue::Queue;
use crate::processor::runner::{Handler, Runner};
use crate::request::{Request, Sink, Verb};
use crate::sync::Mutex;
use crate::system::Task;
use crate::units::LocalIndex;

/// An identifiable event: the thread that pushed it, and its number in that thread.
fn event(who: u32, number: u64) -> Event {
    Event::Control(Box::new(Control::CheckpointDone(who, Ok(number), 0)))
}

fn stop() -> Event {
    Event::Control(Box::new(Control::Stop))
}

/// An event that changes nothing.
fn look() -> Event {
    event(LOOKS, 0)
}

const LOOKS: u32 = 0;
/// The number of events that are left for the next run.
const LEFT: u32 = 99;

/// A handler that records the events it runs.
struct Recorder {
    seen: Arc<Mutex<Vec<(u32, u64)>>>,
    /// Events left for its next run.
    left: Vec<u64>,
    stopped: bool,
}

impl Handler for Recorder {
    fn run_batch(&mut self, batch: &mut Vec<Event>, _: bool) {
        for number in self.left.drain(..) {
            self.seen.lock().unwrap().push((LEFT, number));
        }
        for event in batch.drain(..) {
            match event {
                Event::Part(part) => {
                    if part.request.end_part() {
                        part.request.complete();
                    }
                }
                Event::Control(control) => match *control {
                    Control::CheckpointDone(LEFT, Ok(number), _) => self.left.push(number),
                    Control::CheckpointDone(who, Ok(number), _) => {
                        self.seen.lock().unwrap().push((who, number));
                    }
                    Control::Stop => self.stopped = true,
                    _ => unreachable!(),
                },
                Event::Done(_) => unreachable!(),
            }
        }
    }

    fn run_shared(&self, batch: &mut Vec<Event>) -> bool {
        let looks = |event: &Event| matches!(event, Event::Control(control) if matches!(**control, Control::CheckpointDone(LOOKS, ..)));
        for _ in batch.extract_if(.., |event| looks(event)) {
            self.seen.lock().unwrap().push((LOOKS, 0));
        }
        false
    }

    fn unfinished(&self) -> bool {
        !self.left.is_empty()
    }

    fn stopped(&self) -> bool {
        self.stopped
    }
}

type Seen = Arc<Mutex<Vec<(u32, u64)>>>;

/// A processor with its thread.
fn start() -> (Arc<Runner<Recorder>>, Seen, thread::JoinHandle<()>) {
    let seen = Seen::default();
    let recorder = Recorder { seen: Arc::clone(&seen), left: Vec::new(), stopped: false };
    let runner = Arc::new(Runner::new(Arc::new(Queue::default()), recorder));
    let ours = Arc::clone(&runner);
    (runner, seen, thread::spawn(move || ours.run()))
}

fn numbers_of(seen: &Seen, who: u32) -> Vec<u64> {
    let seen = seen.lock().unwrap();
    seen.iter().filter(|(other, _)| *other == who).map(|(_, number)| *number).collect()
}

#[test]
fn every_event_is_run_once_and_in_order_by_any_runner() {
    check(|| {
        let (runner, seen, processor) = start();
        let theirs = Arc::clone(&runner);
        let other = thread::spawn(move || {
            theirs.run_or_push(&mut vec![event(1, 1)]);
            theirs.queue.push(event(1, 2));
        });
        runner.queue.push_all(&mut vec![event(2, 1), event(2, 2)]);
        runner.run_or_push(&mut vec![event(2, 3)]);
        other.join().unwrap();
        runner.queue.push(stop());
        processor.join().unwrap();
        assert_eq!(numbers_of(&seen, 1), [1, 2]);
        assert_eq!(numbers_of(&seen, 2), [1, 2, 3]);
    });
}

#[test]
fn shared_mode_leaves_no_event_and_excludes_the_runner() {
    check(|| {
        let (runner, seen, processor) = start();
        let theirs = Arc::clone(&runner);
        let other = thread::spawn(move || theirs.run_or_push(&mut vec![look(), event(1, 1)]));
        runner.run_or_push(&mut vec![event(2, 1), look(), event(2, 2)]);
        other.join().unwrap();
        runner.queue.push(stop());
        processor.join().unwrap();
        assert_eq!(numbers_of(&seen, LOOKS), [0, 0]);
        assert_eq!(numbers_of(&seen, 1), [1]);
        assert_eq!(numbers_of(&seen, 2), [1, 2]);
    });
}

#[test]
fn an_event_pushed_in_shared_mode_is_run() {
    check(|| {
        let (runner, seen, processor) = start();
        let theirs = Arc::clone(&runner);
        let other = thread::spawn(move || theirs.run_or_push(&mut vec![look()]));
        runner.queue.push(event(2, 1));
        other.join().unwrap();
        runner.queue.push(stop());
        processor.join().unwrap();
        assert_eq!(numbers_of(&seen, LOOKS), [0]);
        assert_eq!(numbers_of(&seen, 2), [1]);
    });
}

#[test]
fn unfinished_work_of_a_run_is_run_by_any_runner() {
    check(|| {
        let (runner, seen, processor) = start();
        let theirs = Arc::clone(&runner);
        let other = thread::spawn(move || theirs.run_or_push(&mut vec![event(LEFT, 1)]));
        runner.run_or_push(&mut vec![look(), event(LEFT, 2)]);
        other.join().unwrap();
        runner.queue.push(stop());
        processor.join().unwrap();
        let mut left = numbers_of(&seen, LEFT);
        left.sort_unstable();
        assert_eq!(left, [1, 2], "Q2");
    });
}

#[test]
fn a_stop_that_another_thread_runs_still_ends_the_processors_thread() {
    check(|| {
        let (runner, seen, processor) = start();
        runner.run_or_push(&mut vec![event(1, 1), stop()]);
        processor.join().unwrap();
        assert_eq!(numbers_of(&seen, 1), [1]);
    });
}

/// Counts completed requests.
struct Counting(Mutex<u32>);

impl Sink for Counting {
    fn complete(&self, _: Arc<Request>) {
        *self.0.lock().unwrap() += 1;
    }

    fn kick(&self) {}
}

fn part(sink: &Arc<Counting>) -> Event {
    let sink = Arc::clone(sink) as Arc<dyn Sink>;
    let request = Arc::new(Request::new(Verb::Read, 0, 1, Buffer::empty(), sink));
    request.expect_parts(1);
    Event::Part(Part {
        request,
        view: 0,
        share: 0,
        local: LocalIndex(0),
        offset: 0,
        length: 1,
        rest: 0,
        at: 0,
        tried: 0,
        cold: false,
        since: 0,
    })
}

#[test]
fn requests_that_race_with_a_stop_are_still_answered() {
    check(|| {
        let (runner, _, processor) = start();
        let sink = Arc::new(Counting(Mutex::new(0)));
        let (theirs, their_sink) = (Arc::clone(&runner), Arc::clone(&sink));
        let other = thread::spawn(move || {
            theirs.run_or_push(&mut vec![part(&their_sink)]);
            theirs.queue.push(part(&their_sink));
        });
        runner.queue.push(stop());
        processor.join().unwrap();
        other.join().unwrap();
        assert_eq!(*sink.0.lock().unwrap(), 2, "Q4");
    });
}
