//! What trying a model's rows has shown.

use std::sync::Arc;

use crate::model::{Batchability, ModelMetadata};
use crate::models::settings::RowLimits;
use crate::runtime::division::DivisionPlan;

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

impl RowTrial {
    /// What it says of the rows that may share an execution.
    pub(crate) fn limits(&self) -> RowLimits {
        RowLimits {
            mergeable: self.metadata.batchability == Batchability::Rows,
            independent_rows: self.independent_rows,
        }
    }
}
