//! Inspect: what the engine's threads are at and what waits for them, for who looks for what is stuck.
//!
//! How it works      Each processor is asked by its queue, all at the same time, and none is waited for longer than
//!                   [`ANSWER`]. Of one that does not answer there is what others can see of it: see
//!                   [`crate::processor::inspect`]. Pools and flushers have locks that nobody holds for long.
//! Owner and locks   the engine's, each for a look-up.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::engine::Engine;
use crate::processor::flusher::FlusherLook;
use crate::processor::inspect::{QueueLook, ShareLook};
use crate::processor::messages::{Control, Event};
use crate::processor::queue::Queue;
use crate::processor::run::{Handle, ProcessorStats};
use crate::system::pool::PoolLook;
use crate::system::ticks::Tick;
use crate::system::wait;
use crate::volume::Volume;

/// How long processors have to answer.
const ANSWER: Duration = Duration::from_millis(500);
/// What a processor that does not answer has published may be older than what it runs now by so much, ticks: it
/// publishes at each tick.
const PUBLISHED_BEFORE: Tick = 4;

/// One processor.
pub struct ProcessorLook {
    /// Its queue, and who runs it, from before it was asked.
    pub queue: QueueLook,
    /// What it serves, or has served last, and for which share.
    pub doing: (&'static str, Option<u32>),
    /// It has answered in time.
    pub answered: bool,
    /// Its shares, and when they were so; `None`: it does not answer, and has published nothing lately.
    pub shares: Option<(Tick, Vec<ShareLook>)>,
}

/// A volume's name and its number among shares, and what waits for its sync.
pub struct VolumeLook {
    /// The volume.
    pub volume: Arc<Volume>,
    /// Its flusher.
    pub flusher: FlusherLook,
}

/// A processor that was asked.
struct Asked {
    queue: Arc<Queue>,
    stats: Arc<ProcessorStats>,
    answer: Receiver<Vec<ShareLook>>,
    before: QueueLook,
    doing: (&'static str, Option<u32>),
}

impl Asked {
    fn of(handle: &Handle) -> Asked {
        let (queue, stats) = (Arc::clone(&handle.runner.queue), Arc::clone(&handle.stats));
        let (before, doing) = (queue.look(), stats.doing.get());
        let (sender, answer) = channel();
        // One that has not answered the last one has that still in its queue.
        if !before.asked {
            queue.push(Event::Control(Box::new(Control::Inspect(sender))));
        }
        Asked { queue, stats, answer, before, doing }
    }
}

impl Engine {
    /// What its processors are at. Takes half a second at most.
    pub fn inspect_processors(&self) -> Vec<ProcessorLook> {
        let until = Instant::now() + ANSWER;
        let handles = self.processors.lock().expect("no holder panics");
        let asked: Vec<Asked> = handles.iter().map(Asked::of).collect();
        drop(handles);
        asked.into_iter().map(|asked| self.answer_of(asked, until)).collect()
    }

    fn answer_of(&self, asked: Asked, until: Instant) -> ProcessorLook {
        let Asked { queue, stats, answer, before, doing } = asked;
        let answer = if self.system.threaded() {
            answer.recv_timeout(until.saturating_duration_since(Instant::now())).ok()
        } else {
            wait(&*self.system, &answer).ok()
        };
        if let Some(shares) = answer {
            let shares = Some((self.ticks.now(), shares));
            return ProcessorLook { queue: before, doing, answered: true, shares };
        }
        let now = queue.look();
        let shares = stats.published.since(now.since.saturating_sub(PUBLISHED_BEFORE));
        ProcessorLook { queue: now, doing: stats.doing.get(), answered: false, shares }
    }

    /// All volumes, and what waits for their syncs.
    pub fn inspect_volumes(&self) -> Vec<VolumeLook> {
        let volumes: Vec<Arc<Volume>> =
            self.volumes.lock().expect("no holder panics").values().cloned().collect();
        let look = |volume: Arc<Volume>| VolumeLook { flusher: volume.flusher.look(), volume };
        volumes.into_iter().map(look).collect()
    }

    /// The pools, by name.
    pub fn inspect_pools(&self) -> [(&'static str, PoolLook); 2] {
        [("io", self.pool.look()), ("checkpoint", self.checkpoints.look())]
    }

    /// Whether a cut is being made.
    pub fn is_cutting(&self) -> bool {
        self.cutting.try_lock().is_err()
    }
}
