//! Cut: how all processors that own partitions of some volumes agree on one instant.
//!
//! How it works      The engine sends `CutStop` to each processor concerned. Each stops starting writes of the
//!                   volumes and arrives; reads continue. The last one to arrive sends `CutGo` to all; on it each
//!                   advances the epoch of its shares and starts the writes that it held. No thread is woken for it:
//!                   the sender of either message, and a thread that handles a stop, run the idle processors
//!                   themselves. If all cores are busy, a woken thread may wait for a core for milliseconds, and hosts
//!                   would wait with it.
//! Invariants        C1 no processor advances before all have arrived;
//!                   C2 between its arrival and its advance a processor starts no write of the volumes;
//!                   C3 a write takes its epoch from its share when it starts.
//! Why it is one instant   Let write A be acknowledged before its host issues B. A started, so by C2 and C3 either
//!                   before its processor arrived, in the old epoch, or after that processor's advance, in the new
//!                   one. If A is of the new epoch, then by C1 all had arrived before A started, so B, which
//!                   starts after A ended, starts after its own processor's arrival, and by C2 after its
//!                   advance: B is of the new epoch too. No snapshot has B without A.
//! Writes in flight  A write that was started before and has not ended belongs to the old epoch, wherever it is placed:
//!                   `Settle` waits for these, and until then the snapshot is not read.
//! A crash           leaves records with epochs and no snapshot in the catalog: recovery makes no frozen map for
//!                   it, so nothing of the cut remains.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use crate::processor::messages::{Control, Event};
use crate::processor::runner::Mailbox;
use crate::sync::{AtomicU64, AtomicUsize, Mutex, Ordering};
use crate::system::System;
use crate::units::ProcessorIndex;

/// One processor's part in a cut.
#[derive(Clone, Debug)]
pub struct CutPart {
    /// The processor.
    pub processor: ProcessorIndex,
    /// How long it held writes: nanoseconds from its stop to its start.
    pub stall_ns: u64,
    /// How many partitions it has cut, by the number of its volumes' shares.
    pub partitions: Vec<(u32, u32)>,
}

/// The result of a cut.
pub struct Report {
    /// The instant, nanoseconds since 1970.
    pub instant_ns: u64,
    /// What each processor has done.
    pub parts: Vec<CutPart>,
}

/// The state that the processors of one cut share.
pub struct Cut {
    system: Arc<dyn System>,
    out: AtomicUsize,
    runners: Vec<Arc<dyn Mailbox>>,
    /// When the last one arrived, nanoseconds since 1970.
    instant_ns: AtomicU64,
    report: Mutex<Vec<CutPart>>,
    done: Sender<Report>,
}

impl Cut {
    /// A cut of these processors; `done` gets the report when all have started again.
    pub fn new(
        system: Arc<dyn System>,
        runners: Vec<Arc<dyn Mailbox>>,
        done: Sender<Report>,
    ) -> Cut {
        Cut {
            system,
            out: AtomicUsize::new(runners.len()),
            runners,
            instant_ns: AtomicU64::new(0),
            report: Mutex::new(Vec::new()),
            done,
        }
    }

    /// Notes that the caller has stopped starting writes. The last one to arrive sends `CutGo` to all; the others run
    /// idle processors, so that all stop soon even if the thread that makes the cut is descheduled.
    pub fn arrive(self: &Arc<Self>) {
        if self.out.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.instant_ns.store(self.system.wall_ns(), Ordering::Release);
            self.send(|| Control::CutGo(Arc::clone(self)));
        } else {
            self.run_if_idle();
        }
    }

    /// Sends a control to all processors, and runs the idle ones.
    pub fn send(&self, mut control: impl FnMut() -> Control) {
        for runner in &self.runners {
            runner.take(Event::Control(Box::new(control())));
            self.system.yield_point();
        }
        self.run_if_idle();
    }

    fn run_if_idle(&self) {
        self.runners.iter().for_each(|runner| runner.run_if_idle());
    }

    /// The instant of the cut; final once any processor has advanced.
    pub fn instant_ns(&self) -> u64 {
        self.instant_ns.load(Ordering::Acquire)
    }

    /// Notes that the caller has advanced and starts writes again.
    pub fn resumed(&self, part: CutPart) {
        assert_eq!(self.out.load(Ordering::Acquire), 0, "C1");
        let mut report = self.report.lock().expect("no holder panics");
        report.push(part);
        if report.len() == self.runners.len() {
            // The caller may not wait any more; the cut was still made.
            let parts = std::mem::take(&mut *report);
            let _ = self.done.send(Report { instant_ns: self.instant_ns(), parts });
        }
    }
}
