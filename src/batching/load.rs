//! How long a new request would wait: an estimate from the executions of late.
//!
//! Invariant: the estimate is only ever a reason to refuse while something waits; an empty queue admits everybody.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The share that the newest execution has in the average; about the last ten count.
const WEIGHT: f64 = 0.2;

/// A moving average of the time that one execution takes.
#[derive(Debug, Default)]
pub(super) struct LoadEstimate {
    /// Seconds, as the bits of an `f64`; zero until something was executed.
    average: AtomicU64,
}

impl LoadEstimate {
    /// Takes note of an execution. Concurrent notes may overwrite each other, which an average forgives.
    pub(super) fn record(&self, duration: Duration) {
        let average = f64::from_bits(self.average.load(Ordering::Relaxed));
        let seconds = duration.as_secs_f64();
        let next = if average == 0.0 {
            seconds
        } else {
            average + WEIGHT * (seconds - average)
        };
        self.average.store(next.to_bits(), Ordering::Relaxed);
    }

    /// The wait behind `rows` rows when `instances` execute up to `max_batch_size` rows at a time.
    pub(super) fn wait_behind(
        &self,
        rows: usize,
        max_batch_size: usize,
        instances: usize,
    ) -> Duration {
        let executions = super::instance::to_f64(rows.div_ceil(max_batch_size.max(1)));
        let seconds = f64::from_bits(self.average.load(Ordering::Relaxed)) * executions
            / super::instance::to_f64(instances.max(1));
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
        load.record(Duration::from_millis(20));
        assert_eq!(load.wait_behind(0, 8, 1), Duration::ZERO);
        assert_eq!(load.wait_behind(80, 8, 1).as_millis(), 200);
        assert_eq!(load.wait_behind(80, 8, 2).as_millis(), 100);
    }

    #[test]
    fn the_average_follows_a_change() {
        let load = LoadEstimate::default();
        load.record(Duration::from_millis(10));
        for _ in 0..50 {
            load.record(Duration::from_millis(100));
        }
        let wait = load.wait_behind(1, 1, 1);
        assert!(
            wait > Duration::from_millis(99) && wait <= Duration::from_millis(100),
            "{wait:?}"
        );
    }
}
