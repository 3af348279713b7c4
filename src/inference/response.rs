//! What a model answered to one request, and where the time went.
//!
//! Invariant: an answer holds its own rows of an execution, and never those of somebody else.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ndarray::ArrayViewD;

use crate::tensor::{Element, OutputTensor, Shape, TensorData, TensorView, element_count};

/// Where the time of one request went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// From being queued to the start of its execution.
    pub queue: Duration,
    /// Gathering the inputs of the batch.
    pub compute_input: Duration,
    /// ONNX Runtime's run.
    pub compute_infer: Duration,
}

/// One output of one request: some rows of an execution's output, without a copy unless they were detached from it.
#[derive(Debug, Clone)]
pub struct OutputRows {
    tensor: OutputTensor,
    shape: Shape,
    /// Those of `tensor`'s elements that belong to the request.
    elements: Range<usize>,
}

impl OutputRows {
    /// All of `tensor`.
    #[must_use]
    pub fn whole(tensor: OutputTensor) -> Self {
        Self {
            shape: Shape::from_slice(tensor.shape()),
            elements: 0..tensor.view().len(),
            tensor,
        }
    }

    /// The `rows` of `tensor` along its first dimension; `None` if it does not have them.
    #[must_use]
    pub fn part(tensor: OutputTensor, rows: Range<usize>) -> Option<Self> {
        let (all, row) = tensor.shape().split_first()?;
        if rows.start > rows.end || rows.end > *all {
            return None;
        }
        let row_len = element_count(row)?;
        let elements = rows.start.checked_mul(row_len)?..rows.end.checked_mul(row_len)?;
        let mut shape = Shape::from_slice(&[rows.len()]);
        shape.extend_from_slice(row);
        Some(Self {
            tensor,
            shape,
            elements,
        })
    }

    /// The shape of these rows.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The bytes that are kept as long as these rows are: those of the whole execution that they are part of.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.tensor.view().byte_len()
    }

    /// The same rows in memory of their own, which keeps nothing of the execution; as they are if they are all of it.
    #[must_use]
    pub(crate) fn detached(self) -> Self {
        if self.is_whole() {
            return self;
        }
        let mut data = TensorData::empty(self.view().datatype());
        let copied = data.append(self.view());
        let own = OutputTensor::new(self.shape.clone(), Arc::new(data)).filter(|_| copied);
        own.map_or(self, Self::whole)
    }

    /// Whether these are all rows of the execution.
    pub(crate) fn is_whole(&self) -> bool {
        self.elements.len() == self.tensor.view().len()
    }

    /// These rows as an array; `None` when the elements are of another type.
    #[must_use]
    pub fn array<T: Element>(&self) -> Option<ArrayViewD<'_, T>> {
        self.view().as_array(self.shape())
    }

    /// The elements of these rows, and never anything else: what does not fit is nothing.
    #[must_use]
    pub fn view(&self) -> TensorView<'_> {
        self.tensor.view().slice_or_empty(self.elements.clone())
    }
}

/// The answer to one request.
#[derive(Debug, Clone)]
pub struct InferenceResponse {
    /// The outputs in the order of the signature.
    pub outputs: Vec<OutputRows>,
    /// Where the time went.
    pub timings: Timings,
    /// When the execution that it rode in began.
    pub started_at: Instant,
    /// Rows of the execution that it rode in.
    pub batch_rows: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_an_output_does_not_have_are_nobody_s_rows() {
        let output = |shape: &[usize], values: Vec<f32>| {
            let data = Arc::new(TensorData::from(values));
            OutputTensor::new(Shape::from_slice(shape), data).unwrap()
        };
        let three = output(&[3, 2], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let part = OutputRows::part(three.clone(), 1..3).unwrap();
        assert_eq!(part.shape(), [2, 2]);
        assert_eq!(part.view(), TensorView::Fp32(&[3.0, 4.0, 5.0, 6.0]));
        let none = OutputRows::part(three.clone(), 2..2).unwrap();
        assert_eq!((none.shape(), none.view().len()), (&[0, 2][..], 0));
        #[expect(clippy::reversed_empty_ranges, reason = "such a range is refused")]
        for rows in [0..4, 3..4, 2..1, 5..5, usize::MAX - 1..usize::MAX] {
            assert!(OutputRows::part(three.clone(), rows).is_none());
        }
        assert!(OutputRows::part(output(&[], vec![1.0]), 0..1).is_none());
    }
}
