//! What the executions of a trial show of the model's outputs: their shapes, and how far their rows are apart.
//!
//! Invariant: nothing here executes anything; each question is about executions that were made.

use super::comparison::{Agreement, Difference, Elements, other_kernels, same_kernels};
use super::row_dependence::{RowDependence, lengths, no_rows};
use super::rows::Kind;
use crate::model::flow::Flow;
use crate::model::{Dim, ModelMetadata, TensorSpec};
use crate::runtime::BatchOutput;
use crate::runtime::division::{DivisionPlan, OutputPlan, Size};
use crate::runtime::{Division, ModelOutput};

/// What an output may be, by all executions so far.
#[derive(Debug, Clone, Copy)]
struct Axis {
    /// It had a row for each row.
    rows: bool,
    /// It was always the same, and no value reaches it.
    shared: bool,
}

/// What one kind of rows has shown.
pub(super) struct Shown {
    pub(super) kind: Kind,
    pub(super) open: usize,
    pub(super) alone: Vec<BatchOutput>,
    /// By output: whether the rows' answers are far apart.
    pub(super) telling: Vec<bool>,
    /// By output: whether no answer has a finite number.
    pub(super) nothing: Vec<bool>,
    /// By output: the difference between executions of different sizes, if it is more than rounding.
    pub(super) beyond: Vec<Option<(usize, Difference)>>,
    /// The largest difference between executions of different sizes.
    pub(super) worst: f64,
}

impl Shown {
    pub(super) fn is_clean(&self) -> bool {
        self.beyond.iter().all(Option::is_none)
    }
}

/// What was seen of the outputs of a model.
pub(super) struct Outputs<'a> {
    metadata: &'a ModelMetadata,
    /// What each follows from by the graph.
    flows: &'a [Flow],
    /// Whether the device computes with TF32.
    tf32: bool,
    /// Those of the first run.
    first: Option<BatchOutput>,
    /// The size of open dimensions in that run.
    first_open: usize,
    axes: Vec<Axis>,
}

impl<'a> Outputs<'a> {
    /// Nothing was seen yet.
    pub(super) fn new(metadata: &'a ModelMetadata, flows: &'a [Flow], tf32: bool) -> Self {
        let unseen = |index| Axis {
            rows: true,
            shared: flows.get(index).is_some_and(|flow: &Flow| flow.constant),
        };
        Self {
            metadata,
            flows,
            tf32,
            first: None,
            first_open: 1,
            axes: (0..metadata.outputs.len()).map(unseen).collect(),
        }
    }

    /// Takes note of the size of open dimensions in the run of which the shapes are noted next.
    pub(super) fn note_open(&mut self, open: usize) {
        if self.first.is_none() {
            self.first_open = open;
        }
    }

    /// Takes note of the shapes of an execution of `rows` rows. The first output that can neither be handed out by rows
    /// nor be shared is a doubt.
    pub(super) fn note_shapes(
        &mut self,
        outputs: &BatchOutput,
        rows: usize,
    ) -> Result<(), RowDependence> {
        let first = self.first.get_or_insert_with(|| outputs.clone());
        let specs = self.metadata.outputs.iter();
        let mut dependence = None;
        for ((axis, spec), (output, first)) in self
            .axes
            .iter_mut()
            .zip(specs)
            .zip(outputs.iter().zip(&*first))
        {
            axis.rows &= output.shape().first() == Some(&rows);
            axis.shared = axis.shared
                && output.shape() == first.shape()
                && same_kernels(&Elements::whole(first), &Elements::whole(output)).is_none();
            if !axis.rows && !axis.shared && dependence.is_none() {
                dependence = Some(if spec.has_dynamic_first() {
                    RowDependence::Shape {
                        output: spec.name.clone(),
                        rows,
                        shape: output.shape().to_vec(),
                    }
                } else {
                    no_rows(spec)
                });
            }
        }
        dependence.map_or(Ok(()), Err)
    }

    /// Whether the same row gives the same in two runs.
    pub(super) fn repeats(
        &self,
        one: &BatchOutput,
        other: &BatchOutput,
    ) -> Result<(), RowDependence> {
        for (spec, (one, other)) in self.metadata.outputs.iter().zip(one.iter().zip(other)) {
            if one.shape() != other.shape() {
                return Err(lengths(spec, one, other));
            }
            if same_kernels(&Elements::whole(one), &Elements::whole(other)).is_some() {
                let output = spec.name.clone();
                return Err(RowDependence::Random { output });
            }
        }
        Ok(())
    }

    /// Whether every output of rows of the same shape has a shape that something but values explains.
    pub(super) fn same_lengths(
        &self,
        alone: &[BatchOutput],
        open: usize,
    ) -> Result<(), RowDependence> {
        for (index, spec) in self.metadata.outputs.iter().enumerate() {
            let mut outputs = alone.iter().filter_map(|outputs| outputs.get(index));
            let Some(first) = outputs.next() else {
                continue;
            };
            if let Some(other) = outputs.find(|output| output.shape() != first.shape()) {
                return Err(lengths(spec, first, other));
            }
            let by_shapes = self.flows.get(index).is_some_and(|flow| flow.sized);
            if by_shapes || self.axes.get(index).is_some_and(|axis| axis.shared) {
                continue;
            }
            let sizes = first.shape().iter().enumerate().skip(1);
            for (axis, size) in sizes {
                if self.explained(spec, axis, *size, open) == Size::Open {
                    return Err(RowDependence::Unexplained {
                        output: spec.name.clone(),
                        axis,
                    });
                }
            }
        }
        Ok(())
    }

    /// What the declaration says of the size of a dimension of an output, if that is what it was when open dimensions of
    /// the inputs had the size `open`.
    fn explained(&self, spec: &TensorSpec, axis: usize, size: usize, open: usize) -> Size {
        match spec.dims().get(axis) {
            Some(Dim::Fixed(fixed)) if *fixed == size => Size::Fixed(size),
            Some(dim @ Dim::Dynamic(Some(_))) if size == open => {
                let inputs = self.metadata.inputs.iter().enumerate();
                let mut same = inputs.flat_map(|(input, spec)| {
                    let dims = spec.dims().iter().enumerate().skip(1);
                    let same = dims.filter(|(_, other)| *other == dim);
                    same.map(move |(axis, _)| Size::OfInput { input, axis })
                });
                same.next().unwrap_or(Size::Open)
            }
            _ => Size::Open,
        }
    }

    /// Holds the rows of an execution against what they gave alone.
    pub(super) fn agree(
        &self,
        shown: &mut Shown,
        together: &BatchOutput,
        rows: usize,
        misshapen: bool,
    ) -> Result<(), RowDependence> {
        for (index, spec) in self.metadata.outputs.iter().enumerate() {
            let Some(output) = together.get(index) else {
                continue;
            };
            if self.axes.get(index).is_none_or(|axis| !axis.rows) {
                continue;
            }
            let singles = shown.alone.iter().filter_map(|outputs| outputs.get(index));
            let singles: Vec<&ModelOutput> = singles.cycle().take(rows).collect();
            let same = |single: &&ModelOutput| single.shape().get(1..) == output.shape().get(1..);
            if !singles.iter().all(same) {
                return Err(RowDependence::Shape {
                    output: spec.name.clone(),
                    rows,
                    shape: output.shape().to_vec(),
                });
            }
            let alone: Vec<Elements<'_>> = singles
                .iter()
                .filter_map(|single| Elements::row(single, 0, 1))
                .collect();
            let among = (0..rows).filter_map(|place| Elements::row(output, place, rows));
            let among: Vec<Elements<'_>> = among.collect();
            let Agreement { worst, beyond } = other_kernels(&alone, &among, self.tf32);
            shown.worst = shown.worst.max(worst);
            if let Some(difference) = beyond {
                if misshapen {
                    return Err(size_doubt(
                        self.metadata,
                        spec,
                        rows,
                        difference,
                        shown.kind,
                    ));
                }
                if let Some(beyond) = shown.beyond.get_mut(index)
                    && beyond
                        .as_ref()
                        .is_none_or(|(_, worst)| difference.part > worst.part)
                {
                    *beyond = Some((rows, difference));
                }
            }
        }
        Ok(())
    }

    /// Whether the row at `place` is the same in two executions that differ in all other rows.
    pub(super) fn same_beside(
        &self,
        before: &BatchOutput,
        after: &BatchOutput,
        place: usize,
        rows: usize,
        kind: Kind,
    ) -> Result<(), RowDependence> {
        for (index, spec) in self.metadata.outputs.iter().enumerate() {
            if self.axes.get(index).is_none_or(|axis| !axis.rows) {
                continue;
            }
            let (Some(before), Some(after)) = (before.get(index), after.get(index)) else {
                continue;
            };
            if before.shape() != after.shape() {
                return Err(lengths(spec, before, after));
            }
            let row = |output| Elements::row(output, place, rows);
            if let (Some(one), Some(other)) = (row(before), row(after))
                && let Some(difference) = same_kernels(&one, &other)
            {
                return Err(RowDependence::Neighbours {
                    output: spec.name.clone(),
                    rows,
                    values: (difference.one, difference.other),
                    of: kind.describe(self.metadata),
                });
            }
        }
        Ok(())
    }

    /// By output, what `of` says of its rows alone; `false` for one that has none.
    pub(super) fn of_rows(
        &self,
        alone: &[BatchOutput],
        of: impl Fn(&[Elements<'_>]) -> bool,
    ) -> Vec<bool> {
        let flags = self.axes.iter().enumerate().map(|(index, axis)| {
            let outputs = alone.iter().filter_map(|outputs| outputs.get(index));
            let rows = outputs.filter_map(|output| Elements::row(output, 0, 1));
            let rows: Vec<Elements<'_>> = rows.collect();
            axis.rows && !rows.is_empty() && of(&rows)
        });
        flags.collect()
    }

    /// How outputs are handed out, by what was seen.
    pub(super) fn plan(&self) -> DivisionPlan {
        let Some(first) = &self.first else {
            return DivisionPlan::default();
        };
        let specs = self.metadata.outputs.iter();
        let outputs = self.axes.iter().zip(specs).zip(first);
        let plan = |((axis, spec), output): ((&Axis, &TensorSpec), &ModelOutput)| {
            let sizes = output.shape().iter().enumerate();
            if axis.rows {
                let sizes = sizes.skip(1);
                OutputPlan {
                    division: Division::Rows,
                    sizes: sizes
                        .map(|(axis, size)| self.explained(spec, axis, *size, self.first_open))
                        .collect(),
                }
            } else {
                OutputPlan {
                    division: Division::Shared,
                    sizes: sizes
                        .map(|(axis, size)| self.explained(spec, axis, *size, self.first_open))
                        .collect(),
                }
            }
        };
        DivisionPlan {
            outputs: outputs.map(plan).collect(),
        }
    }
}

/// That an output changes with the number of rows.
pub(super) fn size_doubt(
    metadata: &ModelMetadata,
    spec: &TensorSpec,
    rows: usize,
    difference: Difference,
    kind: Kind,
) -> RowDependence {
    RowDependence::Size {
        output: spec.name.clone(),
        rows,
        values: (difference.one, difference.other),
        part: difference.part,
        of: kind.describe(metadata),
    }
}
