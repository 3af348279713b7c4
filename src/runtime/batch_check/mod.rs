//! Whether rows of different requests may share an execution, tried before the first request does.
//!
//! A dynamic first dimension says that a model takes several rows. It does not say that it computes each of them by
//! itself: a normalisation over the batch, a quantisation by the largest value, or a sum along the wrong axis would mix
//! the requests of strangers. Two questions are asked of the graph:
//!
//! - Does a row's answer change when only its neighbours do? Both runs have the same shape, and so the same kernels, so
//!   that hardly any difference is rounding. The neighbours are extreme, so that any influence shows.
//! - Does it change with the number of rows, or with its place among them? Here kernels differ and round differently.
//!
//! Invariant: what cannot be shown to be independent is not merged.

mod comparison;
mod rows;

use std::fmt;

use comparison::Comparison;
use rows::{Row, run};

use super::made_up::LARGEST_INPUT;
use super::{Model, RuntimeError};
use crate::model::ModelMetadata;

/// Different rows that are executed alone. Batches repeat them.
const ROWS: u64 = 3;

/// Sizes to try for open dimensions other than the batch, until the model takes one. At 1, a wrong axis may hide.
const OPEN: [usize; 5] = [64, 224, 16, 3, 1];

/// Why the rows of different requests are not merged.
#[derive(Debug, Clone, PartialEq)]
pub enum Doubt {
    /// An output of a row is another one when other rows are executed with it.
    Neighbours {
        /// The output.
        output: String,
        /// The rows of the execution in which it differed.
        rows: usize,
        /// The first element that differs, as it is in one execution and in another.
        values: Option<(String, String)>,
    },
    /// The same row gives other outputs from run to run.
    Random {
        /// The output.
        output: String,
    },
    /// The model refuses the rows that were made up, or the rows are too large to make up.
    Untested(String),
}

impl Doubt {
    /// The kind of doubt, as the metrics name it.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Neighbours { .. } => "neighbours",
            Self::Random { .. } => "random",
            Self::Untested(_) => "untested",
        }
    }
}

impl fmt::Display for Doubt {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Neighbours {
                output,
                rows,
                values: None,
            } => write!(
                formatter,
                "output '{output}' has another shape when {rows} rows are executed together"
            ),
            Self::Neighbours {
                output,
                rows,
                values: Some((alone, among)),
            } => write!(
                formatter,
                "output '{output}' of a row depends on the rows beside it: {alone} and {among} in executions of up to {rows}"
            ),
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

/// Tries it with batches of each of `sizes`.
///
/// # Errors
/// When a run fails for another reason than that the model refuses the made-up rows.
pub fn check(
    model: &mut dyn Model,
    sizes: &[usize],
    tf32: bool,
) -> Result<Option<Doubt>, RuntimeError> {
    let trial = Trial {
        sizes,
        tf32,
        largest: LARGEST_INPUT,
    };
    trial.run(model)
}

/// One trial of a model.
struct Trial<'a> {
    sizes: &'a [usize],
    tf32: bool,
    /// Bytes of an input that may be made up.
    largest: usize,
}

impl Trial<'_> {
    fn run(&self, model: &mut dyn Model) -> Result<Option<Doubt>, RuntimeError> {
        match self.compare(model) {
            Err(RuntimeError::Refused(reason)) => Ok(Some(Doubt::Untested(reason))),
            other => other,
        }
    }

    fn compare(&self, model: &mut dyn Model) -> Result<Option<Doubt>, RuntimeError> {
        let metadata = std::sync::Arc::clone(model.metadata());
        let Some(open) = self.open_size(model, &metadata)? else {
            return Ok(Some(Doubt::Untested("its rows are too large".to_owned())));
        };
        let mut alone = Vec::new();
        for number in 0..ROWS {
            alone.extend(run(model, &[Row::ordinary(number)], open, self.largest)?);
        }
        let again = run(model, &[Row::ordinary(0)], open, self.largest)?;
        let (Some(first), Some(again)) = (alone.first(), again) else {
            return Ok(Some(Doubt::Untested("its rows are too large".to_owned())));
        };
        let comparison = Comparison {
            metadata: &metadata,
            tf32: self.tf32,
        };
        if let Some(found) = comparison.same_kernels((first, 0), (&again, 0), 1) {
            return Ok(Some(match found {
                Doubt::Neighbours { output, .. } => Doubt::Random { output },
                other => other,
            }));
        }
        if let Some(output) = comparison.without_numbers(&alone) {
            let reason = format!("output '{output}' has no number for any of them");
            return Ok(Some(Doubt::Untested(reason)));
        }
        if let Some(doubt) = self.change_neighbours(model, &comparison, open)? {
            return Ok(Some(doubt));
        }
        for size in self.sizes.iter().copied().filter(|size| *size > 1) {
            let rows: Vec<Row> = (0..ROWS).cycle().take(size).map(Row::ordinary).collect();
            // What holds for the smaller batches is taken to hold for those that are too large to be made up.
            let Some(together) = run(model, &rows, open, self.largest)? else {
                break;
            };
            if let Some(doubt) = comparison.other_kernels(&alone, &together, size) {
                return Ok(Some(doubt));
            }
        }
        Ok(None)
    }

    /// The first size of open dimensions that the model takes; `None` if a row is too large at any.
    fn open_size(
        &self,
        model: &mut dyn Model,
        metadata: &ModelMetadata,
    ) -> Result<Option<usize>, RuntimeError> {
        let sizes = if metadata.has_open_shapes() {
            &OPEN[..]
        } else {
            &[1]
        };
        let mut refused = None;
        for open in sizes {
            match run(model, &[Row::ordinary(0)], *open, self.largest) {
                Ok(Some(_)) => return Ok(Some(*open)),
                Ok(None) => {}
                Err(RuntimeError::Refused(reason)) => refused = Some(reason),
                Err(error) => return Err(error),
            }
        }
        match refused {
            Some(reason) => Err(RuntimeError::Refused(reason)),
            None => Ok(None),
        }
    }

    /// Whether the first or the last of two rows notices that the other one is changed.
    fn change_neighbours(
        &self,
        model: &mut dyn Model,
        comparison: &Comparison<'_>,
        open: usize,
    ) -> Result<Option<Doubt>, RuntimeError> {
        let (first, last) = (Row::ordinary(0), Row::ordinary(1));
        let mut pair = |rows: [Row; 2]| run(model, &rows, open, self.largest);
        let Some(before) = pair([first, last])? else {
            return Ok(Some(Doubt::Untested("its rows are too large".to_owned())));
        };
        for (place, rows) in [(0, [first, Row::extreme(1)]), (1, [Row::extreme(0), last])] {
            let Some(after) = pair(rows)? else {
                continue;
            };
            if let Some(doubt) = comparison.same_kernels((&before, place), (&after, place), 2) {
                return Ok(Some(doubt));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{Batchability, Dim, TensorSpec};
    use crate::runtime::{BatchInput, BatchOutput, Interrupt};
    use crate::tensor::{DataType, OutputTensor, Shape, TensorData, TensorView};

    /// A model that computes what `compute` says from all values and the number of rows.
    struct Fake {
        metadata: Arc<ModelMetadata>,
        compute: fn(&[f32], usize) -> Vec<f32>,
    }

    impl Model for Fake {
        fn metadata(&self) -> &Arc<ModelMetadata> {
            &self.metadata
        }

        fn run(&mut self, input: BatchInput<'_>) -> Result<BatchOutput, RuntimeError> {
            let TensorView::Fp32(values) = input[0].elements else {
                return Err(RuntimeError::Broken("expected FP32".to_owned()));
            };
            let rows = input[0].shape[0];
            let columns = values.len() / rows;
            let output = (self.compute)(values, rows);
            if output.is_empty() {
                return Err(RuntimeError::Refused("not these".to_owned()));
            }
            let shape = Shape::from_slice(&[output.len() / columns, columns]);
            let output = OutputTensor::new(shape, Arc::new(TensorData::from(output)));
            Ok(vec![output.unwrap()])
        }

        fn interrupt(&self) -> Arc<dyn Interrupt> {
            Arc::new(Nobody)
        }
    }

    struct Nobody;

    impl Interrupt for Nobody {
        fn interrupt(&self) {}
    }

    fn metadata(columns: usize) -> ModelMetadata {
        let spec = |name: &str| TensorSpec {
            name: name.to_owned(),
            datatype: DataType::Fp32,
            dims: Some(vec![
                Dim::Dynamic(Some("N".to_owned())),
                Dim::Fixed(columns),
            ]),
            labels: Vec::new(),
        };
        ModelMetadata {
            name: "fake".to_owned(),
            version: "1".to_owned(),
            description: String::new(),
            inputs: vec![spec("x")],
            outputs: vec![spec("y")],
            batchability: Batchability::Rows,
            sha256: String::new(),
            file_size: 0,
            opsets: std::collections::BTreeMap::new(),
            producer: String::new(),
            properties: std::collections::BTreeMap::new(),
        }
    }

    type Compute = fn(&[f32], usize) -> Vec<f32>;

    fn doubt_with(compute: Compute, columns: usize, largest: usize) -> Option<String> {
        let mut model = Fake {
            metadata: Arc::new(metadata(columns)),
            compute,
        };
        let trial = Trial {
            sizes: &[1, 2, 4, 8],
            tf32: false,
            largest,
        };
        let doubt = trial.run(&mut model).unwrap();
        doubt.map(|doubt| format!("{}: {doubt}", doubt.kind()))
    }

    fn doubt(compute: fn(&[f32], usize) -> Vec<f32>) -> Option<String> {
        doubt_with(compute, 4, LARGEST_INPUT)
    }

    #[expect(clippy::cast_precision_loss, reason = "a handful of rows")]
    fn float(count: usize) -> f32 {
        count as f32
    }

    #[test]
    fn rounding_is_no_doubt_and_everything_beyond_it_is() {
        assert_eq!(doubt(|values, _| values.to_vec()), None);
        // As when the order of additions depends on the number of rows.
        assert_eq!(
            doubt(|values, rows| values
                .iter()
                .map(|value| value * (1.0 + 1e-6 * float(rows)))
                .collect()),
            None
        );
        let scaled = doubt(|values, rows| {
            values
                .iter()
                .map(|value| value * (1.0 + 0.01 * float(rows)))
                .collect()
        });
        assert!(
            scaled
                .unwrap()
                .starts_with("neighbours: output 'y' of a row depends on the rows beside it: ")
        );
    }

    #[test]
    fn an_influence_of_the_last_row_or_of_the_position_is_found() {
        let last = doubt(|values, _| {
            values
                .iter()
                .map(|value| value + values[values.len() - 1])
                .collect()
        });
        assert!(last.unwrap().starts_with("neighbours"));
        let position = doubt(|values, _| {
            values
                .iter()
                .enumerate()
                .map(|(index, value)| value + float(index / 4))
                .collect()
        });
        assert!(position.unwrap().starts_with("neighbours"));
        let shape = doubt(|values, _| values[..4].to_vec());
        assert_eq!(
            shape.unwrap(),
            "neighbours: output 'y' has another shape when 2 rows are executed together"
        );
    }

    #[test]
    fn rows_of_many_elements_hide_nothing_by_being_alike() {
        fn largest(values: &[f32]) -> f32 {
            values
                .iter()
                .fold(0.0, |largest, value| value.abs().max(largest))
        }
        let computations: [Compute; 3] = [
            |values, _| {
                let mean = values.iter().sum::<f32>() / float(values.len());
                values.iter().map(|value| value - mean).collect()
            },
            |values, _| {
                let largest = largest(values);
                values.iter().map(|value| value / largest).collect()
            },
            // As a dynamic quantisation does, back and forth.
            |values, _| {
                let step = largest(values) / 127.0;
                let quantised = values.iter().map(|value| (value / step).round() * step);
                quantised.collect()
            },
        ];
        for compute in computations {
            let found = doubt_with(compute, 3 * 64 * 64, LARGEST_INPUT);
            assert!(found.unwrap().starts_with("neighbours"));
        }
    }

    #[test]
    fn a_few_whole_numbers_may_flip_with_the_number_of_rows_but_not_with_the_neighbours() {
        // Not reached through a model here: the comparison itself is asked.
        let mut metadata = metadata(4);
        metadata.outputs[0].datatype = DataType::Int64;
        let comparison = Comparison {
            metadata: &metadata,
            tf32: false,
        };
        let output = |values: Vec<i64>, rows: usize| {
            let shape = Shape::from_slice(&[rows, values.len() / rows]);
            vec![OutputTensor::new(shape, Arc::new(TensorData::from(values))).unwrap()]
        };
        let alone = vec![output(vec![7; 1000], 1)];
        let mut two = vec![7; 2000];
        two[5] = 8;
        let together = output(two.clone(), 2);
        assert_eq!(comparison.other_kernels(&alone, &together, 2), None);
        two[..100].fill(8);
        let far = output(two, 2);
        assert!(comparison.other_kernels(&alone, &far, 2).is_some());
        let before = output(vec![7; 2000], 2);
        assert!(
            comparison
                .same_kernels((&before, 0), (&together, 0), 2)
                .is_some()
        );
        assert_eq!(
            comparison.same_kernels((&before, 1), (&together, 1), 2),
            None
        );
    }

    #[test]
    fn what_has_no_numbers_shows_nothing() {
        let nothing = doubt(|values, _| vec![f32::NAN; values.len()]);
        assert!(nothing.unwrap().starts_with("untested"));
    }

    #[test]
    fn what_cannot_be_tried_is_doubted() {
        let refused = doubt(|_, _| Vec::new());
        assert_eq!(
            refused.unwrap(),
            "untested: it could not be tested whether rows depend on each other: not these"
        );
        // One row of four numbers fits, and two do not.
        let large = doubt_with(|values, _| values.to_vec(), 4, 16);
        assert!(large.unwrap().ends_with("its rows are too large"));
        // Two fit, and four do not: what holds for two is taken to hold for four.
        assert_eq!(doubt_with(|values, _| values.to_vec(), 4, 32), None);
    }
}
