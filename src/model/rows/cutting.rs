//! Operators that cut a value along its dimensions.

use super::call::{Call, axis};
use super::size::{Item, Size, Symbols};
use super::value::{Place, Reach, Value};

/// No dimension is as large, so that exporters write it, or more, for the end.
const TO_THE_END: i64 = 1_000_000_000;

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
    // Only whole batches may be parted from each other, and what comes behind another cut begins anywhere.
    let mut is_aligned = true;
    for index in 0..parts {
        let size = sizes.get(index).and_then(Item::as_size);
        let mut reach = value.reach.clone();
        if let Reach::Rows(place) = &reach
            && place.axis == axis
            && parts > 1
        {
            let batch = Size::rows().times(&place.inner)?;
            let whole = size.as_ref().and_then(|size| size.over(&batch));
            is_aligned &= whole.is_some();
            reach = match whole.filter(|_| is_aligned) {
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
        (None, Some(axes)) => match axes.numbers() {
            Some(numbers) => numbers,
            // It may be the batch.
            None => return value.place().is_some().then(|| call.all_mixed()),
        },
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
            let Some(outer) = batches(place, start, end, step) else {
                return Some(call.all_mixed());
            };
            let place = Place {
                outer,
                ..place.clone()
            };
            *to.get_mut(at)? = place.size()?;
            reach = Reach::Rows(place);
            continue;
        }
        items = match (items, &part) {
            (Some(items), Some(part)) if at == 0 => part.of(&items, dims.len()),
            (items, Some(part)) if part.is_whole => items,
            _ => None,
        };
        *to.get_mut(at)? = part.map_or_else(|| symbols.fresh(), |part| part.size);
    }
    Some(vec![Value::new(reach, to).with_items(items)])
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
        if count == 0 || items.is_empty() {
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

/// How many whole batches lie between `start` and `end` along the dimension of `place`, if both are where one begins.
fn batches(place: &Place, start: &Item, end: &Item, step: &Item) -> Option<Size> {
    let all = place.outer.as_number()?;
    let batch = Size::rows().times(&place.inner)?;
    let border = |item: &Item| match item {
        Item::Number(0) => Some(0),
        Item::Number(number) if *number >= TO_THE_END => Some(all),
        item => item.as_size()?.over(&batch)?.as_number(),
    };
    let (start, end) = (border(start)?, border(end)?.min(all));
    let count = end.checked_sub(start).filter(|count| *count > 0)?;
    (step.as_number() == Some(1)).then(|| Size::number(count))
}
