//! Operators that run along some dimensions of a value, and keep the others apart.

use super::call::{Axes, Call, all_axes};
use super::size::{Size, Symbols};
use super::value::{Own, Reach, Value, broadcast};

/// The version of the standard since which a softmax runs along one dimension.
const SOFTMAX_ALONG_ONE: i64 = 13;

pub(super) fn reduce(call: &Call<'_>) -> Option<Vec<Value>> {
    let value = call.input(0)?;
    let axes = match call.axes(1) {
        // It may be the batch.
        Axes::Unknown if value.place().is_some() => return Some(call.all_mixed()),
        Axes::Unknown => return None,
        Axes::Unnamed if call.int("noop_with_empty_axes", 0) != 0 => {
            // It may be the function of the reduction that is applied all the same.
            return Some(vec![
                value.clone().with_items(None).standing_for(Own::Other),
            ]);
        }
        Axes::Unnamed => None,
        Axes::These(axes) => Some(axes),
    };
    let followed = value.is_nothing() || value.place().is_some();
    let (Some(dims), true) = (&value.dims, followed || axes.is_some()) else {
        // What everything goes into holds every row, wherever they lie, unless it is the product of sizes, of which
        // nothing is known in a graph inside another one.
        let of_sizes = call.is_inner || call.node.op_type == "ReduceProd";
        let all = axes.is_none() && !value.is_nothing() && !of_sizes;
        return all.then(|| call.all_mixed());
    };
    let away: Vec<usize> = match &axes {
        Some(axes) => all_axes(axes, dims.len())?,
        None => (0..dims.len()).collect(),
    };
    Some(vec![reduced(call, value, dims, &away)])
}

pub(super) fn arg(call: &Call<'_>) -> Option<Vec<Value>> {
    let value = call.input(0)?;
    let dims = value.dims.as_ref()?;
    let at = call.axis("axis", 0, dims.len())?;
    Some(vec![reduced(call, value, dims, &[at])])
}

fn reduced(call: &Call<'_>, value: &Value, dims: &[Size], away: &[usize]) -> Value {
    let keeps = call.int("keepdims", 1) != 0;
    let mut to = Vec::new();
    for (axis, dim) in dims.iter().enumerate() {
        if !away.contains(&axis) {
            to.push(dim.clone());
        } else if keeps {
            to.push(Size::one());
        }
    }
    let reach = match call.along(value, away) {
        Reach::Rows(place) if !keeps => {
            let before = (0..place.axis).filter(|axis| away.contains(axis)).count();
            Reach::Rows(place.moved(place.axis.saturating_sub(before)))
        }
        reach => reach,
    };
    Value::new(reach, to)
}

pub(super) fn softmax(call: &Call<'_>) -> Option<Vec<Value>> {
    let value = call.input(0)?;
    let rank = value.rank()?;
    let axes: Vec<usize> = if call.opset < SOFTMAX_ALONG_ONE {
        (call.axis("axis", 1, rank)?..rank).collect()
    } else {
        vec![call.axis("axis", -1, rank)?]
    };
    Some(vec![same_sizes(call, value, &axes)?])
}

/// Along the one dimension that `axis` names, by default this one.
pub(super) fn one(call: &Call<'_>, default: i64) -> Option<Vec<Value>> {
    let value = call.input(0)?;
    let at = call.axis("axis", default, value.rank()?)?;
    Some(vec![same_sizes(call, value, &[at])?])
}

pub(super) fn cumulative_sum(call: &Call<'_>) -> Option<Vec<Value>> {
    let value = call.input(0)?;
    let Some(numbers) = call.input(1)?.numbers() else {
        // It may be the batch.
        return value.place().is_some().then(|| call.all_mixed());
    };
    let axes = all_axes(&numbers, value.rank()?)?;
    Some(vec![same_sizes(call, value, &axes)?])
}

/// Along all dimensions from `first` on.
pub(super) fn from(call: &Call<'_>, first: usize) -> Option<Vec<Value>> {
    let value = call.input(0)?;
    let axes: Vec<usize> = (first..value.rank()?).collect();
    Some(vec![same_sizes(call, value, &axes)?])
}

/// Along all dimensions from the one that `axis` names on; the statistics have the size 1 there.
pub(super) fn layer_normalization(call: &Call<'_>, symbols: &mut Symbols) -> Option<Vec<Value>> {
    let value = call.input(0)?;
    let rank = value.rank()?;
    let first = call.axis("axis", -1, rank)?;
    let axes: Vec<usize> = (first..rank).collect();
    let normal = same_sizes(call, value, &axes)?;
    let sizes = value.dims.as_ref()?.iter().enumerate();
    let ones = sizes.map(|(axis, size)| {
        if axis < first {
            size.clone()
        } else {
            Size::one()
        }
    });
    let mut outputs = vec![Value::new(normal.reach.clone(), ones.collect()); call.outputs()];
    // Scale and bias are broadcast to it, and may be other ones for each row.
    let mut all = call.given();
    *all.first_mut()? = &normal;
    *outputs.first_mut()? = broadcast(&all, &call.mixed(), symbols)?;
    Some(outputs)
}

pub(super) fn batch_normalization(call: &Call<'_>) -> Option<Vec<Value>> {
    let value = call.input(0)?;
    let rank = value.rank()?;
    if call.int("training_mode", 0) == 0 {
        return Some(vec![same_sizes(call, value, &[])?; call.outputs()]);
    }
    let axes: Vec<usize> = (0..rank).filter(|axis| *axis != 1).collect();
    let normal = same_sizes(call, value, &axes)?;
    // The statistics are those of the channels.
    let reach = match &normal.reach {
        Reach::Rows(place) => Reach::Rows(place.moved(0)),
        reach => reach.clone(),
    };
    let channels = value.dims.as_ref()?.get(1)?.clone();
    let mut outputs = vec![Value::new(reach, vec![channels]); call.outputs()];
    *outputs.first_mut()? = normal;
    Some(outputs)
}

pub(super) fn mean_variance(call: &Call<'_>) -> Option<Vec<Value>> {
    let value = call.input(0)?;
    let axes = call.ints("axes").unwrap_or(&[0, 2, 3]);
    let axes = all_axes(axes, value.rank()?)?;
    Some(vec![same_sizes(call, value, &axes)?])
}

/// Ngrams of the last dimension.
pub(super) fn ngrams(call: &Call<'_>, symbols: &mut Symbols) -> Option<Vec<Value>> {
    let value = call.input(0)?;
    let mut dims = value.dims.clone()?;
    let last = dims.len().checked_sub(1)?;
    *dims.get_mut(last)? = symbols.fresh();
    Some(vec![Value::new(call.along(value, &[last]), dims)])
}

fn same_sizes(call: &Call<'_>, value: &Value, axes: &[usize]) -> Option<Value> {
    Some(Value::new(call.along(value, axes), value.dims.clone()?))
}
