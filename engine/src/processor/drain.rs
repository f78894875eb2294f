//! Drain: removes shares, or rolls them back to a snapshot, as soon as nothing of them is in flight. The wait is
//! bounded, because requests in flight may never end.

use std::sync::mpsc::Sender;

use crate::error::Errno;
use crate::processor::messages::Event;
use crate::processor::run::Processor;
use crate::processor::share::Share;

impl Processor {
    /// Rolls back the idle ones of the shares that are to be rolled back.
    pub(super) fn roll_back(&mut self) {
        for (number, rollback, since, answer) in std::mem::take(&mut self.rolling_back) {
            let idle = self.with_share(number, |share, _| share.idle());
            if idle == Some(false) && self.ticks.is_over(since) {
                let _ = answer.send(Err(Errno::EIO)); // the caller may wait no longer
                continue;
            }
            if idle == Some(false) {
                self.rolling_back.push((number, rollback, since, answer));
                continue;
            }
            let done = self.with_share(number, |share, _| share.roll_back(rollback));
            let _ = answer.send(done.unwrap_or(Err(Errno::ESHUTDOWN))); // the caller may wait no longer
        }
    }

    /// Returns the idle ones of the shares that leave.
    pub(super) fn return_idle_shares(&mut self) {
        let Processor { shares, leaving, .. } = self;
        let before = leaving.len();
        leaving.retain(|(number, _, answer)| {
            let idle = shares[*number as usize].take_if(|share| share.idle());
            // The caller may wait no longer: then the share ends here.
            let Some(share) = idle else { return true };
            let _ = answer.as_ref().map(|answer| answer.send(share));
            false
        });
        if leaving.len() != before {
            self.count_partitions();
        }
    }

    /// Ends waits that have lasted too long.
    pub(super) fn tick(&mut self) {
        let (shares, mut context) = self.split();
        for share in shares.iter_mut().flatten() {
            share.tick(&mut context);
        }
        let looks = self.look();
        self.stats().published.publish(self.ticks.now(), looks);
        let ticks = &self.ticks;
        // The answer is dropped, so the caller sees that the share is not closed; the share leaves when it is idle.
        for (_, since, answer) in &mut self.leaving {
            if answer.is_some() && ticks.is_over(*since) {
                *answer = None;
            }
        }
    }

    /// Begins to remove a share, and refuses its parts: another share may get its number soon (RU2).
    pub(super) fn remove(&mut self, number: u32, answer: Sender<Box<Share>>) {
        if self.with_share(number, |share, context| share.refuse_parts(context)).is_some() {
            self.leaving.push((number, self.ticks.now(), Some(answer)));
        }
        for part in self.later.take_if(|part| part.share == number) {
            self.apply(Event::Part(part));
        }
    }
}
