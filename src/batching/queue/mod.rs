//! The bounded queue between the edge and the instances: a mutex and a condition variable around pure state.
//!
//! Invariant: what waits is bounded in rows, and an entry whose client has left or whose deadline cannot be met any more
//! is never handed to an instance; but for a probe now and then, because the estimate of what can be met may be wrong.

mod config;
mod pending;
mod state;

use std::pin::pin;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;

pub use config::QueueConfig;
pub use pending::Pending;
pub use state::PushError;
pub(super) use state::{Look, QueueState};

use super::ScheduleError;
use super::run_times::RunEnd;

/// The queue of one model.
#[derive(Debug)]
pub struct RequestQueue {
    state: Mutex<QueueState>,
    /// For instances that are threads.
    changed: Condvar,
    /// For instances that are tasks.
    woken: Notify,
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
        self.state.lock().rows()
    }

    /// Whether anything is known of what runs take.
    #[cfg(test)]
    pub(super) fn has_run_times(&self) -> bool {
        self.state.lock().has_run_times()
    }

    /// How long a request of one row that came at `now` would wait for its execution.
    #[must_use]
    pub fn predicted_wait(&self, now: Instant) -> Duration {
        self.state.lock().predicted_wait(now)
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

    /// Whether a request of one row that comes at `now` would be queued for `deadline`.
    ///
    /// # Errors
    /// As [`push`](Self::push) would.
    pub(super) fn admit(&self, deadline: Instant, now: Instant) -> Result<(), PushError> {
        let mut pointless = Vec::new();
        let result = self.state.lock().admits(1, deadline, now, &mut pointless);
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
        let more = !state.is_empty();
        drop(state);
        if batch.is_some() && more {
            self.wake_one();
        }
        refuse(pointless);
        batch
    }

    /// Takes note that `instance` begins an execution of `rows` rows at `now`, of a request that it has in hand.
    pub(super) fn note_part(&self, instance: usize, rows: usize, now: Instant) {
        self.state.lock().note_part(instance, rows, now);
    }

    /// Whether the `rows` rows that are left of a request can be executed from `now` to `deadline`, as far as is known.
    pub(super) fn can_finish(&self, rows: usize, deadline: Instant, now: Instant) -> bool {
        self.state.lock().can_finish(rows, deadline, now)
    }

    /// What there is to do now.
    fn look(&self, state: &mut QueueState, instance: usize) -> Look {
        let look = state.look(instance, Instant::now());
        if matches!(look, Look::Batch(_)) && !state.is_empty() {
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
        self.state.lock().close();
        self.wake_all();
    }

    /// Refuses everything that waits, because nobody is left to execute it.
    pub fn abandon(&self) {
        let entries = self.state.lock().abandon();
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
    use crate::batching::testing::{pending, queue_config};

    fn queue(merge_rows: usize, max_rows: usize) -> RequestQueue {
        RequestQueue::new(queue_config(1, merge_rows, max_rows))
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
}
