//! Scarcity: the minimum of free slots since some time, which explains ENOSPC.
//!
//! How it works      Each thread samples the number in its turn. Only samples that are lower than all later ones are
//!                   stored.

use std::collections::VecDeque;

/// See the module's head.
#[derive(Debug, Default)]
pub struct Scarcity {
    /// Times and free slots, both ascending.
    seen: VecDeque<(u64, u64)>,
}

impl Scarcity {
    /// Adds a sample: `free` slots at `time`.
    pub fn sample(&mut self, time: u64, free: u64) {
        while self.seen.back().is_some_and(|(_, seen)| *seen >= free) {
            self.seen.pop_back();
        }
        self.seen.push_back((time, free));
    }

    /// The minimum since `time`.
    pub fn fewest_since(&self, time: u64) -> u64 {
        let at = self.seen.partition_point(|(seen_at, _)| *seen_at < time);
        self.seen.get(at).map_or(u64::MAX, |(_, free)| *free)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fewest_since_a_time() {
        let mut scarcity = Scarcity::default();
        for (time, free) in [(1, 5), (2, 3), (3, 9), (4, 7), (5, 8)] {
            scarcity.sample(time, free);
        }
        let fewest: Vec<u64> = (0..7).map(|time| scarcity.fewest_since(time)).collect();
        assert_eq!(fewest, [3, 3, 3, 7, 7, 8, u64::MAX]);
    }
}
