//! When a batch is ready and what belongs into it: a pure function of what waits and of `now`.
//!
//! Invariant: nothing here waits, locks or reads a clock, so every rule is tested without any of them.

use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::numbers::to_f64;

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

/// A request that waits with a delay is taken so much before it had to be: timers are late by up to a millisecond, and
/// a thread that sleeps is not awake at once.
const WAKE_UP: Duration = Duration::from_millis(3);

/// Leaving somebody out has to pay by so much.
const WORTH_LEAVING_OUT: f64 = 1.05;

impl BatchPolicy {
    /// The position of the request with which the next batch begins: the oldest one that a run of its own, which takes
    /// `run(rows)`, answers in time. Those before it are as good as lost, and would cost others their time; only if all
    /// are, the oldest is tried.
    pub fn leader(
        &self,
        waiting: impl Iterator<Item = (usize, Instant)>,
        now: Instant,
        run: impl Fn(usize) -> Duration,
    ) -> usize {
        // Neighbours mostly have as many rows.
        let (mut last_rows, mut last_end) = (0, now);
        waiting
            .enumerate()
            .find_map(|(position, (rows, deadline))| {
                if rows != last_rows {
                    (last_rows, last_end) = (rows, now + run(rows));
                }
                (last_end <= deadline).then_some(position)
            })
            .unwrap_or(0)
    }

    /// Decides about `waiting`, which is in the order of arrival, where a run takes `run(rows)`.
    ///
    /// The delay counts from the oldest request, and it ends early when the batch is full, when the server drains, or
    /// when waiting would cost a member its deadline. Who would not be answered in time is left out.
    pub fn next(
        &self,
        waiting: impl Iterator<Item = Waiting> + Clone,
        now: Instant,
        draining: bool,
        run: impl Fn(usize) -> Duration,
    ) -> NextBatch {
        let all = waiting.clone();
        let mut others = waiting;
        let Some(oldest) = others.next() else {
            return NextBatch::Empty;
        };
        let mut batch = Selection::of(oldest);
        let mut full = !self.merge || batch.rows >= self.merge_rows;
        for (position, request) in (1..).zip(others) {
            if full {
                break;
            }
            if !request.merges_with_oldest {
                continue;
            }
            if batch.rows + request.rows > self.merge_rows {
                // Smaller ones behind it are not let past, or a large request could wait for ever.
                full = true;
            } else {
                batch.add(position, request);
                full = batch.rows == self.merge_rows;
            }
        }
        let time = run(batch.rows);
        let latest = batch.deadline.checked_sub(time + WAKE_UP).unwrap_or(now);
        let release = (oldest.enqueued_at + self.max_queue_delay).min(latest);
        if !full && !draining && release > now {
            return NextBatch::WaitUntil(release);
        }
        if now + time > batch.deadline && batch.members.len() > 1 {
            batch = self.leave_out(&all, oldest, batch.rows, now, run);
        }
        NextBatch::Ready(batch.members)
    }

    /// The members of a batch where `rows` rows, as many as there could be, would be too late for some of them.
    ///
    /// A batch that is in time for all of its members is the choice as long as that costs nobody else the deadline.
    /// Under more load than can be served somebody will be late anyway: then it is the size that answers most rows in
    /// a second.
    fn leave_out(
        &self,
        waiting: &(impl Iterator<Item = Waiting> + Clone),
        oldest: Waiting,
        rows: usize,
        now: Instant,
        run: impl Fn(usize) -> Duration,
    ) -> Selection {
        let mergeable = || {
            (0..)
                .zip(waiting.clone())
                .filter(|(position, request)| *position == 0 || request.merges_with_oldest)
        };
        let mut gentle = Selection::of(oldest);
        for (position, request) in mergeable().skip(1) {
            if now + run(request.rows) > request.deadline {
                continue;
            }
            let rows = gentle.rows + request.rows;
            if rows > self.merge_rows || now + run(rows) > gentle.deadline.min(request.deadline) {
                break;
            }
            gentle.add(position, request);
        }
        let all: usize = waiting.clone().map(|request| request.rows).sum();
        let left = all - gentle.rows;
        let executions = u32::try_from(left.div_ceil(self.merge_rows.max(1))).unwrap_or(u32::MAX);
        let rest = run(left.min(self.merge_rows)).saturating_mul(executions);
        let all_done = now + run(gentle.rows) + rest;
        let mut members = gentle.members.iter().copied().peekable();
        let costs_nobody = (0..).zip(waiting.clone()).all(|(position, request)| {
            members.next_if_eq(&position).is_some()
                || request.deadline >= all_done
                || request.deadline < now + run(request.rows)
        });
        if costs_nobody {
            return gentle;
        }
        let rate = |batch: &Selection| to_f64(batch.rows) / run(batch.rows).as_secs_f64().max(1e-9);
        let mut best = gentle;
        let mut size = rows;
        while size > 0 {
            let end = now + run(size);
            let mut batch: Option<Selection> = None;
            for (position, request) in mergeable().filter(|(_, request)| request.deadline >= end) {
                match &mut batch {
                    None if request.rows <= size => {
                        batch = Some(Selection::at(position, request));
                    }
                    Some(batch) if batch.rows + request.rows <= size => {
                        batch.add(position, request);
                    }
                    _ => break,
                }
            }
            if let Some(batch) = batch.filter(|batch| rate(batch) > WORTH_LEAVING_OUT * rate(&best))
            {
                best = batch;
            }
            size /= 2;
        }
        best
    }
}

/// Requests that would be executed together.
#[derive(Debug)]
struct Selection {
    members: SmallVec<[usize; 16]>,
    rows: usize,
    /// The first deadline of a member.
    deadline: Instant,
}

impl Selection {
    /// The oldest request alone.
    fn of(oldest: Waiting) -> Self {
        Self::at(0, oldest)
    }

    fn at(position: usize, request: Waiting) -> Self {
        Self {
            members: SmallVec::from_slice(&[position]),
            rows: request.rows,
            deadline: request.deadline,
        }
    }

    fn add(&mut self, position: usize, request: Waiting) {
        self.members.push(position);
        self.rows += request.rows;
        self.deadline = self.deadline.min(request.deadline);
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
            self.policy
                .next(waiting, self.at(now_ms), false, |_| Duration::ZERO)
        }
    }

    impl Bench {
        /// Requests of `(rows, deadline at ms)` that may all be merged, at the start; a run takes `cost(rows)` ms.
        fn choose(&self, requests: &[(usize, u64)], cost: impl Fn(u64) -> u64) -> NextBatch {
            let waiting = requests.iter().map(|(rows, ms)| Waiting {
                rows: *rows,
                enqueued_at: self.start,
                deadline: self.at(*ms),
                merges_with_oldest: true,
            });
            self.policy.next(waiting, self.start, false, |rows| {
                Duration::from_millis(cost(rows as u64))
            })
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
        // Timers may be late.
        let wake_up = u64::try_from(WAKE_UP.as_millis()).unwrap();
        assert_eq!(
            bench.next(&[(1, 0, true)], 0),
            NextBatch::WaitUntil(bench.at(1000 - wake_up))
        );
        assert_eq!(bench.next(&[(1, 0, true)], 1000 - wake_up), ready(&[0]));
        // Nor that of any other member, its run included.
        assert_eq!(
            bench.choose(&[(1, 1000), (1, 500)], |rows| 10 * rows),
            NextBatch::WaitUntil(bench.at(500 - 20 - wake_up))
        );
    }

    #[test]
    fn a_batch_begins_with_the_oldest_that_can_be_answered_in_time() {
        let bench = Bench::new(8, 0);
        let leader = |requests: &[(usize, u64)]| {
            let waiting = requests.iter().map(|(rows, ms)| (*rows, bench.at(*ms)));
            bench.policy.leader(waiting, bench.start, |rows| {
                Duration::from_millis(10 * rows as u64)
            })
        };
        assert_eq!(leader(&[(1, 10), (1, 100)]), 0);
        assert_eq!(leader(&[(1, 9), (2, 19), (2, 20)]), 2);
        // None can: the oldest is tried.
        assert_eq!(leader(&[(1, 9), (1, 8)]), 0);
        assert_eq!(leader(&[]), 0);
    }

    #[test]
    fn nobody_is_executed_in_vain_for_the_sake_of_a_larger_batch() {
        let affine = |rows| 9 + rows;
        let linear = |rows| 10 * rows;
        for (name, requests, cost, expected) in [
            (
                "all are in time",
                &[(1, 12), (1, 12), (1, 12)][..],
                affine as fn(u64) -> u64,
                &[0, 1, 2][..],
            ),
            (
                "a small batch for the first, because the others have time",
                &[(1, 11), (1, 100), (1, 100)],
                affine,
                &[0, 1],
            ),
            (
                "one in the middle that would be late anyway holds up nobody",
                &[(1, 100), (1, 9), (1, 100)],
                affine,
                &[0, 2],
            ),
            (
                "the first is left out, because a small batch would cost seven others their deadlines",
                &[
                    (1, 10),
                    (1, 17),
                    (1, 17),
                    (1, 17),
                    (1, 17),
                    (1, 17),
                    (1, 17),
                    (1, 17),
                ],
                affine,
                &[1, 2, 3, 4, 5, 6, 7],
            ),
            (
                "where a batch saves nothing, the first is served",
                &[(1, 10), (1, 20), (1, 30), (1, 40)],
                linear,
                &[0],
            ),
        ] {
            let bench = Bench::new(8, 0);
            assert_eq!(bench.choose(requests, cost), ready(expected), "{name}");
        }
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
            bench
                .policy
                .next([waiting].into_iter(), bench.start, true, |_| Duration::ZERO),
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
