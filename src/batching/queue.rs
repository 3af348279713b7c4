//! The bounded queue between the edge and the instances: a mutex and a condition variable around pure state.
//!
//! Invariant: what waits is bounded in rows, and an entry whose client has left or whose deadline has passed is never
//! handed to an instance.

use std::collections::VecDeque;
use std::pin::pin;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};
use tokio::sync::{Notify, oneshot};

use super::policy::{BatchPolicy, NextBatch, Waiting};
use super::request::{InferenceRequest, InferenceResponse, ScheduleError};

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
    /// The rows that wait already are as many as may.
    Full,
    /// No more requests are taken.
    Closed,
}

#[derive(Debug, Default)]
struct State {
    entries: VecDeque<Pending>,
    rows: usize,
    closed: bool,
}

impl State {
    /// Takes out every entry that nobody waits for at `now`.
    fn remove_unwanted(&mut self, now: Instant) -> Vec<Pending> {
        let mut removed = Vec::new();
        if self.entries.iter().all(|entry| entry.is_wanted(now)) {
            return removed;
        }
        for entry in std::mem::take(&mut self.entries) {
            if entry.is_wanted(now) {
                self.entries.push_back(entry);
            } else {
                self.rows -= entry.request.rows();
                removed.push(entry);
            }
        }
        removed
    }

    /// Takes out the entries at `positions`, which ascend.
    fn take(&mut self, positions: &[usize]) -> Vec<Pending> {
        let mut taken = Vec::with_capacity(positions.len());
        for (removed, position) in positions.iter().enumerate() {
            // Every entry taken before shifts the rest forward by one.
            if let Some(entry) = self.entries.remove(position - removed) {
                self.rows -= entry.request.rows();
                taken.push(entry);
            }
        }
        taken
    }

    fn decide(&self, policy: &BatchPolicy, now: Instant) -> NextBatch {
        let oldest = self.entries.front();
        let waiting = self.entries.iter().map(|entry| Waiting {
            rows: entry.request.rows(),
            enqueued_at: entry.enqueued_at,
            deadline: entry.request.deadline(),
            merges_with_oldest: oldest
                .is_some_and(|oldest| oldest.request.merges_with(&entry.request)),
        });
        policy.next(waiting, now, self.closed)
    }
}

/// The queue of one model.
#[derive(Debug)]
pub struct RequestQueue {
    policy: BatchPolicy,
    max_rows: usize,
    state: Mutex<State>,
    /// For instances that are threads.
    changed: Condvar,
    /// For instances that are tasks.
    woken: Notify,
}

/// What an idle instance finds.
enum Look {
    Batch(Vec<Pending>),
    /// Nothing yet; at this instant at the latest there is.
    Until(Instant),
    Empty,
    /// Nothing, and nothing will come.
    Ended,
    /// Entries that nobody waits for, to be refused without the lock; then look again.
    Unwanted(Vec<Pending>),
}

impl RequestQueue {
    /// An empty queue for at most `max_rows` waiting rows.
    #[must_use]
    pub fn new(policy: BatchPolicy, max_rows: usize) -> Self {
        Self {
            policy,
            max_rows,
            state: Mutex::default(),
            changed: Condvar::new(),
            woken: Notify::new(),
        }
    }

    /// The rules by which requests are merged.
    #[must_use]
    pub fn policy(&self) -> &BatchPolicy {
        &self.policy
    }

    /// Rows that wait now.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.state.lock().rows
    }

    /// Queues `pending`, or drops it and says why.
    ///
    /// # Errors
    /// When the queue is full or closed. An empty queue takes any request, however many rows it has.
    pub fn push(&self, pending: Pending) -> Result<(), PushError> {
        let rows = pending.request.rows();
        let unwanted = {
            let mut state = self.state.lock();
            if state.closed {
                return Err(PushError::Closed);
            }
            let mut unwanted = Vec::new();
            if state.rows > 0 && state.rows + rows > self.max_rows {
                unwanted = state.remove_unwanted(pending.enqueued_at);
            }
            if state.rows > 0 && state.rows + rows > self.max_rows {
                drop(state);
                refuse(unwanted);
                return Err(PushError::Full);
            }
            state.rows += rows;
            state.entries.push_back(pending);
            unwanted
        };
        self.wake_one();
        refuse(unwanted);
        Ok(())
    }

    /// Waits for the next batch; called by the thread of an idle instance. `None` when the queue is closed and empty.
    #[must_use]
    pub fn next_batch(&self) -> Option<Vec<Pending>> {
        let mut state = self.state.lock();
        loop {
            match self.look(&mut state) {
                Look::Batch(batch) => return Some(batch),
                Look::Until(instant) => {
                    self.changed.wait_until(&mut state, instant);
                }
                Look::Empty => self.changed.wait(&mut state),
                Look::Ended => return None,
                Look::Unwanted(unwanted) => {
                    parking_lot::MutexGuard::unlocked(&mut state, || refuse(unwanted));
                }
            }
        }
    }

    /// The same for an idle instance that is a task beside the connections.
    pub async fn next_batch_on_runtime(&self) -> Option<Vec<Pending>> {
        loop {
            // Whatever else is ready on this thread has its turn first: the connections that have a request add it, so
            // that one execution serves them all and nobody has to be woken on another thread.
            tokio::task::yield_now().await;
            let mut woken = pin!(self.woken.notified());
            // From here on a wake-up is noticed, although the state is looked at before it is awaited.
            woken.as_mut().enable();
            let look = self.look(&mut self.state.lock());
            match look {
                Look::Batch(batch) => return Some(batch),
                Look::Until(instant) => {
                    let _ = tokio::time::timeout_at(instant.into(), woken).await;
                }
                Look::Empty => woken.await,
                Look::Ended => return None,
                Look::Unwanted(unwanted) => refuse(unwanted),
            }
        }
    }

    /// What there is to do now.
    fn look(&self, state: &mut State) -> Look {
        let now = Instant::now();
        let unwanted = state.remove_unwanted(now);
        if !unwanted.is_empty() {
            return Look::Unwanted(unwanted);
        }
        match state.decide(&self.policy, now) {
            NextBatch::Ready(positions) => {
                let batch = state.take(&positions);
                if !state.entries.is_empty() {
                    // What is left may be a batch of its own for another idle instance.
                    self.wake_one();
                }
                Look::Batch(batch)
            }
            NextBatch::WaitUntil(instant) => Look::Until(instant),
            NextBatch::Empty if state.closed => Look::Ended,
            NextBatch::Empty => Look::Empty,
        }
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
    use std::time::Duration;

    use super::*;
    use crate::batching::testing::{self, Answer};

    fn queue(merge_rows: usize, max_rows: usize) -> RequestQueue {
        let policy = BatchPolicy {
            merge_rows,
            max_queue_delay: Duration::ZERO,
            merge: true,
        };
        RequestQueue::new(policy, max_rows)
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
        assert_eq!(queue.push(second).unwrap_err(), PushError::Full);
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
        let batch = queue.next_batch().unwrap();
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
        let batches: Vec<Vec<(usize, usize)>> = std::iter::from_fn(|| queue.next_batch())
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
    fn a_closed_queue_refuses_and_ends() {
        let queue = queue(4, 100);
        queue.close();
        let (entry, _answer) = pending(1, 2, soon());
        assert_eq!(queue.push(entry).unwrap_err(), PushError::Closed);
        assert!(queue.next_batch().is_none());
    }

    #[test]
    fn an_idle_instance_wakes_for_a_new_request() {
        let queue = queue(4, 100);
        std::thread::scope(|scope| {
            let instance = scope.spawn(|| queue.next_batch().map(|batch| batch.len()));
            let (entry, _answer) = pending(1, 2, soon());
            queue.push(entry).unwrap();
            assert_eq!(instance.join().unwrap(), Some(1));
        });
    }
}
