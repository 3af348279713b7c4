//! Keeps the work going that nobody calls: threads and tasks of which a panic would otherwise be the silent end.
//!
//! Invariant: a panic ends one turn of such work and not the work. It is counted and logged where it happens
//! ([`panics`](super::panics)); here the log is told what becomes of the work.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// The pause before work that has panicked begins again, at first.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest such pause: work that panics whenever it is tried costs little, and few lines in the log.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A turn that lasted so long before it panicked has nothing to do with the panic before it.
const LONG_TURN: Duration = Duration::from_mins(1);

/// Does `work`; nothing if it panics.
pub fn guard<T>(work: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work)).ok()
}

/// How long work pauses that panics again and again.
#[derive(Debug)]
pub struct Restarts {
    /// What the work is called in the log.
    name: &'static str,
    pause: Duration,
}

impl Restarts {
    /// For work called `name`, which has not panicked yet.
    #[must_use]
    pub fn of(name: &'static str) -> Self {
        Self {
            name,
            pause: FIRST_PAUSE,
        }
    }

    /// A turn ended as it should.
    pub fn succeeded(&mut self) {
        self.pause = FIRST_PAUSE;
    }

    /// A turn panicked: tells the log, and returns how long to wait before the next one.
    #[must_use]
    pub fn panicked(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (2 * pause).min(LONGEST_PAUSE);
        tracing::error!(
            work = self.name,
            seconds = pause.as_secs_f64(),
            "work in the background panicked, and begins again after a pause"
        );
        pause
    }
}

/// Does `work` on this thread until it returns, again after each panic. `wait` waits for so long, and says whether the
/// work is still wanted. Pauses grow while panics follow each other within a minute.
pub fn keep_running(name: &'static str, wait: impl FnMut(Duration) -> bool, work: impl FnMut()) {
    keep_running_by(Instant::now, name, wait, work);
}

/// The same, by the clock `now`.
fn keep_running_by(
    now: impl Fn() -> Instant,
    name: &'static str,
    mut wait: impl FnMut(Duration) -> bool,
    mut work: impl FnMut(),
) {
    let mut restarts = Restarts::of(name);
    loop {
        let began = now();
        if guard(&mut work).is_some() {
            return;
        }
        if now().saturating_duration_since(began) >= LONG_TURN {
            restarts.succeeded();
        }
        if !wait(restarts.panicked()) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn work_that_panics_begins_again_after_pauses_that_grow() {
        let (mut turns, mut pauses) = (0, Vec::new());
        keep_running(
            "test",
            |pause| {
                pauses.push(pause);
                true
            },
            || {
                turns += 1;
                assert!(turns > 9, "one of the first nine turns");
            },
        );
        assert_eq!(turns, 10);
        assert_eq!(pauses.first(), Some(&FIRST_PAUSE));
        assert_eq!(pauses.last(), Some(&LONGEST_PAUSE));
        assert!(pauses.is_sorted(), "{pauses:?}");
    }

    #[test]
    fn a_panic_long_after_the_one_before_is_followed_by_the_first_pause() {
        let start = Instant::now();
        let time = Cell::new(Duration::ZERO);
        let turns = [0, 0, 0, 59, 60, 0];
        let (mut next, mut pauses) = (turns.iter(), Vec::new());
        keep_running_by(
            || start + time.get(),
            "test",
            |pause| {
                time.set(time.get() + pause);
                pauses.push(pause.as_millis());
                true
            },
            || {
                if let Some(seconds) = next.next() {
                    time.set(time.get() + Duration::from_secs(*seconds));
                    panic!("after {seconds} s");
                }
            },
        );
        assert_eq!(pauses, [100, 200, 400, 800, 100, 200]);
    }

    #[test]
    fn work_that_is_no_longer_wanted_does_not_begin_again() {
        let mut turns = 0;
        keep_running(
            "test",
            |_| false,
            || {
                turns += 1;
                assert_eq!(turns, 0, "every turn panics");
            },
        );
        assert_eq!(turns, 1);
    }

    #[test]
    fn a_turn_that_succeeds_makes_the_next_pause_short_again() {
        let mut restarts = Restarts::of("test");
        assert!(restarts.panicked() < restarts.panicked());
        restarts.succeeded();
        assert_eq!(restarts.panicked(), FIRST_PAUSE);
    }
}
