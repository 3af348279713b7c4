//! Numbers as most of a tensor's are written, read without a branch on how many digits they have.
//!
//! Hot path: the bench `wire` holds it (`make bench-pieces BENCH=decode`), as it does [`Number`](super::number::Number).
//! Invariant: what is read here is what [`Number`](super::number::Number) reads; what would not be is left to it.

use super::digits::{EXACT_POWERS, POWERS_OF_TEN, join_eight, repeated};

/// The `f64` nearest to the inverse of each power of ten that digits behind a point need.
const INVERSE_POWERS: [f64; 16] = [
    1e0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10, 1e-11, 1e-12, 1e-13, 1e-14,
    1e-15,
];

/// The integer at the front of `text` if it has 1 to 7 digits, as few as JSON allows, and nothing behind it that goes on
/// with the number.
#[inline]
fn take_few_digits(text: [u8; 8]) -> Option<(u64, usize)> {
    let values = u64::from_le_bytes(text) ^ repeated(b'0');
    let others = (values.wrapping_add(repeated(0x76)) | values) & repeated(0x80);
    let length = (others.trailing_zeros() / 8) as usize;
    let behind = *text.get(length)?;
    let digits = join_eight(values << ((64 - 8 * length) & 63));
    let leading_zero = text.first() == Some(&b'0') && length > 1;
    let goes_on = matches!(behind, b'.' | b'e' | b'E');
    (length > 0 && !leading_zero && !goes_on).then_some((digits, length))
}

/// A number as most of a tensor's are written: few digits, at most one of them before a point, and no exponent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ShortNumber {
    negative: bool,
    /// The digits as one integer.
    digits: u64,
    /// How many of them stand behind the point; 0 for integers.
    places: usize,
}

impl ShortNumber {
    /// The number at the front of `text`, and its length.
    ///
    /// Without a branch on how many digits there are: where that differs from number to number, guessing wrong costs more
    /// than all the arithmetic.
    // Called, its results would pass through memory, for which the reading of a tensor would wait at each number.
    #[inline(always)]
    pub(super) fn read(text: &[u8]) -> Option<(Self, usize)> {
        const fn repeated(byte: u8) -> u128 {
            u128::from_ne_bytes([byte; 16])
        }
        let negative = *text.first()? == b'-';
        let start = usize::from(negative);
        let unsigned = text.get(start..)?.first_chunk::<18>()?;
        let [whole, b'.', fraction @ ..] = unsigned else {
            let (digits, length) = take_few_digits(*unsigned.first_chunk()?)?;
            let number = Self {
                negative,
                digits,
                places: 0,
            };
            return Some((number, start + length));
        };
        let whole = u64::from(whole.wrapping_sub(b'0'));
        let values = u128::from_le_bytes(*fraction) ^ repeated(b'0');
        let others = (values.wrapping_add(repeated(0x76)) | values) & repeated(0x80);
        let places = (others.trailing_zeros() / 8) as usize;
        let power = POWERS_OF_TEN.get(places)?;
        // What follows the digits falls off the end, and zeros come before them.
        let values = values << ((128 - 8 * places) & 127);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the two halves are what is wanted"
        )]
        let (first, last) = (values as u64, (values >> 64) as u64);
        let fraction = join_eight(first) * 100_000_000 + join_eight(last);
        let number = Self {
            negative,
            digits: whole * power + fraction,
            places,
        };
        (whole <= 9 && places > 0).then_some((number, start + 2 + places))
    }

    /// The integer, if it is written as one.
    #[inline]
    pub(super) fn to_integer(self) -> Option<i64> {
        let magnitude = i64::try_from(self.digits).ok()?;
        let value = if self.negative { -magnitude } else { magnitude };
        (self.places == 0).then_some(value)
    }

    /// The nearest `f32`, if that is certain without a division, whose result would be waited for.
    #[inline]
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "digits up to 2^53 are exact in an f64, and rounding to the nearest f32 is what is asked for"
    )]
    pub(super) fn to_f32(self) -> Option<f32> {
        // The inverse power is off by half a unit in the last place, and the product by another half: two units of the
        // product at most. Farther than that from the middle between two f32 values, and above the subnormal ones, both
        // round to the same.
        const UNSURE: u64 = 4;
        let value = self.digits as f64 * INVERSE_POWERS.get(self.places)?;
        let above = (value.to_bits() & 0x1fff_ffff).wrapping_sub(0x1000_0000 - UNSURE);
        let sure = above > 2 * UNSURE && value >= f64::from(f32::MIN_POSITIVE);
        let value = value as f32;
        let value = if self.negative { -value } else { value };
        (self.digits <= 1 << 53 && (sure || self.digits == 0)).then_some(value)
    }

    /// The nearest `f64`, if a single division gives it exactly rounded.
    #[inline]
    #[expect(
        clippy::cast_precision_loss,
        reason = "digits up to 2^53 are exact in an f64"
    )]
    pub(super) fn to_f64(self) -> Option<f64> {
        let value = self.digits as f64 / EXACT_POWERS.get(self.places)?;
        (self.digits <= 1 << 53).then_some(if self.negative { -value } else { value })
    }
}

#[cfg(test)]
mod tests {
    use super::super::number::tests::Lcg;
    use super::super::number::{FromNumber, Number};
    use super::*;

    #[test]
    fn what_is_read_in_short_is_what_is_read_at_length() {
        let whole = [
            "0", "7", "-0", "-9", "10", "007", "-128", "1234567", "12345678", "", "-",
        ];
        let fractions = [
            "",
            ".",
            ".0",
            ".5",
            ".48235294",
            ".000000000000001",
            ".123456789012345",
            ".1234567890123456",
        ];
        let behind = [",", "]", " ,", "e5,", "E-1]", ".1", "x"];
        let mut short = 0;
        for (whole, fraction) in whole
            .iter()
            .flat_map(|whole| fractions.map(|fraction| (whole, fraction)))
        {
            for behind in behind {
                // Enough behind it that the end of the text is no reason to give up.
                let text = format!("{whole}{fraction}{behind}0.25,0.25,0.25,0.25");
                let Some((number, length)) = ShortNumber::read(text.as_bytes()) else {
                    continue;
                };
                short += 1;
                let (other, other_length) = Number::read(text.as_bytes()).unwrap();
                // What goes on behind it is for the caller to see.
                if text.as_bytes()[length] != b',' {
                    continue;
                }
                assert_eq!(length, other_length, "{text}");
                if let Some(value) = i64::from_short(number) {
                    assert_eq!(Ok(value), i64::from_number(other), "{text}");
                }
                if let Some(value) = u8::from_short(number) {
                    assert_eq!(Ok(value), u8::from_number(other), "{text}");
                }
                if let Some(value) = f64::from_short(number) {
                    assert_eq!(
                        Ok(value.to_bits()),
                        f64::from_number(other).map(f64::to_bits),
                        "{text}"
                    );
                }
                if let Some(value) = f32::from_short(number) {
                    assert_eq!(
                        Ok(value.to_bits()),
                        f32::from_number(other).map(f32::to_bits),
                        "{text}"
                    );
                }
            }
        }
        assert!(short > 60, "{short}");
        assert!(ShortNumber::read(b"0.25").is_none());
    }

    #[test]
    fn short_floats_are_rounded_as_the_standard_library_rounds_them() {
        let mut random = Lcg(11);
        let mut sure = 0;
        let mut check = |text: String| {
            // Enough behind it that it is read in short.
            let padded = format!("{text},0.25,0.25,0.25,0.25");
            let (number, length) = ShortNumber::read(padded.as_bytes()).unwrap();
            assert_eq!(length, text.len());
            if let Some(value) = f32::from_short(number) {
                let expected: f32 = text.parse().unwrap();
                assert_eq!(value.to_bits(), expected.to_bits(), "{text}");
                sure += 1;
            }
        };
        for _ in 0..200_000 {
            let digits = random.next() % 10_u64.pow(15);
            let places = usize::try_from(random.next() % 15).unwrap() + 1;
            let fraction = digits % 10_u64.pow(u32::try_from(places).unwrap());
            check(format!("-{}.{fraction:0places$}", digits % 10));
            // Beside and upon the middle between two values.
            let single = f32::from_bits(0x3f80_0000 + u32::try_from(digits % 0x0180_0000).unwrap());
            let next = f32::from_bits(single.to_bits() + 1);
            let middle = f64::midpoint(f64::from(single), f64::from(next));
            check(format!("{middle:.13}"));
            check(format!("{middle:.15}"));
            check(format!("{single:.8}"));
        }
        assert!(sure > 400_000, "{sure}");
    }
}
