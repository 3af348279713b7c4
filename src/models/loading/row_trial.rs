//! What trying a model's rows has shown.

use std::sync::Arc;

use crate::model::ModelMetadata;
use crate::runtime::division::DivisionPlan;

/// The most rows of an execution unless a flag, the environment or the sidecar says otherwise.
pub const DEFAULT_MAX_BATCH_SIZE: usize = 32;

/// What trying a model's rows has shown.
pub(crate) struct RowTrial {
    /// What the model is, by its declaration and by what ran.
    pub(crate) metadata: Arc<ModelMetadata>,
    /// The kind of reason, if its rows must not share executions.
    pub(crate) dependence: Option<&'static str>,
    /// The most rows that were shown not to depend on each other in one execution.
    pub(crate) independent_rows: usize,
    /// How its outputs are handed out to requests that share an execution.
    pub(crate) plan: Arc<DivisionPlan>,
    /// What this rests on, for people.
    pub(crate) tried: String,
}
