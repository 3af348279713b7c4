//! How long a new request would wait: an estimate from the executions of late.
//!
//! Invariant: the estimate is only ever a reason to refuse while something waits; an empty queue admits everybody.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The share that the newest execution has in the average; about the last ten count.
const WEIGHT: f64 = 0.2;

/// Moving averages of the time that one execution takes, and of its rows.
#[derive(Debug, Default)]
pub(super) struct LoadEstimate {
    seconds: Average,
    rows: Average,
}

/// The bits of an `f64`; zero until something was executed.
#[derive(Debug, Default)]
struct Average(AtomicU64);

impl Average {
    fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }

    /// Concurrent notes may overwrite each other, which an average forgives.
    fn record(&self, value: f64) {
        let average = self.get();
        let next = if average == 0.0 {
            value
        } else {
            average + WEIGHT * (value - average)
        };
        self.0.store(next.to_bits(), Ordering::Relaxed);
    }
}

impl LoadEstimate {
    /// Takes note of an execution of `rows` rows.
    pub(super) fn record(&self, duration: Duration, rows: usize) {
        self.seconds.record(duration.as_secs_f64());
        self.rows.record(super::instance::to_f64(rows));
    }

    /// The wait behind `rows` rows when `instances` execute up to `merge_rows` rows at a time, or more where single
    /// requests have more.
    pub(super) fn wait_behind(&self, rows: usize, merge_rows: usize, instances: usize) -> Duration {
        let together = super::instance::to_f64(merge_rows.max(1)).max(self.rows.get());
        let executions = (super::instance::to_f64(rows) / together).ceil();
        let seconds = self.seconds.get() * executions / super::instance::to_f64(instances.max(1));
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_is_the_executions_ahead_shared_by_the_instances() {
        let load = LoadEstimate::default();
        assert_eq!(load.wait_behind(1000, 8, 1), Duration::ZERO);
        load.record(Duration::from_millis(20), 8);
        assert_eq!(load.wait_behind(0, 8, 1), Duration::ZERO);
        assert_eq!(load.wait_behind(80, 8, 1).as_millis(), 200);
        assert_eq!(load.wait_behind(80, 8, 2).as_millis(), 100);
    }

    #[test]
    fn large_requests_are_executions_of_their_own_size() {
        let load = LoadEstimate::default();
        load.record(Duration::from_millis(32), 32);
        // Two such requests are two executions, although nothing is merged.
        assert_eq!(load.wait_behind(64, 1, 1).as_millis(), 64);
    }

    #[test]
    fn the_average_follows_a_change() {
        let load = LoadEstimate::default();
        load.record(Duration::from_millis(10), 1);
        for _ in 0..50 {
            load.record(Duration::from_millis(100), 1);
        }
        let wait = load.wait_behind(1, 1, 1);
        assert!(
            wait > Duration::from_millis(99) && wait <= Duration::from_millis(100),
            "{wait:?}"
        );
    }
}
