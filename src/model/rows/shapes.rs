//! Constants, and what graphs compute of sizes: small tensors of whole numbers whose elements are known.

use super::call::{Call, dims_of};
use super::size::{Item, Size, Symbols};
use super::value::{MOST_DIMS, MOST_ITEMS, Own, Reach, Value};
use crate::model::proto::TensorProto;

/// Datatypes, as the standard numbers them.
const FLOAT: i32 = 1;
const INT32: i32 = 6;
const INT64: i32 = 7;
const BOOL: i32 = 9;

/// A tensor of the file.
pub(super) fn of_tensor(tensor: &TensorProto) -> Value {
    let dims = (tensor.dims.len() <= MOST_DIMS)
        .then(|| dims_of(tensor))
        .flatten();
    match dims {
        Some(dims) => Value::new(Reach::Nothing, dims).with_items(items_of(tensor)),
        None => Value::shapeless(Reach::Nothing),
    }
}

fn items_of(tensor: &TensorProto) -> Option<Vec<Item>> {
    let count = tensor
        .dims
        .iter()
        .try_fold(1_i64, |all, dim| all.checked_mul(*dim))?;
    let count = usize::try_from(count)
        .ok()
        .filter(|count| *count <= MOST_ITEMS)?;
    let (raw, plain) = (&tensor.raw_data, &tensor.int64_data);
    // What holds where a tensor is written down twice, or in another file, is not for us to say.
    if !tensor.external_data.is_empty() || !(raw.is_empty() || plain.is_empty()) {
        return None;
    }
    if (!plain.is_empty() && tensor.data_type == INT64) || count == 0 {
        let items = plain.iter().map(|number| Item::Number(*number));
        let items: Vec<Item> = items.collect();
        return (items.len() == count).then_some(items);
    }
    if !tensor.int32_data.is_empty() {
        let items = tensor.int32_data.iter();
        let items: Vec<Item> = items
            .map(|number| Item::Number(i64::from(*number)))
            .collect();
        let is_plain = raw.is_empty() && tensor.data_type == INT32;
        return (is_plain && items.len() == count).then_some(items);
    }
    let items: Vec<Item> = match tensor.data_type {
        INT64 => numbers(raw, |bytes| Item::Number(i64::from_le_bytes(bytes))),
        INT32 => numbers(raw, |bytes| {
            Item::Number(i64::from(i32::from_le_bytes(bytes)))
        }),
        FLOAT => numbers(raw, |bytes| whole(f32::from_le_bytes(bytes))),
        BOOL => numbers(raw, |[byte]| Item::Number(i64::from(byte != 0))),
        _ => return None,
    };
    (items.len() == count).then_some(items)
}

fn numbers<const N: usize>(raw: &[u8], item: impl Fn([u8; N]) -> Item) -> Vec<Item> {
    raw.as_chunks().0.iter().map(|bytes| item(*bytes)).collect()
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "it is a small whole number"
)]
fn whole(number: f32) -> Item {
    if number.fract() == 0.0 && number.abs() < 1e6 {
        Item::Number(number as i64)
    } else {
        Item::Opaque
    }
}

pub(super) fn constant(call: &Call<'_>) -> Option<Vec<Value>> {
    if let Some(tensor) = call.tensor("value") {
        return Some(vec![of_tensor(tensor)]);
    }
    if call.has("value_int") {
        let item = Item::Number(call.int("value_int", 0));
        return Some(vec![Value::of_items(vec![item], Vec::new())]);
    }
    if let Some(numbers) = call
        .ints("value_ints")
        .filter(|numbers| numbers.len() <= MOST_ITEMS)
    {
        let items: Vec<Item> = numbers.iter().map(|number| Item::Number(*number)).collect();
        let len = Size::number(u64::try_from(items.len()).ok()?);
        return Some(vec![Value::of_items(items, vec![len])]);
    }
    if call.has("value_float") || call.has("value_string") {
        return Some(vec![Value::new(Reach::Nothing, Vec::new())]);
    }
    None
}

/// The sizes of a value. They follow from the sizes of the inputs where they are known at all.
pub(super) fn shape(call: &Call<'_>) -> Option<Vec<Value>> {
    let dims = call.input(0)?.dims.as_ref()?;
    let rank = i64::try_from(dims.len()).ok()?;
    let at = |name: &str, default: i64| {
        let number = call.int(name, default);
        let counted = if number < 0 { number + rank } else { number };
        usize::try_from(counted.clamp(0, rank)).ok()
    };
    let (start, end) = (at("start", 0)?, at("end", rank)?);
    let items: Vec<Item> = dims
        .get(start..end.max(start))?
        .iter()
        .map(Item::of)
        .collect();
    let len = Size::number(u64::try_from(items.len()).ok()?);
    Some(vec![Value::of_items(items, vec![len])])
}

pub(super) fn size(call: &Call<'_>) -> Option<Vec<Value>> {
    let all = Size::product(call.input(0)?.dims.as_ref()?)?;
    Some(vec![Value::of_items(vec![Item::of(&all)], Vec::new())])
}

pub(super) fn filled(call: &Call<'_>, symbols: &mut Symbols) -> Option<Vec<Value>> {
    let shape = call.input(0)?;
    let items = shape.items_or_opaque()?;
    let sizes = items.iter();
    let dims: Vec<Size> = sizes
        .map(|item| item.as_size().unwrap_or_else(|| symbols.fresh()))
        .collect();
    let fill = match call.tensor("value") {
        Some(tensor) => items_of(tensor).and_then(|items| items.first().cloned()),
        None => Some(Item::Number(0)),
    };
    let count = Size::product(&dims).and_then(|all| all.as_number());
    let count = count.and_then(|count| usize::try_from(count).ok());
    let count = count.filter(|count| *count <= MOST_ITEMS);
    let items = fill.and_then(|fill| Some(vec![fill; count?]));
    // What is unknown of the shape reaches the value.
    let reach = shape.reach.clone();
    Some(vec![match reach {
        Reach::Nothing => Value::new(Reach::Nothing, dims).with_items(items),
        reach => Value::shapeless(reach),
    }])
}

pub(super) fn range(call: &Call<'_>, symbols: &mut Symbols) -> Option<Vec<Value>> {
    let number = |index: usize| call.input(index)?.items.as_ref()?.first().cloned();
    let (start, limit, step) = (number(0), number(1), number(2));
    if !call.given().iter().all(|value| value.is_nothing()) {
        return None;
    }
    let (zero, one) = (Some(Item::Number(0)), Some(Item::Number(1)));
    if start == zero
        && step == one
        && let Some(size) = limit.as_ref().and_then(Item::as_size)
    {
        let count = size.as_number().filter(|count| *count <= MOST_ITEMS as u64);
        let count = count.and_then(|count| i64::try_from(count).ok());
        let own = if size == Size::rows() {
            Own::Number(0)
        } else {
            Own::Other
        };
        let items = count.map(|count| (0..count).map(Item::Number).collect());
        return Some(vec![
            Value::new(Reach::Nothing, vec![size])
                .with_items(items)
                .standing_for(own),
        ]);
    }
    Some(vec![Value::new(Reach::Nothing, vec![symbols.fresh()])])
}

/// The elements of a result that is computed element by element of small tensors.
pub(super) fn arithmetic(call: &Call<'_>) -> Option<Vec<Item>> {
    let given = call.given();
    let operands = if call.node.op_type == "Where" { 3 } else { 2 };
    if given.len() != operands {
        return None;
    }
    let all: Option<Vec<&Vec<Item>>> = given.iter().map(|value| value.items.as_ref()).collect();
    let all = all?;
    let is_flat = given
        .iter()
        .all(|value| value.rank().is_some_and(|rank| rank <= 1));
    let count = all.iter().map(|items| items.len()).max()?;
    if !is_flat
        || all
            .iter()
            .any(|items| items.len() != count && items.len() != 1)
    {
        return None;
    }
    let item = |index: usize, place: usize| {
        let items = all.get(index)?;
        items.get(if items.len() == 1 { 0 } else { place })
    };
    let result = |place: usize| {
        let one = item(0, place)?;
        let operator = call.node.op_type.as_str();
        if operator == "Where" {
            return match one.as_number()? {
                0 => item(2, place).cloned(),
                _ => item(1, place).cloned(),
            };
        }
        let (one, other) = (
            one.or_opaque_if_large(),
            item(1, place)?.or_opaque_if_large(),
        );
        Some(combined(operator, &one, &other).or_opaque_if_large())
    };
    (0..count).map(result).collect()
}

fn combined(operator: &str, one: &Item, other: &Item) -> Item {
    if let (Some(one), Some(other)) = (one.as_number(), other.as_number()) {
        let number = match operator {
            "Add" => one.checked_add(other),
            "Sub" => one.checked_sub(other),
            "Mul" => one.checked_mul(other),
            // Among fractions, what leaves a rest is no whole number.
            "Div" => one
                .checked_rem(other)
                .filter(|rest| *rest == 0)
                .and_then(|_| one.checked_div(other)),
            "Max" => Some(one.max(other)),
            "Min" => Some(one.min(other)),
            "Equal" => Some(i64::from(one == other)),
            "Less" => Some(i64::from(one < other)),
            "Greater" => Some(i64::from(one > other)),
            _ => None,
        };
        return number.map_or(Item::Opaque, Item::Number);
    }
    let (Some(one), Some(other)) = (one.as_size(), other.as_size()) else {
        let is_negative = |item: &Item| item.as_number().is_some_and(|number| number < 0);
        // A size is never negative.
        return match operator {
            "Equal"
                if is_negative(one) != is_negative(other)
                    && *one != Item::Opaque
                    && *other != Item::Opaque =>
            {
                Item::Number(0)
            }
            _ => Item::Opaque,
        };
    };
    let size = match operator {
        "Mul" => one.times(&other),
        "Div" => one.over(&other),
        "Equal" if one == other => return Item::Number(1),
        "Max" | "Min" if one == other => Some(one),
        "Add" | "Sub" if other.as_number() == Some(0) => Some(one),
        "Add" if one.as_number() == Some(0) => Some(other),
        _ => None,
    };
    size.map_or(Item::Opaque, |size| Item::of(&size))
}
