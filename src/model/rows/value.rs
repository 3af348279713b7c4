//! What is known of a value of the graph: where the rows of the batch lie in it, its sizes, and, of a small one, its elements.
//!
//! Invariant: where a value has rows, its sizes are known, the one where they lie is what [`Place`] says, and the element at
//! an index depends on the values of one row only: the one that the place tells from the index. Dimensions and known
//! elements are few, however many a file has.

use std::sync::Arc;

use super::size::{Item, Size, Symbols};

/// More dimensions than any real tensor has.
pub(super) const MOST_DIMS: usize = 16;

/// Larger tensors are no shapes.
pub(super) const MOST_ITEMS: usize = 64;

/// Where rows lie: the dimension `axis` has the size `outer * rows * inner`, and its index `i` belongs to the row
/// `i / inner % rows`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) axis: usize,
    pub(super) outer: Size,
    pub(super) inner: Size,
}

impl Place {
    /// The whole dimension is the batch.
    pub(super) fn at(axis: usize) -> Self {
        Self {
            axis,
            outer: Size::one(),
            inner: Size::one(),
        }
    }

    pub(super) fn moved(&self, axis: usize) -> Self {
        Self {
            axis,
            ..self.clone()
        }
    }

    /// The size of the dimension.
    pub(super) fn size(&self) -> Option<Size> {
        Size::product([&self.outer, &Size::rows(), &self.inner])
    }

    /// Whether the dimension is the batch, and nothing else.
    pub(super) fn is_plain(&self) -> bool {
        self.outer.is_one() && self.inner.is_one()
    }
}

/// Which values of requests a value of the graph depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reach {
    /// None; it may depend on their sizes.
    Nothing,
    /// Each element on those of one row.
    Rows(Place),
    /// Elements may depend on several rows, because of the node that is named here.
    Mixed(Arc<str>),
    /// Not followed so far.
    Unknown,
}

/// One value of the graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Value {
    pub(super) reach: Reach,
    /// `None` if not even their number is known.
    pub(super) dims: Option<Vec<Size>>,
    /// The elements of a small tensor that nothing reaches.
    pub(super) items: Option<Vec<Item>>,
    pub(super) own: Own,
    /// Whether its elements tell how many rows there are, or which one it is, though no value reaches them.
    pub(super) counts: bool,
}

/// Whether elements are the numbers of the rows that they belong to, so that a row that is chosen by them is its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Own {
    Other,
    /// Each is the index along this dimension, which is the batch.
    Number(usize),
    /// Of those along the last dimension, the first one is.
    First(usize),
}

impl Value {
    pub(super) fn new(reach: Reach, dims: Vec<Size>) -> Self {
        if dims.len() > MOST_DIMS {
            return Self::shapeless(reach);
        }
        let fits = match &reach {
            Reach::Rows(place) => place.size().as_ref() == dims.get(place.axis),
            Reach::Nothing | Reach::Mixed(_) | Reach::Unknown => true,
        };
        Self {
            reach: if fits { reach } else { Reach::Unknown },
            dims: Some(dims),
            items: None,
            own: Own::Other,
            counts: false,
        }
    }

    /// The same with these elements, if they are few.
    pub(super) fn with_items(self, items: Option<Vec<Item>>) -> Self {
        Self {
            items: items.filter(|items| items.len() <= MOST_ITEMS && self.is_nothing()),
            ..self
        }
    }

    /// Whether one of its elements is known to be a size that grows with the rows.
    pub(super) fn has_row_counts(&self) -> bool {
        let mut items = self.items.iter().flatten();
        items.any(|item| item.as_size().is_some_and(|size| size.has_rows()))
    }

    /// The same, whose elements stand for `own`.
    pub(super) fn standing_for(self, own: Own) -> Self {
        Self { own, ..self }
    }

    pub(super) fn shapeless(reach: Reach) -> Self {
        // Without sizes, the place says nothing.
        let reach = match reach {
            Reach::Rows(_) => Reach::Unknown,
            reach => reach,
        };
        Self {
            reach,
            dims: None,
            items: None,
            own: Own::Other,
            counts: false,
        }
    }

    /// A tensor of one dimension, or of none, whose elements are known.
    pub(super) fn of_items(items: Vec<Item>, dims: Vec<Size>) -> Self {
        Self::new(Reach::Nothing, dims).with_items(Some(items))
    }

    /// The same, of which it is not known what it depends on.
    pub(super) fn unfollowed(self) -> Self {
        Self {
            reach: Reach::Unknown,
            items: None,
            own: Own::Other,
            ..self
        }
    }

    pub(super) fn rank(&self) -> Option<usize> {
        self.dims.as_ref().map(Vec::len)
    }

    pub(super) fn place(&self) -> Option<&Place> {
        match &self.reach {
            Reach::Rows(place) => Some(place),
            Reach::Nothing | Reach::Mixed(_) | Reach::Unknown => None,
        }
    }

    pub(super) fn is_nothing(&self) -> bool {
        self.reach == Reach::Nothing
    }

    /// Whether its first dimension is the batch.
    pub(super) fn has_rows_first(&self) -> bool {
        self.place()
            .is_some_and(|place| place.axis == 0 && place.is_plain())
    }

    /// Its elements, if all are numbers.
    pub(super) fn numbers(&self) -> Option<Vec<i64>> {
        let items = self.items.as_ref()?;
        items.iter().map(Item::as_number).collect()
    }

    /// The elements of a shape; if they are not known, how many there are is known all the same.
    pub(super) fn items_or_opaque(&self) -> Option<Vec<Item>> {
        if let Some(items) = &self.items {
            return Some(items.clone());
        }
        let len = self.dims.as_ref()?.first()?.as_number()?;
        let len = usize::try_from(len).ok().filter(|len| *len <= MOST_DIMS)?;
        Some(vec![Item::Opaque; len])
    }

    /// The same elements in the same order, in dimensions of the sizes `to`; `mixed` is what to say where rows lie across
    /// each other then.
    pub(super) fn reshaped(&self, to: Vec<Size>, mixed: &Reach) -> Self {
        let reach = match (&self.reach, &self.dims) {
            (Reach::Rows(place), Some(from)) => match relocated(place, from, &to) {
                Some(place) => Reach::Rows(place),
                // Sizes that are but numbers and rows leave no doubt.
                None if from.iter().chain(&to).all(Size::is_definite) => mixed.clone(),
                None => Reach::Unknown,
            },
            (reach, _) => reach.clone(),
        };
        let own = self.own_in(&to);
        Self::new(reach, to)
            .with_items(self.items.clone())
            .standing_for(own)
    }

    /// What elements that are the numbers of their rows stand for in dimensions of the sizes `to`.
    fn own_in(&self, to: &[Size]) -> Own {
        let (Own::Number(axis), Some(from)) = (self.own, &self.dims) else {
            return Own::Other;
        };
        match relocated(&Place::at(axis), from, to) {
            Some(place) if place.is_plain() => Own::Number(place.axis),
            _ => Own::Other,
        }
    }
}

/// Where rows lie after a change of sizes from `from` to `to` that leaves the elements in order.
fn relocated(place: &Place, from: &[Size], to: &[Size]) -> Option<Place> {
    // Whatever the sizes behind the first are, they are as many elements as before.
    if place.axis == 0 && place.is_plain() && to.first() == Some(&Size::rows()) {
        return Some(place.clone());
    }
    let outer = Size::product(from.get(..place.axis)?)?.times(&place.outer)?;
    let inner = Size::product(from.get(place.axis + 1..)?)?.times(&place.inner)?;
    to.iter().enumerate().find_map(|(axis, size)| {
        let outer = outer.over(&Size::product(to.get(..axis)?)?)?;
        let inner = inner.over(&Size::product(to.get(axis + 1..)?)?)?;
        let place = Place { axis, outer, inner };
        (place.size().as_ref() == Some(size)).then_some(place)
    })
}

/// What `values` give together, element by element, broadcast to each other; `mixed` is what to say where that puts rows
/// beside others. `None` if their numbers of dimensions are not known.
pub(super) fn broadcast(values: &[&Value], mixed: &Reach, symbols: &mut Symbols) -> Option<Value> {
    let ranks: Option<Vec<usize>> = values.iter().map(|value| value.rank()).collect();
    let rank = ranks?.into_iter().max()?;
    let mut dims = vec![Size::one(); rank];
    for value in values {
        let own = value.dims.as_ref()?;
        for (dim, size) in dims.iter_mut().rev().zip(own.iter().rev()) {
            *dim = wider(dim, size, symbols);
        }
    }
    let mut reach = Reach::Nothing;
    for value in values {
        let own = match &value.reach {
            Reach::Rows(place) => Reach::Rows(place.moved(place.axis + rank - value.rank()?)),
            reach => reach.clone(),
        };
        reach = joined(reach, own, mixed);
    }
    Some(Value::new(reach, dims))
}

/// What depends on two values at the same index.
pub(super) fn joined(one: Reach, other: Reach, mixed: &Reach) -> Reach {
    match (one, other) {
        (mixed @ Reach::Mixed(_), _) | (_, mixed @ Reach::Mixed(_)) => mixed,
        (Reach::Unknown, _) | (_, Reach::Unknown) => Reach::Unknown,
        (Reach::Nothing, reach) | (reach, Reach::Nothing) => reach,
        (Reach::Rows(one), Reach::Rows(other)) => {
            let all = |place: &Place| place.outer.times(&place.inner);
            if one == other {
                Reach::Rows(one)
            } else if one.axis == other.axis && all(&one) != all(&other) {
                // They may be the same all the same, by sizes that are not known.
                Reach::Unknown
            } else {
                mixed.clone()
            }
        }
    }
}

/// What one of two values depends on, whichever it is.
pub(super) fn alternative(one: Reach, other: Reach) -> Reach {
    match (one, other) {
        (mixed @ Reach::Mixed(_), _) | (_, mixed @ Reach::Mixed(_)) => mixed,
        (Reach::Nothing, reach) | (reach, Reach::Nothing) => reach,
        (one, other) if one == other => one,
        _ => Reach::Unknown,
    }
}

/// The size that two dimensions have when they are broadcast to each other.
fn wider(one: &Size, other: &Size, symbols: &mut Symbols) -> Size {
    if one == other || other.is_one() {
        return one.clone();
    }
    if one.is_one() {
        return other.clone();
    }
    // Both have this size, or one of them has the size 1.
    if one.has_rows() || (one.as_number().is_some() && !other.has_rows()) {
        return one.clone();
    }
    if other.has_rows() || other.as_number().is_some() {
        return other.clone();
    }
    symbols.fresh()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(axis: usize, dims: &[Size]) -> Value {
        Value::new(Reach::Rows(Place::at(axis)), dims.to_vec())
    }

    #[test]
    fn rows_are_found_again_in_other_sizes() {
        let mut symbols = Symbols::new();
        let (steps, width) = (symbols.fresh(), Size::number(8));
        let batch = Size::rows();
        let value = rows(1, &[steps.clone(), batch.clone(), width.clone()]);
        let folded = steps.times(&batch).unwrap();
        let mixed = Reach::Mixed("node".into());
        let flat = value.reshaped(vec![folded.clone(), width.clone()], &mixed);
        let place = Place {
            axis: 0,
            outer: steps.clone(),
            inner: Size::one(),
        };
        assert_eq!(flat.reach, Reach::Rows(place));
        let back = flat.reshaped(
            vec![
                steps.clone(),
                batch.clone(),
                Size::number(2),
                Size::number(4),
            ],
            &mixed,
        );
        assert_eq!(back.reach, Reach::Rows(Place::at(1)));
        // Turned round without being transposed, an index of the first dimension holds several rows.
        let turned = value.reshaped(vec![batch.clone(), steps, width], &mixed);
        assert_eq!(turned.reach, Reach::Unknown);
    }

    #[test]
    fn values_whose_rows_lie_apart_are_mixed_when_they_are_broadcast() {
        let mut symbols = Symbols::new();
        let mixed = Reach::Mixed("node".into());
        let column = rows(0, &[Size::rows(), Size::one()]);
        let row = rows(1, &[Size::one(), Size::rows()]);
        let wide = rows(0, &[Size::rows(), Size::number(4)]);
        let alone = rows(0, &[Size::rows()]);
        let reach = |values: &[&Value], symbols: &mut Symbols| {
            broadcast(values, &mixed, symbols).unwrap().reach
        };
        assert_eq!(
            reach(&[&column, &wide], &mut symbols),
            Reach::Rows(Place::at(0))
        );
        assert_eq!(reach(&[&column, &row], &mut symbols), mixed);
        assert_eq!(reach(&[&alone, &wide], &mut symbols), mixed);
        let weight = Value::new(
            Reach::Nothing,
            vec![Size::number(3), Size::one(), Size::number(4)],
        );
        assert_eq!(
            reach(&[&wide, &weight], &mut symbols),
            Reach::Rows(Place::at(1))
        );
    }
}
