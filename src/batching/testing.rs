//! Stand-ins for the tests of this layer: a model that adds one, waits at a gate, refuses or panics on demand.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use smallvec::smallvec;
use tokio::sync::oneshot;

use super::ScheduleError;
use super::policy::BatchPolicy;
use super::queue::{Pending, QueueConfig};
use crate::inference::{InferenceRequest, InferenceResponse, Reservation};
use crate::model::ModelMetadata;
pub(crate) use crate::model::testing::metadata;
use crate::runtime::ModelOutput;
use crate::runtime::{BatchInput, BatchOutput, Interrupt, Model, RuntimeError};
use crate::telemetry::metrics::{BatchingMetrics, Metrics};
use crate::tensor::{Shape, Tensor, TensorData, TensorView};

/// The receiving end of a request's answer.
pub(crate) type Answer = oneshot::Receiver<Result<InferenceResponse, ScheduleError>>;

/// Metrics that nobody scrapes.
pub(crate) fn metrics() -> BatchingMetrics {
    Metrics::new().unwrap().batching("fake", "1")
}

/// A request with `values`, one to a row.
pub(crate) fn request(values: &[f32], deadline: Instant) -> InferenceRequest {
    pending_with(values, 1, deadline).0.request
}

/// An entry of `rows` rows of `width` zeros.
pub(crate) fn pending(rows: usize, width: usize, deadline: Instant) -> (Pending, Answer) {
    pending_with(&vec![0.0; rows * width], width, deadline)
}

/// An entry with `values` in rows of `width`.
pub(crate) fn pending_with(values: &[f32], width: usize, deadline: Instant) -> (Pending, Answer) {
    let tensor = Tensor::new(
        Shape::from_slice(&[values.len() / width, width]),
        TensorData::from(values.to_vec()),
    )
    .unwrap();
    let metadata = metadata(&[("x", &["N", ""])], &[("y", &["N", ""])]);
    let request = InferenceRequest::new(
        &metadata,
        smallvec![tensor],
        1024,
        deadline,
        Reservation::none(),
    )
    .unwrap();
    let (respond, answer) = oneshot::channel();
    (
        Pending {
            request,
            respond,
            enqueued_at: Instant::now(),
        },
        answer,
    )
}

/// A queue in which nobody is delayed, and of which runs are comparable.
pub(crate) fn queue_config(instances: usize, merge_rows: usize, max_rows: usize) -> QueueConfig {
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

/// Holds runs back until it is opened, and says that one has arrived.
#[derive(Default)]
pub(crate) struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    arrived: bool,
    open: bool,
    interrupted: bool,
}

impl Gate {
    pub(crate) fn close(&self) {
        *self.state.lock() = GateState::default();
    }

    pub(crate) fn open(&self) {
        self.state.lock().open = true;
        self.changed.notify_all();
    }

    pub(crate) fn wait_for_run(&self) {
        let mut state = self.state.lock();
        while !state.arrived {
            self.changed.wait(&mut state);
        }
    }

    pub(crate) fn has_run(&self) -> bool {
        self.state.lock().arrived
    }

    /// Returns whether the run was interrupted while it waited.
    fn pass(&self) -> bool {
        let mut state = self.state.lock();
        state.arrived = true;
        self.changed.notify_all();
        while !state.open {
            self.changed.wait(&mut state);
        }
        std::mem::take(&mut state.interrupted)
    }
}

impl Interrupt for Gate {
    fn interrupt(&self) {
        let mut state = self.state.lock();
        state.interrupted = !state.open;
        state.open = true;
        self.changed.notify_all();
    }
}

/// Adds one to every value; refuses an execution with a negative value, panics on an infinite one.
pub(crate) struct FakeModel {
    metadata: Arc<ModelMetadata>,
    gate: Arc<Gate>,
    executed_rows: Arc<AtomicUsize>,
    executions: Arc<Mutex<Vec<usize>>>,
}

impl FakeModel {
    /// A model that waits at its gate until that is opened.
    pub(crate) fn gated() -> (Self, Arc<Gate>) {
        let gate = Arc::new(Gate::default());
        let metadata = Arc::new(metadata(&[("x", &["N", "1"])], &[("y", &["N", "1"])]));
        (
            Self {
                metadata,
                gate: Arc::clone(&gate),
                executed_rows: Arc::default(),
                executions: Arc::default(),
            },
            gate,
        )
    }

    /// The same, but its signature does not tell how large its outputs are.
    pub(crate) fn untold(self) -> Self {
        let metadata = metadata(&[("x", &["N", ""])], &[("y", &["N", ""])]);
        Self {
            metadata: Arc::new(metadata),
            ..self
        }
    }

    /// A model that never waits.
    pub(crate) fn open() -> Self {
        let (model, gate) = Self::gated();
        gate.open();
        model
    }

    /// The rows of each execution, in the order in which they ended.
    pub(crate) fn executions(&self) -> Arc<Mutex<Vec<usize>>> {
        Arc::clone(&self.executions)
    }

    pub(crate) fn executed_rows(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.executed_rows)
    }
}

impl Model for FakeModel {
    fn metadata(&self) -> &Arc<ModelMetadata> {
        &self.metadata
    }

    fn run(&mut self, input: BatchInput<'_>) -> Result<BatchOutput, RuntimeError> {
        if self.gate.pass() {
            return Err(RuntimeError::Interrupted);
        }
        let TensorView::Fp32(values) = input[0].elements else {
            return Err(RuntimeError::Broken("expected FP32".to_owned()));
        };
        assert!(
            values.iter().all(|value| value.is_finite()),
            "the fake model panics on infinity"
        );
        if values.iter().any(|value| *value < 0.0) {
            return Err(RuntimeError::Refused("negative".to_owned()));
        }
        self.executed_rows
            .fetch_add(values.len(), Ordering::Relaxed);
        self.executions.lock().push(values.len());
        let outputs: Vec<f32> = values.iter().map(|value| value + 1.0).collect();
        Ok(vec![
            ModelOutput::new(input[0].shape.clone(), Arc::new(TensorData::from(outputs))).unwrap(),
        ])
    }

    fn interrupt(&self) -> Arc<dyn Interrupt> {
        Arc::clone(&self.gate) as Arc<dyn Interrupt>
    }
}
