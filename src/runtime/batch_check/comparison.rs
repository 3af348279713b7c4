//! When two results are the same: nearly bit by bit where the same kernels computed them, but for rounding otherwise.
//!
//! Invariant: what has another shape is never the same.

use half::{bf16, f16};

use crate::runtime::ModelOutput;
use crate::tensor::{DataType, TensorView, for_each_plain_datatype};

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

/// Two elements that should be the same.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Difference {
    /// As the element is in one execution.
    pub(super) one: String,
    /// As it is in another.
    pub(super) other: String,
    /// How far they lie apart, as a part of the largest value; infinite where that says nothing.
    pub(super) part: f64,
}

/// Some elements of an output: those of one row, or all.
#[derive(Clone, Copy)]
pub(super) struct Elements<'a> {
    all: TensorView<'a>,
    start: usize,
    len: usize,
}

impl<'a> Elements<'a> {
    /// The row at `place` of an output of `rows` rows; `None` if that is not what the output has.
    pub(super) fn row(output: &'a ModelOutput, place: usize, rows: usize) -> Option<Self> {
        let len = output.view().len().checked_div(rows)?;
        (output.shape().first() == Some(&rows)).then_some(Self {
            all: output.view(),
            start: place * len,
            len,
        })
    }

    /// All elements of an output.
    pub(super) fn whole(output: &'a ModelOutput) -> Self {
        Self {
            all: output.view(),
            start: 0,
            len: output.view().len(),
        }
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
            (_, Some(number)) if is_float(self.all.datatype()) => format!("{number:.6}"),
            (_, Some(number)) => format!("{number}"),
            (_, None) => String::new(),
        }
    }

    /// The largest finite number.
    fn scale(&self) -> f64 {
        let finite = self.numbers().filter(|number| number.is_finite());
        finite.fold(0.0, |scale, number| scale.max(number.abs()))
    }

    /// Whether there are numbers among the elements, but none that is finite: those equal each other by chance.
    pub(super) fn say_nothing(&self) -> bool {
        let datatype = self.all.datatype();
        datatype != DataType::Bytes && self.len > 0 && !self.numbers().any(f64::is_finite)
    }

    fn difference(&self, other: &Self, index: usize, scale: f64) -> Difference {
        let part = match (self.number(index), other.number(index)) {
            (Some(a), Some(b)) if is_float(self.all.datatype()) && scale > 0.0 => {
                let part = (a - b).abs() / scale;
                if part.is_finite() {
                    part
                } else {
                    f64::INFINITY
                }
            }
            _ => f64::INFINITY,
        };
        Difference {
            one: self.shown(index),
            other: other.shown(index),
            part,
        }
    }
}

/// The first difference between what the same kernels made of the same row: hardly any may be.
pub(super) fn same_kernels(one: &Elements<'_>, other: &Elements<'_>) -> Option<Difference> {
    let datatype = one.all.datatype();
    let relative = match datatype {
        DataType::Fp16 => 1e-3,
        DataType::Bf16 => 1e-2,
        _ => 1e-5,
    };
    let scale = one.scale();
    let floor = scale * relative / 100.0;
    let close = |index: &usize| match (one.number(*index), other.number(*index)) {
        (Some(a), Some(b)) => is_close(a, b, relative * a.abs().max(b.abs()) + floor, datatype),
        _ => one.shown(*index) == other.shown(*index),
    };
    let mut indices = 0..one.len.max(other.len);
    let found = indices.find(|index| !close(index));
    found.map(|index| one.difference(other, index, scale))
}

/// How rows that were executed alone and together compare.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Agreement {
    /// The largest difference, as a part of the largest value, among fractions.
    pub(super) worst: f64,
    /// The largest difference, if differences are more than rounding.
    pub(super) beyond: Option<Difference>,
}

/// Compares the rows of `alone` with the same rows of an execution of all of them, which other kernels may have computed.
pub(super) fn other_kernels(
    alone: &[Elements<'_>],
    together: &[Elements<'_>],
    tf32: bool,
) -> Agreement {
    let Some(first) = alone.first() else {
        return Agreement::default();
    };
    let datatype = first.all.datatype();
    let scale = alone.iter().map(Elements::scale).fold(0.0, f64::max);
    let allowed = tolerance(datatype, tf32) * scale;
    let (mut flips, mut elements) = (0_u32, 0_u32);
    let mut worst = 0.0_f64;
    let mut beyond: Option<Difference> = None;
    for (single, row) in alone.iter().zip(together) {
        for index in 0..single.len.max(row.len) {
            let close = match (single.number(index), row.number(index)) {
                (Some(a), Some(b)) => {
                    let part = (a - b).abs() / scale;
                    if part.is_finite() && is_float(datatype) {
                        worst = worst.max(part);
                    }
                    is_close(a, b, allowed, datatype)
                }
                _ => single.shown(index) == row.shown(index),
            };
            elements = elements.saturating_add(1);
            if !close {
                flips = flips.saturating_add(1);
                let found = single.difference(row, index, scale);
                if beyond
                    .as_ref()
                    .is_none_or(|beyond| found.part > beyond.part)
                {
                    beyond = Some(found);
                }
            }
        }
    }
    let permitted = if is_float(datatype) {
        0.0
    } else {
        FLIPS * f64::from(elements)
    };
    Agreement {
        worst,
        beyond: beyond.filter(|_| f64::from(flips) > permitted),
    }
}

/// Whether rows are so far apart that what they have in common with each other is not all there is to see.
pub(super) fn are_telling(rows: &[Elements<'_>], tf32: bool) -> bool {
    let Some((first, others)) = rows.split_first() else {
        return false;
    };
    let datatype = first.all.datatype();
    let scale = rows.iter().map(Elements::scale).fold(0.0, f64::max);
    let apart = 10.0 * tolerance(datatype, tf32) * scale;
    others.iter().any(|other| {
        (0..first.len.max(other.len)).any(|index| {
            match (first.number(index), other.number(index)) {
                (Some(a), Some(b)) => (a - b).abs() > apart,
                _ => first.shown(index) != other.shown(index),
            }
        })
    })
}

/// How far apart two results of the same computation by different kernels may lie, relative to the output's largest
/// value. Whole numbers and strings must be equal.
pub(super) fn tolerance(datatype: DataType, tf32: bool) -> f64 {
    match datatype {
        DataType::Fp32 if tf32 => 1e-2,
        DataType::Fp64 | DataType::Fp32 => 1e-3,
        DataType::Fp16 => 1e-2,
        DataType::Bf16 => 5e-2,
        _ => 0.0,
    }
}

fn is_float(datatype: DataType) -> bool {
    tolerance(datatype, false) > 0.0
}

fn is_close(one: f64, other: f64, allowed: f64, datatype: DataType) -> bool {
    if one.is_finite() && other.is_finite() && is_float(datatype) {
        // What is far below what FP16 can tell apart is nothing.
        return (one - other).abs() <= allowed.max(1e-12);
    }
    one.to_bits() == other.to_bits() || (one.is_nan() && other.is_nan())
}
