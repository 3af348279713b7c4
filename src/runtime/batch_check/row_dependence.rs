//! Why rows are not merged, in words for people.
//!
//! Invariant: each doubt says what was seen, and belongs to one of the kinds that the metrics name.

use std::fmt;

use crate::model::TensorSpec;
use crate::runtime::ModelOutput;

/// Why the rows of different requests are not merged.
#[derive(Debug, Clone, PartialEq)]
pub enum RowDependence {
    /// The model has no batch: its declaration says so, and runs do not say otherwise.
    Signature(String),
    /// An output has not as many rows as were executed.
    Shape {
        /// The output.
        output: String,
        /// The rows of the execution.
        rows: usize,
        /// The shape that it had.
        shape: Vec<usize>,
    },
    /// The sizes of an output follow from values.
    Length {
        /// The output.
        output: String,
        /// Its shape in one execution.
        one: Vec<usize>,
        /// Its shape in another one of as many rows.
        other: Vec<usize>,
    },
    /// Nothing but values is known to explain the size of a dimension of an output.
    Unexplained {
        /// The output.
        output: String,
        /// The dimension.
        axis: usize,
    },
    /// An output of a row is another one when other rows are executed with it.
    Neighbours {
        /// The output.
        output: String,
        /// The rows of the executions in which it differed.
        rows: usize,
        /// The first element that differs, as it is in one execution and in another.
        values: (String, String),
        /// What the rows held.
        of: String,
    },
    /// The graph puts rows together, so that values that were not made up may make a row's output depend on others.
    Graph {
        /// The output.
        output: String,
        /// Where rows meet.
        by: String,
    },
    /// An output of a row is another one when more rows are executed.
    Size {
        /// The output.
        output: String,
        /// The rows of the execution in which it differed.
        rows: usize,
        /// The element that differs most, as it is alone and among others.
        values: (String, String),
        /// How far, as a part of the largest value; infinite if that says nothing.
        part: f64,
        /// What the rows held.
        of: String,
    },
    /// The same row gives other outputs from run to run.
    Random {
        /// The output.
        output: String,
    },
    /// The model refuses the rows that were made up, or the rows are too large or its runs too long to try it.
    Untested(String),
}

impl RowDependence {
    /// The kind of doubt, as the metrics name it.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Signature(_) => "signature",
            Self::Shape { .. }
            | Self::Length { .. }
            | Self::Unexplained { .. }
            | Self::Neighbours { .. }
            | Self::Graph { .. }
            | Self::Size { .. } => "neighbours",
            Self::Random { .. } => "random",
            Self::Untested(_) => "untested",
        }
    }
}

impl fmt::Display for RowDependence {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signature(reason) => formatter.write_str(reason),
            Self::Shape {
                output,
                rows: 1,
                shape,
            } => write!(
                formatter,
                "output '{output}' has the shape {shape:?} when 1 row is executed, so that its first dimension is not the batch"
            ),
            Self::Shape {
                output,
                rows,
                shape,
            } => write!(
                formatter,
                "output '{output}' has another shape when {rows} rows are executed together: {shape:?}"
            ),
            Self::Length { output, one, other } => write!(
                formatter,
                "the shape of output '{output}' depends on values: {one:?} and {other:?} in executions of as many rows"
            ),
            Self::Unexplained { output, axis } => write!(
                formatter,
                "the size of dimension {axis} of output '{output}' may depend on values: the graph does not derive it from the shapes of the inputs"
            ),
            Self::Neighbours {
                output,
                rows,
                values: (one, other),
                of,
            } => write!(
                formatter,
                "output '{output}' of a row depends on the rows beside it: {one} and {other} in executions of {rows} rows of {of}"
            ),
            Self::Graph { output, by } => write!(
                formatter,
                "output '{output}' of a row may depend on the rows beside it: the graph puts rows together in {by}, although none of the rows that were tried showed it"
            ),
            Self::Size {
                output,
                rows,
                values: (alone, among),
                part,
                of,
            } => {
                write!(
                    formatter,
                    "output '{output}' of a row depends on how many rows are executed: {alone} alone and {among} among {rows} rows of {of}"
                )?;
                if part.is_finite() {
                    write!(formatter, ", {} of its largest value apart", percent(*part))?;
                }
                Ok(())
            }
            Self::Random { output } => write!(
                formatter,
                "output '{output}' of the same row differs from run to run, so that rows cannot be compared"
            ),
            Self::Untested(reason) => write!(
                formatter,
                "it could not be tested whether rows depend on each other: {reason}"
            ),
        }
    }
}

/// A part as people write it.
pub(super) fn percent(part: f64) -> String {
    if part >= 1e-5 {
        format!("{:.3} %", part * 100.0)
    } else {
        format!("{:.0e} %", part * 100.0)
    }
}

pub(super) fn no_rows(spec: &TensorSpec) -> RowDependence {
    RowDependence::Signature(format!("output {spec} has no dynamic first dimension"))
}

pub(super) fn lengths(spec: &TensorSpec, one: &ModelOutput, other: &ModelOutput) -> RowDependence {
    RowDependence::Length {
        output: spec.name.clone(),
        one: one.shape().to_vec(),
        other: other.shape().to_vec(),
    }
}
