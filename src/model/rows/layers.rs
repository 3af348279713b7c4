//! Layers of networks and models of classical machine learning, whose rows are the first dimension of their inputs, or,
//! of recurrent ones, another one that the standard names.

use super::call::{Call, all_axes};
use super::size::{Size, Symbols};
use super::value::{Place, Reach, Value, broadcast, joined};

/// The window of a convolution or a pool along one dimension.
struct Window {
    kernel: i64,
    stride: i64,
    dilation: i64,
    pads: i64,
}

/// How the sizes of windows are found.
struct Windows<'a> {
    kernel: Vec<i64>,
    strides: &'a [i64],
    dilations: &'a [i64],
    pads: &'a [i64],
    auto: &'a str,
    round_up: bool,
}

impl Windows<'_> {
    fn of<'a>(call: &Call<'a>, kernel: Vec<i64>) -> Windows<'a> {
        Windows {
            kernel,
            strides: call.ints("strides").unwrap_or_default(),
            dilations: call.ints("dilations").unwrap_or_default(),
            pads: call.ints("pads").unwrap_or_default(),
            auto: call.text("auto_pad").unwrap_or("NOTSET"),
            round_up: call.int("ceil_mode", 0) != 0,
        }
    }

    fn window(&self, index: usize) -> Option<Window> {
        let at = |numbers: &[i64], index: usize, default: i64| {
            numbers.get(index).copied().unwrap_or(default)
        };
        let behind = index + self.kernel.len();
        Some(Window {
            kernel: *self.kernel.get(index)?,
            stride: at(self.strides, index, 1),
            dilation: at(self.dilations, index, 1),
            pads: at(self.pads, index, 0).checked_add(at(self.pads, behind, 0))?,
        })
    }

    /// The size of a dimension of the size `dim`, after windows were laid over it.
    fn size(&self, index: usize, dim: &Size) -> Option<Size> {
        let window = self.window(index)?;
        let reach = window.kernel.checked_sub(1)?.checked_mul(window.dilation)?;
        if window.stride < 1 {
            return None;
        }
        match self.auto {
            "SAME_UPPER" | "SAME_LOWER" if window.stride == 1 => return Some(dim.clone()),
            "SAME_UPPER" | "SAME_LOWER" => {
                let size = i64::try_from(dim.as_number()?).ok()?;
                return number(size.checked_add(window.stride)?.checked_sub(1)? / window.stride);
            }
            "NOTSET" | "VALID" => {}
            _ => return None,
        }
        let pads = if self.auto == "VALID" { 0 } else { window.pads };
        if window.stride == 1 && pads == reach {
            return Some(dim.clone());
        }
        let size = i64::try_from(dim.as_number()?).ok()?;
        let room = size.checked_add(pads)?.checked_sub(reach.checked_add(1)?)?;
        let steps = if self.round_up {
            // Whether the last one counts depends on where it starts.
            if room % window.stride != 0 {
                return None;
            }
            room / window.stride
        } else {
            room.div_euclid(window.stride)
        };
        number(steps.checked_add(1)?)
    }
}

fn number(size: i64) -> Option<Size> {
    u64::try_from(size).ok().map(Size::number)
}

/// A value that keeps the place of `value`'s rows if they are its first dimension, with these sizes behind the first.
fn rows_first(call: &Call<'_>, value: &Value, behind: Vec<Size>) -> Option<Value> {
    let dims = value.dims.as_ref()?;
    let all: Vec<usize> = (1..dims.len()).collect();
    let mut to = vec![dims.first()?.clone()];
    to.extend(behind);
    Some(Value::new(call.along(value, &all), to))
}

/// A convolution with the weights at `weight`.
pub(super) fn convolution(
    call: &Call<'_>,
    weight: usize,
    symbols: &mut Symbols,
) -> Option<Vec<Value>> {
    let value = call.input(0)?;
    let kernel = call.input(weight)?.dims.as_ref()?;
    let (channels, kernel) = (kernel.first()?.clone(), kernel.get(2..)?);
    let kernel = kernel
        .iter()
        .map(|size| i64::try_from(size.as_number()?).ok());
    let windows = Windows::of(call, kernel.collect::<Option<Vec<i64>>>()?);
    let mut behind = vec![channels];
    for (index, dim) in value.dims.as_ref()?.iter().skip(2).enumerate() {
        let size = windows.size(index, dim);
        behind.push(size.unwrap_or_else(|| symbols.fresh()));
    }
    Some(vec![rows_first(call, value, behind)?])
}

/// A convolution backwards.
pub(super) fn transposed_convolution(call: &Call<'_>, symbols: &mut Symbols) -> Option<Vec<Value>> {
    let value = call.input(0)?;
    let groups = Size::number(u64::try_from(call.int("group", 1)).ok()?);
    let channels = call.input(1)?.dims.as_ref()?.get(1)?.times(&groups)?;
    let mut behind = vec![channels];
    behind.extend(value.dims.as_ref()?.iter().skip(2).map(|_| symbols.fresh()));
    Some(vec![rows_first(call, value, behind)?])
}

pub(super) fn pool(call: &Call<'_>, symbols: &mut Symbols) -> Option<Vec<Value>> {
    let value = call.input(0)?;
    let windows = Windows::of(call, call.ints("kernel_shape")?.to_vec());
    let dims = value.dims.as_ref()?;
    let mut behind = vec![dims.get(1)?.clone()];
    for (index, dim) in dims.iter().skip(2).enumerate() {
        let size = windows.size(index, dim);
        behind.push(size.unwrap_or_else(|| symbols.fresh()));
    }
    let pooled = rows_first(call, value, behind)?;
    let mut outputs = vec![pooled; call.outputs()];
    // Where the largest ones were is counted through all rows.
    if let Some(places) = outputs.get_mut(1)
        && places.place().is_some()
    {
        *places = Value::shapeless(call.mixed());
    }
    Some(outputs)
}

pub(super) fn global_pool(call: &Call<'_>) -> Option<Vec<Value>> {
    let value = call.input(0)?;
    let dims = value.dims.as_ref()?;
    let mut behind = vec![dims.get(1)?.clone()];
    behind.extend(dims.iter().skip(2).map(|_| Size::one()));
    Some(vec![rows_first(call, value, behind)?])
}

/// Space to depth, or the other way round.
pub(super) fn blocks(call: &Call<'_>, to_depth: bool, symbols: &mut Symbols) -> Option<Vec<Value>> {
    let value = call.input(0)?;
    let block = Size::number(u64::try_from(call.int("blocksize", 1)).ok()?);
    let area = block.times(&block)?;
    let [_, channels, height, width] = value.dims.as_ref()?.as_slice() else {
        return None;
    };
    let sizes = if to_depth {
        [
            channels.times(&area),
            height.over(&block),
            width.over(&block),
        ]
    } else {
        [
            channels.over(&area),
            height.times(&block),
            width.times(&block),
        ]
    };
    let behind = sizes.into_iter();
    let behind = behind.map(|size| size.unwrap_or_else(|| symbols.fresh()));
    Some(vec![rows_first(call, value, behind.collect())?])
}

pub(super) fn resize(call: &Call<'_>, symbols: &mut Symbols) -> Option<Vec<Value>> {
    let value = call.input(0)?;
    let dims = value.dims.as_ref()?;
    let axes: Vec<usize> = match call.ints("axes") {
        Some(axes) => all_axes(axes, dims.len())?,
        None => (0..dims.len()).collect(),
    };
    // Until version 10, the factors come where the region comes since.
    let scales = call.input(if call.opset < 11 { 1 } else { 2 });
    let items = |value: Option<&Value>| {
        let items = value?.items.clone()?;
        (items.len() == axes.len()).then_some(items)
    };
    let (scales, sizes) = (items(scales), items(call.input(3)));
    let mut to = dims.clone();
    for (index, axis) in axes.iter().enumerate() {
        let dim = to.get_mut(*axis)?;
        let size = sizes.as_ref().and_then(|sizes| sizes.get(index)?.as_size());
        let scale = scales
            .as_ref()
            .and_then(|scales| scales.get(index)?.as_size());
        let size = size.or_else(|| dim.times(&scale?));
        *dim = size.unwrap_or_else(|| symbols.fresh());
    }
    let is_stretched = call
        .text("keep_aspect_ratio_policy")
        .is_none_or(|policy| policy == "stretch");
    let is_cropped = call.text("coordinate_transformation_mode") == Some("tf_crop_and_resize");
    let reach = match value.place() {
        Some(place) if !axes.contains(&place.axis) => value.reach.clone(),
        // One factor for all dimensions, the batch among them.
        Some(_) if !is_stretched => call.mixed(),
        Some(_) if is_cropped => Reach::Unknown,
        Some(place) if to.get(place.axis) == dims.get(place.axis) => value.reach.clone(),
        Some(place) if to.get(place.axis)?.is_definite() => call.mixed(),
        Some(_) => Reach::Unknown,
        None => value.reach.clone(),
    };
    Some(vec![Value::new(reach, to)])
}

pub(super) fn grid_sample(call: &Call<'_>) -> Option<Vec<Value>> {
    let (value, grid) = (call.input(0)?, call.input(1)?);
    let (from, to) = (value.dims.as_ref()?, grid.dims.as_ref()?);
    let (_, places) = to.split_last()?;
    let mut dims = vec![from.first()?.clone(), from.get(1)?.clone()];
    dims.extend_from_slice(places.get(1..)?);
    let behind = |value: &Value| {
        let axes: Vec<usize> = (1..value.rank().unwrap_or_default()).collect();
        call.along(value, &axes)
    };
    let reach = joined(behind(value), behind(grid), &call.mixed());
    Some(vec![Value::new(reach, dims)])
}

pub(super) fn recurrent(call: &Call<'_>) -> Option<Vec<Value>> {
    let value = call.input(0)?;
    let weights = [1, 2, 3, 7];
    let constant = |index: &usize| call.input(*index).is_none_or(Value::is_nothing);
    if !weights.iter().all(constant) {
        return None;
    }
    let first = call.int("layout", 0) != 0;
    let (batch, state_batch) = if first { (0, 0) } else { (1, 1) };
    let [one, other, _] = value.dims.as_ref()?.as_slice() else {
        return None;
    };
    let (steps, rows) = if first { (other, one) } else { (one, other) };
    let others: Vec<usize> = (0..3).filter(|axis| *axis != batch).collect();
    let mut reach = moved(call.along(value, &others), state_batch);
    // The lengths of the sequences, and the states that they begin with.
    for (index, own) in [(4, 0), (5, state_batch), (6, state_batch)] {
        let Some(given) = call.input(index) else {
            continue;
        };
        let others: Vec<usize> = (0..given.rank()?).filter(|axis| *axis != own).collect();
        let given = moved(call.along(given, &others), state_batch);
        reach = joined(reach, given, &call.mixed());
    }
    let both = call.text("direction") == Some("bidirectional");
    let directions = Size::number(if both { 2 } else { 1 });
    let hidden = Size::number(u64::try_from(call.int("hidden_size", 1)).ok()?);
    let (sequence, state, at) = if first {
        (
            vec![
                rows.clone(),
                steps.clone(),
                directions.clone(),
                hidden.clone(),
            ],
            vec![rows.clone(), directions, hidden],
            0,
        )
    } else {
        (
            vec![
                steps.clone(),
                directions.clone(),
                rows.clone(),
                hidden.clone(),
            ],
            vec![directions, rows.clone(), hidden],
            2,
        )
    };
    let mut outputs = vec![Value::new(reach.clone(), state); call.outputs()];
    if let Some(all) = outputs.first_mut() {
        *all = Value::new(moved(reach, at), sequence);
    }
    Some(outputs)
}

fn moved(reach: Reach, axis: usize) -> Reach {
    match reach {
        Reach::Rows(place) => Reach::Rows(Place { axis, ..place }),
        reach => reach,
    }
}

/// A sum of the first two inputs and a bias, normalised along its last dimension.
pub(super) fn skip_normalization(
    call: &Call<'_>,
    bias: usize,
    symbols: &mut Symbols,
) -> Option<Vec<Value>> {
    let mut added = vec![call.input(0)?, call.input(1)?];
    added.extend(call.input(bias));
    let sum = broadcast(&added, &call.mixed(), symbols)?;
    let mut others = (2..call.inputs.len()).filter(|index| *index != bias);
    let constant = |index: usize| call.input(index).is_none_or(Value::is_nothing);
    if !others.all(constant) {
        return Some(call.all_mixed());
    }
    let last = sum.rank()?.checked_sub(1)?;
    let normal = Value::new(call.along(&sum, &[last]), sum.dims.clone()?);
    let mut outputs = vec![Value::shapeless(Reach::Unknown); call.outputs()];
    *outputs.first_mut()? = normal;
    Some(outputs)
}

/// Vectors that numbers stand for, from tables.
pub(super) fn embedding(call: &Call<'_>, symbols: &mut Symbols) -> Option<Vec<Value>> {
    let mut tables = (2..=6).filter_map(|index| call.input(index));
    if tables.any(|table| !table.is_nothing()) {
        return Some(call.all_mixed());
    }
    with_rows_first(call, 1, symbols)
}

/// A layer whose inputs have their rows first, as has its first output, which has as many dimensions as the first input and
/// `more`. The sizes behind the first are as in the input, except for the last one.
pub(super) fn with_rows_first(
    call: &Call<'_>,
    more: usize,
    symbols: &mut Symbols,
) -> Option<Vec<Value>> {
    let value = call.input(0)?;
    let reach = first_of_all(call)?;
    let mut dims = value.dims.clone().filter(|dims| dims.len() > 1)?;
    if more == 0 {
        dims.pop();
        dims.push(symbols.fresh());
    }
    dims.extend((0..more).map(|_| symbols.fresh()));
    let mut outputs = vec![Value::shapeless(Reach::Unknown); call.outputs()];
    *outputs.first_mut()? = Value::new(reach, dims);
    Some(outputs)
}

/// A model of classical machine learning: it takes one row of features for each row, and gives as many.
pub(super) fn classical(
    call: &Call<'_>,
    outputs: &[usize],
    symbols: &mut Symbols,
) -> Option<Vec<Value>> {
    let value = call.input(0)?;
    if is_one_row(value) {
        return Some(call.all_mixed());
    }
    let dims = value.dims.as_ref().filter(|dims| dims.len() == 2)?;
    let reach = first_of_all(call)?;
    let output = |rank: &usize| {
        let mut to = vec![dims.first()?.clone()];
        to.extend((1..*rank).map(|_| symbols.fresh()));
        Some(Value::new(reach.clone(), to))
    };
    outputs.iter().map(output).collect()
}

/// Features in the same places as those of the first input, of the last dimension each.
pub(super) fn features(call: &Call<'_>) -> Option<Vec<Value>> {
    let value = call.input(0)?;
    let last = value.rank()?.checked_sub(1)?;
    Some(vec![Value::new(
        call.along(value, &[last]),
        value.dims.clone()?,
    )])
}

pub(super) fn one_hot_features(call: &Call<'_>, symbols: &mut Symbols) -> Option<Vec<Value>> {
    let value = call.input(0)?;
    let mut dims = value.dims.clone()?;
    dims.push(symbols.fresh());
    Some(vec![Value::new(value.reach.clone(), dims)])
}

pub(super) fn feature_vector(call: &Call<'_>, symbols: &mut Symbols) -> Option<Vec<Value>> {
    if call.given().into_iter().any(is_one_row) {
        return Some(call.all_mixed());
    }
    let rows = call.input(0)?.dims.as_ref()?.first()?.clone();
    let reach = first_of_all(call)?;
    Some(vec![Value::new(reach, vec![rows, symbols.fresh()])])
}

/// Whether rows lie along the only dimension, which these models take for the features of one row.
fn is_one_row(value: &Value) -> bool {
    value.place().is_some() && value.rank() == Some(1)
}

/// What all inputs reach together, if the rows of each that has rows are its first dimension.
fn first_of_all(call: &Call<'_>) -> Option<Reach> {
    let mut reach = Reach::Nothing;
    for value in call.given() {
        if value.place().is_some() && !value.has_rows_first() {
            return None;
        }
        reach = joined(reach, value.reach.clone(), &call.mixed());
    }
    Some(reach)
}

/// Elements of the first input as they are in other units, which may differ along one dimension, or from block to block of it.
pub(super) fn in_other_units(call: &Call<'_>) -> Option<Vec<Value>> {
    let value = call.input(0)?;
    let dims = value.dims.as_ref()?;
    let mut reach = value.reach.clone();
    for unit in call.inputs.iter().skip(1).flatten() {
        let own = match (&unit.reach, unit.rank()?) {
            (Reach::Rows(place), 1) if dims.len() > 1 => {
                Reach::Rows(place.moved(call.axis("axis", 1, dims.len())?))
            }
            (own, _) => own.clone(),
        };
        reach = joined(reach, own, &call.mixed());
    }
    let value = Value::new(reach, dims.clone());
    let blocks = call
        .axis("axis", 1, dims.len())
        .filter(|_| call.int("block_size", 0) > 0);
    let along: Vec<usize> = blocks.into_iter().collect();
    Some(vec![Value::new(call.along(&value, &along), dims.clone())])
}
