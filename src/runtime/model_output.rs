//! One output of an execution, and how it is handed out to the requests that shared it.

use std::sync::Arc;

use crate::tensor::{Shape, Tensor, TensorBuffer, TensorView};

/// How the output of an execution is handed out to the requests that shared it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Division {
    /// Each gets its rows: the first dimension is the batch.
    #[default]
    Rows,
    /// Each gets all of it: it is the same whatever is executed.
    Shared,
    /// Nobody does: it is right for a request that was executed alone only.
    Alone,
}

/// One output of an execution. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ModelOutput {
    tensor: Tensor,
    division: Division,
}

impl ModelOutput {
    /// An output of `shape` over `buffer`; `None` when the number of elements differs from what the shape says.
    #[must_use]
    pub fn new(shape: Shape, buffer: Arc<dyn TensorBuffer>) -> Option<Self> {
        Some(Self {
            tensor: Tensor::shared(shape, buffer)?,
            division: Division::Rows,
        })
    }

    /// Has it handed out as `division` says, instead of by rows.
    pub fn divide(&mut self, division: Division) {
        self.division = division;
    }

    /// How it is handed out.
    #[must_use]
    pub fn division(&self) -> Division {
        self.division
    }

    /// All of it.
    #[must_use]
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// The sizes of the dimensions.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        self.tensor.shape()
    }

    /// The elements, row-major.
    #[must_use]
    pub fn view(&self) -> TensorView<'_> {
        self.tensor.view()
    }
}
