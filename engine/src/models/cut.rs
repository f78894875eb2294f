//! The cut: two processors, and a host that issues B on one after A was acknowledged by the other. No snapshot has B
//! without A (C1 to C3). The cut and the queues are the real ones; a processor is reduced to its handling of writes.

use std::sync::Arc;
use std::sync::mpsc::channel;

use loom::thread;

use super::check_within;
use crate::processor::cut::{Cut, CutPart};
use crate::processor::messages::{Control, Event};
use crate::processor::queue::Queue;
use crate::processor::runner::{Handler, Mailbox, Runner};
use crate::sync::{Condvar, Mutex};
use crate::system::Task;
use crate::system::linux::Linux;

/// Needed to detect that writes are not held: another thread must run one processor at the stop, and at the go.
const PREEMPTIONS: usize = 3;

/// What a deliberate bug leaves out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Without {
    Nothing,
    /// Writes continue between a processor's arrival and its advance (C2).
    Holding,
    /// Each processor advances by itself (C1).
    Meeting,
}

/// The epochs of the two writes, by number; 0: not made yet.
#[derive(Default)]
struct Acknowledged {
    epochs: Mutex<[u64; 2]>,
    changed: Condvar,
}

/// A processor with only cuts and writes. It ends when it has advanced and its one write is done.
struct Half {
    acknowledged: Arc<Acknowledged>,
    without: Without,
    epoch: u64,
    stopping: bool,
    held: Option<usize>,
    written: bool,
}

impl Half {
    fn write(&mut self, number: usize) {
        if self.stopping && self.without != Without::Holding {
            self.held = Some(number);
        } else {
            self.acknowledged.epochs.lock().unwrap()[number] = self.epoch; // C3
            self.acknowledged.changed.notify_one();
            self.written = true;
        }
    }
}

impl Handler for Half {
    fn run_batch(&mut self, batch: &mut Vec<Event>, _: bool) {
        for event in batch.drain(..) {
            let Event::Control(control) = event else { unreachable!() };
            match *control {
                Control::CheckpointDone(number, ..) => self.write(number as usize),
                Control::CutStop(cut, _) => {
                    self.stopping = true;
                    cut.arrive();
                }
                Control::CutGo(cut) => {
                    self.epoch += 1;
                    self.stopping = false;
                    if let Some(number) = self.held.take() {
                        self.write(number);
                    }
                    cut.resumed(CutPart { processor: 0, stall_ns: 0, partitions: Vec::new() });
                }
                Control::Stop => {} // wakes its thread, which sees that it has stopped
                _ => unreachable!(),
            }
        }
    }

    fn stopped(&self) -> bool {
        self.written && self.epoch == 2
    }
}

fn control(control: Control) -> Event {
    Event::Control(Box::new(control))
}

fn start(without: Without, acknowledged: &Arc<Acknowledged>) -> Arc<Runner<Half>> {
    let (acknowledged, epoch) = (Arc::clone(acknowledged), 1);
    let (stopping, held, written) = (false, None, false);
    let half = Half { acknowledged, without, epoch, stopping, held, written };
    Arc::new(Runner::new(Arc::new(Queue::default()), half))
}

fn model(without: Without) {
    check_within(PREEMPTIONS, move || {
        let acknowledged = Arc::new(Acknowledged::default());
        let runners = [start(without, &acknowledged), start(without, &acknowledged)];
        let threads = runners.clone().map(|runner| thread::spawn(move || runner.run()));
        let all: Vec<_> =
            runners.iter().map(|runner| Arc::clone(runner) as Arc<dyn Mailbox>).collect();
        let shared = Arc::clone(&acknowledged);
        let host = thread::spawn(move || {
            let [first, second] = &runners;
            first.queue.push(control(Control::CheckpointDone(0, Ok(0), 0)));
            let mut epochs = shared.epochs.lock().unwrap();
            while epochs[0] == 0 {
                epochs = shared.changed.wait(epochs).unwrap();
            }
            drop(epochs);
            second.queue.push(control(Control::CheckpointDone(1, Ok(0), 0)));
        });
        // This thread makes the cut: another one would add more orders to try.
        let cut = |runners| Arc::new(Cut::new(Arc::new(Linux), runners, channel().0));
        let cuts = match without {
            Without::Meeting => all.iter().map(|one| cut(vec![Arc::clone(one)])).collect(),
            _ => vec![cut(all.clone()); 2],
        };
        for (runner, cut) in all.iter().zip(cuts) {
            runner.take(control(Control::CutStop(cut, Vec::new())));
        }
        all.iter().for_each(|runner| runner.run_if_idle());
        host.join().unwrap();
        for thread in threads {
            thread.join().unwrap();
        }
        let [a, b] = *acknowledged.epochs.lock().unwrap();
        assert!(a <= b, "the snapshot has B without A");
    });
}

#[test]
fn no_snapshot_has_an_effect_without_its_cause() {
    model(Without::Nothing);
}

#[test]
#[should_panic(expected = "B without A")]
fn a_cut_that_does_not_hold_writes_is_detected() {
    model(Without::Holding);
}

#[test]
#[should_panic(expected = "B without A")]
fn a_cut_that_each_processor_makes_alone_is_detected() {
    model(Without::Meeting);
}
