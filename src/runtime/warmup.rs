//! First runs before a model is ready, so that no user pays for them.
//!
//! Invariant: every batch size at which a runtime prepares something of its own has run once before readiness.

use super::dummy_inputs::{self, LARGEST_INPUT, Size};
use super::{Model, RuntimeError};
use crate::tensor::TensorData;

/// Whether a run of one row takes no more memory than runs may, by all that can be tried.
#[must_use]
pub fn fits(model: &mut dyn Model) -> bool {
    let size = Size {
        rows: 1,
        open: 1,
        largest: LARGEST_INPUT,
    };
    if dummy_inputs::input_bytes(model.metadata(), size) > LARGEST_INPUT {
        // Too large to be tried.
        return true;
    }
    let zeros = |_, datatype, elements| TensorData::zeros(datatype, elements);
    !matches!(dummy_inputs::run(model, size, zeros), Ok(None))
}

/// Runs `model` once on zeros with `rows` rows; dynamic dimensions other than the batch are taken as 1.
///
/// # Errors
/// What the run said. [`RuntimeError::Refused`] may be right: some models accept no zeros, and some no such row count.
pub fn run_once(model: &mut dyn Model, rows: usize) -> Result<(), RuntimeError> {
    let size = Size {
        rows,
        open: 1,
        largest: LARGEST_INPUT,
    };
    let zeros = |_, datatype, elements| TensorData::zeros(datatype, elements);
    match dummy_inputs::run(model, size, zeros)? {
        Some(_) => Ok(()),
        None => Err(RuntimeError::Refused(format!(
            "{rows} dummy rows are too large"
        ))),
    }
}
