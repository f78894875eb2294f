//! Relocate: the driver has shares relocate blocks, while hosts go on or not.

use std::sync::mpsc::channel;

use super::driver::{Result, Running, Simulation};
use super::shape::VOLUME;
use crate::processor::messages::{Control, Event};
use crate::processor::share::relocate::{Kind, Relocated, Scattered};
use crate::system::wait;

impl Simulation {
    /// Has a share relocate some blocks, several times; waits for each, or lets the last one be in flight.
    pub(super) fn relocate(&mut self, running: &Running) -> Result<()> {
        let Ok(volume) = running.engine.volume(VOLUME) else { return Ok(()) };
        let chosen = self.random.below(volume.shares.len() as u64) as usize;
        let mut away = false;
        for _ in 0..self.random.within(1, 20) {
            let kind = match self.random.below(4) {
                _ if std::mem::take(&mut away) => Kind::Home, // before it is durable
                0 | 1 => Kind::Home,
                choice => Kind::Away(Scattered { runs: 1, cold: choice == 3 }),
            };
            let blocks = self.random.within(1, 40) as u32;
            let (sender, receiver) = channel();
            let control = Control::Relocate(volume.share, kind, blocks, sender);
            volume.shares[chosen].queue.push(Event::Control(Box::new(control)));
            if self.random.below(3) == 0 {
                break;
            }
            let Ok(Relocated { blocks, at_end, .. }) = wait(&*running.engine.system, &receiver)
            else {
                break; // it has crashed
            };
            match kind {
                Kind::Home => self.counts.relocated += blocks,
                Kind::Away(_) => {
                    self.counts.relocated_away += blocks;
                    away = blocks > 0;
                }
            }
            if (at_end && self.random.below(3) > 0) || self.disk.lock().dead {
                break;
            }
        }
        self.host.settle();
        self.run_state().map(|_| ())
    }

    /// Has freed slots punched while other work continues.
    pub(super) fn give_back(&mut self, running: &Running) -> Result<()> {
        let Ok(volume) = running.engine.volume(VOLUME) else { return Ok(()) };
        for _ in 0..self.random.within(1, 6) {
            for share in &volume.shares {
                let control = Control::GiveBack(volume.share);
                share.queue.push(Event::Control(Box::new(control)));
            }
            for _ in 0..self.random.below(20) {
                running.system.turn();
            }
        }
        self.host.settle();
        self.run_state().map(|_| ())
    }
}
