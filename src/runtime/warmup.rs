//! First runs before a model is ready, so that no user pays for them.
//!
//! Invariant: every batch size at which a runtime prepares something of its own has run once before readiness.

use super::made_up::{self, LARGEST_INPUT, Size};
use super::{Model, RuntimeError};
use crate::tensor::TensorData;

/// Runs `model` once on zeros with `rows` rows; dynamic dimensions other than the batch are taken as 1.
///
/// # Errors
/// What the run said. [`RuntimeError::Refused`] may be right: some models accept no zeros.
pub fn run_once(model: &mut dyn Model, rows: usize) -> Result<(), RuntimeError> {
    let size = Size {
        rows,
        open: 1,
        largest: LARGEST_INPUT,
    };
    let zeros = |_, datatype, elements| TensorData::zeros(datatype, elements);
    made_up::run(model, size, zeros).map(drop)
}
