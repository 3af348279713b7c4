//! Whether rows of different requests may share an execution, tried before the first request does.
//!
//! A dynamic first dimension says that a model takes several rows. It does not say that it computes each of them by
//! itself: a normalisation over the batch, a quantisation by the largest value, or a sum along the wrong axis would mix
//! the requests of strangers. So a few rows are executed alone and then among others, and must come out the same.
//!
//! Invariant: what cannot be shown to be independent is not merged.

use std::fmt;

use half::{bf16, f16};
use smallvec::SmallVec;

use super::{BatchInput, BatchOutput, InputView, Model, RuntimeError};
use crate::model::{Dim, ModelMetadata, TensorSpec};
use crate::tensor::{
    DataType, Shape, TensorData, TensorView, element_count, for_each_plain_datatype,
};

/// Different rows that are executed alone. A batch repeats them, so that each has others beside it.
const ROWS: usize = 3;

/// The largest input, in bytes, that is made up for a run.
const LARGEST_INPUT: usize = 256 << 20;

/// Differences below this are taken as rounding, whatever the outputs' scale.
const FLOOR: f64 = 1e-6;

/// Why the rows of different requests are not merged.
#[derive(Debug, Clone, PartialEq)]
pub enum Doubt {
    /// An output of a row is another one when other rows are executed with it.
    Neighbours {
        /// The output.
        output: String,
        /// The rows of the execution in which it differed.
        rows: usize,
        /// The first element that differs, alone and among others, as text.
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
                "output '{output}' of a row depends on the rows beside it: {alone} alone, {among} among {rows}"
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

/// Executes rows alone, and in batches of each of `sizes`, and compares.
///
/// # Errors
/// When a run fails for another reason than that the model refuses the made-up rows.
pub fn check(
    model: &mut dyn Model,
    sizes: &[usize],
    tf32: bool,
) -> Result<Option<Doubt>, RuntimeError> {
    match compare_all(model, sizes, tf32) {
        Ok(doubt) => Ok(doubt),
        Err(RuntimeError::Refused(reason)) => Ok(Some(Doubt::Untested(reason))),
        Err(error) => Err(error),
    }
}

fn compare_all(
    model: &mut dyn Model,
    sizes: &[usize],
    tf32: bool,
) -> Result<Option<Doubt>, RuntimeError> {
    let metadata = std::sync::Arc::clone(model.metadata());
    let mut alone: Vec<BatchOutput> = Vec::with_capacity(ROWS);
    for row in 0..ROWS {
        match run(model, &metadata, 1, row)? {
            Some(outputs) => alone.push(outputs),
            None => return Ok(Some(Doubt::Untested("its rows are too large".to_owned()))),
        }
    }
    let again = run(model, &metadata, 1, 0)?.unwrap_or_default();
    let comparison = Comparison {
        metadata: &metadata,
        alone: &alone,
        tf32,
    };
    if let Some(Doubt::Neighbours { output, .. }) = comparison.difference(&again, 1) {
        return Ok(Some(Doubt::Random { output }));
    }
    for rows in sizes.iter().copied().filter(|rows| *rows > 1) {
        // What is too large to be made up is as large for a request.
        let Some(together) = run(model, &metadata, rows, 0)? else {
            break;
        };
        let doubt = comparison.difference(&together, rows);
        if doubt.is_some() {
            return Ok(doubt);
        }
    }
    Ok(None)
}

/// Runs `rows` rows of the pattern, from its row `first` on; `None` if they would be too large.
fn run(
    model: &mut dyn Model,
    metadata: &ModelMetadata,
    rows: usize,
    first: usize,
) -> Result<Option<BatchOutput>, RuntimeError> {
    let mut buffers: SmallVec<[(Shape, TensorData); 4]> = SmallVec::new();
    for (index, spec) in metadata.inputs.iter().enumerate() {
        let shape = shape_of(spec, rows);
        let fits = |count: &usize| {
            *count <= LARGEST_INPUT / spec.datatype.size().unwrap_or(size_of::<String>())
        };
        let Some(elements) = element_count(&shape).filter(fits) else {
            return Ok(None);
        };
        let per_row = elements / rows.max(1);
        let random = |position: usize| {
            let row = (first + position / per_row.max(1)) % ROWS;
            let place = (index, row, position % per_row.max(1));
            mix(place)
        };
        buffers.push((shape, made_up(spec.datatype, elements, random)));
    }
    let input: BatchInput<'_> = buffers
        .iter()
        .map(|(shape, data)| InputView {
            shape: shape.clone(),
            elements: data.view(),
        })
        .collect();
    model.run(input).map(Some)
}

/// The shape of `rows` rows; open dimensions other than the batch are taken as 1.
fn shape_of(spec: &TensorSpec, rows: usize) -> Shape {
    let size = |(axis, dim): (usize, &Dim)| match dim {
        _ if axis == 0 => rows,
        Dim::Fixed(size) => *size,
        Dim::Dynamic(_) => 1,
    };
    spec.dims().iter().enumerate().map(size).collect()
}

/// A number that looks random and is always the same for the same place.
fn mix((input, row, element): (usize, usize, usize)) -> u64 {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for part in [input, row, element] {
        state = (state ^ part as u64).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state ^= state >> 29;
    }
    state
}

/// How a made-up element comes out of a random number: fractions between 0 and 1, and small whole numbers, because
/// whole numbers are mostly indices.
trait MadeUp {
    fn made_up(random: u64) -> Self;
}

#[expect(clippy::cast_precision_loss, reason = "53 bits fit exactly")]
fn fraction(random: u64) -> f64 {
    (random >> 11) as f64 / (1_u64 << 53) as f64
}

macro_rules! made_up_wholes {
    ($($element:ty),+) => {
        $(impl MadeUp for $element {
            fn made_up(random: u64) -> Self {
                Self::from(random >> 63 == 1)
            }
        })+
    };
}
made_up_wholes!(u8, u16, u32, u64, i8, i16, i32, i64);

impl MadeUp for f64 {
    fn made_up(random: u64) -> Self {
        fraction(random)
    }
}

impl MadeUp for f32 {
    #[expect(clippy::cast_possible_truncation, reason = "any value near it does")]
    fn made_up(random: u64) -> Self {
        fraction(random) as Self
    }
}

impl MadeUp for f16 {
    fn made_up(random: u64) -> Self {
        Self::from_f64(fraction(random))
    }
}

impl MadeUp for bf16 {
    fn made_up(random: u64) -> Self {
        Self::from_f64(fraction(random))
    }
}

/// An element as a number that can be compared.
trait Comparable {
    fn number(&self) -> f64;
}

macro_rules! comparable {
    ($($element:ty),+) => {
        $(impl Comparable for $element {
            #[allow(clippy::cast_precision_loss, clippy::cast_lossless, reason = "differences of 2^53 and more do not hide smaller ones")]
            fn number(&self) -> f64 {
                *self as f64
            }
        })+
    };
}
comparable!(u8, u16, u32, u64, i8, i16, i32, i64, f32, f64);

impl Comparable for f16 {
    fn number(&self) -> f64 {
        self.to_f64()
    }
}

impl Comparable for bf16 {
    fn number(&self) -> f64 {
        self.to_f64()
    }
}

macro_rules! elements_of {
    ($(($variant:ident, $element:ty, $name:literal, $size:literal)),+) => {
        fn made_up(datatype: DataType, len: usize, random: impl Fn(usize) -> u64) -> TensorData {
            match datatype {
                DataType::Bool => (0..len).map(|place| random(place) >> 63 == 1).collect::<Vec<bool>>().into(),
                $(DataType::$variant => {
                    (0..len).map(|place| <$element>::made_up(random(place))).collect::<Vec<$element>>().into()
                })+
                DataType::Bytes => {
                    let text = |place| if random(place) >> 63 == 1 { "a" } else { "b" }.to_owned();
                    (0..len).map(text).collect::<Vec<String>>().into()
                }
            }
        }

        /// The element at `index`, as a number.
        fn number(view: TensorView<'_>, index: usize) -> Option<f64> {
            Some(match view {
                TensorView::Bool(elements) => f64::from(u8::from(*elements.get(index)?)),
                $(TensorView::$variant(elements) => elements.get(index)?.number(),)+
                TensorView::Bytes(_) => return None,
            })
        }
    };
}
for_each_plain_datatype!(elements_of);

struct Comparison<'a> {
    metadata: &'a ModelMetadata,
    alone: &'a [BatchOutput],
    tf32: bool,
}

impl Comparison<'_> {
    /// The first difference between `together`, the outputs of `rows` rows, and those of the same rows alone.
    fn difference(&self, together: &BatchOutput, rows: usize) -> Option<Doubt> {
        for (index, spec) in self.metadata.outputs.iter().enumerate() {
            let neighbours = |values| Doubt::Neighbours {
                output: spec.name.clone(),
                rows,
                values,
            };
            let singles: Option<Vec<_>> = self
                .alone
                .iter()
                .map(|outputs| outputs.get(index))
                .collect();
            let (Some(singles), Some(all)) = (singles, together.get(index)) else {
                return Some(neighbours(None));
            };
            let one_each = singles.iter().all(|single| {
                single.shape().first() == Some(&1)
                    && single.shape().get(1..) == all.shape().get(1..)
            });
            if !one_each || all.shape().first() != Some(&rows) {
                return Some(neighbours(None));
            }
            let singles: Vec<TensorView<'_>> = singles.iter().map(|single| single.view()).collect();
            let all = all.view();
            let per_row = all.len() / rows.max(1);
            let allowed = tolerance(spec.datatype, self.tf32) * scale(&singles).max(FLOOR);
            for place in 0..all.len() {
                let (row, element) = (place / per_row, place % per_row);
                let single = singles.get(row % ROWS)?;
                if !is_close(*single, element, all, place, allowed) {
                    return Some(neighbours(Some((
                        shown(*single, element),
                        shown(all, place),
                    ))));
                }
            }
        }
        None
    }
}

/// How far apart two results of the same computation may lie, relative to the output's largest value: the order of
/// additions differs with the number of rows. Whole numbers and strings must be equal.
fn tolerance(datatype: DataType, tf32: bool) -> f64 {
    match datatype {
        DataType::Fp32 if tf32 => 1e-2,
        DataType::Fp64 | DataType::Fp32 => 1e-3,
        DataType::Fp16 => 1e-2,
        DataType::Bf16 => 5e-2,
        _ => 0.0,
    }
}

/// The largest finite value in any of `views`.
fn scale(views: &[TensorView<'_>]) -> f64 {
    let all = views
        .iter()
        .flat_map(|view| (0..view.len()).filter_map(|index| number(*view, index)));
    all.map(f64::abs)
        .filter(|value| value.is_finite())
        .fold(0.0, f64::max)
}

fn is_close(
    one: TensorView<'_>,
    index: usize,
    other: TensorView<'_>,
    place: usize,
    allowed: f64,
) -> bool {
    match (number(one, index), number(other, place)) {
        (Some(one), Some(other)) if one.is_finite() && other.is_finite() => {
            (one - other).abs() <= allowed
        }
        (Some(one), Some(other)) => {
            one.to_bits() == other.to_bits() || (one.is_nan() && other.is_nan())
        }
        _ => shown(one, index) == shown(other, place),
    }
}

fn shown(view: TensorView<'_>, index: usize) -> String {
    match view {
        TensorView::Bytes(strings) => strings
            .get(index)
            .map(|text| format!("{text:.20}"))
            .unwrap_or_default(),
        _ => number(view, index)
            .map(|number| format!("{number:.4}"))
            .unwrap_or_default(),
    }
}
