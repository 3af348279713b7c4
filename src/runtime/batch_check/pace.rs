//! How long and how large the trial may get: pure arithmetic on the runs so far.
//!
//! Invariant: what is not needed for a verdict is run only if the runs so far let it be expected to end in time.

use std::time::Duration;

/// The time after which nothing more is tried that a verdict does not need. It is about what choosing settings may take.
const TIME: Duration = Duration::from_secs(2);

/// The same for larger executions in which a row seems to cost less than half of what it costs alone: those are worth more.
const WORTH: Duration = Duration::from_secs(6);

/// The time up to which a second and a third kind of rows are begun, because a verdict rests better on several.
const KINDS: Duration = Duration::from_secs(3);

/// The time that a verdict may take. A model that is slower is not tried.
const LONGEST: Duration = Duration::from_secs(6);

/// The bytes that the inputs and outputs of a large execution may have.
const LARGE: usize = 64 << 20;

/// Tells how much time has passed.
pub(super) type Clock<'a> = &'a dyn Fn() -> Duration;

/// The runs so far, and what they say about those to come.
pub(super) struct Pace<'a> {
    clock: Clock<'a>,
    /// The shortest run of each number of rows, ascending.
    shortest: Vec<(usize, Duration)>,
    bytes_per_row: usize,
}

impl<'a> Pace<'a> {
    pub(super) fn new(clock: Clock<'a>) -> Self {
        Self {
            clock,
            shortest: Vec::new(),
            bytes_per_row: 0,
        }
    }

    pub(super) fn now(&self) -> Duration {
        (self.clock)()
    }

    /// Takes note of a run of `rows` rows that took `time`, and had inputs and outputs of `bytes`.
    pub(super) fn note(&mut self, rows: usize, time: Duration, bytes: usize) {
        self.bytes_per_row = self.bytes_per_row.max(bytes / rows.max(1));
        match self.shortest.binary_search_by_key(&rows, |(rows, _)| *rows) {
            Ok(place) => {
                if let Some((_, shortest)) = self.shortest.get_mut(place) {
                    *shortest = time.min(*shortest);
                }
            }
            Err(place) => self.shortest.insert(place, (rows, time)),
        }
    }

    /// How long a run of `rows` rows will take: on the line through the smallest and the largest executions so far, or
    /// as many times as long as the only one has rows.
    pub(super) fn expected(&self, rows: usize) -> Duration {
        let number = |rows: usize| u32::try_from(rows).unwrap_or(u32::MAX);
        match (self.shortest.first(), self.shortest.last()) {
            (Some((few, short)), Some((many, long))) if few < many => {
                let per_row = long.saturating_sub(*short) / number(many - few);
                let beyond = per_row.saturating_mul(number(rows.saturating_sub(*few)));
                short.saturating_add(beyond)
            }
            (Some((few, short)), _) => short.saturating_mul(number(rows.div_ceil(*few))),
            _ => Duration::ZERO,
        }
    }

    fn would_end(&self, runs: usize, rows: usize) -> Duration {
        let runs = u32::try_from(runs).unwrap_or(u32::MAX);
        self.now()
            .saturating_add(self.expected(rows).saturating_mul(runs))
    }

    /// Whether there is time for `runs` of `rows` rows that a verdict does not need.
    pub(super) fn has_time_for(&self, runs: usize, rows: usize) -> bool {
        self.would_end(runs, rows) <= TIME
    }

    /// Whether there is time for `runs` of `rows` rows of another kind.
    pub(super) fn has_time_for_kind(&self, runs: usize, rows: usize) -> bool {
        self.would_end(runs, rows) <= KINDS
    }

    /// Whether there is time for `runs` of more rows than were executed before.
    pub(super) fn has_time_for_more(&self, runs: usize, rows: usize) -> bool {
        let number = u32::try_from(rows).unwrap_or(u32::MAX);
        let apart = self.expected(1).saturating_mul(number);
        let pays = self.expected(rows).saturating_mul(2) < apart;
        self.would_end(runs, rows) <= if pays { WORTH } else { TIME }
    }

    /// Whether there is time for `runs` of `rows` rows without which there is no verdict.
    pub(super) fn can_afford(&self, runs: usize, rows: usize) -> bool {
        self.would_end(runs, rows) <= LONGEST
    }

    /// Whether an execution of `rows` rows is of a size that may be tried.
    pub(super) fn is_small(&self, rows: usize) -> bool {
        self.bytes_per_row.saturating_mul(rows) <= LARGE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_line_through_what_was_run_tells_how_long_more_rows_take() {
        let clock = || Duration::ZERO;
        let mut pace = Pace::new(&clock);
        assert_eq!(pace.expected(32), Duration::ZERO);
        pace.note(1, millis(150), 0);
        pace.note(1, millis(100), 0);
        assert_eq!(pace.expected(3), millis(300));
        // The weights are read once, whatever the number of rows.
        pace.note(3, millis(110), 0);
        assert_eq!(pace.expected(32), millis(255));
        // A disturbed first run makes larger ones seem to cost nothing, which they do not less than that.
        pace.note(8, millis(90), 0);
        assert_eq!(pace.expected(32), millis(100));
    }

    #[test]
    fn larger_executions_may_take_longer_where_they_seem_to_pay() {
        let clock = || millis(1500);
        let mut pace = Pace::new(&clock);
        pace.note(1, millis(500), 0);
        assert!(!pace.has_time_for_more(3, 8));
        pace.note(2, millis(900), 0);
        assert!(!pace.has_time_for_more(3, 8));
        pace.note(2, millis(510), 0);
        assert!(pace.has_time_for_more(3, 32));
        assert!(!pace.has_time_for_more(3, 200));
    }

    #[test]
    fn what_is_not_needed_ends_sooner_than_what_is() {
        let clock = || millis(1500);
        let mut pace = Pace::new(&clock);
        pace.note(1, millis(100), 1 << 20);
        assert!(pace.has_time_for(5, 1));
        assert!(!pace.has_time_for(2, 3));
        assert!(pace.has_time_for_kind(5, 3));
        assert!(!pace.has_time_for_kind(6, 3));
        assert!(pace.can_afford(3, 15));
        assert!(!pace.can_afford(3, 16));
        assert!(pace.is_small(64));
        assert!(!pace.is_small(65));
    }
}
