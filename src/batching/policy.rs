//! When a batch is ready and what belongs into it: a pure function of what waits and of `now`.
//!
//! Invariant: nothing here waits, locks or reads a clock, so every rule is tested without any of them.

use std::time::{Duration, Instant};

use smallvec::SmallVec;

/// The rules by which requests are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchPolicy {
    /// Rows per execution of merged requests. A single one may have more, and is then executed by itself.
    pub merge_rows: usize,
    /// How long the oldest request may wait for company.
    pub max_queue_delay: Duration,
    /// Whether requests may be merged at all.
    pub merge: bool,
}

/// One waiting request, as the policy sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// Its rows.
    pub rows: usize,
    /// When it was queued.
    pub enqueued_at: Instant,
    /// When its client stops waiting.
    pub deadline: Instant,
    /// Whether its rows can stand beside the rows of the oldest request.
    pub merges_with_oldest: bool,
}

/// What an idle instance should do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NextBatch {
    /// Nothing waits.
    Empty,
    /// Look again when something is queued, and at this instant at the latest.
    WaitUntil(Instant),
    /// Execute the requests at these positions, which ascend and begin with the oldest.
    Ready(SmallVec<[usize; 16]>),
}

impl BatchPolicy {
    /// Decides about `waiting`, which is in the order of arrival.
    ///
    /// The delay counts from the oldest request, and it ends early when the batch is full, when the server drains, or
    /// when waiting would cost the oldest one its deadline.
    pub fn next(
        &self,
        waiting: impl Iterator<Item = Waiting>,
        now: Instant,
        draining: bool,
    ) -> NextBatch {
        let mut waiting = waiting.enumerate();
        let Some((_, oldest)) = waiting.next() else {
            return NextBatch::Empty;
        };
        let mut members: SmallVec<[usize; 16]> = SmallVec::from_slice(&[0]);
        let mut rows = oldest.rows;
        let mut full = !self.merge || rows >= self.merge_rows;
        while !full {
            let Some((position, request)) = waiting.next() else {
                break;
            };
            if !request.merges_with_oldest {
                continue;
            }
            if rows + request.rows > self.merge_rows {
                // Smaller ones behind it are not let past, or a large request could wait for ever.
                full = true;
            } else {
                members.push(position);
                rows += request.rows;
                full = rows == self.merge_rows;
            }
        }
        let release = (oldest.enqueued_at + self.max_queue_delay).min(oldest.deadline);
        if full || draining || release <= now {
            NextBatch::Ready(members)
        } else {
            NextBatch::WaitUntil(release)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bench {
        start: Instant,
        policy: BatchPolicy,
    }

    impl Bench {
        fn new(merge_rows: usize, delay_ms: u64) -> Self {
            let max_queue_delay = Duration::from_millis(delay_ms);
            Self {
                start: Instant::now(),
                policy: BatchPolicy {
                    merge_rows,
                    max_queue_delay,
                    merge: true,
                },
            }
        }

        fn at(&self, ms: u64) -> Instant {
            self.start + Duration::from_millis(ms)
        }

        /// Requests of `(rows, enqueued at ms, merges)`, all with a deadline at one second.
        fn next(&self, requests: &[(usize, u64, bool)], now_ms: u64) -> NextBatch {
            let waiting = requests.iter().map(|(rows, ms, merges)| Waiting {
                rows: *rows,
                enqueued_at: self.at(*ms),
                deadline: self.at(1000),
                merges_with_oldest: *merges,
            });
            self.policy.next(waiting, self.at(now_ms), false)
        }
    }

    fn ready(positions: &[usize]) -> NextBatch {
        NextBatch::Ready(SmallVec::from_slice(positions))
    }

    #[test]
    fn an_empty_queue_gives_nothing() {
        assert_eq!(Bench::new(8, 0).next(&[], 0), NextBatch::Empty);
    }

    #[test]
    fn without_a_delay_whatever_waits_is_taken_at_once() {
        let bench = Bench::new(8, 0);
        assert_eq!(bench.next(&[(1, 0, true)], 0), ready(&[0]));
        assert_eq!(
            bench.next(&[(1, 0, true), (3, 0, true), (2, 0, true)], 0),
            ready(&[0, 1, 2])
        );
    }

    #[test]
    fn the_delay_counts_from_the_oldest_request() {
        let bench = Bench::new(8, 10);
        assert_eq!(
            bench.next(&[(1, 0, true), (1, 9, true)], 9),
            NextBatch::WaitUntil(bench.at(10))
        );
        assert_eq!(
            bench.next(&[(1, 0, true), (1, 9, true)], 10),
            ready(&[0, 1])
        );
    }

    #[test]
    fn a_full_batch_does_not_wait() {
        let bench = Bench::new(4, 10);
        assert_eq!(
            bench.next(&[(2, 0, true), (2, 0, true), (1, 0, true)], 0),
            ready(&[0, 1])
        );
        assert_eq!(
            bench.next(&[(2, 0, true), (3, 0, true), (1, 0, true)], 0),
            ready(&[0])
        );
    }

    #[test]
    fn other_shapes_are_left_in_their_place() {
        let bench = Bench::new(8, 0);
        assert_eq!(
            bench.next(&[(1, 0, true), (1, 0, false), (1, 0, true)], 0),
            ready(&[0, 2])
        );
    }

    #[test]
    fn a_delay_never_costs_the_oldest_request_its_deadline() {
        let bench = Bench::new(8, 5_000);
        assert_eq!(
            bench.next(&[(1, 0, true)], 0),
            NextBatch::WaitUntil(bench.at(1000))
        );
        assert_eq!(bench.next(&[(1, 0, true)], 1000), ready(&[0]));
    }

    #[test]
    fn draining_ends_the_delay() {
        let bench = Bench::new(8, 1_000);
        let waiting = Waiting {
            rows: 1,
            enqueued_at: bench.start,
            deadline: bench.at(2000),
            merges_with_oldest: true,
        };
        assert_eq!(
            bench.policy.next([waiting].into_iter(), bench.start, true),
            ready(&[0])
        );
    }

    #[test]
    fn a_model_that_cannot_be_batched_executes_requests_one_by_one() {
        let mut bench = Bench::new(8, 1_000);
        bench.policy.merge = false;
        assert_eq!(bench.next(&[(1, 0, true), (1, 0, true)], 0), ready(&[0]));
        assert_eq!(bench.next(&[(64, 0, true)], 0), ready(&[0]));
    }
}
