//! Operators that put elements elsewhere, by their place alone.

use super::call::{Axes, Call, all_axes, axis};
use super::size::{Item, Size, Symbols};
use super::value::{Place, Reach, Value};

/// No dimension is as large, so that exporters write it, or more, for the end.
const TO_THE_END: i64 = 1_000_000_000;

pub(super) fn reshape(call: &Call<'_>, symbols: &mut Symbols) -> Option<Vec<Value>> {
    let value = call.input(0)?;
    let zero_is_zero = call.int("allowzero", 0) != 0;
    let target = match (call.ints("shape"), call.input(1)) {
        (Some(shape), _) => shape.iter().map(|size| Item::Number(*size)).collect(),
        (None, Some(shape)) => shape.items_or_opaque()?,
        (None, None) => return None,
    };
    let from = value.dims.as_ref()?;
    let mut sizes: Vec<Option<Size>> = Vec::new();
    for (index, item) in target.iter().enumerate() {
        sizes.push(match item {
            Item::Number(0) if !zero_is_zero => Some(from.get(index)?.clone()),
            Item::Number(-1) => None,
            item => item.as_size(),
        });
    }
    // One that is not known follows from the others.
    if sizes.iter().filter(|size| size.is_none()).count() == 1 {
        let rest = Size::product(sizes.iter().flatten());
        let all = Size::product(from);
        let missing = rest.and_then(|rest| all.and_then(|all| all.over(&rest)));
        if let Some(open) = sizes.iter_mut().find(|size| size.is_none()) {
            *open = missing;
        }
    }
    let sizes = sizes.into_iter();
    let sizes = sizes.map(|size| size.unwrap_or_else(|| symbols.fresh()));
    Some(vec![value.reshaped(sizes.collect())])
}

pub(super) fn flatten(call: &Call<'_>) -> Option<Vec<Value>> {
    let value = call.input(0)?;
    let dims = value.dims.as_ref()?;
    let at = call.int("axis", 1);
    let at = if usize::try_from(at) == Ok(dims.len()) {
        dims.len()
    } else {
        axis(at, dims.len())?
    };
    let (before, behind) = dims.split_at_checked(at)?;
    let to = vec![Size::product(before)?, Size::product(behind)?];
    Some(vec![value.reshaped(to)])
}

pub(super) fn squeeze(call: &Call<'_>) -> Option<Vec<Value>> {
    let value = call.input(0)?;
    let dims = value.dims.as_ref()?;
    let away = match call.axes(1) {
        Axes::Unknown => return None,
        Axes::These(axes) => all_axes(&axes, dims.len())?,
        // Those of the size 1: which ones have it must be known.
        Axes::Unnamed => {
            if dims.iter().any(|dim| dim.as_number().is_none()) {
                return None;
            }
            let ones = dims.iter().enumerate().filter(|(_, dim)| dim.is_one());
            ones.map(|(axis, _)| axis).collect()
        }
    };
    let kept = dims.iter().enumerate();
    let kept = kept.filter(|(axis, _)| !away.contains(axis));
    Some(vec![
        value.reshaped(kept.map(|(_, dim)| dim.clone()).collect()),
    ])
}

pub(super) fn unsqueeze(call: &Call<'_>) -> Option<Vec<Value>> {
    let value = call.input(0)?;
    let dims = value.dims.as_ref()?;
    let Axes::These(axes) = call.axes(1) else {
        return None;
    };
    let rank = dims.len() + axes.len();
    let new = all_axes(&axes, rank)?;
    let mut old = dims.iter();
    let mut to = Vec::new();
    for axis in 0..rank {
        to.push(if new.contains(&axis) {
            Size::one()
        } else {
            old.next()?.clone()
        });
    }
    Some(vec![value.reshaped(to)])
}

pub(super) fn transpose(call: &Call<'_>) -> Option<Vec<Value>> {
    let value = call.input(0)?;
    let dims = value.dims.as_ref()?;
    let order: Vec<usize> = match call.ints("perm") {
        Some(order) => all_axes(order, dims.len())?,
        None => (0..dims.len()).rev().collect(),
    };
    if order.len() != dims.len() {
        return None;
    }
    let sizes: Option<Vec<Size>> = order.iter().map(|axis| dims.get(*axis).cloned()).collect();
    let reach = match value.place() {
        Some(place) => {
            let to = order.iter().position(|axis| *axis == place.axis)?;
            Reach::Rows(place.moved(to))
        }
        None => value.reach.clone(),
    };
    Some(vec![Value {
        items: transposed(value, &order),
        ..Value::new(reach, sizes?)
    }])
}

/// The elements of a small matrix, turned.
fn transposed(value: &Value, order: &[usize]) -> Option<Vec<Item>> {
    let items = value.items.as_ref()?;
    if order.is_sorted() {
        return Some(items.clone());
    }
    let [rows, columns] = value.dims.as_ref()?.as_slice() else {
        return None;
    };
    let rows = usize::try_from(rows.as_number()?).ok()?;
    let columns = usize::try_from(columns.as_number()?).ok()?;
    let places = (0..columns).flat_map(|column| (0..rows).map(move |row| row * columns + column));
    places.map(|place| items.get(place).cloned()).collect()
}

pub(super) fn concat(call: &Call<'_>, symbols: &mut Symbols) -> Option<Vec<Value>> {
    let parts = call.given();
    let first = parts.first()?.dims.as_ref()?;
    let rank = first.len();
    let axis = call.axis("axis", 1, rank)?;
    let mut dims = first.clone();
    let mut length = Some(0_u64);
    let mut reach = Reach::Nothing;
    for part in &parts {
        let own = part.dims.as_ref().filter(|dims| dims.len() == rank)?;
        let size = own.get(axis)?.as_number();
        length = length.and_then(|length| length.checked_add(size?));
        reach = super::value::joined(reach, part.reach.clone(), &call.mixed());
        // The sizes along all other axes are equal, so that the best known ones hold.
        for (dim, size) in dims.iter_mut().zip(own) {
            if dim.as_number().is_none() && size.as_number().is_some() && !dim.has_rows() {
                *dim = size.clone();
            }
        }
    }
    let together = dims.get_mut(axis)?;
    *together = match length {
        Some(length) => Size::number(length),
        None if parts.len() == 1 => first.get(axis)?.clone(),
        None => symbols.fresh(),
    };
    if let Reach::Rows(place) = &reach
        && place.axis == axis
        && parts.len() > 1
    {
        // Whole batches one behind the other, or something else between the rows.
        let whole = |part: &&Value| part.place() == Some(place);
        if !parts.iter().all(whole) || !place.inner.is_one() {
            return Some(call.all_mixed());
        }
        let outer = place
            .outer
            .times(&Size::number(u64::try_from(parts.len()).ok()?))?;
        *together = outer.times(&Size::rows())?;
        reach = Reach::Rows(Place {
            outer,
            ..place.clone()
        });
    }
    let items = parts.iter().map(|part| part.items.clone());
    let items: Option<Vec<Vec<Item>>> = items.collect();
    Some(vec![Value {
        items: items.filter(|_| axis == 0).map(|items| items.concat()),
        ..Value::new(reach, dims)
    }])
}

pub(super) fn split(call: &Call<'_>, symbols: &mut Symbols) -> Option<Vec<Value>> {
    let value = call.input(0)?;
    let dims = value.dims.as_ref()?;
    let axis = call.axis("axis", 0, dims.len())?;
    let parts = call.outputs();
    let sizes = match (call.ints("split"), call.input(1)) {
        (Some(sizes), _) => sizes.iter().map(|size| Item::Number(*size)).collect(),
        (None, Some(sizes)) => match &sizes.items {
            Some(items) => items.clone(),
            None => vec![Item::Opaque; parts],
        },
        (None, None) => {
            let count = Size::number(u64::try_from(parts).ok()?);
            let part = dims.get(axis)?.over(&count);
            vec![part.map_or(Item::Opaque, |part| Item::of(&part)); parts]
        }
    };
    let mut outputs = Vec::new();
    for index in 0..parts {
        let size = sizes.get(index).and_then(Item::as_size);
        let mut reach = value.reach.clone();
        if let Reach::Rows(place) = &reach
            && place.axis == axis
            && parts > 1
        {
            // Only whole batches may be parted from each other.
            let whole = size.as_ref().and_then(|size| size.over(&Size::rows()));
            let is_outer = place.inner.is_one() && whole.is_some();
            reach = match whole.filter(|_| is_outer) {
                Some(outer) => Reach::Rows(Place {
                    outer,
                    ..place.clone()
                }),
                None => call.mixed(),
            };
        }
        let mut dims = dims.clone();
        *dims.get_mut(axis)? = size.unwrap_or_else(|| symbols.fresh());
        outputs.push(Value::new(reach, dims));
    }
    Some(outputs)
}

pub(super) fn slice(call: &Call<'_>, symbols: &mut Symbols) -> Option<Vec<Value>> {
    let value = call.input(0)?;
    let dims = value.dims.as_ref()?;
    let listed = |name: &str, index: usize| match call.ints(name) {
        Some(numbers) => Some(numbers.iter().map(|number| Item::Number(*number)).collect()),
        None => call.input(index)?.items.clone(),
    };
    let count = match (listed("starts", 1), call.input(1)) {
        (Some(starts), _) => starts.len(),
        (None, Some(starts)) => {
            usize::try_from(starts.dims.as_ref()?.first()?.as_number()?).ok()?
        }
        (None, None) => return None,
    };
    if count > dims.len() {
        return None;
    }
    let unknown = vec![Item::Opaque; count];
    let starts: Vec<Item> = listed("starts", 1).unwrap_or_else(|| unknown.clone());
    let ends: Vec<Item> = listed("ends", 2).unwrap_or_else(|| unknown.clone());
    let axes: Vec<i64> = match (call.ints("axes"), call.input(3)) {
        (Some(axes), _) => axes.to_vec(),
        (None, Some(axes)) => axes.numbers()?,
        (None, None) => (0..i64::try_from(count).ok()?).collect(),
    };
    let steps: Vec<Item> = match call.input(4) {
        Some(steps) => steps.items.clone().unwrap_or(unknown),
        None => vec![Item::Number(1); count],
    };
    let mut to = dims.clone();
    let mut reach = value.reach.clone();
    let mut items = value.items.clone();
    for (index, number) in axes.iter().enumerate() {
        let at = axis(*number, dims.len())?;
        let (start, end, step) = (starts.get(index)?, ends.get(index)?, steps.get(index)?);
        let dim = dims.get(at)?;
        let part = range(dim, start, end, step);
        if let Some(place) = value.place()
            && place.axis == at
            && part.as_ref().is_none_or(|part| !part.is_whole)
        {
            let outer = place
                .inner
                .is_one()
                .then(|| batches(start, end, step))
                .flatten();
            let Some(outer) = outer else {
                return Some(call.all_mixed());
            };
            *to.get_mut(at)? = outer.times(&Size::rows())?;
            reach = Reach::Rows(Place {
                outer,
                ..place.clone()
            });
            continue;
        }
        items = match (items, &part) {
            (Some(items), Some(part)) if at == 0 => part.of(&items, dims.len()),
            (items, Some(part)) if part.is_whole => items,
            _ => None,
        };
        *to.get_mut(at)? = part.map_or_else(|| symbols.fresh(), |part| part.size);
    }
    Some(vec![Value {
        items,
        ..Value::new(reach, to)
    }])
}

/// What a slice takes of a dimension.
struct Part {
    size: Size,
    is_whole: bool,
    /// The first index, the step and how many, if the size is a number.
    numbers: Option<(i64, i64, usize)>,
    /// The size of the dimension, if that is a number.
    whole: Option<u64>,
}

impl Part {
    /// These of the elements of a small tensor of so many dimensions, of which it is the first.
    fn of(&self, items: &[Item], rank: usize) -> Option<Vec<Item>> {
        let (start, step, count) = self.numbers.filter(|_| rank > 0)?;
        if count == 0 {
            return Some(Vec::new());
        }
        let all = usize::try_from(self.whole?).ok()?;
        let each = items.len().checked_div(all)?;
        let mut taken = Vec::new();
        for number in 0..count {
            let at = start.checked_add(step.checked_mul(i64::try_from(number).ok()?)?)?;
            let at = usize::try_from(at).ok()?.checked_mul(each)?;
            taken.extend_from_slice(items.get(at..at.checked_add(each)?)?);
        }
        Some(taken)
    }
}

/// What of a dimension of the size `dim` lies between `start` and `end`, if that is known.
fn range(dim: &Size, start: &Item, end: &Item, step: &Item) -> Option<Part> {
    let step = step.as_number().filter(|step| *step != 0)?;
    let to_the_end = match end {
        Item::Number(end) => *end >= TO_THE_END,
        end => end.as_size().as_ref() == Some(dim),
    };
    if step == 1 && start.as_number() == Some(0) && to_the_end && dim.as_number().is_none() {
        return Some(Part {
            size: dim.clone(),
            is_whole: true,
            numbers: None,
            whole: None,
        });
    }
    let whole = dim.as_number()?;
    let all = i64::try_from(whole).ok()?;
    let (mut start, mut end) = (start.as_number()?, end.as_number()?);
    if start < 0 {
        start = start.saturating_add(all);
    }
    if end < 0 {
        end = end.saturating_add(all);
    }
    let (start, distance) = if step > 0 {
        let start = start.clamp(0, all);
        (start, end.clamp(0, all) - start)
    } else {
        let start = start.clamp(0, (all - 1).max(0));
        (start, start - end.clamp(-1, all))
    };
    let count = if distance > 0 {
        let step = i64::try_from(step.unsigned_abs()).ok()?;
        (distance - 1) / step + 1
    } else {
        0
    };
    Some(Part {
        size: Size::number(u64::try_from(count).ok()?),
        is_whole: step == 1 && count == all,
        numbers: Some((start, step, usize::try_from(count).ok()?)),
        whole: Some(whole),
    })
}

/// How many whole batches lie between `start` and `end`, if both are where one begins.
fn batches(start: &Item, end: &Item, step: &Item) -> Option<Size> {
    let border = |item: &Item| match item {
        Item::Number(0) => Some(0),
        item => item.as_size()?.over(&Size::rows())?.as_number(),
    };
    let (start, end) = (border(start)?, border(end)?);
    let count = end.checked_sub(start).filter(|count| *count > 0)?;
    (step.as_number() == Some(1)).then(|| Size::number(count))
}

pub(super) fn expand(call: &Call<'_>, symbols: &mut Symbols) -> Option<Vec<Value>> {
    let value = call.input(0)?;
    let shape = call.input(1)?;
    let target = shape.items_or_opaque()?;
    let sizes = target.iter();
    let sizes = sizes.map(|item| item.as_size().unwrap_or_else(|| symbols.fresh()));
    let wide = Value::new(Reach::Nothing, sizes.collect());
    let all = super::value::broadcast(&[value, &wide], &call.mixed(), symbols)?;
    Some(vec![all])
}

pub(super) fn tile(call: &Call<'_>, symbols: &mut Symbols) -> Option<Vec<Value>> {
    let value = call.input(0)?;
    let dims = value.dims.as_ref()?;
    let repeats = match &call.input(1)?.items {
        Some(items) => items.clone(),
        None => vec![Item::Opaque; dims.len()],
    };
    let mut to = Vec::new();
    for (dim, times) in dims.iter().zip(&repeats) {
        let size = times.as_size().and_then(|times| dim.times(&times));
        to.push(size.unwrap_or_else(|| symbols.fresh()));
    }
    let reach = match value.place() {
        Some(place) => match repeats.get(place.axis)?.as_size() {
            Some(times) => Reach::Rows(Place {
                outer: place.outer.times(&times)?,
                ..place.clone()
            }),
            None => Reach::Unknown,
        },
        None => value.reach.clone(),
    };
    Some(vec![Value::new(reach, to)])
}

pub(super) fn pad(call: &Call<'_>, symbols: &mut Symbols) -> Option<Vec<Value>> {
    let value = call.input(0)?;
    let dims = value.dims.as_ref()?;
    let pads = match (call.ints("pads"), call.input(1)) {
        (Some(pads), _) => Some(pads.to_vec()),
        (None, Some(pads)) => pads.numbers(),
        (None, None) => None,
    };
    let axes = match call.input(3) {
        Some(axes) => all_axes(&axes.numbers()?, dims.len())?,
        None => (0..dims.len()).collect(),
    };
    let mut to = dims.clone();
    let mut reach = value.reach.clone();
    for (index, at) in axes.iter().enumerate() {
        let sides = pads.as_ref().and_then(|pads| {
            let (before, behind) = pads.split_at_checked(axes.len())?;
            Some((*before.get(index)?, *behind.get(index)?))
        });
        if sides == Some((0, 0)) {
            continue;
        }
        if value.place().is_some_and(|place| place.axis == *at) {
            reach = if sides.is_some() {
                call.mixed()
            } else {
                Reach::Unknown
            };
        }
        let dim = to.get_mut(*at)?;
        let padded = sides.and_then(|(before, behind)| {
            let size = i64::try_from(dim.as_number()?).ok()?;
            let size = size.checked_add(before)?.checked_add(behind)?;
            u64::try_from(size).ok()
        });
        *dim = padded.map_or_else(|| symbols.fresh(), Size::number);
    }
    Some(vec![match reach {
        Reach::Rows(_) | Reach::Nothing => Value::new(reach, to),
        reach => Value {
            dims: Some(to),
            ..Value::shapeless(reach)
        },
    }])
}
