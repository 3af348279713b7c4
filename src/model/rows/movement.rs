//! Operators that put elements elsewhere, by their place alone.

use super::call::{Axes, Call, all_axes, axis};
use super::size::{Item, Size, Symbols};
use super::value::{MOST_DIMS, Own, Place, Reach, Value, broadcast, joined};

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
    Some(vec![value.reshaped(sizes.collect(), &call.mixed())])
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
    Some(vec![value.reshaped(to, &call.mixed())])
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
    Some(vec![value.reshaped(
        kept.map(|(_, dim)| dim.clone()).collect(),
        &call.mixed(),
    )])
}

pub(super) fn unsqueeze(call: &Call<'_>) -> Option<Vec<Value>> {
    let value = call.input(0)?;
    let dims = value.dims.as_ref()?;
    let Axes::These(axes) = call.axes(1) else {
        return None;
    };
    let rank = dims.len() + axes.len();
    if rank > MOST_DIMS {
        return None;
    }
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
    Some(vec![value.reshaped(to, &call.mixed())])
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
    Some(vec![
        Value::new(reach, sizes?).with_items(transposed(value, &order)),
    ])
}

/// The elements of a small matrix, turned.
fn transposed(value: &Value, order: &[usize]) -> Option<Vec<Item>> {
    let items = value.items.as_ref()?;
    if order.is_sorted() || items.is_empty() {
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
        reach = joined(reach, part.reach.clone(), &call.mixed());
        // The sizes along all other axes are equal, so that the best known ones hold.
        for (dim, size) in dims.iter_mut().zip(own) {
            let is_better = size.has_rows() || size.as_number().is_some();
            if dim.as_number().is_none() && !dim.has_rows() && is_better {
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
    {
        // Whole batches one behind the other, or something else between the rows.
        if !parts.iter().all(|part| part.place() == Some(place)) {
            return Some(call.all_mixed());
        }
        let outer = place
            .outer
            .times(&Size::number(u64::try_from(parts.len()).ok()?))?;
        let place = Place {
            outer,
            ..place.clone()
        };
        *together = place.size()?;
        reach = Reach::Rows(place);
    }
    let own = match parts.first().map(|part| part.own) {
        Some(Own::Number(number))
            if axis + 1 == rank && number != axis && first.get(axis)?.is_one() =>
        {
            Own::First(number)
        }
        _ => Own::Other,
    };
    let items = parts.iter().map(|part| part.items.clone());
    let items: Option<Vec<Vec<Item>>> = items.collect();
    let items = items.filter(|_| axis == 0).map(|items| items.concat());
    Some(vec![
        Value::new(reach, dims).with_items(items).standing_for(own),
    ])
}

pub(super) fn expand(call: &Call<'_>, symbols: &mut Symbols) -> Option<Vec<Value>> {
    let value = call.input(0)?;
    let shape = call.input(1)?;
    let target = shape.items_or_opaque()?;
    let sizes = target.iter();
    let sizes = sizes.map(|item| item.as_size().unwrap_or_else(|| symbols.fresh()));
    let wide = Value::new(Reach::Nothing, sizes.collect());
    let all = broadcast(&[value, &wide], &call.mixed(), symbols)?;
    let own = match (value.own, all.rank(), value.rank()) {
        (Own::Number(axis), Some(rank), Some(own)) => Own::Number(axis + rank - own),
        _ => Own::Other,
    };
    Some(vec![all.standing_for(own)])
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
    Some(vec![Value::new(reach, to)])
}
