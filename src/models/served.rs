//! One model with everything that answers requests for it.
//!
//! Invariant: nothing of it changes once it is published; another version is another one.

use std::sync::Arc;

use crate::batching::Scheduler;
use crate::model::ModelMetadata;
use crate::model::operators::Operators;
use crate::runtime::assignment::Assignment;
use crate::runtime::example::Example;
use crate::runtime::tuning::{ModelSettings, TuningConstraints};
use crate::telemetry::metrics::{ModelInfo, PredictionMetrics};

/// One model with everything that answers requests for it.
pub struct ServedModel {
    /// What the model is, by its declaration and by what its first runs have shown.
    pub metadata: Arc<ModelMetadata>,
    /// What the model is by its declaration alone.
    pub declared: Arc<ModelMetadata>,
    /// The operators of its graph.
    pub operators: Operators,
    /// Its queue and instances.
    pub scheduler: Scheduler,
    /// Its metrics at the edge.
    pub metrics: PredictionMetrics,
    /// The device that really executes it.
    pub device: String,
    /// ONNX Runtime's name of the provider.
    pub execution_provider: &'static str,
    /// Why it is not executed on the preferred device, when `auto` fell back.
    pub fallback: Option<String>,
    /// Which nodes of its graph each provider executes.
    pub assignment: Assignment,
    /// Why its requests are executed one by one, or what is not known of merging them, for people.
    pub merging_reason: Option<String>,
    /// What the metrics say about it.
    pub info: ModelInfo,
    /// A request that it takes, if one was looked for.
    pub example: Option<Example>,
    /// What was left open of its settings and what was chosen, if that was measured.
    pub tuned: Option<(TuningConstraints, ModelSettings)>,
}

impl ServedModel {
    /// Why its requests are executed one by one, if they are.
    #[must_use]
    pub fn not_batched_because(&self) -> Option<&str> {
        let merges = self.info.merging.is_on();
        self.merging_reason.as_deref().filter(|_| !merges)
    }

    /// What was not measured, if its requests are merged all the same.
    #[must_use]
    pub fn unmeasured(&self) -> Option<&str> {
        let merges = self.info.merging.is_on();
        self.merging_reason.as_deref().filter(|_| merges)
    }

    /// The most rows of an execution by the settings, where a request has rows to be counted.
    #[must_use]
    pub fn max_batch_size(&self) -> Option<usize> {
        let rows = self.scheduler.config().max_batch_size;
        self.metadata.has_rows().then_some(rows)
    }

    /// The most rows of one request, where it has rows to be counted.
    #[must_use]
    pub fn max_request_rows(&self) -> Option<usize> {
        let rows = self.scheduler.config().max_request_rows;
        self.metadata.has_rows().then_some(rows)
    }
}
