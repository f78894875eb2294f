//! Share cut: a share's part in a cut: it stops writes, advances, and answers when the old epoch's writes have ended.
//! The protocol and its proof are in [`crate::processor::cut`].

use std::sync::mpsc::Sender;

use crate::change_log::journal::Entry;
use crate::change_log::log_rules::LogRules;
use crate::error::Errno;
use crate::mutants::{Bug, bug};
use crate::processor::part::Part;
use crate::processor::share::{Context, Share};
use crate::system::ticks::Ticks;
use crate::units::Epoch;

impl Share {
    /// Stops the start of writes, for a cut.
    pub fn stop_writes(&mut self, context: &Context<'_>) {
        assert!(self.stopped_at.is_none(), "cuts are made one after the other");
        self.stopped_at = Some(context.system.monotonic_ns());
    }

    /// Holds a write until the cut was made (C2).
    pub(super) fn hold(&mut self, part: Part, context: &mut Context<'_>) {
        if bug(Bug::NoHold) {
            return self.start(part, context);
        }
        self.held.push(part);
    }

    /// Ends the epoch and starts the writes that were held; returns how long they were held, nanoseconds.
    pub fn advance(&mut self, rules: LogRules, instant_ns: u64, context: &mut Context<'_>) -> u64 {
        let ended = self.epoch;
        self.history.add_snapshot(ended);
        self.epoch = ended + 1;
        self.slots.begin_logs();
        self.add_snapshot_rules(ended, rules);
        let stopped_at = self.stopped_at.take().expect("C1: it stopped before it advances");
        let stall = context.system.monotonic_ns() - stopped_at;
        for part in std::mem::take(&mut self.held) {
            self.take_later(part, context);
        }
        self.unrecorded_cut = Some(instant_ns);
        let _ = self.record_cut(); // `settle` tries again
        stall
    }

    /// Appends the record of the last cut, if that was not possible before.
    fn record_cut(&mut self) -> Result<(), Errno> {
        if let Some(instant_ns) = self.unrecorded_cut {
            self.journal.append(Entry::cut(self.epoch - 1, instant_ns))?;
            self.unrecorded_cut = None;
        }
        Ok(())
    }

    /// Answers when no write of `epoch` or before is in flight: with an error if the journal cannot record that the
    /// epoch has ended, or if such a write was given up (U3), or if it takes too long.
    pub fn settle(
        &mut self,
        epoch: Epoch,
        answer: Sender<Result<(), Errno>>,
        context: &Context<'_>,
    ) {
        self.settling.push((epoch, context.ticks.now(), answer));
        self.answer_settled(context.ticks);
    }

    pub(super) fn answer_settled(&mut self, ticks: &Ticks) {
        if self.settling.is_empty() {
            return;
        }
        let recorded = self.record_cut();
        let all = &self.out;
        self.settling.retain(|(epoch, since, answer)| {
            let (out, given_up) = all.writes_until(*epoch);
            let waits = out && !bug(Bug::NoSettle) && !(given_up && bug(Bug::ForgetGivenUp));
            let never = waits && (given_up || ticks.is_over(*since));
            if !waits || never {
                // The caller may wait no longer.
                let _ = answer.send(if never { Err(Errno::EIO) } else { recorded });
            }
            waits && !never
        });
    }
}
