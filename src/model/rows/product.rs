//! Products of matrices, which sum over a dimension of both factors.

use super::call::Call;
use super::size::{Size, Symbols};
use super::value::{Place, Reach, Value, joined};

/// Longer equations than anybody writes; there are as many labels as letters.
const LONGEST_EQUATION: usize = 256;

pub(super) fn matmul(
    call: &Call<'_>,
    left: &Value,
    right: &Value,
    symbols: &mut Symbols,
) -> Option<Value> {
    let (one, other) = (left.dims.as_ref()?, right.dims.as_ref()?);
    // A vector is a matrix of one row, or of one column, which is left out of the product.
    let (is_row, is_column) = (one.len() == 1, other.len() == 1);
    let one = as_matrix(call, left, is_row, 0);
    let other = as_matrix(call, right, is_column, 1);
    let (a, b) = (one.dims.as_ref()?, other.dims.as_ref()?);
    let (outer_a, [rows, _]) = a.split_last_chunk()?;
    let (outer_b, [_, columns]) = b.split_last_chunk()?;
    let outer = super::value::broadcast(
        &[
            &Value::new(Reach::Nothing, outer_a.to_vec()),
            &Value::new(Reach::Nothing, outer_b.to_vec()),
        ],
        &call.mixed(),
        symbols,
    )?;
    let mut dims = outer.dims?;
    dims.extend([rows.clone(), columns.clone()]);
    let rank = dims.len();
    // The axis of the left factor's rows stays, its last one is summed over; of the right factor the other way round.
    let of_left = at(call, &one, rank, a.len().checked_sub(1)?)?;
    let of_right = at(call, &other, rank, b.len().checked_sub(2)?)?;
    let value = Value::new(joined(of_left, of_right, &call.mixed()), dims);
    let mut to = value.dims.clone()?;
    if is_column {
        to.pop();
    }
    if is_row {
        to.remove(rank - 2);
    }
    if !is_row && !is_column {
        return Some(value);
    }
    Some(value.reshaped(to, &call.mixed()))
}

fn as_matrix(call: &Call<'_>, value: &Value, is_vector: bool, new: usize) -> Value {
    let mut dims = value.dims.clone().unwrap_or_default();
    if !is_vector {
        return value.clone();
    }
    dims.insert(new, Size::one());
    value.reshaped(dims, &call.mixed())
}

/// What a product of `rank` dimensions depends on because of one factor, of which it sums over the axis `summed`.
fn at(call: &Call<'_>, value: &Value, rank: usize, summed: usize) -> Option<Reach> {
    Some(match value.place() {
        Some(place) if place.axis == summed => call.mixed(),
        Some(place) => Reach::Rows(place.moved(place.axis + rank - value.rank()?)),
        None => value.reach.clone(),
    })
}

pub(super) fn gemm(call: &Call<'_>, symbols: &mut Symbols) -> Option<Value> {
    let turned = |value: &Value, flag: &str| {
        if call.int(flag, 0) == 0 {
            return Some(value.clone());
        }
        let [rows, columns] = value.dims.as_ref()?.as_slice() else {
            return None;
        };
        let reach = match value.place() {
            Some(place) => Reach::Rows(place.moved(1_usize.checked_sub(place.axis)?)),
            None => value.reach.clone(),
        };
        Some(Value::new(reach, vec![columns.clone(), rows.clone()]))
    };
    let (left, right) = (
        turned(call.input(0)?, "transA")?,
        turned(call.input(1)?, "transB")?,
    );
    let product = matmul(call, &left, &right, symbols)?;
    match call.input(2) {
        Some(added) => super::value::broadcast(&[&product, added], &call.mixed(), symbols),
        None => Some(product),
    }
}

pub(super) fn einsum(call: &Call<'_>) -> Option<Vec<Value>> {
    let equation = call
        .text("equation")
        .filter(|text| text.len() <= LONGEST_EQUATION)?;
    let equation: String = equation.split_whitespace().collect();
    if equation.contains('.') {
        return None;
    }
    let (inputs, output) = match equation.split_once("->") {
        Some((inputs, output)) => (inputs, output.to_owned()),
        None => (equation.as_str(), implicit(&equation)),
    };
    let terms: Vec<Vec<char>> = inputs
        .split(',')
        .map(|term| term.chars().collect())
        .collect();
    let mut sizes: Vec<(char, Size)> = Vec::new();
    let mut reach = Reach::Nothing;
    for (index, term) in terms.iter().enumerate() {
        let value = call.input(index)?;
        let dims = value
            .dims
            .as_ref()
            .filter(|dims| dims.len() == term.len())?;
        for (label, dim) in term.iter().zip(dims) {
            match sizes.iter_mut().find(|(known, _)| known == label) {
                Some((_, size)) if size.is_one() => *size = dim.clone(),
                Some(_) => {}
                None => sizes.push((*label, dim.clone())),
            }
        }
        let own = match value.place() {
            Some(place) => {
                let label = term.get(place.axis)?;
                if term.iter().filter(|other| *other == label).count() > 1 {
                    return Some(call.all_mixed());
                }
                match output.chars().position(|other| other == *label) {
                    Some(axis) => Reach::Rows(Place {
                        axis,
                        ..place.clone()
                    }),
                    // It is summed over.
                    None => return Some(call.all_mixed()),
                }
            }
            None => value.reach.clone(),
        };
        reach = joined(reach, own, &call.mixed());
    }
    let size = |label: char| {
        let mut sizes = sizes.iter();
        sizes
            .find(|(known, _)| *known == label)
            .map(|(_, size)| size.clone())
    };
    let dims: Option<Vec<Size>> = output.chars().map(size).collect();
    Some(vec![Value::new(reach, dims?)])
}

/// The labels that stand once, in alphabetical order.
fn implicit(inputs: &str) -> String {
    let labels = || inputs.chars().filter(|label| *label != ',');
    let mut once: Vec<char> = labels()
        .filter(|label| labels().filter(|other| other == label).count() == 1)
        .collect();
    once.sort_unstable();
    once.into_iter().collect()
}
