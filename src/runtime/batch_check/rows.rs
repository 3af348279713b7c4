//! Made-up rows of any datatype: always the same ones, and different from each other.
//!
//! Invariant: ordinary fractions lie between 0 and 1, and whole numbers are 0 or 1, because those are mostly indices.

use half::{bf16, f16};

use crate::runtime::made_up::{self, Size};
use crate::runtime::{BatchOutput, Model, RuntimeError};
use crate::tensor::{DataType, TensorData, for_each_plain_datatype};

/// One row. Rows of other numbers have other values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row {
    number: u64,
    /// Far away from what other rows have, so that its influence on them shows.
    extreme: bool,
}

impl Row {
    /// The ordinary row of this number.
    pub(super) fn ordinary(number: u64) -> Self {
        Self {
            number,
            extreme: false,
        }
    }

    /// The extreme row of this number.
    pub(super) fn extreme(number: u64) -> Self {
        Self {
            // Of the other parity, so that the first whole number differs from the ordinary row's.
            number: number + 1001,
            extreme: true,
        }
    }

    /// The element at `place` of the input of this index.
    fn element(self, input: usize, place: usize) -> Element {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for part in [self.number, input as u64, place as u64] {
            state = mix(state ^ part.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        }
        Element {
            random: state,
            // Rows are told apart by their first element, also where there is no other.
            bit: if place == 0 {
                self.number % 2 == 1
            } else {
                state >> 63 == 1
            },
            extreme: self.extreme,
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
    bit: bool,
    extreme: bool,
}

impl Element {
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit exactly")]
    fn fraction(self) -> f64 {
        let fraction = (self.random >> 11) as f64 / (1_u64 << 53) as f64;
        if self.extreme {
            100.0 - 300.0 * fraction
        } else {
            fraction
        }
    }
}

/// Runs `rows`, with `open` for the size of open dimensions other than the batch; `None` if an input would have more
/// than `largest` bytes.
pub(super) fn run(
    model: &mut dyn Model,
    rows: &[Row],
    open: usize,
    largest: usize,
) -> Result<Option<BatchOutput>, RuntimeError> {
    let size = Size {
        rows: rows.len(),
        open,
        largest,
    };
    made_up::run(model, size, |input, datatype, elements| {
        let per_row = elements.checked_div(rows.len()).unwrap_or_default();
        let all = rows
            .iter()
            .flat_map(|row| (0..per_row).map(move |place| row.element(input, place)));
        elements_of(datatype, all)
    })
}

/// How an element is made up.
trait MadeUp {
    fn made_up(element: Element) -> Self;
}

macro_rules! made_up_wholes {
    ($($element:ty),+) => {
        $(impl MadeUp for $element {
            fn made_up(element: Element) -> Self {
                Self::from(element.bit)
            }
        })+
    };
}
made_up_wholes!(u8, u16, u32, u64, i8, i16, i32, i64);

impl MadeUp for f64 {
    fn made_up(element: Element) -> Self {
        element.fraction()
    }
}

impl MadeUp for f32 {
    #[expect(clippy::cast_possible_truncation, reason = "any value near it does")]
    fn made_up(element: Element) -> Self {
        element.fraction() as Self
    }
}

impl MadeUp for f16 {
    fn made_up(element: Element) -> Self {
        Self::from_f64(element.fraction())
    }
}

impl MadeUp for bf16 {
    fn made_up(element: Element) -> Self {
        Self::from_f64(element.fraction())
    }
}

macro_rules! made_up_elements {
    ($(($variant:ident, $element:ty, $name:literal, $size:literal)),+) => {
        fn elements_of(datatype: DataType, elements: impl Iterator<Item = Element>) -> TensorData {
            match datatype {
                DataType::Bool => elements.map(|element| element.bit).collect::<Vec<bool>>().into(),
                $(DataType::$variant => elements.map(<$element>::made_up).collect::<Vec<$element>>().into(),)+
                DataType::Bytes => {
                    let text = |element: Element| if element.bit { "a" } else { "b" }.to_owned();
                    elements.map(text).collect::<Vec<String>>().into()
                }
            }
        }
    };
}
for_each_plain_datatype!(made_up_elements);
