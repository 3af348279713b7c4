//! What came out of trying a model.
//!
//! Invariant: what was not shown is not claimed.

use super::row_dependence::RowDependence;
use crate::runtime::division::DivisionPlan;

/// What came out of trying a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// Why rows must not share executions, if so.
    pub dependence: Option<RowDependence>,
    /// The most rows of an execution in which they were shown not to depend on each other.
    pub rows: usize,
    /// How outputs are handed out to the requests that share an execution.
    pub plan: DivisionPlan,
    /// What the verdict rests on, for people.
    pub tried: String,
}
