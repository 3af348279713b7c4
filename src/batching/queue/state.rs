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
mod tests {
    use tokio::sync::oneshot;

    use super::*;
    use crate::batching::testing::{Answer, pending, queue_config as config};

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

        /// Whether a request of one row would be taken at `now` for `deadline`.
        fn looks(&mut self, now: u64, deadline: u64) -> Result<(), PushError> {
            let (deadline, now) = (self.at(deadline), self.at(now));
            self.state.admits(1, deadline, now, &mut Vec::new())
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
    fn a_look_before_the_body_refuses_what_would_be_refused_behind_it() {
        let mut scene = Scene::new(1, 1, |_| 100);
        assert_eq!(scene.looks(0, 150), Ok(()));
        scene.push(1, 0, 1000).unwrap();
        assert_eq!(scene.take(0, 0), [1000]);
        // 60 ms are left of that one, and an own run takes 100.
        let too_much = |result| matches!(result, Err(PushError::TooMuchAhead(_)));
        for _ in 0..2 {
            assert!(too_much(scene.looks(40, 195)));
            assert_eq!(scene.looks(40, 205), Ok(()), "nothing is queued by looking");
        }
        scene.push(1, 40, 205).unwrap();
        assert!(too_much(scene.looks(40, 295)));
        assert_eq!(scene.looks(40, 60), Err(PushError::TooShort));
        scene.state.close();
        assert_eq!(scene.looks(40, 1000), Err(PushError::Closed));
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
    fn parts_of_a_large_request_say_nothing_of_what_small_ones_share() {
        let mut scene = Scene::new(1, 8, |_| 100);
        for _ in 0..16 {
            scene.push(1, 0, 10_000).unwrap();
        }
        let wait = |scene: &mut Scene| {
            let forecast = scene.state.forecast(1, scene.start);
            seconds(forecast.start).as_millis()
        };
        let before = wait(&mut scene);
        for part in [2; 20] {
            scene.state.note_part(0, part, scene.start);
        }
        let after = wait(&mut scene);
        // The part in hand is all that is new.
        assert!((200..220).contains(&before), "{before}");
        assert!((300..320).contains(&after), "{after}");
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
