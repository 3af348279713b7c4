//! The bounded queue between the edge and the instances: a mutex and a condition variable around pure state.
//!
//! Invariant: what waits is bounded in rows, and an entry whose client has left or whose deadline cannot be met any more
//! is never handed to an instance; but for a probe now and then, because the estimate of what can be met may be wrong.

use std::collections::VecDeque;
use std::pin::pin;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::{Notify, oneshot};

use super::forecast;
use super::instance::to_f64;
use super::policy::{BatchPolicy, NextBatch, Waiting};
use super::request::{InferenceRequest, InferenceResponse, ScheduleError};
use super::run_times::{RunEnd, RunTimes, seconds};
use crate::runtime::buckets::Buckets;

/// One request in the queue, with the way back to its client.
#[derive(Debug)]
pub struct Pending {
    /// What is to be computed.
    pub request: InferenceRequest,
    /// Where the answer goes; closed when the client has left.
    pub respond: oneshot::Sender<Result<InferenceResponse, ScheduleError>>,
    /// When it was queued.
    pub enqueued_at: Instant,
}

impl Pending {
    /// Sends the answer. A client that left meanwhile is nobody's error.
    pub fn answer(self, result: Result<InferenceResponse, ScheduleError>) {
        // The memory is given back first, because whoever has the answer may send the next request at once.
        drop(self.request);
        let _ = self.respond.send(result);
    }

    /// Whether somebody still waits for the answer at `now`.
    #[must_use]
    pub fn is_wanted(&self, now: Instant) -> bool {
        !self.respond.is_closed() && self.request.deadline() > now
    }
}

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

/// What is fixed about a queue.
#[derive(Debug, Clone, Copy)]
pub struct QueueConfig {
    /// The rules by which requests are merged.
    pub policy: BatchPolicy,
    /// Rows that may wait, where a request counts as many as are executed at once.
    pub max_rows: usize,
    /// The most rows of an execution, where requests with more are executed in parts.
    pub part_rows: Option<usize>,
    /// Who executes what waits.
    pub instances: usize,
    /// The sizes to which executions are padded, if they are.
    pub buckets: Option<Buckets>,
    /// Whether runs of as many rows take about as long. Where they do not, because requests choose other sizes or the
    /// work follows from the values, what runs took says how long one waits, but nothing about a request's own run.
    pub comparable: bool,
}

impl QueueConfig {
    /// The rows of an execution of `rows` rows.
    fn padded(self, rows: usize) -> usize {
        self.buckets.map_or(rows, |buckets| buckets.fit(rows))
    }

    /// What a request of `rows` rows counts of the rows that may wait. Of one that is executed in parts whoever comes
    /// later waits for one part at a time, so that all of its rows would lock others out for nothing.
    fn counted(self, rows: usize) -> usize {
        self.part_rows.map_or(rows, |most| rows.min(most))
    }

    /// The rows of the largest execution of a request of `rows` rows.
    fn executed(self, rows: usize) -> usize {
        self.padded(self.counted(rows))
    }

    /// The seconds that a request of `rows` rows is executed at least, all of its parts together, by what runs took;
    /// none if that says nothing about it.
    fn shortest(self, times: &RunTimes, rows: usize) -> f64 {
        if !self.comparable {
            return 0.0;
        }
        let part = self.counted(rows).max(1);
        let (full, rest) = (rows / part, rows % part);
        let of_rest = if rest > 0 {
            times.shortest(self.padded(rest)).max(0.0)
        } else {
            0.0
        };
        to_f64(full) * times.shortest(self.padded(part)).max(0.0) + of_rest
    }
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
pub(super) struct QueueState {
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
    pub(super) fn new(config: QueueConfig) -> Self {
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
    pub(super) fn push(
        &mut self,
        pending: Pending,
        now: Instant,
        refused: &mut Vec<Pending>,
    ) -> Result<(), PushError> {
        if self.closed {
            return Err(PushError::Closed);
        }
        let (rows, deadline) = (pending.request.rows(), pending.request.deadline());
        match self.admit(rows, deadline, now) {
            Err(PushError::Full(_) | PushError::TooMuchAhead(_)) => {
                // Clients that have left are not what anybody should be refused for.
                *refused = self.remove_pointless(now);
                self.admit(rows, deadline, now)?;
            }
            admitted => admitted?,
        }
        self.count_in(rows);
        self.entries.push_back(pending);
        Ok(())
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
    pub(super) fn look(&mut self, instance: usize, now: Instant) -> Look {
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
    fn look_beside(
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

    fn note_start(&mut self, instance: usize, rows: usize, now: Instant) {
        let run = Run {
            rows: self.padded(rows),
            started_at: now,
        };
        if let Some(slot) = self.runs.get_mut(instance) {
            *slot = Some(run);
        }
        if !self.is_alone(rows) || rows == self.config.policy.merge_rows {
            let rows = to_f64(rows);
            if self.rows > self.alone_rows || rows > self.shared_rows {
                self.shared_rows += ROWS_SHARE * (rows - self.shared_rows);
            }
        }
    }

    /// Whether `rows` rows of a request can be executed from `now` to `deadline`, as far as is known.
    fn can_finish(&self, rows: usize, deadline: Instant, now: Instant) -> bool {
        let left = deadline.saturating_duration_since(now);
        self.config.shortest(&self.times, rows) <= left.as_secs_f64()
    }

    /// Takes note of a run of `rows` rows.
    pub(super) fn record(&mut self, rows: usize, elapsed: Duration, end: RunEnd, now: Instant) {
        self.times.record(self.padded(rows), elapsed, end, now);
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

/// The queue of one model.
#[derive(Debug)]
pub struct RequestQueue {
    state: Mutex<QueueState>,
    /// For instances that are threads.
    changed: Condvar,
    /// For instances that are tasks.
    woken: Notify,
}

/// What an idle instance finds.
#[derive(Debug)]
pub(super) enum Look {
    Batch(Vec<Pending>),
    /// Nothing yet; at this instant at the latest there is.
    Until(Instant),
    Empty,
    /// Nothing, and nothing will come.
    Ended,
    /// Entries that need not be executed, to be refused without the lock; then look again.
    Pointless(Vec<Pending>),
}

impl RequestQueue {
    /// An empty queue.
    #[must_use]
    pub fn new(config: QueueConfig) -> Self {
        Self {
            state: Mutex::new(QueueState::new(config)),
            changed: Condvar::new(),
            woken: Notify::new(),
        }
    }

    /// Rows that wait now: all of them, although a request that is executed in parts counts as one part where it is
    /// about how many may wait.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.state.lock().rows
    }

    /// Whether anything is known of what runs take.
    #[cfg(test)]
    pub(super) fn has_run_times(&self) -> bool {
        !self.state.lock().times.is_empty()
    }

    /// How long a request of one row that came at `now` would wait for its execution.
    #[must_use]
    pub fn predicted_wait(&self, now: Instant) -> Duration {
        seconds(self.state.lock().forecast(1, now).start)
    }

    /// Queues `pending`, or drops it and says why.
    ///
    /// # Errors
    /// When the queue is full or closed, or the deadline cannot be met. An empty queue takes any request, however many
    /// rows it has, and one that an instance can execute at once is only refused if its own run is too long for it.
    pub fn push(&self, pending: Pending) -> Result<(), PushError> {
        let mut pointless = Vec::new();
        let now = pending.enqueued_at;
        let result = self.state.lock().push(pending, now, &mut pointless);
        if result.is_ok() {
            self.wake_one();
        }
        refuse(pointless);
        result
    }

    /// Takes note of a run of `rows` rows that took `elapsed`, ended at `now`, and `completed` or did not.
    pub(super) fn record(&self, rows: usize, elapsed: Duration, completed: bool, now: Instant) {
        let end = if completed {
            RunEnd::Completed
        } else {
            RunEnd::CutShort
        };
        self.state.lock().record(rows, elapsed, end, now);
    }

    /// Waits for the next batch; called by the thread of the idle instance with this number. `None` when the queue is
    /// closed and empty.
    #[must_use]
    pub fn next_batch(&self, instance: usize) -> Option<Vec<Pending>> {
        let mut state = self.state.lock();
        loop {
            match self.look(&mut state, instance) {
                Look::Batch(batch) => return Some(batch),
                Look::Until(instant) => {
                    self.changed.wait_until(&mut state, instant);
                }
                Look::Empty => self.changed.wait(&mut state),
                Look::Ended => return None,
                Look::Pointless(pointless) => {
                    parking_lot::MutexGuard::unlocked(&mut state, || refuse(pointless));
                }
            }
        }
    }

    /// The same for an idle instance that is a task beside the connections.
    pub async fn next_batch_on_runtime(&self, instance: usize) -> Option<Vec<Pending>> {
        loop {
            // Whatever else is ready on this thread has its turn first: the connections that have a request add it, so
            // that one execution serves them all and nobody has to be woken on another thread.
            tokio::task::yield_now().await;
            let mut woken = pin!(self.woken.notified());
            // From here on a wake-up is noticed, although the state is looked at before it is awaited.
            woken.as_mut().enable();
            let look = self.look(&mut self.state.lock(), instance);
            match look {
                Look::Batch(batch) => return Some(batch),
                Look::Until(instant) => {
                    let _ = tokio::time::timeout_at(instant.into(), woken).await;
                }
                Look::Empty => woken.await,
                Look::Ended => return None,
                Look::Pointless(pointless) => refuse(pointless),
            }
        }
    }

    /// A batch for an instance that has a request of more than `most` rows in hand: of those that wait, and never such a
    /// request. Does not wait.
    ///
    /// Smaller requests are let past large ones here, but not for ever: what the instance has in hand ends, and then the
    /// oldest is next.
    #[must_use]
    pub fn batch_beside(&self, instance: usize, most: usize) -> Option<Vec<Pending>> {
        let mut state = self.state.lock();
        let (batch, pointless) = state.look_beside(instance, most, Instant::now());
        let more = !state.entries.is_empty();
        drop(state);
        if batch.is_some() && more {
            self.wake_one();
        }
        refuse(pointless);
        batch
    }

    /// Takes note that `instance` begins an execution of `rows` rows at `now`, of a request that it has in hand.
    pub(super) fn note_start(&self, instance: usize, rows: usize, now: Instant) {
        self.state.lock().note_start(instance, rows, now);
    }

    /// Whether the `rows` rows that are left of a request can be executed from `now` to `deadline`, as far as is known.
    pub(super) fn can_finish(&self, rows: usize, deadline: Instant, now: Instant) -> bool {
        self.state.lock().can_finish(rows, deadline, now)
    }

    /// What there is to do now.
    fn look(&self, state: &mut QueueState, instance: usize) -> Look {
        let look = state.look(instance, Instant::now());
        if matches!(look, Look::Batch(_)) && !state.entries.is_empty() {
            // What is left may be a batch of its own for another idle instance.
            self.wake_one();
        }
        look
    }

    /// Wakes one idle instance, thread or task; a queue has only one kind.
    fn wake_one(&self) {
        self.changed.notify_one();
        self.woken.notify_one();
    }

    fn wake_all(&self) {
        self.changed.notify_all();
        self.woken.notify_waiters();
    }

    /// Takes no more requests; what waits is still handed out.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.wake_all();
    }

    /// Refuses everything that waits, because nobody is left to execute it.
    pub fn abandon(&self) {
        let entries = {
            let mut state = self.state.lock();
            state.closed = true;
            state.rows = 0;
            state.counted = 0;
            state.alone = 0;
            state.alone_rows = 0;
            state.alone_counted = 0;
            std::mem::take(&mut state.entries)
        };
        self.wake_all();
        for entry in entries {
            entry.answer(Err(ScheduleError::ShuttingDown));
        }
    }
}

/// Answers entries that are too late; for those whose client has left, nothing happens.
fn refuse(entries: Vec<Pending>) {
    for entry in entries {
        entry.answer(Err(ScheduleError::DeadlineExceeded));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batching::testing::{self, Answer};

    fn config(instances: usize, merge_rows: usize, max_rows: usize) -> QueueConfig {
        QueueConfig {
            policy: BatchPolicy {
                merge_rows,
                max_queue_delay: Duration::ZERO,
                merge: merge_rows > 1,
            },
            max_rows,
            part_rows: None,
            instances,
            buckets: None,
            comparable: true,
        }
    }

    fn queue(merge_rows: usize, max_rows: usize) -> RequestQueue {
        RequestQueue::new(config(1, merge_rows, max_rows))
    }

    fn pending(rows: usize, width: usize, deadline: Instant) -> (Pending, Answer) {
        testing::pending(rows, width, deadline)
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn refuses_when_the_waiting_rows_are_as_many_as_may() {
        let queue = queue(4, 5);
        let (first, _first) = pending(3, 2, soon());
        let (second, _second) = pending(3, 2, soon());
        let (third, _third) = pending(2, 2, soon());
        assert!(queue.push(first).is_ok());
        assert_eq!(
            queue.push(second).unwrap_err(),
            PushError::Full(Duration::ZERO)
        );
        assert!(queue.push(third).is_ok());
        assert_eq!(queue.rows(), 5);
    }

    #[test]
    fn a_request_that_is_executed_in_parts_counts_as_one_part() {
        let mut scene = Scene::of(
            QueueConfig {
                part_rows: Some(8),
                ..config(1, 8, 20)
            },
            |_| 5,
        );
        scene.push(1000, 0, 60_000).unwrap();
        assert_eq!(scene.take(0, 0), [60_000]);
        // It takes five seconds, but who asks for one row waits for one part.
        scene.push(1000, 0, 60_001).unwrap();
        for deadline in [100, 101, 102] {
            scene.push(1, 0, deadline).unwrap();
        }
        scene.push(9, 0, 60_002).unwrap();
        // As many rows wait as may.
        assert!(matches!(scene.push(2, 0, 60_003), Err(PushError::Full(_))));
        assert!(matches!(
            scene.push(500, 0, 60_003),
            Err(PushError::Full(_))
        ));
        scene.push(1, 0, 103).unwrap();
        assert_eq!((scene.state.rows, scene.state.counted), (1013, 20));
        assert_eq!(scene.take(0, 0), [60_001]);
        scene.push(8, 0, 60_004).unwrap();
        assert_eq!(scene.take(0, 0), [100, 101, 102]);
        assert_eq!(scene.take(0, 0), [60_002]);
        assert_eq!(scene.take(0, 0), [103]);
        assert_eq!(scene.take(0, 0), [60_004]);
        let state = &scene.state;
        assert_eq!((state.rows, state.counted), (0, 0));
        assert_eq!(
            (state.alone, state.alone_rows, state.alone_counted),
            (0, 0, 0)
        );
    }

    #[test]
    fn a_request_in_parts_takes_the_time_of_all_of_them() {
        let in_parts = QueueConfig {
            part_rows: Some(8),
            ..config(1, 8, 1000)
        };
        let mut scene = Scene::of(in_parts, |_| 5);
        // 125 parts of 5 ms.
        assert_eq!(scene.push(1000, 0, 620).unwrap_err(), PushError::TooShort);
        scene.push(1000, 0, 630).unwrap();
        assert_eq!(scene.take(0, 0), [630]);
        scene.push(1000, 0, 700).unwrap();
        assert_eq!(scene.take(0, 80), [0; 0], "it is too late now");
        // 25 parts, the last one of four rows.
        for (rows, deadline, expected) in [(196, 120, false), (196, 130, true), (4, 4, false)] {
            let finishes = scene
                .state
                .can_finish(rows, scene.at(deadline), scene.start);
            assert_eq!(finishes, expected, "{rows} rows in {deadline} ms");
        }
        // Once that is not fresh any more, one is let in to find out.
        scene.push(1000, 1500, 1600).unwrap();
        assert_eq!(scene.take(0, 1500), [1600]);
        assert_eq!(scene.push(1000, 1500, 1600), Err(PushError::TooShort));
        // Where runs are not comparable, none of that is known.
        let mut mixed = Scene::of(
            QueueConfig {
                comparable: false,
                ..in_parts
            },
            |_| 5,
        );
        mixed.push(1000, 0, 10).unwrap();
        assert!(mixed.state.can_finish(1000, mixed.at(1), mixed.start));
    }

    #[test]
    fn entries_whose_client_left_make_room() {
        let queue = queue(4, 4);
        let (first, answer) = pending(4, 2, soon());
        queue.push(first).unwrap();
        drop(answer);
        let (second, _second) = pending(2, 2, soon());
        assert!(queue.push(second).is_ok());
        assert_eq!(queue.rows(), 2);
    }

    #[test]
    fn expired_work_is_refused_and_never_handed_out() {
        let queue = queue(4, 100);
        let (late, mut answer) = pending(1, 2, Instant::now());
        let (fine, _fine) = pending(2, 2, soon());
        queue.push(late).unwrap();
        queue.push(fine).unwrap();
        let batch = queue.next_batch(0).unwrap();
        assert_eq!(
            batch
                .iter()
                .map(|entry| entry.request.rows())
                .collect::<Vec<_>>(),
            [2]
        );
        assert!(matches!(
            answer.try_recv(),
            Ok(Err(ScheduleError::DeadlineExceeded))
        ));
    }

    #[test]
    fn batches_hold_one_shape_each_and_nothing_is_lost() {
        let queue = queue(4, 100);
        let mut answers = Vec::new();
        for (rows, width) in [(1, 2), (1, 3), (2, 2), (2, 3), (1, 2), (1, 2)] {
            let (entry, answer) = pending(rows, width, soon());
            queue.push(entry).unwrap();
            answers.push(answer);
        }
        queue.close();
        let batches: Vec<Vec<(usize, usize)>> = std::iter::from_fn(|| queue.next_batch(0))
            .map(|batch| {
                batch
                    .iter()
                    .map(|entry| (entry.request.rows(), entry.request.inputs()[0].shape()[1]))
                    .collect()
            })
            .collect();
        assert_eq!(
            batches,
            [
                vec![(1, 2), (2, 2), (1, 2)],
                vec![(1, 3), (2, 3)],
                vec![(1, 2)]
            ]
        );
        assert_eq!(queue.rows(), 0);
    }

    #[test]
    fn beside_a_large_request_the_small_ones_that_wait_are_taken_and_other_large_ones_are_not() {
        let queue = queue(4, 100);
        let mut answers = Vec::new();
        let mut push = |rows, width| {
            let (entry, answer) = pending(rows, width, soon());
            queue.push(entry).unwrap();
            answers.push(answer);
        };
        let rows = |batch: Option<Vec<Pending>>| -> Vec<usize> {
            let batch = batch.unwrap_or_default();
            batch.iter().map(|entry| entry.request.rows()).collect()
        };
        assert_eq!(rows(queue.batch_beside(0, 4)), [0; 0]);
        push(9, 2);
        assert_eq!(rows(queue.batch_beside(0, 4)), [0; 0]);
        for (rows, width) in [(1, 2), (2, 3), (8, 2), (2, 2), (2, 2)] {
            push(rows, width);
        }
        assert_eq!(rows(queue.batch_beside(0, 4)), [1, 2]);
        assert_eq!(rows(queue.batch_beside(0, 4)), [2]);
        assert_eq!(rows(queue.batch_beside(0, 4)), [2]);
        assert_eq!(rows(queue.batch_beside(0, 4)), [0; 0]);
        assert_eq!(queue.rows(), 17);
        assert_eq!(rows(queue.next_batch(0)), [9]);
        assert_eq!(rows(queue.next_batch(0)), [8]);
    }

    #[test]
    fn a_closed_queue_refuses_and_ends() {
        let queue = queue(4, 100);
        queue.close();
        let (entry, _answer) = pending(1, 2, soon());
        assert_eq!(queue.push(entry).unwrap_err(), PushError::Closed);
        assert!(queue.next_batch(0).is_none());
    }

    #[test]
    fn an_idle_instance_wakes_for_a_new_request() {
        let queue = queue(4, 100);
        std::thread::scope(|scope| {
            let instance = scope.spawn(|| queue.next_batch(0).map(|batch| batch.len()));
            let (entry, _answer) = pending(1, 2, soon());
            queue.push(entry).unwrap();
            assert_eq!(instance.join().unwrap(), Some(1));
        });
    }

    /// State of a queue whose model is known to take `ms(rows)` milliseconds.
    fn taught(config: QueueConfig, ms: fn(u64) -> u64, now: Instant) -> QueueState {
        let mut state = QueueState::new(config);
        let merge_rows = config.policy.merge_rows;
        for rows in [1, 2, 4, 8].into_iter().filter(|rows| *rows <= merge_rows) {
            for _ in 0..30 {
                let elapsed = Duration::from_millis(ms(rows as u64));
                state.record(rows, elapsed, RunEnd::Completed, now);
            }
        }
        state
    }

    struct Scene {
        state: QueueState,
        start: Instant,
        answers: Vec<Answer>,
    }

    impl Scene {
        fn new(instances: usize, merge_rows: usize, ms: fn(u64) -> u64) -> Self {
            Self::of(config(instances, merge_rows, 1000), ms)
        }

        fn of(config: QueueConfig, ms: fn(u64) -> u64) -> Self {
            let start = Instant::now();
            Self {
                state: taught(config, ms, start),
                start,
                answers: Vec::new(),
            }
        }

        fn at(&self, ms: u64) -> Instant {
            self.start + Duration::from_millis(ms)
        }

        /// A request at `now` ms for `deadline` ms; both count from the start.
        fn push(&mut self, rows: usize, now: u64, deadline: u64) -> Result<(), PushError> {
            let (mut entry, answer) = pending(rows, 2, self.at(deadline));
            entry.enqueued_at = self.at(now);
            self.answers.push(answer);
            self.state.push(entry, self.at(now), &mut Vec::new())
        }

        /// The deadlines of what `instance` would execute at `now`.
        fn take(&mut self, instance: usize, now: u64) -> Vec<u64> {
            loop {
                match self.state.look(instance, self.at(now)) {
                    Look::Batch(batch) => {
                        let deadline = |entry: &Pending| entry.request.deadline() - self.start;
                        let ms = |entry| u64::try_from(deadline(entry).as_millis()).unwrap();
                        return batch.iter().map(ms).collect();
                    }
                    Look::Pointless(_) => {}
                    Look::Empty | Look::Until(_) | Look::Ended => return Vec::new(),
                }
            }
        }
    }

    #[test]
    fn a_request_is_refused_if_what_runs_and_waits_and_its_own_run_take_too_long() {
        let mut scene = Scene::new(1, 1, |_| 100);
        // Executed at once.
        scene.push(1, 0, 1000).unwrap();
        assert_eq!(scene.take(0, 0), [1000]);
        // 60 ms are left of that one.
        assert!(matches!(
            scene.push(1, 40, 195),
            Err(PushError::TooMuchAhead(wait)) if wait.as_millis() == 60
        ));
        scene.push(1, 40, 205).unwrap();
        assert!(matches!(
            scene.push(1, 40, 295),
            Err(PushError::TooMuchAhead(wait)) if wait.as_millis() == 160
        ));
        scene.push(1, 40, 305).unwrap();
        assert_eq!(
            scene.push(1, 40, 60).unwrap_err(),
            PushError::TooShort,
            "whatever waits, it would be too late"
        );
    }

    #[test]
    fn a_run_that_is_late_makes_what_comes_wait_as_long_again() {
        let mut scene = Scene::new(1, 1, |_| 100);
        scene.push(1, 0, 10_000).unwrap();
        assert_eq!(scene.take(0, 0), [10_000]);
        assert!(scene.push(1, 600, 1100).is_err());
        scene.push(1, 600, 1300).unwrap();
    }

    #[test]
    fn free_instances_are_taken_into_account() {
        let mut scene = Scene::new(2, 1, |_| 100);
        for _ in 0..2 {
            scene.push(1, 0, 110).unwrap();
        }
        assert!(scene.push(1, 0, 110).is_err());
        scene.push(1, 0, 210).unwrap();
        assert_eq!(scene.take(0, 0), [110]);
        assert_eq!(scene.take(1, 0), [110]);
        assert_eq!(scene.take(0, 100), [210]);
    }

    #[test]
    fn what_cannot_be_finished_in_time_is_not_begun() {
        let mut scene = Scene::new(1, 1, |_| 100);
        scene.push(1, 0, 1000).unwrap();
        assert_eq!(scene.take(0, 0), [1000]);
        scene.push(1, 0, 250).unwrap();
        scene.push(1, 0, 400).unwrap();
        // The run took longer than expected.
        assert_eq!(scene.take(0, 180), [400]);
        assert!(matches!(
            scene.answers[1].try_recv(),
            Err(oneshot::error::TryRecvError::Closed)
        ));
    }

    #[test]
    fn who_would_hold_up_a_batch_that_others_fill_is_left_out() {
        // Eight rows take 80 ms.
        let mut scene = Scene::new(1, 8, |rows| 72 + rows);
        scene.push(1, 0, 1000).unwrap();
        assert_eq!(scene.take(0, 0), [1000]);
        scene.push(1, 0, 260).unwrap();
        for _ in 0..16 {
            scene.push(1, 0, 350).unwrap();
        }
        // The first one needs 73 ms and has 76; but two full batches have to be done in 166.
        assert_eq!(scene.take(0, 184), [350; 8]);
    }

    #[test]
    fn who_is_in_a_hurry_gets_a_small_batch_if_that_costs_nobody_the_deadline() {
        let mut scene = Scene::new(1, 8, |rows| 10 * rows);
        scene.push(1, 0, 1000).unwrap();
        assert_eq!(scene.take(0, 0), [1000]);
        scene.push(1, 5, 40).unwrap();
        for _ in 0..7 {
            scene.push(1, 5, 1000).unwrap();
        }
        // 27 ms are enough for two rows.
        assert_eq!(scene.take(0, 13), [40, 1000]);
        assert_eq!(scene.take(0, 33), [1000; 6]);
    }

    #[test]
    fn clients_that_left_are_not_what_others_are_refused_for() {
        let mut scene = Scene::new(1, 1, |_| 100);
        scene.push(1, 0, 1000).unwrap();
        assert_eq!(scene.take(0, 0), [1000]);
        scene.push(1, 0, 1000).unwrap();
        assert!(scene.push(1, 0, 250).is_err());
        scene.answers.clear();
        scene.push(1, 0, 250).unwrap();
    }

    #[test]
    fn an_idle_server_finds_out_whether_what_it_knows_is_still_true() {
        let mut scene = Scene::new(1, 1, |_| 10_000);
        assert_eq!(scene.push(1, 0, 100).unwrap_err(), PushError::TooShort);
        assert_eq!(scene.push(1, 900, 999).unwrap_err(), PushError::TooShort);
        scene.push(1, 1500, 1600).unwrap();
        scene.push(1, 1500, 1600).unwrap_err();
        assert_eq!(scene.take(0, 1500), [1600]);
        // It was quick, so that more are let in.
        let (elapsed, now) = (Duration::from_millis(10), scene.at(1510));
        scene.state.record(1, elapsed, RunEnd::Completed, now);
        assert_eq!(scene.take(0, 1510), [0; 0]);
        scene.push(1, 1520, 1620).unwrap();
        assert_eq!(scene.take(0, 1520), [1620]);
    }

    #[test]
    fn where_runs_are_not_comparable_nobody_is_refused_for_what_others_took() {
        let mixed = QueueConfig {
            comparable: false,
            ..config(1, 8, 1000)
        };
        // Others took a second each, and do so all the time; these may well be done in their 20 ms.
        let mut scene = Scene::of(mixed, |_| 1000);
        for round in 0..5 {
            let now = 100 * round;
            scene.push(1, now, now + 20).unwrap();
            assert_eq!(scene.take(0, now), [now + 20]);
            let (elapsed, end) = (Duration::from_secs(1), scene.at(now));
            scene.state.record(1, elapsed, RunEnd::Completed, end);
            assert_eq!(scene.take(0, now), [0; 0]);
        }
        // Nobody is passed over for others that have more time, and nothing is dropped before its deadline.
        for deadline in [1020, 5000, 1021] {
            scene
                .push(1, 1000, deadline)
                .unwrap_or_else(|error| panic!("{deadline}: {error:?}"));
        }
        assert_eq!(scene.take(0, 1000), [1020, 5000, 1021]);
        // How long one waits for others follows from what they took.
        assert!(matches!(
            scene.push(1, 1000, 1020),
            Err(PushError::TooMuchAhead(_))
        ));
        scene.push(1, 1000, 6000).unwrap();
        scene.push(1, 1000, 6001).unwrap();
        assert_eq!(scene.take(0, 5990), [6000, 6001]);
        assert_eq!(scene.take(0, 6001), [0; 0]);
    }

    #[test]
    fn where_runs_are_not_comparable_what_is_late_is_still_not_executed() {
        let mixed = QueueConfig {
            comparable: false,
            ..config(1, 1, 1000)
        };
        let mut scene = Scene::of(mixed, |_| 100);
        scene.push(1, 0, 1000).unwrap();
        assert_eq!(scene.take(0, 0), [1000]);
        scene.push(1, 0, 250).unwrap();
        scene.push(1, 0, 400).unwrap();
        assert_eq!(scene.take(0, 250), [400]);
    }

    #[test]
    fn large_requests_are_executions_of_their_own_and_small_ones_share_theirs() {
        let mut scene = Scene::new(1, 8, |_| 100);
        scene.push(1, 0, 10_000).unwrap();
        assert_eq!(scene.take(0, 0), [10_000]);
        // Two executions of eight rows and more, and one that holds all of the small ones.
        for rows in [8, 9, 1, 2, 3] {
            scene.push(rows, 0, 10_000).unwrap();
        }
        let wait = seconds(scene.state.forecast(1, scene.start).start).as_millis();
        assert!((300..320).contains(&wait), "{wait}");
        assert_eq!(
            (scene.state.rows, scene.state.alone, scene.state.alone_rows),
            (23, 2, 17)
        );
        for expected in [1, 1, 3] {
            assert_eq!(scene.take(0, 0).len(), expected);
        }
        assert_eq!(
            (scene.state.rows, scene.state.alone, scene.state.alone_rows),
            (0, 0, 0)
        );
    }
}
