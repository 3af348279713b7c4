//! When two results are the same: nearly bit by bit where the same kernels computed them, but for rounding otherwise.
//!
//! Invariant: a shape that is not one row per row is a difference.

use half::{bf16, f16};

use super::Doubt;
use crate::model::ModelMetadata;
use crate::runtime::BatchOutput;
use crate::tensor::{DataType, OutputTensor, TensorView, for_each_plain_datatype};

/// Of the whole numbers of an output, this part may differ between batch sizes: a class that is chosen among nearly
/// equal ones, or a quantised value on the edge between two.
const FLIPS: f64 = 0.01;

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

macro_rules! numbers {
    ($(($variant:ident, $element:ty, $name:literal, $size:literal)),+) => {
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
for_each_plain_datatype!(numbers);

/// How outputs are compared.
pub(super) struct Comparison<'a> {
    pub(super) metadata: &'a ModelMetadata,
    pub(super) tf32: bool,
}

/// The elements of one row of an output.
#[derive(Clone, Copy)]
struct RowView<'a> {
    all: TensorView<'a>,
    start: usize,
    len: usize,
}

impl<'a> RowView<'a> {
    /// The row at `place` of an output of `rows` rows; `None` if that is not what the output has.
    fn of(output: &'a OutputTensor, place: usize, rows: usize) -> Option<Self> {
        let len = output.view().len().checked_div(rows)?;
        (output.shape().first() == Some(&rows)).then_some(Self {
            all: output.view(),
            start: place * len,
            len,
        })
    }

    fn number(&self, index: usize) -> Option<f64> {
        number(self.all, self.start + index)
    }

    fn numbers(&self) -> impl Iterator<Item = f64> + '_ {
        (0..self.len).filter_map(|index| self.number(index))
    }

    fn shown(&self, index: usize) -> String {
        match (self.all, self.number(index)) {
            (TensorView::Bytes(strings), _) => strings
                .get(self.start + index)
                .map(|text| format!("'{text:.20}'"))
                .unwrap_or_default(),
            (_, Some(number)) => format!("{number:.6}"),
            (_, None) => String::new(),
        }
    }

    /// The largest finite number.
    fn scale(&self) -> f64 {
        let finite = self.numbers().filter(|number| number.is_finite());
        finite.fold(0.0, |scale, number| scale.max(number.abs()))
    }
}

impl Comparison<'_> {
    /// An output that has numbers in no row of `alone` but NaN and infinity, which equal each other by chance.
    pub(super) fn without_numbers(&self, alone: &[BatchOutput]) -> Option<&str> {
        let mut specs = self.metadata.outputs.iter().enumerate();
        let found = specs.find(|(index, spec)| {
            let views = alone.iter().filter_map(|outputs| outputs.get(*index));
            let mut rows = views.filter_map(|output| RowView::of(output, 0, 1));
            spec.datatype != DataType::Bytes
                && rows.all(|row| row.len > 0 && !row.numbers().any(f64::is_finite))
        });
        found.map(|(_, spec)| spec.name.as_str())
    }

    /// The first difference of one row in two executions of the same `rows` rows' shape: hardly any may be.
    pub(super) fn same_kernels(
        &self,
        before: (&BatchOutput, usize),
        after: (&BatchOutput, usize),
        rows: usize,
    ) -> Option<Doubt> {
        for (index, spec) in self.metadata.outputs.iter().enumerate() {
            let view = |(outputs, place): (&'_ BatchOutput, usize)| {
                outputs.get(index).cloned().map(|output| (output, place))
            };
            let doubt = |values| Doubt::Neighbours {
                output: spec.name.clone(),
                rows,
                values,
            };
            let (Some((one, one_place)), Some((other, other_place))) = (view(before), view(after))
            else {
                return Some(doubt(None));
            };
            let one = RowView::of(&one, one_place, rows);
            let other = RowView::of(&other, other_place, rows);
            let (Some(one), Some(other)) = (one, other) else {
                return Some(doubt(None));
            };
            if one.len != other.len {
                return Some(doubt(None));
            }
            let relative = match spec.datatype {
                DataType::Fp16 => 1e-3,
                DataType::Bf16 => 1e-2,
                _ => 1e-5,
            };
            let floor = one.scale() * relative / 100.0;
            for place in 0..one.len {
                let close = match (one.number(place), other.number(place)) {
                    (Some(a), Some(b)) => {
                        is_close(a, b, relative * a.abs().max(b.abs()) + floor, spec.datatype)
                    }
                    _ => one.shown(place) == other.shown(place),
                };
                if !close {
                    return Some(doubt(Some((one.shown(place), other.shown(place)))));
                }
            }
        }
        None
    }

    /// The first output of `rows` rows together that is not what the same rows gave alone, but for rounding.
    pub(super) fn other_kernels(
        &self,
        alone: &[BatchOutput],
        together: &BatchOutput,
        rows: usize,
    ) -> Option<Doubt> {
        for (index, spec) in self.metadata.outputs.iter().enumerate() {
            let doubt = |values| Doubt::Neighbours {
                output: spec.name.clone(),
                rows,
                values,
            };
            let singles: Option<Vec<&OutputTensor>> =
                alone.iter().map(|outputs| outputs.get(index)).collect();
            let (Some(singles), Some(all)) = (singles, together.get(index)) else {
                return Some(doubt(None));
            };
            let same_shape =
                |single: &&OutputTensor| single.shape().get(1..) == all.shape().get(1..);
            let views: Option<Vec<RowView<'_>>> = singles
                .iter()
                .map(|single| RowView::of(single, 0, 1))
                .collect();
            let (Some(views), true) = (views, singles.iter().all(same_shape)) else {
                return Some(doubt(None));
            };
            let scale = views.iter().map(RowView::scale).fold(0.0, f64::max);
            let allowed = tolerance(spec.datatype, self.tf32) * scale;
            let (mut flips, mut elements, mut first) = (0_u32, 0_u32, None);
            for (place, single) in views.iter().cycle().take(rows).enumerate() {
                let Some(row) = RowView::of(all, place, rows) else {
                    return Some(doubt(None));
                };
                for index in 0..row.len {
                    let close = match (single.number(index), row.number(index)) {
                        (Some(a), Some(b)) => is_close(a, b, allowed, spec.datatype),
                        _ => single.shown(index) == row.shown(index),
                    };
                    elements = elements.saturating_add(1);
                    if !close {
                        flips += 1;
                        let values = || (single.shown(index), row.shown(index));
                        first = first.or_else(|| Some(values()));
                    }
                }
            }
            let may_flip = tolerance(spec.datatype, self.tf32) == 0.0;
            let permitted = if may_flip {
                FLIPS * f64::from(elements)
            } else {
                0.0
            };
            if f64::from(flips) > permitted {
                return Some(doubt(first));
            }
        }
        None
    }
}

/// How far apart two results of the same computation by different kernels may lie, relative to the output's largest
/// value. Whole numbers and strings must be equal.
fn tolerance(datatype: DataType, tf32: bool) -> f64 {
    match datatype {
        DataType::Fp32 if tf32 => 1e-2,
        DataType::Fp64 | DataType::Fp32 => 1e-3,
        DataType::Fp16 => 1e-2,
        DataType::Bf16 => 5e-2,
        _ => 0.0,
    }
}

fn is_close(one: f64, other: f64, allowed: f64, datatype: DataType) -> bool {
    let whole = tolerance(datatype, false) == 0.0;
    if one.is_finite() && other.is_finite() && !whole {
        // What is far below what FP16 can tell apart is nothing.
        return (one - other).abs() <= allowed.max(1e-12);
    }
    one.to_bits() == other.to_bits() || (one.is_nan() && other.is_nan())
}
