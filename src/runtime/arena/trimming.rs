//! When an arena gives free memory back: a pure function of what it was seen to hold.
//!
//! Invariant: what was seen in use lately is kept. It is looked at now and then, so that short runs may go unseen, and
//! fetch their memory anew once it was given back.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::usage::Usage;

/// What was in use within this time counts as needed.
const WINDOW: Duration = Duration::from_secs(4);

/// Free memory beyond what is needed that is not worth giving back.
const SLACK: usize = 16 << 20;

/// What was seen lately.
#[derive(Debug, Default)]
pub(super) struct Trimming {
    /// Bytes in use, and when they were seen, the oldest first.
    seen: VecDeque<(Instant, usize)>,
}

impl Trimming {
    /// Takes note of `usage` at `now`, and says whether free memory is to be given back.
    pub(super) fn observe(&mut self, usage: Usage, now: Instant) -> bool {
        self.seen.push_back((now, usage.used));
        let is_old = |(at, _): &(Instant, usize)| now.saturating_duration_since(*at) > WINDOW;
        let mut whole = false;
        // The newest of the old ones stays, so that the window is covered to its beginning.
        while self.seen.get(1).is_some_and(is_old) {
            self.seen.pop_front();
        }
        if self.seen.front().is_some_and(is_old) {
            whole = true;
        }
        let needed = self.seen.iter().map(|(_, used)| *used).max();
        let kept = needed.unwrap_or(0).saturating_add(SLACK);
        let trim = whole && usage.taken > kept;
        if trim {
            // What is taken from now on is watched for a whole window again.
            self.seen.clear();
        }
        trim
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    /// Looks every quarter of a second at what is used and taken, in MiB; says at which looks memory is given back.
    fn looks(usages: impl IntoIterator<Item = (usize, usize)>) -> Vec<usize> {
        let (start, mut trimming) = (Instant::now(), Trimming::default());
        let mut given_back = Vec::new();
        for (number, (used, taken)) in (0_u32..).zip(usages) {
            let usage = Usage {
                used: used * MIB,
                taken: taken * MIB,
            };
            if trimming.observe(usage, start + Duration::from_millis(250) * number) {
                given_back.push(number as usize);
            }
        }
        given_back
    }

    #[test]
    fn what_nobody_needs_for_a_while_is_given_back() {
        let after_a_large_run =
            std::iter::once((400, 400)).chain(std::iter::repeat_n((0, 400), 30));
        assert_eq!(looks(after_a_large_run), [18]);
    }

    #[test]
    fn what_is_used_now_and_then_is_kept() {
        let now_and_then = (0..200).map(|look| (if look % 10 == 0 { 300 } else { 0 }, 310));
        assert_eq!(looks(now_and_then), [0; 0]);
    }

    #[test]
    fn a_little_free_memory_is_not_worth_it() {
        assert_eq!(looks(std::iter::repeat_n((0, 16), 100)), [0; 0]);
    }

    #[test]
    fn what_cannot_be_given_back_is_not_tried_at_every_look() {
        assert_eq!(looks(std::iter::repeat_n((0, 400), 60)), [17, 35, 53]);
    }

    #[test]
    fn memory_beyond_what_is_needed_goes_while_requests_go_on() {
        let mixed = std::iter::once((400, 400)).chain(std::iter::repeat_n((20, 400), 30));
        assert_eq!(looks(mixed), [18]);
    }
}
