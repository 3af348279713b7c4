//! How the outputs of executions are handed out to the requests that share them: what the trial at load found, held against
//! each execution.
//!
//! Invariant: an output whose sizes are not what the trial explained is handed out to nobody but a request that was
//! executed alone.

use smallvec::SmallVec;

use super::BatchInput;
use super::{Division, ModelOutput};
use crate::tensor::Shape;

/// What a dimension of an output must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Size {
    /// Of this size.
    Fixed(usize),
    /// Of the size of this dimension of this input.
    OfInput {
        /// The input's index.
        input: usize,
        /// The dimension.
        axis: usize,
    },
    /// Of a size that follows from the inputs' by the graph.
    Open,
}

/// How one output is handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OutputPlan {
    pub(super) division: Division,
    /// Its dimensions: all, or for an output that has rows those behind them.
    pub(super) sizes: SmallVec<[Size; 6]>,
}

impl OutputPlan {
    /// How `output` of an execution of inputs of these shapes is handed out.
    fn division_of<'a>(
        &self,
        output: &ModelOutput,
        input_shape: impl Fn(usize) -> Option<&'a Shape>,
    ) -> Division {
        let skipped = usize::from(self.division == Division::Rows);
        let sizes = output.shape().get(skipped..).unwrap_or_default();
        let fits = |(expected, size): (&Size, &usize)| match expected {
            Size::Fixed(fixed) => fixed == size,
            Size::OfInput { input, axis } => {
                input_shape(*input).and_then(|shape| shape.get(*axis)) == Some(size)
            }
            Size::Open => true,
        };
        let as_planned = sizes.len() == self.sizes.len() && self.sizes.iter().zip(sizes).all(fits);
        if as_planned {
            self.division
        } else {
            Division::Alone
        }
    }
}

/// How the outputs of a model are handed out, in the order of its signature; by rows, where nothing is planned.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DivisionPlan {
    pub(super) outputs: Vec<OutputPlan>,
}

impl DivisionPlan {
    /// Has `outputs` of an execution of `input` handed out as planned.
    pub(super) fn apply(&self, outputs: &mut [ModelOutput], input: &BatchInput<'_>) {
        for (output, plan) in outputs.iter_mut().zip(&self.outputs) {
            let shape = |index: usize| input.get(index).map(|view| &view.shape);
            output.divide(plan.division_of(output, shape));
        }
    }

    /// Whether the output at `index` was seen to have a row for each row.
    #[must_use]
    pub fn has_rows(&self, index: usize) -> bool {
        let plan = self.outputs.get(index);
        plan.is_some_and(|plan| plan.division == Division::Rows)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use smallvec::smallvec;

    use super::*;
    use crate::tensor::TensorData;

    fn division(plan: &OutputPlan, shape: &[usize]) -> Division {
        let data = TensorData::from(vec![0.0_f32; shape.iter().product()]);
        let output = ModelOutput::new(Shape::from_slice(shape), Arc::new(data)).unwrap();
        let input: Shape = smallvec![2, 5];
        plan.division_of(&output, |index| (index == 0).then_some(&input))
    }

    #[test]
    fn an_output_of_other_sizes_than_planned_is_for_a_request_alone() {
        let plan = OutputPlan {
            division: Division::Rows,
            sizes: smallvec![
                Size::Fixed(3),
                Size::OfInput { input: 0, axis: 1 },
                Size::Open
            ],
        };
        assert_eq!(division(&plan, &[2, 3, 5, 1]), Division::Rows);
        assert_eq!(division(&plan, &[2, 3, 5, 9]), Division::Rows);
        assert_eq!(division(&plan, &[2, 4, 5, 1]), Division::Alone);
        assert_eq!(division(&plan, &[2, 3, 6, 1]), Division::Alone);
        assert_eq!(division(&plan, &[2, 3, 5]), Division::Alone);
        let whole = OutputPlan {
            division: Division::Shared,
            sizes: smallvec![Size::Fixed(3)],
        };
        assert_eq!(division(&whole, &[3]), Division::Shared);
        assert_eq!(division(&whole, &[4]), Division::Alone);
    }
}
