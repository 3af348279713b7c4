//! Scheduling: the only place with queues and waiting.
//!
//! An idle instance asks the queue for the next batch. There is no batcher task and no hand-over: while every
//! instance is busy the waiting batch grows by itself, and when one frees up it takes what is there. At low load
//! nothing ever waits; under load batches form on their own.
//!
//! Invariant: whoever submits a request gets exactly one answer, and leaves no trace by ceasing to wait for it.

pub mod batch;
mod error;
mod forecast;
mod instance;
mod instance_status;
mod numbers;
mod output_sizes;
mod parts;
pub mod policy;
pub mod queue;
mod request_list;
mod run_times;
#[cfg(test)]
mod simulation;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;
use tokio::time::Sleep;

pub use error::ScheduleError;
pub use instance_status::InstanceHealth;

use crate::inference::{InferenceRequest, InferenceResponse};
use crate::model::{Batchability, ModelMetadata};
use crate::runtime::Model;
use crate::runtime::buckets::Buckets;
use crate::runtime::device_health::DeviceHealth;
use crate::telemetry::metrics::BatchingMetrics;
use instance::Instance;
use instance_status::InstanceStatus;
use output_sizes::OutputSizes;
use parts::PartRule;
use policy::BatchPolicy;
use queue::{Pending, PushError, QueueConfig, RequestQueue};

/// How requests for one model are queued and merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchingConfig {
    /// The most rows of one request, where it has rows.
    pub max_request_rows: usize,
    /// The most rows of an execution, where rows are independent: a request of more is executed in parts. 1 means that
    /// requests are executed as they are.
    pub max_batch_size: usize,
    /// The most rows of an execution that requests share; 1 means that nothing is merged.
    pub merge_rows: usize,
    /// How long the oldest request may wait for company.
    pub max_queue_delay: Duration,
    /// Rows that may wait, where a request that is executed in parts counts as many as one part has.
    pub max_queue_size: usize,
    /// The deadline of a request that brings none of its own, the yardstick of `ml_saturation`.
    pub default_timeout: Duration,
    /// The sizes to which executions are padded, with copies of their last row; as many rows as there are if not given.
    pub buckets: Option<Buckets>,
    /// Whether runs of as many rows take about as long, so that what some took says what others will take.
    pub comparable_runs: bool,
    /// The bytes that requests and answers may hold at once, beside which the outputs of shared executions must be small.
    pub memory: usize,
}

/// Where instances execute.
#[derive(Debug, Clone)]
pub enum Executor {
    /// On a thread each. Whatever a run does, it keeps no connection waiting.
    Threads,
    /// As tasks on the runtime that serves the connections. No thread has to be woken for a request or its answer,
    /// which costs more than a small model's run; but a run holds up what else is ready on its thread, so that this is
    /// for models whose runs are known to be short.
    Runtime {
        /// The runtime.
        runtime: tokio::runtime::Handle,
        /// The rows up to which runs are known to be short. What has more is moved off the connections' threads.
        short_rows: usize,
    },
}

impl Executor {
    /// Its name in the log.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Threads => "threads",
            Self::Runtime { .. } => "runtime",
        }
    }
}

/// A cheap handle to the queue and the instances of one model.
#[derive(Clone)]
pub struct Scheduler {
    shared: Arc<Shared>,
}

struct Shared {
    config: BatchingConfig,
    queue: Arc<RequestQueue>,
    statuses: Vec<Arc<InstanceStatus>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    running: Arc<RunningThreads>,
    device: Arc<DeviceHealth>,
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
    /// Starts one instance on `executor` for each of `models`, which are sessions of the model that `metadata` describes
    /// and are executed on `device`.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn start(
        metadata: &ModelMetadata,
        models: Vec<Box<dyn Model>>,
        executor: &Executor,
        config: BatchingConfig,
        device: &Arc<DeviceHealth>,
        metrics: BatchingMetrics,
    ) -> std::io::Result<Self> {
        let policy = BatchPolicy {
            merge_rows: config.merge_rows,
            max_queue_delay: config.max_queue_delay,
            merge: metadata.batchability == Batchability::Rows && config.merge_rows > 1,
        };
        let parts = PartRule {
            rows: config.max_batch_size,
            independent: metadata.has_rows() && config.max_batch_size > 1,
        };
        let queue = Arc::new(RequestQueue::new(QueueConfig {
            policy,
            max_rows: config.max_queue_size,
            part_rows: parts.independent.then_some(parts.rows),
            instances: models.len(),
            buckets: config.buckets,
            comparable: config.comparable_runs,
        }));
        let running = Arc::new(RunningThreads {
            count: Mutex::new(0),
            ended: Condvar::new(),
        });
        let mut statuses = Vec::new();
        let mut threads = Vec::new();
        let instances = models.len();
        for (index, model) in models.into_iter().enumerate() {
            let status = Arc::new(InstanceStatus::new(model.interrupt()));
            statuses.push(Arc::clone(&status));
            let instance = Instance {
                index,
                model,
                queue: Arc::clone(&queue),
                status,
                device: Arc::clone(device),
                buckets: config.buckets,
                parts,
                output_sizes: OutputSizes::new(config.memory, instances),
                metrics: metrics.clone(),
            };
            *running.count.lock() += 1;
            let count_out = CountOut(Arc::clone(&running));
            if let Executor::Runtime {
                runtime,
                short_rows,
            } = executor
            {
                let short_rows = *short_rows;
                runtime.spawn(async move {
                    let _count_out = count_out;
                    instance.run_on_runtime(short_rows).await;
                });
                continue;
            }
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
            statuses,
            threads: Mutex::new(threads),
            running,
            device: Arc::clone(device),
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

    /// Whether a request that comes now, and of which nothing is known but that it has a row, could be answered by
    /// `deadline`. Nothing is queued: this is for refusing a request before its body is received.
    ///
    /// # Errors
    /// Why it could not.
    pub fn admit(&self, deadline: Instant) -> Result<(), ScheduleError> {
        if self.shared.device.is_lost() {
            return Err(ScheduleError::DeviceLost);
        }
        let now = Instant::now();
        if deadline <= now {
            return Err(ScheduleError::DeadlineExceeded);
        }
        self.shared.queue.admit(deadline, now).map_err(not_queued)
    }

    /// Queues `request` and waits for its answer until its deadline. Dropping the future abandons the request.
    ///
    /// # Errors
    /// See [`ScheduleError`].
    pub async fn submit(
        &self,
        request: InferenceRequest,
    ) -> Result<InferenceResponse, ScheduleError> {
        let expired = pin!(tokio::time::sleep_until(request.deadline().into()));
        self.submit_until(request, expired).await
    }

    /// The same with a timer that the caller has already; it is set to the request's deadline.
    ///
    /// # Errors
    /// See [`ScheduleError`].
    pub async fn submit_until(
        &self,
        request: InferenceRequest,
        mut expired: Pin<&mut Sleep>,
    ) -> Result<InferenceResponse, ScheduleError> {
        if self.shared.device.is_lost() {
            return Err(ScheduleError::DeviceLost);
        }
        let now = Instant::now();
        let deadline = request.deadline();
        if deadline <= now {
            return Err(ScheduleError::DeadlineExceeded);
        }
        let disagreement = request.disagreement().cloned();
        let (respond, answer) = oneshot::channel();
        let pending = Pending {
            request,
            respond,
            enqueued_at: now,
        };
        self.shared.queue.push(pending).map_err(not_queued)?;
        if expired.deadline() != deadline.into() {
            expired.as_mut().reset(deadline.into());
        }
        let answer = tokio::select! {
            biased;
            answer = answer => answer.unwrap_or_else(|_| Err(ScheduleError::Internal(
                "an instance ended without an answer".into(),
            ))),
            () = expired => Err(ScheduleError::DeadlineExceeded),
        };
        match (answer, disagreement) {
            // Why the model refused is known then.
            (Err(ScheduleError::Refused { .. }), Some(message)) => {
                Err(ScheduleError::Disagreement(message))
            }
            (answer, _) => answer,
        }
    }

    /// How long a request that came now would wait for its execution.
    #[must_use]
    pub fn predicted_wait(&self) -> Duration {
        self.shared.queue.predicted_wait(Instant::now())
    }

    /// Brings the gauges up to date.
    pub fn update_gauges(&self) {
        let metrics = &self.shared.metrics;
        metrics
            .queue_rows
            .set(i64::try_from(self.shared.queue.rows()).unwrap_or(i64::MAX));
        let timeout = self.shared.config.default_timeout.as_secs_f64();
        metrics
            .saturation
            .set(self.predicted_wait().as_secs_f64() / timeout.max(f64::MIN_POSITIVE));
    }

    /// Interrupts runs that nobody waits for, and says how the worst instance is.
    #[must_use]
    pub fn check(&self, now: Instant) -> InstanceHealth {
        let mut worst = InstanceHealth::Healthy;
        for status in &self.shared.statuses {
            match status.check(now) {
                InstanceHealth::Dead => worst = InstanceHealth::Dead,
                InstanceHealth::Hung if worst == InstanceHealth::Healthy => {
                    worst = InstanceHealth::Hung;
                }
                InstanceHealth::Hung | InstanceHealth::Healthy => {}
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

/// What is told of a request that the queue does not take.
fn not_queued(error: PushError) -> ScheduleError {
    let overloaded = |reason, retry_after| ScheduleError::Overloaded {
        reason,
        retry_after,
    };
    match error {
        PushError::Full(wait) => overloaded("the queue is full", wait),
        PushError::TooMuchAhead(wait) => overloaded("the deadline cannot be met", wait),
        // No load is to blame, and trying again does not help.
        PushError::TooShort => ScheduleError::DeadlineExceeded,
        PushError::Closed => ScheduleError::ShuttingDown,
    }
}
