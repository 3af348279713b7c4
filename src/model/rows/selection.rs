//! Operators that choose elements, by constants or by values.

use super::call::{Call, axis};
use super::size::{Item, Size, Symbols};
use super::value::{Own, Place, Reach, Value, joined};

pub(super) fn gather(call: &Call<'_>) -> Option<Vec<Value>> {
    let (data, indices) = (call.input(0)?, call.input(1)?);
    let (from, chosen) = (data.dims.as_ref()?, indices.dims.as_ref()?);
    let at = call.axis("axis", 0, from.len())?;
    let (before, behind) = (from.get(..at)?, from.get(at + 1..)?);
    let dims = [before, chosen, behind].concat();
    let reach = match (&data.reach, &indices.reach) {
        (Reach::Nothing, Reach::Rows(place)) => Reach::Rows(place.moved(place.axis + at)),
        // An index may be any row's, and rows meet each index of every other one.
        (Reach::Rows(_), Reach::Rows(_)) => call.mixed(),
        // Each row by its own number.
        (Reach::Rows(place), Reach::Nothing)
            if place.axis == at
                && place.is_plain()
                && indices.own == Own::Number(0)
                && chosen.len() == 1 =>
        {
            Reach::Rows(place.clone())
        }
        (Reach::Rows(place), Reach::Nothing) if place.axis == at => call.mixed(),
        (Reach::Rows(place), Reach::Nothing) if place.axis > at => {
            Reach::Rows(place.moved(place.axis + chosen.len() - 1))
        }
        (reach, Reach::Nothing) => reach.clone(),
        _ => Reach::Unknown,
    };
    Some(vec![
        Value::new(reach, dims).with_items(chosen_items(data, indices, at)),
    ])
}

fn chosen_items(data: &Value, indices: &Value, at: usize) -> Option<Vec<Item>> {
    let items = data
        .items
        .as_ref()
        .filter(|_| at == 0 && data.rank() == Some(1))?;
    let numbers = indices.numbers()?;
    let item = |number: i64| items.get(axis(number, items.len())?).cloned();
    numbers.into_iter().map(item).collect()
}

pub(super) fn gather_elements(call: &Call<'_>) -> Option<Vec<Value>> {
    let (data, indices) = (call.input(0)?, call.input(1)?);
    let (from, to) = (data.dims.as_ref()?, indices.dims.as_ref()?);
    let at = call.axis("axis", 0, from.len())?;
    // Along the other dimensions, there may be fewer indices than elements; each is for the first ones then.
    let is_whole =
        |place: &Place| from.len() == to.len() && from.get(place.axis) == to.get(place.axis);
    if data
        .place()
        .is_some_and(|place| place.axis == at || !is_whole(place))
    {
        return Some(call.all_mixed());
    }
    let reach = joined(data.reach.clone(), indices.reach.clone(), &call.mixed());
    Some(vec![Value::new(reach, to.clone())])
}

pub(super) fn gather_nd(call: &Call<'_>) -> Option<Vec<Value>> {
    let (data, indices) = (call.input(0)?, call.input(1)?);
    let (from, chosen) = (data.dims.as_ref()?, indices.dims.as_ref()?);
    let shared = usize::try_from(call.int("batch_dims", 0)).ok()?;
    let (last, outer) = chosen.split_last()?;
    let depth = last
        .as_number()
        .and_then(|depth| usize::try_from(depth).ok());
    let Some(depth) = depth else {
        // However deep the addresses go, the first dimension that is theirs is addressed.
        let is_addressed = data.place().is_some_and(|place| place.axis == shared);
        return is_addressed.then(|| call.all_mixed());
    };
    let addressed = shared..shared.checked_add(depth)?;
    let rest = from.get(addressed.end..)?;
    let dims = [outer, rest].concat();
    if is_own(data, indices) && shared == 0 && depth > 0 {
        return Some(vec![Value::new(indices.reach.clone(), dims)]);
    }
    let reach = match (&data.reach, &indices.reach) {
        (Reach::Rows(place), _) if addressed.contains(&place.axis) => call.mixed(),
        (Reach::Rows(one), Reach::Rows(other)) if one.axis < shared => {
            if one == other {
                Reach::Rows(one.clone())
            } else {
                call.mixed()
            }
        }
        (Reach::Rows(place), Reach::Nothing) if place.axis < shared => {
            // Fewer are repeated, each for several rows.
            if from.get(place.axis) == chosen.get(place.axis) {
                Reach::Rows(place.clone())
            } else {
                call.mixed()
            }
        }
        (Reach::Rows(place), Reach::Nothing) => {
            Reach::Rows(place.moved(place.axis - addressed.end + outer.len()))
        }
        (Reach::Nothing, Reach::Rows(place)) if place.axis < outer.len() => {
            Reach::Rows(place.clone())
        }
        (Reach::Rows(_) | Reach::Nothing, Reach::Rows(_)) => call.mixed(),
        (reach, Reach::Nothing) => reach.clone(),
        _ => Reach::Unknown,
    };
    Some(vec![Value::new(reach, dims)])
}

pub(super) fn scatter_elements(call: &Call<'_>) -> Option<Vec<Value>> {
    let (data, indices, updates) = (call.input(0)?, call.input(1)?, call.input(2)?);
    let at = call.axis("axis", 0, data.rank()?)?;
    let all = [data, indices, updates];
    let places = || all.iter().filter_map(|value| value.place());
    // Along the other dimensions, there may be fewer than there are elements to write to.
    let is_whole = |place: &Place| {
        let size = |value: &Value| value.dims.as_ref()?.get(place.axis).cloned();
        all.iter().all(|value| size(value) == size(data))
    };
    if places().any(|place| place.axis == at) {
        // Indices that are constant may put each row where it was.
        let reach = if indices.is_nothing() {
            Reach::Unknown
        } else {
            call.mixed()
        };
        return Some(vec![Value::new(reach, data.dims.clone()?)]);
    }
    if !places().all(is_whole) {
        return Some(call.all_mixed());
    }
    let mut reach = Reach::Nothing;
    for value in all {
        reach = joined(reach, value.reach.clone(), &call.mixed());
    }
    Some(vec![Value::new(reach, data.dims.clone()?)])
}

pub(super) fn scatter_nd(call: &Call<'_>) -> Option<Vec<Value>> {
    let (data, indices, updates) = (call.input(0)?, call.input(1)?, call.input(2)?);
    let dims = data.dims.clone();
    if is_own(data, indices) && (updates.is_nothing() || updates.reach == indices.reach) {
        return Some(vec![data.clone()]);
    }
    let reach = match (&data.reach, &indices.reach, &updates.reach) {
        (Reach::Nothing, Reach::Nothing, Reach::Nothing) => Reach::Nothing,
        // What a row says where to write may be another row's place.
        (_, Reach::Rows(_), _) => call.mixed(),
        // Constant indices address each row by its number, or every one.
        _ => Reach::Unknown,
    };
    Some(vec![Value {
        dims,
        ..Value::shapeless(reach)
    }])
}

/// Whether the first address of each element is the number of the row that it belongs to, in `data` that have rows first.
fn is_own(data: &Value, indices: &Value) -> bool {
    let place = indices.place();
    data.has_rows_first()
        && place.is_some_and(|place| place.is_plain() && indices.own == Own::First(place.axis))
}

pub(super) fn one_hot(call: &Call<'_>, symbols: &mut Symbols) -> Option<Vec<Value>> {
    let (indices, depth) = (call.input(0)?, call.input(1)?);
    let mut dims = indices.dims.clone()?;
    let at = call.axis("axis", -1, dims.len() + 1)?;
    let depth = depth
        .items
        .as_ref()
        .and_then(|items| items.first()?.as_size());
    dims.insert(at, depth.unwrap_or_else(|| symbols.fresh()));
    let reach = match indices.place() {
        Some(place) if place.axis >= at => Reach::Rows(place.moved(place.axis + 1)),
        _ => indices.reach.clone(),
    };
    Some(vec![Value::new(reach, dims)])
}

pub(super) fn top_k(call: &Call<'_>, symbols: &mut Symbols) -> Option<Vec<Value>> {
    let value = call.input(0)?;
    let mut dims = value.dims.clone()?;
    let at = call.axis("axis", -1, dims.len())?;
    let reach = call.along(value, &[at]);
    let k = match (call.has("k"), call.input(1)) {
        (true, _) => u64::try_from(call.int("k", 0)).ok().map(Size::number),
        (false, Some(k)) => k.items.as_ref().and_then(|items| items.first()?.as_size()),
        (false, None) => None,
    };
    *dims.get_mut(at)? = k.unwrap_or_else(|| symbols.fresh());
    Some(vec![Value::new(reach, dims); call.outputs()])
}

/// What keeps some of the elements, by the values: how many, and so where the next ones lie, depends on all.
pub(super) fn compress(call: &Call<'_>) -> Option<Vec<Value>> {
    let value = call.input(0)?;
    // Which ones are unique, the values say.
    let by_constants =
        call.node.op_type == "Compress" && call.input(1).is_none_or(Value::is_nothing);
    let rank = value.rank();
    let along = if call.has("axis") {
        rank.and_then(|rank| call.axis("axis", 0, rank)).map(Some)
    } else {
        Some(None)
    };
    match along {
        Some(Some(at)) if by_constants => {
            let reach = call.along(value, &[at]);
            let is_apart = matches!(reach, Reach::Rows(_));
            // Where the sizes of rows alone change, that shows.
            let reach = if is_apart { Reach::Unknown } else { reach };
            Some(vec![Value::shapeless(reach); call.outputs()])
        }
        None => None,
        Some(_) => Some(call.all_mixed()),
    }
}

pub(super) fn reverse_sequence(call: &Call<'_>) -> Option<Vec<Value>> {
    let (value, lengths) = (call.input(0)?, call.input(1)?);
    let rank = value.rank()?;
    let batch = call.axis("batch_axis", 1, rank)?;
    let lengths = match &lengths.reach {
        Reach::Rows(place) => Reach::Rows(place.moved(batch)),
        reach => reach.clone(),
    };
    let at = call.axis("time_axis", 0, rank)?;
    let along = call.along(value, &[at]);
    let reach = joined(along, lengths, &call.mixed());
    Some(vec![Value::new(reach, value.dims.clone()?)])
}

/// One of classes by the number that each element is.
pub(super) fn array_features(call: &Call<'_>) -> Option<Vec<Value>> {
    let (data, indices) = (call.input(0)?, call.input(1)?);
    let from = data.dims.as_ref()?;
    let count = Size::product(indices.dims.as_ref()?)?;
    let (_, before) = from.split_last()?;
    let mut dims = before.to_vec();
    if dims.is_empty() {
        dims.push(Size::one());
    }
    dims.push(count.clone());
    let reach = match (&data.reach, &indices.reach) {
        (Reach::Nothing, Reach::Rows(_)) => {
            match indices.reshaped(vec![count], &call.mixed()).reach {
                Reach::Rows(place) => Reach::Rows(Place {
                    axis: dims.len() - 1,
                    ..place
                }),
                reach => reach,
            }
        }
        (Reach::Rows(_), Reach::Rows(_)) => call.mixed(),
        (Reach::Rows(place), Reach::Nothing) if place.axis + 1 == from.len() => call.mixed(),
        (reach, Reach::Nothing) => reach.clone(),
        _ => Reach::Unknown,
    };
    Some(vec![Value::new(reach, dims)])
}
