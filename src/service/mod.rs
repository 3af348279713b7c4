//! One prediction, whatever the protocol: the model is found, the request admitted before its body is received, and what
//! the edge has decoded is executed.
//!
//! Invariant: nothing in here knows a protocol: no status, no header, no form on the wire. What cannot be answered in time
//! is refused before its body costs anything.

mod account;
pub mod error;

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use smallvec::SmallVec;
use tokio::time::Sleep;

pub use account::OutcomeGuard;
use error::ServeError;

use crate::batching::ScheduleError;
use crate::inference::{InferenceRequest, InferenceResponse, MemoryBudget, Reservation, Timings};
use crate::models::registry::{Phase, Registry};
use crate::models::served::ServedModel;
use crate::telemetry::request_ids::RequestIds;
use crate::tensor::Tensor;

/// Predictions with the models of a registry.
pub struct Service {
    registry: Arc<Registry>,
    /// The memory that requests and answers may hold at once.
    budget: MemoryBudget,
    /// The deadline of a request that brings no shorter one.
    request_timeout: Duration,
}

/// Who asks.
#[derive(Debug, Clone)]
pub struct Caller {
    /// When the head of the request had arrived; deadlines count from here.
    pub arrived_at: Instant,
    /// What the log and traces call the request, if they know it.
    pub ids: Option<RequestIds>,
}

/// A request that was admitted, and whose body may be received.
pub struct Ticket {
    /// When the client stops waiting.
    pub deadline: Instant,
    /// The memory for the body and its tensors, to be grown before it is taken.
    pub memory: Reservation,
}

/// A prediction that was executed.
pub struct Prediction {
    /// What the model answered.
    pub response: InferenceResponse,
    /// The memory for the answer. It is to be held until the last byte has left.
    pub memory: Reservation,
    /// What the log and traces tell of it.
    pub facts: Facts,
}

/// What the log and traces tell of a prediction.
#[derive(Clone)]
pub struct Facts {
    /// The model that answered.
    pub model: Arc<ServedModel>,
    /// Rows of the request.
    pub rows: usize,
    /// When the execution began.
    pub started_at: Instant,
    /// Rows of the execution.
    pub batch_rows: usize,
    /// Where the time went.
    pub timings: Timings,
}

impl Service {
    /// Predictions with the models of `registry`, within `budget`, and within `request_timeout` each.
    #[must_use]
    pub fn new(registry: Arc<Registry>, budget: MemoryBudget, request_timeout: Duration) -> Self {
        Self {
            registry,
            budget,
            request_timeout,
        }
    }

    /// This `version` of the model called `name`; the highest one if none is given, and the default model if no name is.
    ///
    /// # Errors
    /// When there is none, or the models are still being loaded.
    pub fn resolve(
        &self,
        name: Option<&str>,
        version: Option<&str>,
    ) -> Result<Arc<ServedModel>, ServeError> {
        if self.registry.phase() == Phase::Starting {
            return Err(ServeError::Starting);
        }
        let Some(name) = name else {
            return self.registry.default_model().ok_or_else(|| {
                match self.registry.default_name() {
                    Some(_) => ServeError::DefaultModelGone,
                    None => ServeError::NoDefaultModel,
                }
            });
        };
        let Some(version) = version else {
            return self.registry.get(name).ok_or(ServeError::UnknownModel);
        };
        let model = self.registry.version(name, version);
        model.ok_or_else(|| match self.registry.get(name) {
            Some(_) => ServeError::UnknownVersion,
            None => ServeError::UnknownModel,
        })
    }

    /// Whether anything can be predicted at all.
    ///
    /// # Errors
    /// When something in the server is broken.
    pub fn check(&self) -> Result<(), ServeError> {
        match self.registry.fault() {
            Some(fault) => Err(ServeError::Broken(fault)),
            None => Ok(()),
        }
    }

    /// Admits a request for `model` whose head has arrived, and whose client waits for `timeout` at most. What is ahead of
    /// it is known, and what is in its body is not: it is refused if not even a single row would be answered in time.
    ///
    /// # Errors
    /// When it cannot be answered by its deadline, or too much waits.
    pub fn admit(
        &self,
        model: &ServedModel,
        caller: &Caller,
        timeout: Option<Duration>,
    ) -> Result<Ticket, ServeError> {
        let timeout = timeout.map_or(self.request_timeout, |it| it.min(self.request_timeout));
        let deadline = caller.arrived_at + timeout;
        let admitted = model.scheduler.admit(deadline);
        admitted.map_err(|error| ServeError::of_execution(error, &model.operators))?;
        Ok(Ticket {
            deadline,
            memory: self.budget.reservation(),
        })
    }

    /// Executes a request with `inputs`, in the order of the signature. `expired` is a timer that the caller has already.
    ///
    /// # Errors
    /// See [`ServeError`].
    pub async fn predict(
        &self,
        model: &Arc<ServedModel>,
        ticket: Ticket,
        inputs: SmallVec<[Tensor; 2]>,
        caller: &Caller,
        expired: Pin<&mut Sleep>,
    ) -> Result<Prediction, ServeError> {
        let metadata = &model.metadata;
        let max_rows = model.scheduler.config().max_request_rows;
        let Ticket { deadline, memory } = ticket;
        let mut request = InferenceRequest::new(metadata, inputs, max_rows, deadline, memory)?;
        // From here on for the answer, until its last byte has left.
        let mut memory = self.budget.reservation();
        let expected = request.expected_output_bytes(metadata);
        memory
            .grow(expected)
            .map_err(ServeError::of_answer_memory)?;
        request.note_output_reserved(expected);
        if let Some(ids) = &caller.ids {
            request.note_ids(ids.clone());
        }
        let rows = request.rows();
        model.metrics.batch_size.observe(rows_as_f64(rows));
        let response = model.scheduler.submit_until(request, expired).await;
        let response = response.map_err(|error| failed(error, model, caller))?;
        Ok(Prediction {
            facts: Facts {
                model: Arc::clone(model),
                rows,
                started_at: response.started_at,
                batch_rows: response.batch_rows,
                timings: response.timings,
            },
            response,
            memory,
        })
    }
}

/// What is told of a prediction that failed. What is our own fault is told in the log as well.
fn failed(error: ScheduleError, model: &ServedModel, caller: &Caller) -> ServeError {
    if let ScheduleError::Internal(reason) = &error {
        let ids = caller.ids.as_ref();
        tracing::error!(
            request_id = ids.map(RequestIds::id),
            trace_id = ids.and_then(RequestIds::trace_id),
            span_id = ids.and_then(RequestIds::span_id),
            %reason,
            "a prediction failed by our fault"
        );
    }
    ServeError::of_execution(error, &model.operators)
}

/// Rows as a histogram counts them.
#[expect(clippy::cast_precision_loss, reason = "row counts are far below 2^53")]
fn rows_as_f64(rows: usize) -> f64 {
    rows as f64
}
