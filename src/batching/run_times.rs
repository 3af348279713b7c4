//! How long an execution takes: learnt from those that were made, by their rows.
//!
//! Invariant: what is learnt can be unlearnt. One slow run is taken for an accident, a quick one is believed at once, a
//! size that is not executed any more is forgotten, and what the estimate rules out is tried again now and then.

use std::time::{Duration, Instant};

use super::numbers::to_f64;

/// Sizes are told apart by powers of two: a run of 5 to 8 rows teaches what a run of 5 to 8 rows takes.
const SIZES: usize = 24;

/// The shares of the newest run in the mean and in the mean deviation: those of TCP's retransmission timer (RFC 6298),
/// which has the same question to answer.
const MEAN_SHARE: f64 = 1.0 / 8.0;
const DEVIATION_SHARE: f64 = 1.0 / 4.0;

/// So many mean deviations around the mean lie nine of ten runs at least, unless their times are very uneven: two of
/// them are 1.6 standard deviations where times scatter normally.
const DEVIATIONS: f64 = 2.0;

/// A run that takes so many times longer than expected is an accident, or the first of many.
const FAR_OFF: f64 = 4.0;

/// A size that was not executed for so long is forgotten as soon as another one is.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(10);

/// How long nothing that is ruled out is tried, at first.
const FIRST_PROBE: Duration = Duration::from_secs(1);

/// Probes take one part in so many of an instance's time at most.
const PROBE_SHARE: f64 = 20.0;

/// How a run ended, as far as its time says something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RunEnd {
    /// With outputs.
    Completed,
    /// Early: it would have taken at least as long as it took.
    CutShort,
}

/// What runs of about one size took.
#[derive(Debug, Clone, Copy)]
struct Size {
    /// The means of rows and seconds lie on one line, so that sizes in between can be told.
    rows: f64,
    seconds: f64,
    deviation: f64,
    /// Whether the last run took far longer than expected, and was taken for an accident.
    far_off: bool,
    measured_at: Instant,
}

/// An expectation in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Expected {
    pub(super) mean: f64,
    pub(super) deviation: f64,
}

impl Expected {
    /// Few runs take longer.
    pub(super) fn at_most(self) -> f64 {
        self.mean + DEVIATIONS * self.deviation
    }

    /// The same for the last of so many runs before it, and itself: what differs partly evens out.
    pub(super) fn at_most_after(self, runs: f64) -> f64 {
        self.mean + DEVIATIONS * self.deviation * (1.0 + runs).sqrt()
    }

    /// Few runs are shorter.
    fn at_least(self) -> f64 {
        self.mean - DEVIATIONS * self.deviation
    }
}

/// The times of executions by their size.
#[derive(Debug)]
pub(super) struct RunTimes {
    sizes: [Option<Size>; SIZES],
    /// A bit for each size that is known.
    known: u32,
    /// Nothing that is ruled out is tried before.
    next_probe: Option<Instant>,
    probe_interval: Duration,
}

impl Default for RunTimes {
    fn default() -> Self {
        Self {
            sizes: [None; SIZES],
            known: 0,
            next_probe: None,
            probe_interval: FIRST_PROBE,
        }
    }
}

impl RunTimes {
    /// Whether nothing was executed yet.
    pub(super) fn is_empty(&self) -> bool {
        self.known == 0
    }

    /// Takes note of a run of `rows` rows that took `elapsed` and ended at `now`.
    pub(super) fn record(&mut self, rows: usize, elapsed: Duration, end: RunEnd, now: Instant) {
        let expected = self.expected(rows);
        let (rows, index) = (to_f64(rows.max(1)), index(rows));
        let seconds = elapsed.as_secs_f64();
        if end == RunEnd::CutShort && seconds < expected.mean {
            return;
        }
        self.forget_others(index, now);
        let Some(slot) = self.sizes.get_mut(index) else {
            return;
        };
        let off = (seconds - expected.mean).abs();
        // Of one run that nothing foretold it is not known how others will differ: it rules nothing out.
        let unknown = seconds / DEVIATIONS;
        let mut first = Size {
            rows,
            seconds,
            deviation: unknown,
            far_off: false,
            measured_at: now,
        };
        let Some(size) = slot else {
            if self.known != 0 {
                first.deviation = off.max(expected.deviation).min(unknown);
            }
            *slot = Some(first);
            self.known |= 1 << index;
            return;
        };
        let slower = seconds > FAR_OFF * expected.mean;
        // Noise makes runs longer and never shorter, and two accidents in a row are none.
        if (slower && size.far_off) || seconds * FAR_OFF < expected.mean {
            *size = first;
            self.probe_interval = FIRST_PROBE;
            self.next_probe = None;
            return;
        }
        let counted = seconds.min(FAR_OFF * expected.mean);
        let off = (counted - expected.mean).abs();
        size.deviation += DEVIATION_SHARE * (off - size.deviation);
        size.seconds += MEAN_SHARE * (counted - size.seconds);
        size.rows += MEAN_SHARE * (rows - size.rows);
        size.far_off = slower;
        size.measured_at = now;
    }

    fn forget_others(&mut self, kept: usize, now: Instant) {
        for (index, slot) in self.sizes.iter_mut().enumerate() {
            let old = slot.is_some_and(|size| {
                let age = now.saturating_duration_since(size.measured_at);
                age > FORGOTTEN_AFTER && age.as_secs_f64() > PROBE_SHARE * size.seconds
            });
            if old && index != kept {
                *slot = None;
                self.known &= !(1 << index);
            }
        }
    }

    /// What a run of `rows` rows is expected to take; nothing while nothing is known.
    ///
    /// Below the smallest size that is known a run costs as much as that. Beyond the largest one rows cost what they
    /// did from the smallest to the largest, or, while only one is known, what one of its rows costs: a batch grows
    /// step by step until its time is known.
    pub(super) fn expected(&self, rows: usize) -> Expected {
        let rows_f64 = to_f64(rows);
        let mut expected = match self.around(rows) {
            (None, None) => Expected::default(),
            (Some(below), None) => {
                let each = below.seconds / below.rows;
                let each = self.smallest().map_or(each, |smallest| {
                    let wider = below.rows - smallest.rows;
                    if wider > 0.0 {
                        ((below.seconds - smallest.seconds) / wider).clamp(0.0, each)
                    } else {
                        each
                    }
                });
                let longer = below.seconds + each * (rows_f64 - below.rows);
                below.times(longer / below.seconds.max(f64::MIN_POSITIVE))
            }
            (None, Some(above)) => above.times(1.0),
            (Some(below), Some(above)) => between(below, above, rows_f64),
        };
        // Few rows that ran once are less sure than many that ran often, but they do not take longer.
        for larger in self.larger(index(rows)) {
            let room = larger.times(1.0).at_most() - expected.mean;
            expected.deviation = expected.deviation.min((room / DEVIATIONS).max(0.0));
        }
        expected
    }

    /// The sizes that are known above the one with this index.
    fn larger(&self, index: usize) -> impl Iterator<Item = Size> {
        let mut left = self.known & !((2 << index) - 1);
        std::iter::from_fn(move || {
            let next = (left != 0).then(|| left.trailing_zeros())?;
            left &= left - 1;
            self.sizes.get(next as usize).copied().flatten()
        })
    }

    fn smallest(&self) -> Option<Size> {
        self.sizes
            .get(self.known.trailing_zeros() as usize)
            .copied()
            .flatten()
    }

    /// What it takes at least, as far as is known: more rows may cost nothing, and fewer may cost so much less.
    fn least(&self, rows: usize) -> Expected {
        let rows_f64 = to_f64(rows);
        match self.around(rows) {
            (None, None) => Expected::default(),
            (Some(below), None) => below.times(1.0),
            (None, Some(above)) => above.times(rows_f64 / above.rows),
            (Some(below), Some(above)) => between(below, above, rows_f64),
        }
    }

    /// The seconds that a run of `rows` rows takes at least; time for less is no time at all.
    pub(super) fn shortest(&self, rows: usize) -> f64 {
        self.least(rows).at_least()
    }

    /// Whether a run of `rows` rows that is ruled out may be tried at `now`, because the estimate could be wrong. What
    /// runs of that size teach anyway needs no trial.
    pub(super) fn probe_is_due(&self, rows: usize, now: Instant) -> bool {
        let is_fresh = self
            .sizes
            .get(index(rows))
            .copied()
            .flatten()
            .is_some_and(|size| now.saturating_duration_since(size.measured_at) < FIRST_PROBE);
        !is_fresh && self.next_probe.is_none_or(|due| due <= now)
    }

    /// Takes note that a run of `rows` rows starts at `now` although it is ruled out. The next may follow the later the
    /// more often the estimate was right.
    pub(super) fn note_probe(&mut self, rows: usize, now: Instant) {
        let mean = self.expected(rows).mean;
        let longest = seconds(PROBE_SHARE * mean).max(FIRST_PROBE);
        let interval = self.probe_interval.min(longest).max(seconds(mean));
        self.next_probe = Some(now + interval);
        self.probe_interval = (2 * interval).min(longest);
    }

    /// The nearest sizes that are known, with `rows` between them.
    fn around(&self, rows: usize) -> (Option<Size>, Option<Size>) {
        let index = index(rows);
        let get = |index: u32| self.sizes.get(index as usize).copied().flatten();
        let below = self.known & ((1 << index) - 1);
        let above = self.known & !((2 << index) - 1);
        let mut nearest_below = below.checked_ilog2().and_then(get);
        let mut nearest_above = (above != 0).then(|| above.trailing_zeros()).and_then(get);
        if let Some(same) = self.sizes.get(index).copied().flatten() {
            if same.rows <= to_f64(rows) {
                nearest_below = Some(same);
            } else {
                nearest_above = Some(same);
            }
        }
        (nearest_below, nearest_above)
    }
}

impl Size {
    fn times(self, factor: f64) -> Expected {
        Expected {
            mean: self.seconds * factor,
            deviation: self.deviation * factor,
        }
    }
}

/// On the line between two sizes.
fn between(below: Size, above: Size, rows: f64) -> Expected {
    let width = (above.rows - below.rows).max(f64::MIN_POSITIVE);
    let share = ((rows - below.rows) / width).clamp(0.0, 1.0);
    Expected {
        mean: below.seconds + share * (above.seconds - below.seconds),
        deviation: below.deviation + share * (above.deviation - below.deviation),
    }
}

/// The size to which `rows` rows count.
fn index(rows: usize) -> usize {
    let bits = usize::BITS - rows.saturating_sub(1).leading_zeros();
    (bits as usize).min(SIZES - 1)
}

/// Longer than any deadline, and short enough to be added to any instant.
const A_YEAR: f64 = 3e7;

/// A duration of so many seconds, of a year at most.
pub(super) fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.clamp(0.0, A_YEAR)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: f64 = 1e-3;

    struct Learning {
        times: RunTimes,
        now: Instant,
    }

    impl Learning {
        fn new() -> Self {
            Self {
                times: RunTimes::default(),
                now: Instant::now(),
            }
        }

        fn record(&mut self, rows: usize, ms: f64, end: RunEnd) {
            self.now += seconds(ms * MS);
            self.times.record(rows, seconds(ms * MS), end, self.now);
        }

        fn runs(&mut self, count: usize, rows: usize, ms: f64) {
            for _ in 0..count {
                self.record(rows, ms, RunEnd::Completed);
            }
        }

        fn mean(&self, rows: usize) -> f64 {
            self.times.expected(rows).mean / MS
        }

        fn rules_out(&self, rows: usize, ms: f64) -> bool {
            self.times.shortest(rows) > ms * MS
        }
    }

    #[track_caller]
    fn close(value: f64, expected: f64) {
        assert!(
            (value - expected).abs() <= 0.02 * expected,
            "{value} is not {expected}"
        );
    }

    #[test]
    fn nothing_is_known_at_first_and_one_run_rules_nothing_out() {
        let mut learning = Learning::new();
        assert!(learning.times.is_empty());
        assert!(!learning.rules_out(1, 0.0));
        learning.runs(1, 1, 10.0);
        close(learning.mean(1), 10.0);
        assert!(!learning.rules_out(1, 1.0));
        learning.runs(20, 1, 10.0);
        assert!(learning.rules_out(1, 9.0));
        assert!(!learning.rules_out(1, 10.1));
    }

    #[test]
    fn each_size_has_a_time_of_its_own_and_those_between_lie_between() {
        type Cost = fn(f64) -> f64;
        for cost in [
            (|_| 10.0) as Cost,
            |rows| 10.0 * rows,
            |rows| 9.0 + rows,
            |rows| rows * rows,
        ] {
            let mut learning = Learning::new();
            for rows in [1, 8, 32] {
                learning.runs(1, rows, cost(to_f64(rows)));
            }
            for rows in [1, 8, 32] {
                close(learning.mean(rows), cost(to_f64(rows)));
            }
            let (low, high) = (cost(8.0), cost(32.0));
            close(learning.mean(20), f64::midpoint(low, high));
        }
    }

    #[test]
    fn more_rows_than_were_tried_cost_what_the_tried_ones_did() {
        // One size is known: what it costs by row. With two: what the rows between them cost.
        for (known, rows, expected) in [
            (&[(1, 10.0)][..], 32, 320.0),
            (&[(4, 10.0)], 32, 80.0),
            (&[(1, 10.0), (2, 10.0)], 32, 10.0),
            (&[(1, 10.0), (8, 17.0)], 32, 41.0),
            (&[(1, 10.0), (8, 80.0)], 32, 320.0),
            // Not less than the largest one, nor more than by row.
            (&[(1, 20.0), (8, 10.0)], 32, 10.0),
            (&[(1, 1.0), (2, 10.0)], 32, 160.0),
            // Fewer rows cost no more.
            (&[(8, 80.0)], 1, 80.0),
        ] {
            let mut learning = Learning::new();
            for (rows, ms) in known {
                learning.runs(1, *rows, *ms);
            }
            close(learning.mean(rows), expected);
        }
    }

    #[test]
    fn a_size_that_was_never_tried_is_ruled_out_by_smaller_ones_only() {
        let mut learning = Learning::new();
        learning.runs(20, 1, 10.0);
        // 32 rows may take no longer than one.
        assert!(learning.rules_out(32, 9.0));
        assert!(!learning.rules_out(32, 11.0));
        let mut learning = Learning::new();
        learning.runs(20, 32, 320.0);
        assert!(learning.rules_out(1, 9.0));
        assert!(!learning.rules_out(1, 11.0));
    }

    #[test]
    fn the_expectation_is_as_wide_as_the_times_are_uneven() {
        let mut learning = Learning::new();
        for _ in 0..50 {
            learning.runs(1, 1, 8.0);
            learning.runs(1, 1, 12.0);
        }
        let expected = learning.times.expected(1);
        assert!((9.5..10.5).contains(&(expected.mean / MS)), "{expected:?}");
        assert!((13.0..16.0).contains(&(expected.at_most() / MS)));
        assert!(!learning.rules_out(1, 8.0));
        let mut learning = Learning::new();
        learning.runs(50, 1, 10.0);
        close(learning.times.expected(1).at_most() / MS, 10.0);
    }

    #[test]
    fn what_is_sure_of_many_rows_is_sure_of_fewer() {
        let mut learning = Learning::new();
        learning.runs(1, 1, 10.0);
        close(learning.times.expected(1).at_most() / MS, 20.0);
        learning.runs(50, 8, 11.0);
        close(learning.mean(1), 10.0);
        close(learning.times.expected(1).at_most() / MS, 11.0);
    }

    #[test]
    fn one_slow_run_is_an_accident_and_two_are_none() {
        let mut learning = Learning::new();
        learning.runs(50, 1, 10.0);
        learning.runs(1, 1, 60_000.0);
        assert!(learning.mean(1) < 14.0);
        learning.runs(10, 1, 10.0);
        assert!(learning.mean(1) < 12.0);
        learning.runs(2, 1, 60_000.0);
        close(learning.mean(1), 60_000.0);
        assert!(!learning.rules_out(1, 1.0), "it may have been an hour's");
        learning.runs(10, 1, 60_000.0);
        assert!(learning.rules_out(1, 30_000.0));
    }

    #[test]
    fn a_quick_run_is_believed_at_once() {
        let mut learning = Learning::new();
        learning.runs(20, 1, 60_000.0);
        learning.runs(1, 1, 10.0);
        close(learning.mean(1), 10.0);
        assert!(!learning.rules_out(1, 1.0));
    }

    #[test]
    fn runs_that_were_cut_short_teach_that_it_takes_longer_and_never_that_it_takes_less() {
        let mut learning = Learning::new();
        learning.record(1, 500.0, RunEnd::CutShort);
        close(learning.mean(1), 500.0);
        learning.record(1, 0.1, RunEnd::CutShort);
        close(learning.mean(1), 500.0);
        for _ in 0..20 {
            learning.record(1, 1000.0, RunEnd::CutShort);
        }
        assert!(learning.mean(1) > 900.0);
    }

    #[test]
    fn a_size_that_is_not_executed_any_more_is_forgotten() {
        let mut learning = Learning::new();
        learning.runs(20, 32, 500.0);
        learning.runs(1, 1, 10.0);
        learning.runs(1, 2, 10.0);
        close(learning.mean(32), 500.0);
        learning.now += Duration::from_secs(11);
        learning.runs(1, 2, 10.0);
        close(learning.mean(32), 160.0);
        // Where nothing else is executed, what was known stays.
        learning.now += Duration::from_secs(3600);
        close(learning.mean(2), 10.0);
        assert!(!learning.times.is_empty());
    }

    #[test]
    fn what_is_ruled_out_is_tried_when_nothing_fresh_is_known_and_ever_more_rarely() {
        let mut learning = Learning::new();
        learning.runs(20, 1, 100.0);
        assert!(!learning.times.probe_is_due(1, learning.now));
        let mut waits = Vec::new();
        for _ in 0..4 {
            let before = learning.now;
            while !learning.times.probe_is_due(1, learning.now) {
                learning.now += Duration::from_millis(100);
            }
            waits.push((learning.now - before).as_secs());
            learning.times.note_probe(1, learning.now);
            learning.runs(1, 1, 100.0);
        }
        // A twentieth of an instance's time at most: of 100 ms, two seconds.
        assert_eq!(waits, [1, 1, 1, 1]);
        let mut learning = Learning::new();
        learning.runs(20, 1, 1000.0);
        let mut waits = Vec::new();
        for _ in 0..7 {
            let before = learning.now;
            while !learning.times.probe_is_due(1, learning.now) {
                learning.now += Duration::from_millis(100);
            }
            waits.push((learning.now - before).as_secs());
            learning.times.note_probe(1, learning.now);
        }
        assert_eq!(waits, [1, 1, 2, 4, 8, 16, 20]);
        learning.runs(1, 1, 10.0);
        learning.now += Duration::from_secs(1);
        assert!(learning.times.probe_is_due(1, learning.now));
    }

    #[test]
    fn any_number_of_rows_has_a_time() {
        let mut learning = Learning::new();
        learning.runs(3, 0, 10.0);
        for rows in [0, 1, 2, 3, 1 << 20, 1 << 40, usize::MAX] {
            learning.runs(3, rows, 10.0);
            let expected = learning.times.expected(rows);
            assert!(expected.mean.is_finite() && expected.at_most().is_finite());
            let _ = Instant::now() + seconds(expected.at_most());
        }
        let _ = Instant::now() + seconds(f64::MAX);
        assert_eq!(seconds(f64::NAN), Duration::ZERO);
    }
}
