//! What the log says of a model that takes its place.
//!
//! Invariant: it is said once the model serves, never of one that was refused.

use std::time::Duration;

use crate::models::served::ServedModel;

/// What loading a model has shown, besides what is served.
pub struct LoadReport {
    pub(super) instances: usize,
    pub(super) intra_op_threads: usize,
    pub(super) executor: &'static str,
    pub(super) max_batch_size: Option<usize>,
    pub(super) merge_rows: usize,
    pub(super) rows_tried: String,
    /// What was measured for the settings, if anything.
    pub(super) measured: Option<String>,
    pub(super) took: Duration,
}

impl LoadReport {
    /// Says that `model` was loaded, and how.
    pub fn log(&self, model: &ServedModel) {
        let metadata = &model.metadata;
        if let Some(measured) = &self.measured {
            tracing::info!(
                model = metadata.name,
                measured,
                "settings tried, as instances x threads x rows"
            );
        }
        tracing::info!(
            model = metadata.name,
            version = metadata.version,
            sha256 = metadata.sha256,
            signature = metadata.signature_text(),
            device = model.device,
            execution_provider = model.execution_provider,
            fallback = model.fallback,
            onnxruntime = model.info.onnxruntime,
            instances = self.instances,
            intra_op_threads = self.intra_op_threads,
            executor = self.executor,
            max_batch_size = self.max_batch_size,
            merge_rows = self.merge_rows,
            batching = model.info.merging.label(),
            batching_reason = model.merging_reason,
            rows_tried = self.rows_tried,
            nodes = %model.assignment,
            seconds = self.took.as_secs_f64(),
            "model loaded"
        );
    }
}
