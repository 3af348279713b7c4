//! An instance: one thread, or one task beside the connections, that owns one model and executes batch after batch.
//!
//! Hot path: that it can be a task is a second way to execute, which the load bench holds (`make bench`, the tiny model at
//! 32 connections); benches/NOTES.md has what threads cost in its place.
//! Invariant: every member of a batch is answered exactly once, whatever the execution does, a panic included.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use smallvec::{SmallVec, smallvec};
use tokio::runtime::{Handle, RuntimeFlavor};

use super::ScheduleError;
use super::batch::{Batch, InputBuffers};
use super::instance_status::{DeathMark, InstanceStatus};
use super::numbers::to_f64;
use super::output_sizes::OutputSizes;
use super::parts::{self, InParts, PartRule, Stop};
use super::queue::{Pending, RequestQueue};
use super::request_list::RequestList;
use crate::inference::{InferenceRequest, InferenceResponse, Timings};
use crate::model::ModelMetadata;
use crate::runtime::buckets::Buckets;
use crate::runtime::device_health::DeviceHealth;
use crate::runtime::{BatchInput, BatchOutput, Model, RuntimeError};
use crate::runtime::{Division, ModelOutput};
use crate::telemetry::metrics::BatchingMetrics;
use crate::telemetry::panics;
use crate::telemetry::request_ids::RequestIds;
use crate::tensor::Tensor;

/// When it is worth trying again to get memory for a run.
const MEMORY_RETRY: Duration = Duration::from_secs(1);

/// A run beside the connections that takes longer, splitting and all, was not known to be short.
const LONG_RUN: Duration = Duration::from_millis(10);

/// Outputs of up to this size are shared by the members of a batch until each of them is encoded. Of larger ones each
/// member gets a copy of its rows before the next execution: instances execute faster than answers are encoded, and the
/// outputs of one execution after another would be kept meanwhile, which no budget counts.
const SHARED_OUTPUTS: usize = 1 << 20;

/// One instance, before its thread runs.
pub(super) struct Instance {
    /// Its number, by which the queue knows it.
    pub(super) index: usize,
    pub(super) model: Box<dyn Model>,
    pub(super) queue: Arc<RequestQueue>,
    pub(super) status: Arc<InstanceStatus>,
    pub(super) device: Arc<DeviceHealth>,
    pub(super) buckets: Option<Buckets>,
    pub(super) parts: PartRule,
    pub(super) output_sizes: OutputSizes,
    pub(super) metrics: BatchingMetrics,
}

/// A batch, and the rows that it is executed as.
struct Attempt {
    batch: Batch,
    padded: usize,
}

impl Instance {
    /// Executes batches until the queue is closed and empty; for a thread of its own.
    pub(super) fn run(mut self) {
        let mut mark = DeathMark::new(&self.status);
        let mut buffers = InputBuffers::new(self.model.metadata());
        let mut large = None;
        loop {
            let members = if large.is_some() {
                self.queue.batch_beside(self.index, self.parts.rows)
            } else if let Some(members) = self.queue.next_batch(self.index) {
                Some(members)
            } else {
                break;
            };
            large = self.take_turns(members, large, &mut buffers);
        }
        mark.finish();
    }

    /// The same as a task beside the connections, for a model whose runs are shorter than waking a thread is worth.
    ///
    /// Should a run be long all the same, because values make it slower than those that were tried, it holds up what else
    /// is ready on its thread once; from then on the runtime moves the rest to another thread first.
    pub(super) async fn run_on_runtime(mut self, short_rows: usize) {
        let mut mark = DeathMark::new(&self.status);
        let mut buffers = InputBuffers::new(self.model.metadata());
        let can_move = Handle::current().runtime_flavor() != RuntimeFlavor::CurrentThread;
        let mut was_long = false;
        let mut large = None;
        loop {
            let members = if large.is_some() {
                // The connections have their turn between two parts, like those that wait.
                tokio::task::yield_now().await;
                self.queue.batch_beside(self.index, self.parts.rows)
            } else if let Some(members) = self.queue.next_batch_on_runtime(self.index).await {
                Some(members)
            } else {
                break;
            };
            let untried = self.is_untried(
                members.as_deref().unwrap_or_default(),
                large.as_ref(),
                short_rows,
            );
            if (was_long || untried) && can_move {
                large =
                    tokio::task::block_in_place(|| self.take_turns(members, large, &mut buffers));
                continue;
            }
            // They are answered by the time that the run is known to have been long.
            let of_large = large.iter().map(|large| &large.pending);
            let requests = RequestList::of(members.iter().flatten().chain(of_large));
            let started = Instant::now();
            large = self.take_turns(members, large, &mut buffers);
            let elapsed = started.elapsed();
            if elapsed > LONG_RUN {
                was_long = true;
                tracing::warn!(
                    request_id = requests.request_ids(),
                    trace_id = requests.trace_ids(),
                    model = self.model.metadata().name,
                    milliseconds = elapsed.as_secs_f64() * 1e3,
                    "a run took far longer than those that were tried; set --instances if that is not rare"
                );
            }
        }
        mark.finish();
    }

    /// Whether `members`, or the next part of `large`, have a size that was not tried when the runs of up to `short_rows`
    /// rows were found to be short.
    fn is_untried(&self, members: &[Pending], large: Option<&InParts>, short_rows: usize) -> bool {
        let rows = members.iter().map(|member| member.request.rows()).sum();
        let of_members = if self.parts.parts(rows) {
            self.parts.rows
        } else {
            rows
        };
        let of_large = large.map_or(0, |large| large.next().len());
        let disagrees = |member: &Pending| member.request.disagreement().is_some();
        of_members.max(of_large) > short_rows || members.iter().any(disagrees)
    }

    /// Executes `members`, and a part of the `large` request that is in hand; returns what is in hand then.
    fn take_turns(
        &mut self,
        members: Option<Vec<Pending>>,
        large: Option<InParts>,
        buffers: &mut InputBuffers,
    ) -> Option<InParts> {
        let begun = members.and_then(|members| self.execute_taken(members, buffers));
        let large = large
            .or(begun)
            .and_then(|large| self.execute_part(large, buffers));
        buffers.release_large();
        large
    }

    /// Executes `members`, or hands them back if they are a request that is to be executed in parts.
    fn execute_taken(
        &mut self,
        members: Vec<Pending>,
        buffers: &mut InputBuffers,
    ) -> Option<InParts> {
        let mut batch = Batch::new(members);
        // What a GPU in this state answers, if anything, must not be believed.
        if self.device.is_lost() {
            batch.refuse(&ScheduleError::DeviceLost);
            return None;
        }
        if self.parts.parts(batch.rows())
            && let Some(only) = batch.take_only()
        {
            return Some(InParts::new(only, self.parts, Instant::now()));
        }
        self.execute(batch, buffers);
        None
    }

    /// Executes the next part of `large`, and hands it back unless it is answered.
    fn execute_part(&mut self, mut large: InParts, buffers: &mut InputBuffers) -> Option<InParts> {
        let now = Instant::now();
        let deadline = large.pending.request.deadline();
        // The first part is executed whatever is known, because that may be wrong.
        let is_begun = large.next().start > 0;
        let is_late = is_begun && !self.queue.can_finish(large.left(), deadline, now);
        if is_late || !large.pending.is_wanted(now) {
            large.pending.answer(Err(ScheduleError::DeadlineExceeded));
            return None;
        }
        if self.device.is_lost() {
            large.pending.answer(Err(ScheduleError::DeviceLost));
            return None;
        }
        let rows = large.next();
        let padded = parts::padded(rows.len(), self.buckets);
        let started = Instant::now();
        self.queue.note_part(self.index, rows.len(), started);
        self.status.begin(deadline);
        let ids = large.pending.request.ids();
        let result = self.run_gathered(ids, || {
            parts::gather(&large.pending.request, rows.clone(), buffers, padded)
        });
        self.status.end();
        let elapsed = started.elapsed();
        self.queue
            .record(rows.len(), elapsed, result.is_ok(), started + elapsed);
        let error = match result {
            // The GPU may have been lost to another instance while this one was computing.
            Ok(_) if self.device.is_lost() => ScheduleError::DeviceLost,
            Ok((outputs, timings)) => {
                if rows.start == 0 {
                    let queue = large.queue_time();
                    self.metrics.queue_duration.observe(queue.as_secs_f64());
                }
                self.metrics.executed_batch_size.observe(to_f64(rows.len()));
                self.metrics
                    .inference_duration
                    .observe(timings.compute_infer.as_secs_f64());
                match large.take(&outputs, padded, timings) {
                    Ok(()) if large.is_done() => {
                        large.answer();
                        return None;
                    }
                    Ok(()) => return Some(large),
                    Err(Stop::Misfit) => {
                        drop(outputs);
                        self.execute(Batch::new(vec![large.into_pending()]), buffers);
                        return None;
                    }
                    Err(Stop::OutOfMemory) => ScheduleError::Overloaded {
                        reason: "too much memory is held by requests",
                        retry_after: MEMORY_RETRY,
                    },
                }
            }
            Err(error) => {
                self.tell_failure([&large.pending], rows.len(), &error);
                if let RuntimeError::DeviceLost(reason) = &error {
                    self.device.lose(reason);
                }
                reported(error, &large.pending.request, self.model.metadata())
            }
        };
        large.pending.answer(Err(error));
        None
    }

    /// Executes `batch` and answers its members. A merged batch that fails is split, so that only the culprit fails; one
    /// whose outputs would be large is executed in several executions.
    fn execute(&mut self, batch: Batch, buffers: &mut InputBuffers) {
        let padded = self.padded(batch.rows());
        // What is left of the batch, the next part on top. Each attempt answers its part or replaces it by smaller ones,
        // so that this ends.
        let mut left = SmallVec::new();
        self.attempt_first(Attempt { batch, padded }, buffers, &mut left);
        while let Some(mut attempt) = left.pop() {
            // Time has passed since it left the queue.
            for member in attempt.batch.remove_unwanted(Instant::now()) {
                member.answer(Err(ScheduleError::DeadlineExceeded));
            }
            if self.device.is_lost() {
                attempt.batch.refuse(&ScheduleError::DeviceLost);
                continue;
            }
            if attempt.batch.members().is_empty() {
                continue;
            }
            attempt.padded = attempt.padded.max(attempt.batch.rows());
            self.attempt_first(attempt, buffers, &mut left);
        }
    }

    /// Attempts those members of `attempt` that may share an execution, from the first on. What is to be attempted after
    /// that, by what is known then, is put on `left`.
    fn attempt_first(
        &mut self,
        mut attempt: Attempt,
        buffers: &mut InputBuffers,
        left: &mut SmallVec<[Attempt; 4]>,
    ) {
        if let Some(batch) = self.split_off_too_much(&mut attempt.batch) {
            attempt.padded = self.padded(attempt.batch.rows());
            let padded = self.padded(batch.rows());
            left.push(Attempt { batch, padded });
        }
        left.extend(self.attempt(attempt, buffers).into_iter().flatten());
    }

    /// Takes the members off `batch` with which its outputs would be too large for a shared execution.
    fn split_off_too_much(&self, batch: &mut Batch) -> Option<Batch> {
        if batch.members().len() < 2 {
            return None;
        }
        let row = batch.row_size(self.model.metadata());
        let most = self.output_sizes.most_rows(row, batch.rows());
        batch.split_off(|rows| self.padded(rows) <= most)
    }

    /// Makes one attempt at a batch: answers its members, or says what is to be attempted instead, the first one last.
    fn attempt(
        &mut self,
        attempt: Attempt,
        buffers: &mut InputBuffers,
    ) -> Option<SmallVec<[Attempt; 2]>> {
        let Attempt { batch, padded } = attempt;
        let started = Instant::now();
        let deadline = batch.latest_deadline()?;
        self.status.begin(deadline);
        let result = self.run_once(&batch, padded, buffers);
        self.status.end();
        let elapsed = started.elapsed();
        // What inputs that disagree are broadcast to says nothing about others of as many rows.
        let disagrees = |member: &Pending| member.request.disagreement().is_some();
        if !batch.members().iter().any(disagrees) {
            self.queue
                .record(batch.rows(), elapsed, result.is_ok(), started + elapsed);
            if let Ok((outputs, _)) = &result {
                let row = batch.row_size(self.model.metadata());
                if row.output.is_none() {
                    self.output_sizes
                        .record(row.input, bytes_of_row(outputs, padded));
                }
            }
        }

        match result {
            // The GPU may have been lost to another instance while this one was computing.
            Ok(_) if self.device.is_lost() => batch.refuse(&ScheduleError::DeviceLost),
            Ok((outputs, timings)) if batch.can_scatter(&outputs, padded) => {
                self.answer(batch, &outputs, padded, timings, started);
            }
            Err(error @ RuntimeError::DeviceLost(_)) => {
                self.tell_failure(batch.members(), batch.rows(), &error);
                if let RuntimeError::DeviceLost(reason) = &error {
                    self.device.lose(reason);
                }
                batch.refuse(&ScheduleError::DeviceLost);
            }
            Err(RuntimeError::Interrupted) => batch.refuse(&ScheduleError::DeadlineExceeded),
            // How many rows come out depends on the values, so that the padding cannot be told from them.
            Ok(_) if batch.members().len() == 1 => {
                let padded = batch.rows();
                return Some(smallvec![Attempt { batch, padded }]);
            }
            Err(error) if let [only] = batch.members() => {
                self.tell_failure([only], batch.rows(), &error);
                let told = reported(error, &only.request, self.model.metadata());
                batch.refuse(&told);
            }
            Ok(_) | Err(_) => {
                let (first, second) = batch.split();
                let half = |batch: Batch| Attempt {
                    padded: self.padded(batch.rows()),
                    batch,
                };
                return Some(smallvec![half(second), half(first)]);
            }
        }
        None
    }

    /// Says in the log that an execution of `members` failed. The text is the library's own, which nobody else is told.
    fn tell_failure<'a>(
        &self,
        members: impl IntoIterator<Item = &'a Pending>,
        rows: usize,
        error: &RuntimeError,
    ) {
        // Nobody waits for it any more, which is no failure.
        if matches!(error, RuntimeError::Interrupted) {
            return;
        }
        let requests = RequestList::of(members);
        tracing::warn!(
            request_id = requests.request_ids(),
            trace_id = requests.trace_ids(),
            model = self.model.metadata().name,
            rows,
            %error,
            "an execution failed"
        );
    }

    /// Gives each member of `batch` its rows of `outputs`.
    fn answer(
        &self,
        batch: Batch,
        outputs: &BatchOutput,
        padded: usize,
        mut timings: Timings,
        started: Instant,
    ) {
        self.metrics
            .executed_batch_size
            .observe(to_f64(batch.rows()));
        self.metrics
            .inference_duration
            .observe(timings.compute_infer.as_secs_f64());
        let batch_rows = batch.rows();
        let bytes = || -> usize { outputs.iter().map(|output| output.view().byte_len()).sum() };
        let detach = batch.members().len() > 1 && bytes() > SHARED_OUTPUTS;
        for (mut member, outputs) in batch.scatter(outputs, padded) {
            timings.queue = started.saturating_duration_since(member.enqueued_at);
            self.metrics
                .queue_duration
                .observe(timings.queue.as_secs_f64());
            let Some(outputs) = outputs else {
                member.answer(Err(ScheduleError::Internal(
                    "an output lacks the rows of a request".into(),
                )));
                continue;
            };
            let outputs = if detach {
                detached(&mut member.request, outputs)
            } else {
                outputs
            };
            member.answer(Ok(InferenceResponse {
                outputs,
                timings,
                started_at: started,
                batch_rows,
            }));
        }
    }

    /// The rows of an execution of `rows` rows.
    fn padded(&self, rows: usize) -> usize {
        self.buckets.map_or(rows, |buckets| buckets.fit(rows))
    }

    /// Runs the model once. A panic in it is an error like others, so that the thread and its queue live on.
    fn run_once(
        &mut self,
        batch: &Batch,
        padded: usize,
        buffers: &mut InputBuffers,
    ) -> Result<(BatchOutput, Timings), RuntimeError> {
        let only = match batch.members() {
            [only] => only.request.ids(),
            // Which of them it is about is known once it is alone.
            _ => None,
        };
        self.run_gathered(only, || batch.gather(buffers, padded))
    }

    /// Runs the model once on what `gather` gives, for the request with `ids` if it is for one only.
    fn run_gathered<'a>(
        &mut self,
        ids: Option<&RequestIds>,
        gather: impl FnOnce() -> Result<BatchInput<'a>, RuntimeError>,
    ) -> Result<(BatchOutput, Timings), RuntimeError> {
        let run = || {
            #[cfg(feature = "testkit")]
            crate::testkit::panic_at("run");
            let started = Instant::now();
            let input = gather()?;
            let gathered = Instant::now();
            let outputs = self.model.run(input)?;
            let timings = Timings {
                queue: Duration::ZERO,
                compute_input: gathered - started,
                compute_infer: gathered.elapsed(),
            };
            Ok((outputs, timings))
        };
        let run = || match ids {
            Some(ids) => panics::about(ids.header(), run),
            None => run(),
        };
        catch_unwind(AssertUnwindSafe(run))
            .unwrap_or_else(|_| Err(RuntimeError::Broken("the execution panicked".to_owned())))
    }
}

/// `outputs` of `request` in memory of their own. If none can be reserved for them, they are left where they are: it is for
/// the edge to refuse such an answer, and to say why.
fn detached(request: &mut InferenceRequest, outputs: Vec<Tensor>) -> Vec<Tensor> {
    let parts = outputs.iter().filter(|rows| !rows.is_whole());
    let bytes = parts.map(|rows| rows.view().byte_len()).sum();
    if request.reserve(bytes).is_err() {
        return outputs;
    }
    outputs.into_iter().map(Tensor::detached).collect()
}

/// The bytes of a row of `outputs` of an execution of `padded` rows, without those that are the same for all rows.
fn bytes_of_row(outputs: &[ModelOutput], padded: usize) -> usize {
    let of_rows = outputs
        .iter()
        .filter(|output| output.division() != Division::Shared);
    let bytes: usize = of_rows.map(|output| output.view().byte_len()).sum();
    bytes.div_ceil(padded.max(1))
}

/// What the client of a failed execution is told.
fn reported(
    error: RuntimeError,
    request: &InferenceRequest,
    metadata: &ModelMetadata,
) -> ScheduleError {
    match error {
        RuntimeError::Refused(reason) => ScheduleError::Refused {
            reason: reason.into(),
            inputs: request.inputs_text(metadata).into(),
        },
        RuntimeError::Broken(reason) => ScheduleError::Internal(reason.into()),
        RuntimeError::DeviceLost(_) => ScheduleError::DeviceLost,
        RuntimeError::OutOfMemory(_) => ScheduleError::Overloaded {
            reason: "the memory for runs is full",
            retry_after: MEMORY_RETRY,
        },
        RuntimeError::TooLarge(_) => ScheduleError::TooLarge,
        RuntimeError::Interrupted => ScheduleError::DeadlineExceeded,
    }
}
