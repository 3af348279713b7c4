//! First runs before a model is ready, so that no user pays for them.
//!
//! Invariant: every batch size at which a runtime prepares something of its own has run once before readiness.

use smallvec::SmallVec;

use super::{BatchInput, InputView, Model, RuntimeError};
use crate::model::Dim;
use crate::tensor::{Shape, TensorData, element_count};

/// The largest input, in bytes, that is made up for a warm-up run.
const LARGEST_INPUT: usize = 256 << 20;

/// Runs `model` once on zeros with `rows` rows; dynamic dimensions other than the batch are taken as 1.
///
/// # Errors
/// What the run said. [`RuntimeError::Refused`] may be right: some models accept no zeros.
pub fn run_once(model: &mut dyn Model, rows: usize) -> Result<(), RuntimeError> {
    let metadata = std::sync::Arc::clone(model.metadata());
    let batched = metadata.has_batch_axis();
    let mut buffers: SmallVec<[(Shape, TensorData); 4]> = SmallVec::new();
    for spec in &metadata.inputs {
        let dim_size = |(axis, dim): (usize, &Dim)| match dim {
            Dim::Fixed(size) => *size,
            Dim::Dynamic(_) if axis == 0 && batched => rows,
            Dim::Dynamic(_) => 1,
        };
        let shape: Shape = spec.dims().iter().enumerate().map(dim_size).collect();
        let elements = element_count(&shape).filter(|count| {
            *count <= LARGEST_INPUT / spec.datatype.size().unwrap_or(size_of::<String>())
        });
        let Some(elements) = elements else {
            return Ok(());
        };
        buffers.push((shape, TensorData::zeros(spec.datatype, elements)));
    }
    let input: BatchInput<'_> = buffers
        .iter()
        .map(|(shape, data)| InputView {
            shape: shape.clone(),
            elements: data.view(),
        })
        .collect();
    model.run(input).map(drop)
}
