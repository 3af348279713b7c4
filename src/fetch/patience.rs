//! When to try again, and when to give up: a pure function of what happened and of the time.
//!
//! Invariant: whoever sends something new is waited for; whoever sends nothing new is given up after a fixed time.

use std::time::{Duration, Instant};

/// The first pause after a failure; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// The longest pause that we choose ourselves.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What is left of the willingness to wait.
#[derive(Debug, Clone)]
pub(super) struct Patience {
    limit: Duration,
    /// When something new came last.
    since: Instant,
    /// Failures since then.
    failures: u32,
    /// The most bytes that were ever there.
    furthest: u64,
}

impl Patience {
    /// Gives up when nothing new came for `limit`.
    pub(super) fn new(limit: Duration, now: Instant) -> Self {
        Self {
            limit,
            since: now,
            failures: 0,
            furthest: 0,
        }
    }

    /// `length` bytes of the file are there. Only what was never there before is new: a server that always breaks off at
    /// the same place and cannot resume would otherwise be asked for ever.
    pub(super) fn has(&mut self, length: u64, now: Instant) {
        if length > self.furthest {
            self.furthest = length;
            self.since = now;
            self.failures = 0;
        }
    }

    /// An attempt failed. Says how long to pause before the next one, or that there is to be none. `asked` is what the
    /// server asks for, `chance` a number from 0 to 1 that keeps many clients from coming back in the same moment.
    pub(super) fn failed(
        &mut self,
        now: Instant,
        asked: Option<Duration>,
        chance: f64,
    ) -> Option<Duration> {
        let doubled = FIRST_PAUSE.saturating_mul(1 << self.failures.min(16));
        let own = doubled
            .min(LONGEST_PAUSE)
            .mul_f64(0.5 + 0.5 * chance.clamp(0.0, 1.0));
        self.failures += 1;
        let pause = own.max(asked.unwrap_or_default());
        let waited = now.saturating_duration_since(self.since);
        (waited + pause < self.limit).then_some(pause)
    }

    /// How long nothing may come before a connection is given up: short enough to try another one.
    pub(super) fn idle(limit: Duration) -> Duration {
        (limit / 3).clamp(Duration::from_millis(100), Duration::from_secs(30))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn pauses_grow_until_the_time_is_over() {
        let start = Instant::now();
        let mut patience = Patience::new(60 * SECOND, start);
        let mut now = start;
        let mut pauses = Vec::new();
        while let Some(pause) = patience.failed(now, None, 1.0) {
            pauses.push(pause.as_millis());
            now += pause;
        }
        assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 16000]);
    }

    #[test]
    fn what_is_new_renews_it_and_what_was_there_before_does_not() {
        let start = Instant::now();
        let mut patience = Patience::new(10 * SECOND, start);
        patience.has(100, start + 9 * SECOND);
        assert_eq!(
            patience.failed(start + 18 * SECOND, None, 0.0),
            Some(SECOND / 4)
        );
        patience.has(100, start + 18 * SECOND);
        patience.has(7, start + 18 * SECOND);
        assert_eq!(patience.failed(start + 20 * SECOND, None, 0.0), None);
    }

    #[test]
    fn a_server_that_asks_for_a_pause_gets_it_within_the_limit() {
        let start = Instant::now();
        let mut patience = Patience::new(10 * SECOND, start);
        assert_eq!(
            patience.failed(start, Some(7 * SECOND), 1.0),
            Some(7 * SECOND)
        );
        assert_eq!(patience.failed(start, Some(11 * SECOND), 1.0), None);
    }
}
