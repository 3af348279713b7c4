//! Runs on inputs that nobody sent: what the warm-up and the batch check have in common.
//!
//! Invariant: no input is made up that is larger than the limit; nothing is allocated for it either.

use smallvec::SmallVec;

use super::{BatchInput, BatchOutput, InputView, Model, RuntimeError};
use crate::model::{Dim, ModelMetadata, TensorSpec};
use crate::tensor::{DataType, Shape, TensorData, element_count};

/// The largest input, in bytes, that is made up.
pub(super) const LARGEST_INPUT: usize = 256 << 20;

/// How large the dummy inputs are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    /// The size of the batch, where there is one.
    pub(super) rows: usize,
    /// The size of other open dimensions.
    pub(super) open: usize,
    /// Bytes that an input may have.
    pub(super) largest: usize,
}

/// Runs `model` on what `fill` gives for each input: of this index, datatype and number of elements. `None` if an input
/// would be too large, or the run takes more memory than runs may.
///
/// # Errors
/// What the run said.
pub(super) fn run(
    model: &mut dyn Model,
    size: Size,
    fill: impl Fn(usize, DataType, usize) -> TensorData,
) -> Result<Option<BatchOutput>, RuntimeError> {
    let metadata = std::sync::Arc::clone(model.metadata());
    let batched = metadata.has_batch_axis();
    let mut buffers: SmallVec<[(Shape, TensorData); 4]> = SmallVec::new();
    for (index, spec) in metadata.inputs.iter().enumerate() {
        let shape = shape_of(spec, batched, size);
        let bytes = spec.datatype.size().unwrap_or(size_of::<String>());
        let fits = |count: &usize| *count <= size.largest / bytes;
        let Some(elements) = element_count(&shape).filter(fits) else {
            return Ok(None);
        };
        buffers.push((shape, fill(index, spec.datatype, elements)));
    }
    let input: BatchInput<'_> = buffers
        .iter()
        .map(|(shape, data)| InputView {
            shape: shape.clone(),
            elements: data.view(),
        })
        .collect();
    match model.run(input) {
        Err(RuntimeError::TooLarge(_)) => Ok(None),
        result => result.map(Some),
    }
}

/// The bytes that the inputs of `metadata` have at this size; strings count as what holds them.
pub(super) fn input_bytes(metadata: &ModelMetadata, size: Size) -> usize {
    let batched = metadata.has_batch_axis();
    let bytes = |spec: &TensorSpec| {
        let elements = element_count(&shape_of(spec, batched, size)).unwrap_or(usize::MAX);
        elements.saturating_mul(spec.datatype.size().unwrap_or(size_of::<String>()))
    };
    let all = metadata.inputs.iter().map(bytes);
    all.fold(0, usize::saturating_add)
}

/// The shapes that the inputs of `metadata` have at this size.
pub(super) fn shapes(metadata: &ModelMetadata, size: Size) -> Vec<Shape> {
    let batched = metadata.has_batch_axis();
    let shape = |spec| shape_of(spec, batched, size);
    metadata.inputs.iter().map(shape).collect()
}

fn shape_of(spec: &TensorSpec, batched: bool, size: Size) -> Shape {
    let of = |(axis, dim): (usize, &Dim)| match dim {
        Dim::Fixed(fixed) => *fixed,
        Dim::Dynamic(_) if axis == 0 && batched => size.rows,
        Dim::Dynamic(_) => size.open,
    };
    spec.dims().iter().enumerate().map(of).collect()
}
