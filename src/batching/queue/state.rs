//! What waits in a queue and what its instances execute: who is taken, who is refused, and what is to be done next.
//!
//! Plain data, without a lock and without a clock: it is told what happens and when, and says what follows.
//! Invariant: the counts are those of the entries that wait, and every instant is a parameter.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::config::QueueConfig;
use super::pending::Pending;
use crate::batching::forecast;
use crate::batching::numbers::to_f64;
use crate::batching::policy::{NextBatch, Waiting};
use crate::batching::run_times::{RunEnd, RunTimes, seconds};

/// Why a request was not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushError {
    /// The rows that wait already are as many as may; they are gone after this time.
    Full(Duration),
    /// It would not be answered by its deadline, because what is before it begins only in this time.
    TooMuchAhead(Duration),
    /// Its own run takes longer than its deadline is away.
    TooShort,
    /// No more requests are taken.
    Closed,
}

/// What an idle instance finds.
#[derive(Debug)]
pub(in crate::batching) enum Look {
    Batch(Vec<Pending>),
    /// Nothing yet; at this instant at the latest there is.
    Until(Instant),
    Empty,
    /// Nothing, and nothing will come.
    Ended,
    /// Entries that need not be executed, to be refused without the lock; then look again.
    Pointless(Vec<Pending>),
}

/// The share that the newest execution has in the average of their rows; about the last ten count.
const ROWS_SHARE: f64 = 0.2;

/// A run in progress.
#[derive(Debug, Clone, Copy)]
struct Run {
    rows: usize,
    started_at: Instant,
}

/// What waits and what runs, without locks and clocks.
#[derive(Debug)]
pub(in crate::batching) struct QueueState {
    config: QueueConfig,
    entries: VecDeque<Pending>,
    /// The rows of all entries.
    rows: usize,
    /// What they count of the rows that may wait.
    counted: usize,
    /// Entries that share no execution, their rows, and what these count.
    alone: usize,
    alone_rows: usize,
    alone_counted: usize,
    closed: bool,
    /// What each instance executes.
    runs: Vec<Option<Run>>,
    times: RunTimes,
    /// Rows of the executions that requests share while more of them wait.
    shared_rows: f64,
    /// When each instance will be free; kept for its memory.
    free_in: Vec<f64>,
}

/// When a request that came now would be executed, in seconds.
struct Forecast {
    start: f64,
    end: f64,
}

impl QueueState {
    pub(in crate::batching) fn new(config: QueueConfig) -> Self {
        Self {
            config,
            entries: VecDeque::new(),
            rows: 0,
            counted: 0,
            alone: 0,
            alone_rows: 0,
            alone_counted: 0,
            closed: false,
            runs: vec![None; config.instances],
            times: RunTimes::default(),
            shared_rows: to_f64(config.policy.merge_rows.max(1)),
            free_in: Vec::with_capacity(config.instances),
        }
    }

    /// Queues `pending` at `now`, or says why not. What it finds to be pointless is added to `refused`.
    pub(in crate::batching) fn push(
        &mut self,
        pending: Pending,
        now: Instant,
        refused: &mut Vec<Pending>,
    ) -> Result<(), PushError> {
        let (rows, deadline) = (pending.request.rows(), pending.request.deadline());
        self.admits(rows, deadline, now, refused)?;
        self.count_in(rows);
        self.entries.push_back(pending);
        Ok(())
    }

    /// Whether a request of `rows` rows that comes at `now` is taken for `deadline`. What is found to be pointless is added
    /// to `refused`.
    pub(super) fn admits(
        &mut self,
        rows: usize,
        deadline: Instant,
        now: Instant,
        refused: &mut Vec<Pending>,
    ) -> Result<(), PushError> {
        if self.closed {
            return Err(PushError::Closed);
        }
        match self.admit(rows, deadline, now) {
            Err(PushError::Full(_) | PushError::TooMuchAhead(_)) => {
                // Clients that have left are not what anybody should be refused for.
                *refused = self.remove_pointless(now);
                self.admit(rows, deadline, now)
            }
            admitted => admitted,
        }
    }

    /// Whether a request of `rows` rows that comes at `now` can be answered by `deadline`.
    fn admit(&mut self, rows: usize, deadline: Instant, now: Instant) -> Result<(), PushError> {
        let counted = self.counted + self.config.counted(rows);
        if self.rows > 0 && counted > self.config.max_rows {
            return Err(PushError::Full(seconds(self.forecast(rows, now).start)));
        }
        let left = deadline.saturating_duration_since(now).as_secs_f64();
        let own = self.config.executed(rows);
        if self.config.shortest(&self.times, rows) > left && !self.times.probe_is_due(own, now) {
            return Err(PushError::TooShort);
        }
        if self.rows == 0 && self.runs.iter().any(Option::is_none) {
            return Ok(());
        }
        let Forecast { start, end } = self.forecast(rows, now);
        // Who would be executed at once is no burden to anybody; nor are those of whom nothing is known.
        if start > 0.0 && end > left {
            return Err(PushError::TooMuchAhead(seconds(start)));
        }
        Ok(())
    }

    /// When a request of `rows` rows that comes at `now` would be executed: after what runs, and after the executions
    /// that wait, which the instances share.
    fn forecast(&mut self, rows: usize, now: Instant) -> Forecast {
        if self.times.is_empty() {
            return Forecast {
                start: 0.0,
                end: 0.0,
            };
        }
        self.free_in.clear();
        for run in &self.runs {
            self.free_in.push(run.map_or(0.0, |run| {
                let elapsed = now.saturating_duration_since(run.started_at);
                forecast::residual(self.times.expected(run.rows), elapsed.as_secs_f64())
            }));
        }
        let (mut executions, mut ahead, mut own) = (0, 0.0, rows);
        if self.alone > 0 {
            executions = self.alone;
            // Who is no larger than a part waits for one of each at most, and has its turn then.
            let in_parts = self.config.counted(rows) < rows;
            let all = if in_parts {
                self.alone_rows
            } else {
                self.alone_counted
            };
            let each = self.padded(all.div_ceil(self.alone));
            ahead = to_f64(self.alone) * self.times.expected(each).mean;
        }
        let mut waiting = self.rows - self.alone_rows;
        if waiting > 0 {
            let together = whole(self.shared_rows);
            let each = self.times.expected(self.padded(together)).mean;
            let full = waiting / together;
            waiting %= together;
            executions += full;
            ahead += to_f64(full) * each;
            if self.is_alone(rows) || waiting + rows > together {
                let begun = usize::from(waiting > 0);
                executions += begun;
                ahead += to_f64(begun) * self.times.expected(self.padded(waiting)).mean;
            } else if full > 0 {
                // By the time that its turn comes, others will have filled its execution.
                own = together;
            } else {
                own += waiting;
            }
        }
        let each = ahead / to_f64(executions.max(1));
        let start = forecast::start(&mut self.free_in, executions, each);
        let own = self.times.expected(self.padded(own));
        // Those before it, and the one that runs, on the instance that will be its own.
        let before = 1.0 + to_f64(executions) / to_f64(self.runs.len().max(1));
        Forecast {
            start,
            end: start + own.at_most_after(before),
        }
    }

    fn padded(&self, rows: usize) -> usize {
        self.config.padded(rows)
    }

    /// Whether a request of `rows` rows shares no execution.
    fn is_alone(&self, rows: usize) -> bool {
        !self.config.policy.merge || rows >= self.config.policy.merge_rows
    }

    fn count_in(&mut self, rows: usize) {
        let counted = self.config.counted(rows);
        self.rows += rows;
        self.counted += counted;
        if self.is_alone(rows) {
            self.alone += 1;
            self.alone_rows += rows;
            self.alone_counted += counted;
        }
    }

    fn count_out(&mut self, rows: usize) {
        let counted = self.config.counted(rows);
        self.rows -= rows;
        self.counted -= counted;
        if self.is_alone(rows) {
            self.alone -= 1;
            self.alone_rows -= rows;
            self.alone_counted -= counted;
        }
    }

    /// Takes out every entry that nobody waits for at `now`, or will not any more when its run ends.
    fn remove_pointless(&mut self, now: Instant) -> Vec<Pending> {
        let (times, config) = (&self.times, self.config);
        // Neighbours mostly have as many rows.
        let (mut last_rows, mut shortest) = (0, 0.0);
        let mut is_pointless = |entry: &Pending| {
            if !entry.is_wanted(now) {
                return true;
            }
            let rows = entry.request.rows();
            if rows != last_rows {
                last_rows = rows;
                shortest = if times.probe_is_due(config.executed(rows), now) {
                    0.0
                } else {
                    config.shortest(times, rows)
                };
            }
            let left = entry.request.deadline().saturating_duration_since(now);
            left.as_secs_f64() < shortest
        };
        if !self.entries.iter().any(&mut is_pointless) {
            return Vec::new();
        }
        let (pointless, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.entries)
            .into_iter()
            .partition(is_pointless);
        self.entries = kept.into();
        for entry in &pointless {
            self.count_out(entry.request.rows());
        }
        pointless
    }

    /// Takes out the entries at `positions`, which ascend.
    fn take(&mut self, positions: &[usize], from: usize) -> Vec<Pending> {
        let mut taken = Vec::with_capacity(positions.len());
        for (removed, position) in positions.iter().enumerate() {
            // Every entry taken before shifts the rest forward by one.
            if let Some(entry) = self.entries.remove(from + position - removed) {
                self.count_out(entry.request.rows());
                taken.push(entry);
            }
        }
        taken
    }

    /// What an instance that is idle at `now` should do.
    pub(in crate::batching) fn look(&mut self, instance: usize, now: Instant) -> Look {
        if let Some(run) = self.runs.get_mut(instance) {
            *run = None;
        }
        let pointless = self.remove_pointless(now);
        if !pointless.is_empty() {
            return Look::Pointless(pointless);
        }
        let (decision, from) = self.decide(now);
        match decision {
            NextBatch::Ready(positions) => {
                let batch = self.take(&positions, from);
                let rows = batch.iter().map(|entry| entry.request.rows()).sum();
                self.note_start(instance, rows, now);
                Look::Batch(batch)
            }
            NextBatch::WaitUntil(instant) => Look::Until(instant),
            NextBatch::Empty if self.closed => Look::Ended,
            NextBatch::Empty => Look::Empty,
        }
    }

    /// The decision, and the entry from which its positions count.
    fn decide(&mut self, now: Instant) -> (NextBatch, usize) {
        if let Some(oldest) = self.entries.front() {
            let rows = oldest.request.rows();
            let left = oldest.request.deadline().saturating_duration_since(now);
            if left.as_secs_f64() < self.config.shortest(&self.times, rows) {
                // It is still here, so it is time to find out whether that is true.
                self.times.note_probe(self.config.executed(rows), now);
                return (NextBatch::Ready(smallvec::smallvec![0]), 0);
            }
        }
        let leader = if self.config.comparable {
            let deadlines = self
                .entries
                .iter()
                .map(|entry| (entry.request.rows(), entry.request.deadline()));
            let run = |rows| self.run(rows);
            self.config.policy.leader(deadlines, now, run)
        } else {
            0
        };
        let first = self.entries.get(leader);
        let waiting = self.entries.iter().skip(leader).map(|entry| Waiting {
            rows: entry.request.rows(),
            enqueued_at: entry.enqueued_at,
            deadline: entry.request.deadline(),
            merges_with_oldest: first
                .is_some_and(|first| first.request.merges_with(&entry.request)),
        });
        (self.choose(waiting, now), leader)
    }

    /// What few runs of `rows` rows take longer than.
    fn run(&self, rows: usize) -> Duration {
        seconds(self.times.expected(self.padded(rows)).at_most())
    }

    /// What the policy says about `waiting`.
    fn choose(&self, waiting: impl Iterator<Item = Waiting> + Clone, now: Instant) -> NextBatch {
        let policy = self.config.policy;
        let decision = policy.next(waiting.clone(), now, self.closed, |rows| self.run(rows));
        match decision {
            // What runs took is good enough to end a delay by it, but not to leave anybody out.
            NextBatch::Ready(_) if !self.config.comparable => {
                policy.next(waiting, now, true, |_| Duration::ZERO)
            }
            decision => decision,
        }
    }

    /// A batch of requests of at most `most` rows each, for an instance that has a larger one in hand; and what is found
    /// to be pointless.
    pub(super) fn look_beside(
        &mut self,
        instance: usize,
        most: usize,
        now: Instant,
    ) -> (Option<Vec<Pending>>, Vec<Pending>) {
        let pointless = self.remove_pointless(now);
        let small = || {
            let entries = self.entries.iter().enumerate();
            entries.filter(|(_, entry)| entry.request.rows() <= most)
        };
        let first = small().next();
        let waiting = small().map(|(_, entry)| Waiting {
            rows: entry.request.rows(),
            enqueued_at: entry.enqueued_at,
            deadline: entry.request.deadline(),
            merges_with_oldest: first
                .is_some_and(|(_, first)| first.request.merges_with(&entry.request)),
        });
        let NextBatch::Ready(chosen) = self.choose(waiting, now) else {
            return (None, pointless);
        };
        // The policy counts the small ones only.
        let places = small().map(|(place, _)| place).enumerate();
        let chosen: Vec<usize> = places
            .filter(|(number, _)| chosen.contains(number))
            .map(|(_, place)| place)
            .collect();
        let batch = self.take(&chosen, 0);
        let rows = batch.iter().map(|entry| entry.request.rows()).sum();
        self.note_start(instance, rows, now);
        (Some(batch), pointless)
    }

    /// Takes note that `instance` begins an execution of `rows` rows at `now`: of a part of a request, which says nothing
    /// about those that requests share.
    pub(super) fn note_part(&mut self, instance: usize, rows: usize, now: Instant) {
        let run = Run {
            rows: self.padded(rows),
            started_at: now,
        };
        if let Some(slot) = self.runs.get_mut(instance) {
            *slot = Some(run);
        }
    }

    /// The same of an execution of what waited.
    fn note_start(&mut self, instance: usize, rows: usize, now: Instant) {
        self.note_part(instance, rows, now);
        if !self.is_alone(rows) || rows == self.config.policy.merge_rows {
            let rows = to_f64(rows);
            if self.rows > self.alone_rows || rows > self.shared_rows {
                self.shared_rows += ROWS_SHARE * (rows - self.shared_rows);
            }
        }
    }

    /// Whether `rows` rows of a request can be executed from `now` to `deadline`, as far as is known.
    pub(super) fn can_finish(&self, rows: usize, deadline: Instant, now: Instant) -> bool {
        let left = deadline.saturating_duration_since(now);
        self.config.shortest(&self.times, rows) <= left.as_secs_f64()
    }

    /// Takes note of a run of `rows` rows.
    pub(in crate::batching) fn record(
        &mut self,
        rows: usize,
        elapsed: Duration,
        end: RunEnd,
        now: Instant,
    ) {
        self.times.record(self.padded(rows), elapsed, end, now);
    }

    /// Rows that wait: all of them, however many of them count.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether anything is known of what runs take.
    #[cfg(test)]
    pub(super) fn has_run_times(&self) -> bool {
        !self.times.is_empty()
    }

    /// How long a request of one row that came at `now` would wait for its execution.
    pub(super) fn predicted_wait(&mut self, now: Instant) -> Duration {
        seconds(self.forecast(1, now).start)
    }

    /// Takes no more requests; what waits is still handed out.
    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    /// Takes no more requests, and takes out everything that waits.
    pub(super) fn abandon(&mut self) -> VecDeque<Pending> {
        self.closed = true;
        self.rows = 0;
        self.counted = 0;
        self.alone = 0;
        self.alone_rows = 0;
        self.alone_counted = 0;
        std::mem::take(&mut self.entries)
    }
}

/// A number of rows that is an average.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "averages of row counts are positive and small"
)]
fn whole(rows: f64) -> usize {
    (rows.round() as usize).max(1)
}

#[cfg(test)]
mod tests;
