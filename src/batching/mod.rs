//! Scheduling: the only place with queues and waiting.
//!
//! An idle instance asks the queue for the next batch. There is no batcher task and no hand-over: while every
//! instance is busy the waiting batch grows by itself, and when one frees up it takes what is there. At low load
//! nothing ever waits; under load batches form on their own.
//!
//! Invariant: whoever submits a request gets exactly one answer, and leaves no trace by ceasing to wait for it.

pub mod batch;
mod budget;
mod instance;
mod load;
pub mod policy;
pub mod queue;
mod request;
#[cfg(test)]
pub(crate) mod testing;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

pub use budget::{Exhausted, MemoryBudget, Reservation};
pub use instance::InstanceHealth;
pub use request::{
    InferenceRequest, InferenceResponse, InvalidRequest, OutputRows, ScheduleError, Timings,
};

use crate::model::{Batchability, ModelMetadata};
use crate::runtime::Model;
use crate::telemetry::metrics::BatchingMetrics;
use instance::{Instance, InstanceStatus};
use load::LoadEstimate;
use policy::BatchPolicy;
use queue::{Pending, PushError, RequestQueue};

/// How requests for one model are queued and merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchingConfig {
    /// Rows per execution; 1 means that nothing is merged.
    pub max_batch_size: usize,
    /// How long the oldest request may wait for company.
    pub max_queue_delay: Duration,
    /// Rows that may wait.
    pub max_queue_size: usize,
    /// The deadline of a request that brings none of its own, the yardstick of `ml_saturation`.
    pub default_timeout: Duration,
}

/// A cheap handle to the queue and the instances of one model.
#[derive(Clone)]
pub struct Scheduler {
    shared: Arc<Shared>,
}

struct Shared {
    config: BatchingConfig,
    queue: Arc<RequestQueue>,
    load: Arc<LoadEstimate>,
    statuses: Vec<Arc<InstanceStatus>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    running: Arc<RunningThreads>,
    metrics: BatchingMetrics,
}

/// Counts the instance threads that still run, so that joining them can have a deadline.
struct RunningThreads {
    count: Mutex<usize>,
    ended: Condvar,
}

/// Counts its thread out when it ends, however it ends.
struct CountOut(Arc<RunningThreads>);

impl Drop for CountOut {
    fn drop(&mut self) {
        *self.0.count.lock() -= 1;
        self.0.ended.notify_all();
    }
}

impl Scheduler {
    /// Starts one instance thread for each of `models`, which are sessions of the model that `metadata` describes.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn start(
        metadata: &ModelMetadata,
        models: Vec<Box<dyn Model>>,
        config: BatchingConfig,
        metrics: BatchingMetrics,
    ) -> std::io::Result<Self> {
        let policy = BatchPolicy {
            max_batch_size: config.max_batch_size,
            max_queue_delay: config.max_queue_delay,
            merge: metadata.batchability == Batchability::Rows && config.max_batch_size > 1,
        };
        let queue = Arc::new(RequestQueue::new(policy, config.max_queue_size));
        let load = Arc::new(LoadEstimate::default());
        let running = Arc::new(RunningThreads {
            count: Mutex::new(0),
            ended: Condvar::new(),
        });
        let mut statuses = Vec::new();
        let mut threads = Vec::new();
        for (index, model) in models.into_iter().enumerate() {
            let status = Arc::new(InstanceStatus::new(model.interrupt()));
            statuses.push(Arc::clone(&status));
            let instance = Instance {
                model,
                queue: Arc::clone(&queue),
                status,
                load: Arc::clone(&load),
                metrics: metrics.clone(),
            };
            *running.count.lock() += 1;
            let count_out = CountOut(Arc::clone(&running));
            let thread = std::thread::Builder::new()
                .name(format!("instance-{index}"))
                .spawn(move || {
                    let _count_out = count_out;
                    instance.run();
                });
            match thread {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    queue.close();
                    return Err(error);
                }
            }
        }
        let shared = Shared {
            config,
            queue,
            load,
            statuses,
            threads: Mutex::new(threads),
            running,
            metrics,
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// The rules that this scheduler follows.
    #[must_use]
    pub fn config(&self) -> &BatchingConfig {
        &self.shared.config
    }

    /// The number of instances.
    #[must_use]
    pub fn instances(&self) -> usize {
        self.shared.statuses.len()
    }

    /// Queues `request` and waits for its answer until its deadline. Dropping the future abandons the request.
    ///
    /// # Errors
    /// See [`ScheduleError`].
    pub async fn submit(
        &self,
        request: InferenceRequest,
    ) -> Result<InferenceResponse, ScheduleError> {
        let now = Instant::now();
        let deadline = request.deadline();
        if deadline <= now {
            return Err(ScheduleError::DeadlineExceeded);
        }
        let wait = self.predicted_wait();
        if wait > deadline - now {
            return Err(ScheduleError::Overloaded {
                reason: "the deadline cannot be met",
                retry_after: wait,
            });
        }
        let (respond, answer) = oneshot::channel();
        let pending = Pending {
            request,
            respond,
            enqueued_at: now,
        };
        self.shared
            .queue
            .push(pending)
            .map_err(|error| match error {
                PushError::Full => ScheduleError::Overloaded {
                    reason: "the queue is full",
                    retry_after: wait,
                },
                PushError::Closed => ScheduleError::ShuttingDown,
            })?;
        match tokio::time::timeout_at(deadline.into(), answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(ScheduleError::Internal(
                "an instance ended without an answer".into(),
            )),
            Err(_) => Err(ScheduleError::DeadlineExceeded),
        }
    }

    /// How long a request that came now would wait for its execution.
    #[must_use]
    pub fn predicted_wait(&self) -> Duration {
        let rows = self.shared.queue.rows();
        self.shared.load.wait_behind(
            rows,
            self.shared.queue.policy().max_batch_size,
            self.instances(),
        )
    }

    /// Brings the gauges up to date, interrupts runs that nobody waits for, and says how the worst instance is.
    #[must_use]
    pub fn check(&self, now: Instant) -> InstanceHealth {
        let metrics = &self.shared.metrics;
        metrics
            .queue_rows
            .set(i64::try_from(self.shared.queue.rows()).unwrap_or(i64::MAX));
        let timeout = self.shared.config.default_timeout.as_secs_f64();
        metrics
            .saturation
            .set(self.predicted_wait().as_secs_f64() / timeout.max(f64::MIN_POSITIVE));
        let mut worst = InstanceHealth::Well;
        for status in &self.shared.statuses {
            match status.check(now) {
                InstanceHealth::Dead => worst = InstanceHealth::Dead,
                InstanceHealth::Hung if worst == InstanceHealth::Well => {
                    worst = InstanceHealth::Hung;
                }
                InstanceHealth::Hung | InstanceHealth::Well => {}
            }
        }
        worst
    }

    /// Takes no more requests. What was accepted is still executed.
    pub fn close(&self) {
        self.shared.queue.close();
    }

    /// Waits for the instances to finish after [`close`](Self::close), until `deadline`; what is left then is refused.
    ///
    /// Returns whether all of them ended. A thread that did not is left to the end of the process.
    #[must_use]
    pub fn join(&self, deadline: Instant) -> bool {
        let mut count = self.shared.running.count.lock();
        while *count > 0 {
            if self
                .shared
                .running
                .ended
                .wait_until(&mut count, deadline)
                .timed_out()
            {
                drop(count);
                self.shared.queue.abandon();
                return false;
            }
        }
        drop(count);
        self.shared
            .threads
            .lock()
            .drain(..)
            .all(|thread| thread.join().is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{FakeModel, metadata, metrics, request};
    use super::*;

    fn config() -> BatchingConfig {
        BatchingConfig {
            max_batch_size: 8,
            max_queue_delay: Duration::ZERO,
            max_queue_size: 16,
            default_timeout: Duration::from_secs(30),
        }
    }

    fn start(model: FakeModel, config: BatchingConfig) -> Scheduler {
        let metadata = metadata(&[("x", &["N", "1"])], &[("y", &["N", "1"])]);
        Scheduler::start(&metadata, vec![Box::new(model)], config, metrics()).unwrap()
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    fn values(response: &InferenceResponse) -> Vec<f32> {
        response.outputs[0]
            .array::<f32>()
            .unwrap()
            .iter()
            .copied()
            .collect()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn merges_what_came_while_the_instance_was_busy() {
        let (model, gate) = FakeModel::gated();
        let scheduler = start(model, config());
        let first = tokio::spawn({
            let scheduler = scheduler.clone();
            async move { scheduler.submit(request(&[1.0], soon())).await }
        });
        gate.wait_for_run();
        let rest: Vec<_> = (2..6_u8)
            .map(|value| {
                let scheduler = scheduler.clone();
                tokio::spawn(
                    async move { scheduler.submit(request(&[f32::from(value)], soon())).await },
                )
            })
            .collect();
        while scheduler.shared.queue.rows() < 4 {
            tokio::task::yield_now().await;
        }
        gate.open();
        let first = first.await.unwrap().unwrap();
        assert_eq!((values(&first), first.batch_rows), (vec![2.0], 1));
        for (value, answer) in (2..6_u8).zip(rest) {
            let answer = answer.await.unwrap().unwrap();
            assert_eq!(
                (values(&answer), answer.batch_rows),
                (vec![f32::from(value) + 1.0], 4)
            );
        }
        scheduler.close();
        assert!(scheduler.join(soon()));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn only_the_culprit_of_a_failed_batch_fails() {
        let (model, gate) = FakeModel::gated();
        let scheduler = start(model, config());
        // Negative values make the fake model refuse the whole execution; the first request keeps it busy.
        let mut answers = Vec::new();
        for (index, value) in [0.0, 1.0, -1.0, 2.0, 3.0, -2.0, 4.0]
            .into_iter()
            .enumerate()
        {
            let handle = scheduler.clone();
            answers.push((
                value,
                tokio::spawn(async move { handle.submit(request(&[value], soon())).await }),
            ));
            if index == 0 {
                gate.wait_for_run();
            }
        }
        while scheduler.shared.queue.rows() < 6 {
            tokio::task::yield_now().await;
        }
        gate.open();
        for (value, answer) in answers {
            match answer.await.unwrap() {
                Ok(response) => assert_eq!(values(&response), [value + 1.0]),
                Err(ScheduleError::Refused(_)) => assert!(value < 0.0),
                Err(error) => panic!("{value}: {error}"),
            }
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_panic_in_the_model_is_an_answer_and_the_instance_lives_on() {
        let scheduler = start(FakeModel::open(), config());
        let error = scheduler
            .submit(request(&[f32::INFINITY], soon()))
            .await
            .unwrap_err();
        assert!(matches!(error, ScheduleError::Internal(_)), "{error}");
        assert_eq!(
            values(&scheduler.submit(request(&[1.0], soon())).await.unwrap()),
            [2.0]
        );
        assert_eq!(scheduler.check(Instant::now()), InstanceHealth::Well);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn refuses_when_the_queue_is_full_and_recovers() {
        let (model, gate) = FakeModel::gated();
        let scheduler = start(model, config());
        let submit = |rows: usize| {
            let scheduler = scheduler.clone();
            tokio::spawn(async move { scheduler.submit(request(&vec![1.0; rows], soon())).await })
        };
        let busy = submit(1);
        gate.wait_for_run();
        let waiting = [submit(8), submit(8)];
        while scheduler.shared.queue.rows() < 16 {
            tokio::task::yield_now().await;
        }
        let refused = submit(1).await.unwrap();
        assert!(matches!(refused, Err(ScheduleError::Overloaded { .. })));
        gate.open();
        assert!(busy.await.unwrap().is_ok());
        for answer in waiting {
            assert!(answer.await.unwrap().is_ok());
        }
        assert!(submit(1).await.unwrap().is_ok());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn abandoned_work_is_never_executed() {
        let (model, gate) = FakeModel::gated();
        let executed = model.executed_rows();
        let scheduler = start(model, config());
        let busy = tokio::spawn({
            let scheduler = scheduler.clone();
            async move { scheduler.submit(request(&[1.0], soon())).await }
        });
        gate.wait_for_run();
        let abandoned = tokio::spawn({
            let scheduler = scheduler.clone();
            async move { scheduler.submit(request(&[5.0; 4], soon())).await }
        });
        while scheduler.shared.queue.rows() < 4 {
            tokio::task::yield_now().await;
        }
        abandoned.abort();
        assert!(abandoned.await.unwrap_err().is_cancelled());
        gate.open();
        assert!(busy.await.unwrap().is_ok());
        scheduler.close();
        assert!(scheduler.join(soon()));
        assert_eq!(executed.load(std::sync::atomic::Ordering::Relaxed), 1);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_run_that_nobody_waits_for_is_interrupted() {
        let (model, gate) = FakeModel::gated();
        let scheduler = start(model, config());
        let deadline = Instant::now() + Duration::from_millis(20);
        let error = scheduler
            .submit(request(&[1.0], deadline))
            .await
            .unwrap_err();
        assert!(matches!(error, ScheduleError::DeadlineExceeded), "{error}");
        gate.wait_for_run();
        assert_eq!(scheduler.check(Instant::now()), InstanceHealth::Well);
        // The interrupt opens the fake model's gate, so the instance is free again.
        assert_eq!(
            values(&scheduler.submit(request(&[1.0], soon())).await.unwrap()),
            [2.0]
        );
        assert_eq!(
            scheduler.check(Instant::now() + Duration::from_secs(3600)),
            InstanceHealth::Well
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn closing_finishes_what_was_accepted_and_refuses_the_rest() {
        let (model, gate) = FakeModel::gated();
        let scheduler = start(model, config());
        let accepted = tokio::spawn({
            let scheduler = scheduler.clone();
            async move { scheduler.submit(request(&[1.0], soon())).await }
        });
        gate.wait_for_run();
        scheduler.close();
        let refused = scheduler.submit(request(&[1.0], soon())).await;
        assert!(matches!(refused, Err(ScheduleError::ShuttingDown)));
        assert!(
            !scheduler.join(Instant::now()),
            "the instance is still busy"
        );
        gate.open();
        assert!(accepted.await.unwrap().is_ok());
        assert!(scheduler.join(soon()));
    }
}
