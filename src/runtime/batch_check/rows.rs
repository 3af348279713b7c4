//! Made-up rows of any datatype: always the same ones, and different from each other.
//!
//! A model shows what it does only on rows that it takes, and that differ in what may drive it: whole numbers are indices,
//! bytes or flags, texts have many words or none, and among fractions some models count the zeros. So there are several
//! kinds of rows. Invariant: rows of another number differ, as far as their kind has values to differ in, also in the
//! number of their words and, among sparse ones, of their zeros.

use half::{bf16, f16};

use crate::model::ModelMetadata;
use crate::runtime::dummy_inputs::{self, Size};
use crate::runtime::{BatchOutput, Model, RuntimeError};
use crate::tensor::{DataType, TensorData, for_each_plain_datatype};

/// What separates the words of a text, as far as anybody may split it there.
const SEPARATORS: [&str; 12] = [" ", ",", ";", "|", "\t", "-", "_", "/", "\n", ".", ":", "="];

/// What rows are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Small whole numbers, as indices and counts are; fractions; texts of several words.
    Small,
    /// Bytes; fractions around zero; texts of several words.
    Bytes,
    /// Zeros and ones, also as texts; fractions of which half are zero.
    Bits,
    /// The whole numbers of all inputs but this one are zero, which every index may be; the rest as among small ones.
    ZeroBut(usize),
}

impl Kind {
    /// The kinds to try on a model with these inputs, the most likely ones first.
    pub(super) fn of(metadata: &ModelMetadata) -> Vec<Self> {
        let has =
            |wanted: fn(DataType) -> bool| metadata.inputs.iter().any(|spec| wanted(spec.datatype));
        let mut kinds = Vec::new();
        if has(|datatype| datatype != DataType::Bool) {
            kinds.push(Self::Small);
        }
        if has(is_whole) {
            kinds.push(Self::Bytes);
        }
        kinds.push(Self::Bits);
        kinds
    }

    /// What is left to try where the model takes none of those: other whole numbers than zero in one input at most.
    pub(super) fn last_resorts(metadata: &ModelMetadata) -> Vec<Self> {
        let wholes = metadata.inputs.iter().enumerate();
        let wholes = wholes.filter(|(_, spec)| is_whole(spec.datatype));
        let wholes: Vec<usize> = wholes.map(|(index, _)| index).collect();
        if wholes.is_empty() {
            return Vec::new();
        }
        let none = std::iter::once(metadata.inputs.len());
        none.chain(wholes).map(Self::ZeroBut).collect()
    }

    /// Whether rows of this kind differ in the input of this index.
    pub(super) fn varies(self, input: usize, metadata: &ModelMetadata) -> bool {
        let is_whole = |spec: &crate::model::TensorSpec| is_whole(spec.datatype);
        match self {
            Self::ZeroBut(other) => {
                other == input || !metadata.inputs.get(input).is_some_and(is_whole)
            }
            Self::Small | Self::Bytes | Self::Bits => true,
        }
    }

    /// What the rows for a model with these inputs hold, for people.
    pub(super) fn describe(self, metadata: &ModelMetadata) -> String {
        let mut parts: Vec<&str> = Vec::new();
        for spec in &metadata.inputs {
            let part = match (spec.datatype, self) {
                (DataType::Bool, _) => "truth values",
                (DataType::Bytes, Self::Bits) => "texts '0' and '1'",
                (DataType::Bytes, _) => "texts of 1 to 40 words",
                (whole, Self::Small) if is_whole(whole) => "whole numbers from 0 to 7",
                (whole, Self::Bytes) if is_whole(whole) => "whole numbers from 0 to 255",
                (whole, Self::Bits) if is_whole(whole) => "zeros and ones",
                (whole, Self::ZeroBut(_)) if is_whole(whole) => "zeros for indices",
                (_, Self::Bytes) => "fractions from -1 to 1",
                (_, Self::Bits) => "fractions of which half are zero",
                _ => "fractions from 0 to 1",
            };
            if !parts.contains(&part) {
                parts.push(part);
            }
        }
        parts.join(" and ")
    }
}

fn is_whole(datatype: DataType) -> bool {
    !matches!(
        datatype,
        DataType::Bool
            | DataType::Bytes
            | DataType::Fp16
            | DataType::Bf16
            | DataType::Fp32
            | DataType::Fp64
    )
}

/// How far a row is from the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Ordinary,
    /// Far away from what other rows have, so that its influence on them shows.
    Extreme,
    /// Zeros and empty texts.
    Blank,
}

/// One row. Rows of other numbers have other values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row {
    number: u64,
    role: Role,
}

impl Row {
    /// The ordinary row of this number.
    pub(super) fn ordinary(number: u64) -> Self {
        Self {
            number,
            role: Role::Ordinary,
        }
    }

    /// The extreme row of this number.
    pub(super) fn extreme(number: u64) -> Self {
        Self {
            // Of the other parity, so that the first whole number differs from the ordinary row's.
            number: number + 1001,
            role: Role::Extreme,
        }
    }

    /// A row of nothing.
    pub(super) fn blank() -> Self {
        Self {
            number: 0,
            role: Role::Blank,
        }
    }

    /// The element at `place` of the input of this index.
    fn element(self, kind: Kind, input: usize, place: usize) -> Element {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for part in [self.number, input as u64, place as u64] {
            state = mix(state ^ part.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        }
        Element {
            random: state,
            // Rows are told apart by their first element, also where there is no other.
            first: (place == 0).then_some(self.number),
            role: self.role,
            kind: match kind {
                Kind::ZeroBut(other) if other == input => Kind::Small,
                kind => kind,
            },
        }
    }
}

/// Spreads every bit of `state` over all others (the finish of `SplitMix64`).
fn mix(mut state: u64) -> u64 {
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

/// What an element is made of.
#[derive(Clone, Copy)]
struct Element {
    random: u64,
    /// The number of the row, for its first element.
    first: Option<u64>,
    role: Role,
    kind: Kind,
}

impl Element {
    fn bit(self) -> bool {
        match (self.role, self.first) {
            (Role::Blank, _) => false,
            (_, Some(number)) => number % 2 == 1,
            (_, None) => self.random >> 63 == 1,
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "53 bits fit exactly")]
    fn fraction(self) -> f64 {
        let fraction = (self.random >> 11) as f64 / (1_u64 << 53) as f64;
        match (self.role, self.kind) {
            (Role::Blank, _) => 0.0,
            // A few are so large that no bound that anybody thinks of holds them, but FP16 does.
            (Role::Extreme, _) if self.random.is_multiple_of(8) => 60_000.0 - 120_000.0 * fraction,
            (Role::Extreme, _) => 100.0 - 300.0 * fraction,
            // The first element is never zero, so that no row is all zeros.
            (Role::Ordinary, Kind::Bits) if self.first.is_none() && self.random & 1 == 1 => 0.0,
            (Role::Ordinary, Kind::Bytes) => 2.0 * fraction - 1.0,
            (Role::Ordinary, _) => fraction,
        }
    }

    /// A whole number from 0 to the kind's largest one.
    fn whole(self) -> u8 {
        let largest: u8 = match self.kind {
            Kind::Small => 7,
            Kind::Bytes => u8::MAX,
            Kind::Bits => return u8::from(self.bit()),
            Kind::ZeroBut(_) => return 0,
        };
        match (self.role, self.first) {
            (Role::Blank, _) => 0,
            // Half of them the largest there is.
            (Role::Extreme, _) if self.bit() => largest,
            (_, Some(number)) => below(3 * number + 1, largest),
            (_, None) => below(self.random >> 32, largest),
        }
    }

    fn text(self) -> String {
        if self.kind == Kind::Bits {
            return if self.bit() { "1" } else { "0" }.to_owned();
        }
        let words = match (self.role, self.first) {
            (Role::Blank, _) => 0,
            (Role::Extreme, _) => 40 + self.random % 8,
            (_, Some(number)) => 1 + (17 * number) % 36,
            (_, None) => 1 + self.random % 36,
        };
        let mut text = String::new();
        for (word, separator) in (0..words).zip(SEPARATORS.iter().cycle()) {
            if word > 0 {
                text.push_str(separator);
            }
            text.push(char::from(b'a' + below(mix(self.random ^ word), 25)));
            text.push_str(&word.to_string());
        }
        text
    }
}

/// `number`, taken down to at most `largest`.
fn below(number: u64, largest: u8) -> u8 {
    u8::try_from(number % (u64::from(largest) + 1)).unwrap_or(largest)
}

/// Runs `rows` of this kind, with `open` for the size of open dimensions other than the batch; `None` if an input would
/// have more than `largest` bytes.
pub(super) fn run(
    model: &mut dyn Model,
    kind: Kind,
    rows: &[Row],
    open: usize,
    largest: usize,
) -> Result<Option<BatchOutput>, RuntimeError> {
    let size = Size {
        rows: rows.len(),
        open,
        largest,
    };
    dummy_inputs::run(model, size, |input, datatype, elements| {
        let per_row = elements.checked_div(rows.len()).unwrap_or_default();
        let all = rows
            .iter()
            .flat_map(|row| (0..per_row).map(move |place| row.element(kind, input, place)));
        elements_of(datatype, all)
    })
}

/// How an element is made up.
trait MadeUp {
    fn dummy_inputs(element: Element) -> Self;
}

macro_rules! made_up_wholes {
    ($($element:ty),+) => {
        $(impl MadeUp for $element {
            fn dummy_inputs(element: Element) -> Self {
                Self::from(element.whole())
            }
        })+
    };
}
made_up_wholes!(u8, u16, u32, u64, i16, i32, i64);

impl MadeUp for i8 {
    fn dummy_inputs(element: Element) -> Self {
        Self::try_from(element.whole()).unwrap_or(Self::MAX)
    }
}

impl MadeUp for f64 {
    fn dummy_inputs(element: Element) -> Self {
        element.fraction()
    }
}

impl MadeUp for f32 {
    #[expect(clippy::cast_possible_truncation, reason = "any value near it does")]
    fn dummy_inputs(element: Element) -> Self {
        element.fraction() as Self
    }
}

impl MadeUp for f16 {
    fn dummy_inputs(element: Element) -> Self {
        Self::from_f64(element.fraction())
    }
}

impl MadeUp for bf16 {
    fn dummy_inputs(element: Element) -> Self {
        Self::from_f64(element.fraction())
    }
}

macro_rules! made_up_elements {
    ($(($variant:ident, $element:ty, $name:literal, $size:literal)),+) => {
        fn elements_of(datatype: DataType, elements: impl Iterator<Item = Element>) -> TensorData {
            match datatype {
                DataType::Bool => elements.map(Element::bit).collect::<Vec<bool>>().into(),
                $(DataType::$variant => elements.map(<$element>::dummy_inputs).collect::<Vec<$element>>().into(),)+
                DataType::Bytes => elements.map(Element::text).collect::<Vec<String>>().into(),
            }
        }
    };
}
for_each_plain_datatype!(made_up_elements);

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(kind: Kind, row: Row) -> Vec<String> {
        (0..3)
            .map(|place| row.element(kind, 0, place).text())
            .collect()
    }

    #[test]
    fn texts_differ_in_their_words_and_separators() {
        let first = |row| texts(Kind::Small, row).remove(0);
        let words = |text: &str, separator: &str| text.split(separator).count();
        let rows = [
            Row::ordinary(0),
            Row::ordinary(1),
            Row::ordinary(2),
            Row::extreme(0),
        ];
        for separator in SEPARATORS {
            let counts: Vec<usize> = rows
                .iter()
                .map(|row| words(&first(*row), separator))
                .collect();
            assert!(
                counts.iter().any(|count| *count != counts[0]),
                "{separator:?}: {counts:?}"
            );
        }
        assert_eq!(first(Row::blank()), "");
        assert_eq!(texts(Kind::Bits, Row::ordinary(1))[0], "1");
    }

    #[test]
    fn whole_numbers_stay_in_the_range_of_their_kind_and_tell_rows_apart() {
        for (kind, largest) in [(Kind::Small, 7), (Kind::Bits, 1), (Kind::ZeroBut(1), 0)] {
            let rows = [
                Row::ordinary(0),
                Row::ordinary(1),
                Row::extreme(0),
                Row::blank(),
            ];
            for row in rows {
                for place in 0..50 {
                    assert!(row.element(kind, 0, place).whole() <= largest);
                }
            }
        }
        let first = |number| Row::ordinary(number).element(Kind::Small, 0, 0).whole();
        assert!(first(0) != first(1) && first(1) != first(2) && first(0) != first(2));
        // Beyond what a signed byte holds, the largest it holds.
        assert_eq!(
            i8::dummy_inputs(Row::extreme(0).element(Kind::Bytes, 0, 0)),
            127
        );
    }

    #[test]
    fn sparse_rows_have_other_numbers_of_zeros() {
        let zeros = |number| {
            let elements = (0..64).map(|place| Row::ordinary(number).element(Kind::Bits, 0, place));
            elements.filter(|element| element.fraction() == 0.0).count()
        };
        assert!(
            zeros(0) != zeros(1) || zeros(1) != zeros(2),
            "{} {} {}",
            zeros(0),
            zeros(1),
            zeros(2)
        );
    }
}
