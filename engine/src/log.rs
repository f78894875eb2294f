//! Log: what the engine has to say that is no answer and no [event](crate::events), for the daemon's log.
//!
//! How it works      A short queue of lines for the process. A thread of Python takes them out and logs them as its own,
//!                   so that they reach the journal with the daemon's fields; who adds one never waits for that, and
//!                   never takes the GIL. A line like the newest one is counted with it. When the queue is full, or
//!                   there have been [`CODE_LINES_MAX`] lines of one code in [`PERIOD`], lines are dropped, and their
//!                   number is reported: a client that connects again and again cannot fill the daemon's log.
//! Owner and locks   one lock over the queue, held for a push or a take.
//! Errors            None. It is for troubles and rare events: nothing on the I/O path adds a line for each request.

use std::collections::VecDeque;
use std::panic;
use std::sync::{Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};

use crate::units::{DeviceId, VolumeId};

/// More lines than so many are dropped.
pub const LINES_MAX: usize = 256;
/// More lines of one code than so many in one [`PERIOD`] are dropped.
pub const CODE_LINES_MAX: usize = 16;
/// See [`CODE_LINES_MAX`].
const PERIOD: Duration = Duration::from_secs(60);

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Something is broken: a defect.
    Error,
    /// Something has failed.
    Warning,
    /// Worth knowing.
    Info,
}

/// What is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// How bad it is.
    pub level: Level,
    /// What kind of line it is, such as 'no-thread': the same in all releases.
    pub code: &'static str,
    /// One sentence without a full stop.
    pub text: String,
    /// The volume that it is about.
    pub volume: Option<VolumeId>,
    /// The device that it is about.
    pub device: Option<DeviceId>,
    /// The system's error number; 0: there was none.
    pub errno: i32,
    /// How often it was said.
    pub times: u64,
}

impl Line {
    /// A line about nothing in particular.
    pub fn new(level: Level, code: &'static str, text: String) -> Line {
        Line { level, code, text, volume: None, device: None, errno: 0, times: 1 }
    }

    /// The same, about a volume.
    #[must_use]
    pub fn of_volume(self, volume: VolumeId) -> Line {
        Line { volume: Some(volume), ..self }
    }

    /// The same, about a device.
    #[must_use]
    pub fn of_device(self, device: DeviceId) -> Line {
        Line { device: Some(device), ..self }
    }

    /// The same, with an error number.
    #[must_use]
    pub fn with(self, errno: i32) -> Line {
        Line { errno, ..self }
    }
}

/// How many lines of a code were added since the beginning of its present period.
#[derive(Debug)]
struct Quota {
    code: &'static str,
    began: Instant,
    lines: usize,
}

#[derive(Debug)]
struct State {
    lines: VecDeque<Line>,
    /// One for each code that was ever used.
    quotas: Vec<Quota>,
    dropped: u64,
    /// How often readers were woken without a line.
    wakes: u64,
}

impl State {
    /// Counts one more line of a code; whether that is not too many.
    fn admits(&mut self, code: &'static str, now: Instant) -> bool {
        let Some(quota) = self.quotas.iter_mut().find(|quota| quota.code == code) else {
            self.quotas.push(Quota { code, began: now, lines: 1 });
            return true;
        };
        if now.saturating_duration_since(quota.began) >= PERIOD {
            (quota.began, quota.lines) = (now, 0);
        }
        quota.lines += 1;
        quota.lines <= CODE_LINES_MAX
    }
}

/// The queue.
#[derive(Debug)]
pub struct Log {
    state: Mutex<State>,
    wake: Condvar,
}

/// Lines of this process's engines.
pub static LOG: Log = Log::new();

/// Adds a line to [`LOG`].
pub fn log(line: Line) {
    LOG.add(line);
}

impl Log {
    const fn new() -> Log {
        let state = State { lines: VecDeque::new(), quotas: Vec::new(), dropped: 0, wakes: 0 };
        Log { state: Mutex::new(state), wake: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Panics are logged too, also one of a holder.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a line, unless there are too many.
    pub fn add(&self, line: Line) {
        self.add_at(line, Instant::now());
    }

    fn add_at(&self, line: Line, now: Instant) {
        let mut state = self.lock();
        if let Some(last) = state.lines.back_mut()
            && *last == (Line { times: last.times, ..line.clone() })
        {
            last.times += 1;
            return;
        }
        if state.lines.len() >= LINES_MAX || !state.admits(line.code, now) {
            state.dropped += 1;
            return;
        }
        state.lines.push_back(line);
        drop(state);
        self.wake.notify_one();
    }

    /// Takes out all lines, with how many were dropped since the last call; waits for one, at most so long.
    pub fn take(&self, timeout: Duration) -> (Vec<Line>, u64) {
        let end = Instant::now() + timeout;
        let mut state = self.lock();
        let wakes = state.wakes;
        while state.lines.is_empty() && state.wakes == wakes {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.wake.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        (state.lines.drain(..).collect(), std::mem::take(&mut state.dropped))
    }

    /// Has all calls of [`Log::take`] that wait return.
    pub fn wake(&self) {
        self.lock().wakes += 1;
        self.wake.notify_all();
    }
}

/// Has panics of the engine's threads logged too, beside what the system does with them.
pub fn log_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let thread = std::thread::current();
            let name = thread.name().unwrap_or("without a name").to_owned();
            log(Line::new(Level::Error, "panic", format!("thread {name}: {info}")));
            before(info);
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Line {
        Line::new(Level::Warning, "test", text.to_owned()).of_volume(3).with(5)
    }

    #[test]
    fn lines_come_out_in_order_and_those_that_are_repeated_are_counted() {
        let log = Log::new();
        ["a", "b", "b", "a"].into_iter().for_each(|text| log.add(line(text)));
        let (lines, dropped) = log.take(Duration::ZERO);
        let said: Vec<_> = lines.iter().map(|line| (line.text.as_str(), line.times)).collect();
        assert_eq!((said, dropped), (vec![("a", 1), ("b", 2), ("a", 1)], 0));
        assert_eq!(log.take(Duration::ZERO), (Vec::new(), 0));
    }

    #[test]
    fn a_full_log_drops_lines_and_says_how_many() {
        let log = Log::new();
        for number in 0..LINES_MAX + 7 {
            let code = [
                "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q",
            ][number / CODE_LINES_MAX];
            log.add(Line { code, ..line(&number.to_string()) });
        }
        let (lines, dropped) = log.take(Duration::ZERO);
        assert_eq!((lines.len(), dropped), (LINES_MAX, 7));
        log.add(line("after"));
        assert_eq!(log.take(Duration::ZERO).1, 0, "a drop is told once");
    }

    #[test]
    fn lines_of_one_code_are_limited_in_each_period_however_fast_they_are_taken() {
        let log = Log::new();
        let begin = Instant::now();
        let add = |text: &str, now| {
            log.add_at(line(text), now);
            let (lines, dropped) = log.take(Duration::ZERO);
            (lines.len(), dropped)
        };
        (0..CODE_LINES_MAX).for_each(|_| assert_eq!(add("flood", begin), (1, 0)));
        assert_eq!(add("flood", begin + PERIOD / 2), (0, 1));
        assert_eq!(add("flood", begin + PERIOD), (1, 0), "the next period");
        log.add(Line { code: "other", ..line("other") });
        assert_eq!(log.take(Duration::ZERO).0.len(), 1, "other codes are not affected");
    }

    #[test]
    fn a_reader_that_waits_is_woken_by_a_line_and_by_a_wake() {
        let log = std::sync::Arc::new(Log::new());
        let ours = std::sync::Arc::clone(&log);
        let reader = std::thread::spawn(move || ours.take(Duration::from_secs(60)).0.len());
        log.add(line("one"));
        assert_eq!(reader.join().unwrap(), 1);
        let ours = std::sync::Arc::clone(&log);
        let reader = std::thread::spawn(move || ours.take(Duration::from_secs(60)).0.len());
        while !reader.is_finished() {
            log.wake();
            std::thread::yield_now();
        }
        assert_eq!(reader.join().unwrap(), 0);
    }
}
