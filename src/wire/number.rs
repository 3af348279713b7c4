//! Numbers of JSON text as elements of a datatype, each in one pass and rounded once.
//!
//! Hot path: the bench `wire` holds it (`make bench-pieces BENCH=decode`); benches/NOTES.md has what crates cost in its
//! place.
//! Invariant: a number that the datatype cannot hold is an error, never a wrapped, saturated or infinite element.

use half::{bf16, f16};

use super::digits::{EXACT_POWERS, POWERS_OF_TEN, join_eight, repeated};
use super::short_number::ShortNumber;

/// Why a number is no element of the datatype.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NumberError {
    /// The text is not a JSON number.
    Syntax,
    /// The datatype cannot hold it.
    Range,
    /// It has a fraction or an exponent, and the datatype holds integers.
    NotAnInteger,
}

/// A number of JSON text, taken apart.
#[derive(Debug, Clone, Copy)]
pub(super) struct Number<'a> {
    /// The text itself.
    text: &'a [u8],
    negative: bool,
    /// The digits as one integer, if `exact`.
    digits: u64,
    /// The power of ten that goes with `digits`.
    exponent: i32,
    /// Whether `digits` and `exponent` say everything; more than 19 digits do not fit.
    exact: bool,
    integer: bool,
}

/// Takes digits from the front of `text`; returns how many there were.
///
/// Eight bytes are looked at together, because a large tensor is some hundred thousand numbers of ten digits each, and a
/// loop over single bytes is mostly its own mispredicted end.
#[inline]
fn take_digits(text: &[u8], digits: &mut u64) -> usize {
    let mut count = 0;
    while let Some(eight) = text.get(count..).and_then(<[u8]>::first_chunk::<8>) {
        let values = u64::from_le_bytes(*eight) ^ repeated(b'0');
        // The highest bit of each byte that is no digit. Carries go up only from such bytes, so the lowest is right.
        let others = (values.wrapping_add(repeated(0x76)) | values) & repeated(0x80);
        if others == 0 {
            *digits = digits
                .wrapping_mul(100_000_000)
                .wrapping_add(join_eight(values));
            count += 8;
            continue;
        }
        let length = (others.trailing_zeros() / 8) as usize;
        if let Some(power) = POWERS_OF_TEN.get(length)
            && length > 0
        {
            // What follows the digits falls off the end, and zeros come before them.
            let values = values << (64 - 8 * length);
            *digits = digits.wrapping_mul(*power).wrapping_add(join_eight(values));
        }
        return count + length;
    }
    for byte in text.get(count..).unwrap_or_default() {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            break;
        }
        *digits = digits.wrapping_mul(10).wrapping_add(u64::from(digit));
        count += 1;
    }
    count
}

impl<'a> Number<'a> {
    /// The number at the front of `text`, and its length.
    #[inline]
    pub(super) fn read(text: &'a [u8]) -> Result<(Self, usize), NumberError> {
        let negative = text.first() == Some(&b'-');
        let mut length = usize::from(negative);
        let mut digits = 0;
        let whole = take_digits(text.get(length..).unwrap_or_default(), &mut digits);
        if whole == 0 || (whole > 1 && text.get(length) == Some(&b'0')) {
            return Err(NumberError::Syntax);
        }
        length += whole;
        let mut fraction = 0;
        let mut integer = true;
        if text.get(length) == Some(&b'.') {
            fraction = take_digits(text.get(length + 1..).unwrap_or_default(), &mut digits);
            if fraction == 0 {
                return Err(NumberError::Syntax);
            }
            length += 1 + fraction;
            integer = false;
        }
        let mut exponent = 0;
        if let Some(b'e' | b'E') = text.get(length) {
            let (value, taken) = read_exponent(text.get(length + 1..).unwrap_or_default())?;
            exponent = value;
            length += 1 + taken;
            integer = false;
        }
        let exponent =
            i32::try_from(fraction).map_or(i32::MIN, |fraction| exponent.saturating_sub(fraction));
        let exact = whole + fraction <= 19;
        let text = text.get(..length).ok_or(NumberError::Syntax)?;
        Ok((
            Self {
                text,
                negative,
                digits,
                exponent,
                exact,
                integer,
            },
            length,
        ))
    }

    /// The number as the nearest `f64`, if a single multiplication or division gives it exactly rounded.
    #[inline]
    #[expect(
        clippy::cast_precision_loss,
        reason = "digits up to 2^53 are exact in an f64"
    )]
    fn quick(&self) -> Option<f64> {
        if !self.exact || self.digits > 1 << 53 {
            return None;
        }
        let power = EXACT_POWERS.get(usize::try_from(self.exponent.unsigned_abs()).ok()?)?;
        let digits = self.digits as f64;
        let value = if self.exponent < 0 {
            digits / power
        } else {
            digits * power
        };
        Some(if self.negative { -value } else { value })
    }

    #[inline]
    fn to_f64(self) -> Result<f64, NumberError> {
        let value = match self.quick() {
            Some(value) => value,
            None => fast_float2::parse(self.text).map_err(|_| NumberError::Syntax)?,
        };
        if value.is_finite() {
            Ok(value)
        } else {
            Err(NumberError::Range)
        }
    }

    #[inline]
    fn to_f32(self) -> Result<f32, NumberError> {
        let value = match self.quick().and_then(to_single) {
            Some(value) => value,
            None => fast_float2::parse(self.text).map_err(|_| NumberError::Syntax)?,
        };
        if value.is_finite() {
            Ok(value)
        } else {
            Err(NumberError::Range)
        }
    }

    #[inline]
    fn to_unsigned(self) -> Result<u64, NumberError> {
        if !self.integer {
            return Err(NumberError::NotAnInteger);
        }
        let value = if self.exact {
            self.digits
        } else {
            // Twenty digits may still fit into 64 bits; the standard library decides.
            let digits = self.text.strip_prefix(b"-").unwrap_or(self.text);
            std::str::from_utf8(digits)
                .ok()
                .and_then(|digits| digits.parse().ok())
                .ok_or(NumberError::Range)?
        };
        Ok(value)
    }

    #[inline]
    fn to_signed(self) -> Result<i64, NumberError> {
        let magnitude = self.to_unsigned()?;
        if self.negative {
            0_i64
                .checked_sub_unsigned(magnitude)
                .ok_or(NumberError::Range)
        } else {
            i64::try_from(magnitude).map_err(|_| NumberError::Range)
        }
    }
}

/// The `f32` nearest to the number that `value` is the nearest `f64` to, if `value` tells.
///
/// Rounding twice differs from rounding once only where the f64 lies exactly between two f32 values, or among the
/// subnormal ones, whose midpoints lie elsewhere.
#[inline]
#[expect(
    clippy::cast_possible_truncation,
    reason = "rounding to the nearest f32 is what is asked for"
)]
fn to_single(value: f64) -> Option<f32> {
    let tells =
        value.to_bits() & 0x1fff_ffff != 0x1000_0000 && value.abs() >= f64::from(f32::MIN_POSITIVE);
    (value == 0.0 || tells).then_some(value as f32)
}

/// The exponent after `e`: its value, clamped far beyond what any float holds, and its length.
fn read_exponent(text: &[u8]) -> Result<(i32, usize), NumberError> {
    let sign = match text.first() {
        Some(b'-') => -1,
        _ => 1,
    };
    let signed = usize::from(matches!(text.first(), Some(b'-' | b'+')));
    let digits = text
        .get(signed..)
        .unwrap_or_default()
        .iter()
        .take_while(|byte| byte.is_ascii_digit());
    let mut value: i32 = 0;
    let mut count = 0;
    for digit in digits {
        value = value
            .saturating_mul(10)
            .saturating_add(i32::from(digit - b'0'))
            .min(1_000_000);
        count += 1;
    }
    if count == 0 {
        Err(NumberError::Syntax)
    } else {
        Ok((sign * value, signed + count))
    }
}

/// An element type that JSON numbers can express.
pub(super) trait FromNumber: Sized {
    /// The nearest element, or why there is none.
    fn from_number(number: Number<'_>) -> Result<Self, NumberError>;

    /// The nearest element, where that is found quickly.
    #[inline]
    fn from_short(_number: ShortNumber) -> Option<Self> {
        None
    }
}

macro_rules! integers {
    ($($element:ty: $convert:ident),+) => {
        $(impl FromNumber for $element {
            #[inline]
            fn from_number(number: Number<'_>) -> Result<Self, NumberError> {
                Self::try_from(number.$convert()?).map_err(|_| NumberError::Range)
            }

            #[inline]
            fn from_short(number: ShortNumber) -> Option<Self> {
                Self::try_from(number.to_integer()?).ok()
            }
        })+
    };
}
integers!(i8: to_signed, i16: to_signed, i32: to_signed, i64: to_signed);
integers!(u8: to_positive, u16: to_positive, u32: to_positive, u64: to_positive);

impl Number<'_> {
    #[inline]
    fn to_positive(self) -> Result<u64, NumberError> {
        let value = self.to_unsigned()?;
        if self.negative && value > 0 {
            Err(NumberError::Range)
        } else {
            Ok(value)
        }
    }
}

impl FromNumber for f32 {
    #[inline]
    fn from_number(number: Number<'_>) -> Result<Self, NumberError> {
        number.to_f32()
    }

    #[inline]
    fn from_short(number: ShortNumber) -> Option<Self> {
        number.to_f32()
    }
}

impl FromNumber for f64 {
    #[inline]
    fn from_number(number: Number<'_>) -> Result<Self, NumberError> {
        number.to_f64()
    }

    #[inline]
    fn from_short(number: ShortNumber) -> Option<Self> {
        number.to_f64()
    }
}

impl FromNumber for f16 {
    fn from_number(number: Number<'_>) -> Result<Self, NumberError> {
        let value = Self::from_f64(number.to_f64()?);
        if value.is_finite() {
            Ok(value)
        } else {
            Err(NumberError::Range)
        }
    }
}

impl FromNumber for bf16 {
    fn from_number(number: Number<'_>) -> Result<Self, NumberError> {
        let value = Self::from_f64(number.to_f64()?);
        if value.is_finite() {
            Ok(value)
        } else {
            Err(NumberError::Range)
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn parse<T: FromNumber>(text: &str) -> Result<T, NumberError> {
        let (number, length) = Number::read(text.as_bytes())?;
        if length == text.len() {
            T::from_number(number)
        } else {
            Err(NumberError::Syntax)
        }
    }

    #[test]
    fn only_json_numbers_are_numbers() {
        for text in [
            "0",
            "-0",
            "10",
            "0.5",
            "-1e3",
            "1E+2",
            "1e-2",
            "123456789012345678901234567890",
        ] {
            assert!(parse::<f64>(text).is_ok(), "{text}");
        }
        for text in [
            "", "-", "+1", "01", "-01", ".5", "1.", "1e", "1e+", "0x1", "NaN", "Infinity", "inf",
            "1_000", "--1",
        ] {
            assert_eq!(parse::<f64>(text), Err(NumberError::Syntax), "{text}");
        }
    }

    #[test]
    fn digits_are_taken_whatever_stands_behind_them() {
        let digits = "9876543210123456789";
        for length in 0..=digits.len() {
            for behind in [
                "",
                ",",
                "]",
                " ",
                ".5",
                "e3",
                "/",
                ":",
                "\u{0}",
                "\u{7f}",
                "\u{ff}",
                "ü,1",
                ",1234567890",
            ] {
                let text = format!("{}{behind}", &digits[..length]);
                let mut value = 0;
                assert_eq!(take_digits(text.as_bytes(), &mut value), length, "{text:?}");
                assert_eq!(value, digits[..length].parse().unwrap_or(0), "{text:?}");
            }
        }
    }

    #[test]
    fn integers_hold_exactly_their_range() {
        assert_eq!(parse::<i64>("9223372036854775807"), Ok(i64::MAX));
        assert_eq!(parse::<i64>("-9223372036854775808"), Ok(i64::MIN));
        assert_eq!(parse::<i64>("9223372036854775808"), Err(NumberError::Range));
        assert_eq!(parse::<u64>("18446744073709551615"), Ok(u64::MAX));
        assert_eq!(
            parse::<u64>("18446744073709551616"),
            Err(NumberError::Range)
        );
        assert_eq!(parse::<i8>("-128"), Ok(-128));
        assert_eq!(parse::<i8>("128"), Err(NumberError::Range));
        assert_eq!(parse::<u8>("-1"), Err(NumberError::Range));
        assert_eq!(parse::<u8>("-0"), Ok(0));
        assert_eq!(parse::<i32>("1.5"), Err(NumberError::NotAnInteger));
        assert_eq!(parse::<i32>("1e2"), Err(NumberError::NotAnInteger));
    }

    #[test]
    fn floats_that_do_not_fit_are_refused() {
        assert_eq!(parse::<f32>("1e39"), Err(NumberError::Range));
        assert_eq!(parse::<f64>("1e999"), Err(NumberError::Range));
        assert_eq!(parse::<f16>("65520"), Err(NumberError::Range));
        assert_eq!(parse::<f16>("65504"), Ok(f16::MAX));
        assert_eq!(parse::<f32>("1e-999"), Ok(0.0));
    }

    /// A small linear congruential generator: the same numbers in every run.
    pub(crate) struct Lcg(pub(crate) u64);

    impl Lcg {
        pub(crate) fn next(&mut self) -> u64 {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            self.0 >> 11
        }
    }

    #[test]
    fn floats_are_rounded_as_the_standard_library_rounds_them() {
        let mut random = Lcg(7);
        for _ in 0..200_000 {
            let (digits, places, exponent) =
                (random.next(), random.next() % 20, random.next() % 80);
            for text in [
                format!(
                    "{}.{:0width$}",
                    digits % 1000,
                    digits % 10_u64.pow(9),
                    width = usize::try_from(places).unwrap() + 9
                ),
                format!("{digits}e-{exponent}"),
                format!("-0.{digits}"),
                format!(
                    "{}",
                    f32::from_bits(u32::try_from(digits & 0x7f7f_ffff).unwrap())
                ),
                format!(
                    "{:e}",
                    f64::from(f32::from_bits(u32::try_from(digits & 0x7f7f_ffff).unwrap()))
                        * (1.0 + f64::EPSILON)
                ),
            ] {
                assert_eq!(
                    parse::<f64>(&text).unwrap().to_bits(),
                    text.parse::<f64>().unwrap().to_bits(),
                    "{text}"
                );
                let single = text.parse::<f32>().unwrap();
                match parse::<f32>(&text) {
                    Ok(value) => assert_eq!(value.to_bits(), single.to_bits(), "{text}"),
                    Err(error) => assert!(
                        error == NumberError::Range && single.is_infinite(),
                        "{text}"
                    ),
                }
            }
        }
    }

    #[test]
    fn a_midpoint_between_two_singles_is_rounded_once() {
        // Just above the midpoint of 1 and the next f32: as an f64 it is the midpoint itself, which would go down.
        let text = "1.00000005960464477540";
        assert_eq!(
            parse::<f32>(text).unwrap().to_bits(),
            text.parse::<f32>().unwrap().to_bits()
        );
    }
}
