//! Sizes of dimensions: a number, or a product of a number and of sizes that only a request brings.
//!
//! Invariant: two sizes that are equal here are equal in every execution.

use std::collections::HashMap;

use smallvec::SmallVec;

/// The number of rows of an execution.
const ROWS: u32 = 0;

/// More factors than any real graph multiplies; what has more is not followed.
const MOST_SYMBOLS: usize = 16;

/// Up to here, numbers are the same in all datatypes that shapes are computed in.
const LARGEST_EXACT: u64 = 1 << 20;

/// A product of a number and of sizes that are known by a symbol only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Size {
    factor: u64,
    /// In ascending order.
    symbols: SmallVec<[u32; 4]>,
}

impl Size {
    pub(super) fn number(factor: u64) -> Self {
        Self {
            factor,
            symbols: SmallVec::new(),
        }
    }

    /// As many as the execution has rows.
    pub(super) fn rows() -> Self {
        Self::symbol(ROWS)
    }

    fn symbol(symbol: u32) -> Self {
        Self {
            factor: 1,
            symbols: SmallVec::from_slice(&[symbol]),
        }
    }

    pub(super) fn one() -> Self {
        Self::number(1)
    }

    pub(super) fn as_number(&self) -> Option<u64> {
        self.symbols.is_empty().then_some(self.factor)
    }

    pub(super) fn is_one(&self) -> bool {
        self.as_number() == Some(1)
    }

    /// Whether nothing but the number of rows is unknown of it.
    pub(super) fn is_definite(&self) -> bool {
        self.symbols.iter().all(|symbol| *symbol == ROWS)
    }

    /// Whether it grows with the rows of the execution.
    pub(super) fn has_rows(&self) -> bool {
        self.symbols.contains(&ROWS)
    }

    pub(super) fn times(&self, other: &Self) -> Option<Self> {
        let factor = self.factor.checked_mul(other.factor)?;
        let mut symbols = self.symbols.clone();
        symbols.extend_from_slice(&other.symbols);
        symbols.sort_unstable();
        (symbols.len() <= MOST_SYMBOLS).then_some(Self { factor, symbols })
    }

    /// This divided by `divisor`, if that divides it whatever the symbols stand for.
    pub(super) fn over(&self, divisor: &Self) -> Option<Self> {
        if divisor.factor == 0 || !self.factor.is_multiple_of(divisor.factor) {
            return None;
        }
        let mut symbols = self.symbols.clone();
        for symbol in &divisor.symbols {
            let place = symbols.iter().position(|own| own == symbol)?;
            symbols.remove(place);
        }
        Some(Self {
            factor: self.factor / divisor.factor,
            symbols,
        })
    }

    pub(super) fn product<'a>(sizes: impl IntoIterator<Item = &'a Self>) -> Option<Self> {
        let mut sizes = sizes.into_iter();
        sizes.try_fold(Self::one(), |product, size| product.times(size))
    }
}

/// Gives symbols out.
#[derive(Debug)]
pub(super) struct Symbols {
    next: u32,
    named: HashMap<String, u32>,
}

impl Symbols {
    pub(super) fn new() -> Self {
        Self {
            next: ROWS + 1,
            named: HashMap::new(),
        }
    }

    /// A size of which nothing is known.
    pub(super) fn fresh(&mut self) -> Size {
        let symbol = self.next;
        self.next += 1;
        Size::symbol(symbol)
    }

    /// The size that dimensions of this name have in common.
    pub(super) fn named(&mut self, name: &str) -> Size {
        let next = self.next;
        let symbol = *self.named.entry(name.to_owned()).or_insert(next);
        if symbol == next {
            self.next += 1;
        }
        Size::symbol(symbol)
    }
}

/// An element of a small tensor of whole numbers that no value of a request reaches, such as the shape of another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Item {
    Number(i64),
    /// Not a plain number.
    Size(Size),
    Opaque,
}

impl Item {
    pub(super) fn of(size: &Size) -> Self {
        match size.as_number() {
            Some(number) => i64::try_from(number).map_or(Self::Opaque, Self::Number),
            None => Self::Size(size.clone()),
        }
    }

    /// The same, unless it is so large that a datatype might round it or wrap around.
    pub(super) fn or_opaque_if_large(&self) -> Self {
        match self {
            Self::Number(number) if number.unsigned_abs() > LARGEST_EXACT => Self::Opaque,
            item => item.clone(),
        }
    }

    pub(super) fn as_number(&self) -> Option<i64> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Size(_) | Self::Opaque => None,
        }
    }

    pub(super) fn as_size(&self) -> Option<Size> {
        match self {
            Self::Number(number) => u64::try_from(*number).ok().map(Size::number),
            Self::Size(size) => Some(size.clone()),
            Self::Opaque => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_divided_where_that_leaves_no_rest() {
        let mut symbols = Symbols::new();
        let (steps, other) = (symbols.named("T"), symbols.fresh());
        assert_eq!(symbols.named("T"), steps);
        let all = Size::product([&Size::rows(), &steps, &Size::number(12)]).unwrap();
        assert!(all.has_rows());
        assert_eq!(
            all.over(&steps).unwrap().over(&Size::number(4)).unwrap(),
            Size::rows().times(&Size::number(3)).unwrap()
        );
        assert_eq!(all.over(&other), None);
        assert_eq!(all.over(&Size::number(5)), None);
        assert_eq!(all.over(&Size::number(0)), None);
        assert_eq!(Size::number(u64::MAX).times(&Size::number(2)), None);
    }
}
