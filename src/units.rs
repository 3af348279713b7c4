//! Durations and sizes as people write them: a number and a unit, `250ms` or `64MiB`.
//!
//! Invariant: a bare number is refused, because nobody can tell seconds from milliseconds by looking at `30`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A duration that was written with a unit: `us`, `ms`, `s`, `m` or `h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DurationText(Duration);

/// A number of bytes that was written with a unit: `B`, `KiB`, `MiB`, `GiB`, or `KB`, `MB`, `GB` (powers of ten).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(usize);

impl From<DurationText> for Duration {
    fn from(text: DurationText) -> Self {
        text.0
    }
}

impl From<Duration> for DurationText {
    fn from(duration: Duration) -> Self {
        Self(duration)
    }
}

impl ByteSize {
    /// The number of bytes.
    #[must_use]
    pub fn bytes(self) -> usize {
        self.0
    }
}

impl From<usize> for ByteSize {
    fn from(bytes: usize) -> Self {
        Self(bytes)
    }
}

/// Splits `250ms` into 250 and `ms`.
fn split(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|character: char| !character.is_ascii_digit())?;
    let (number, unit) = text.split_at_checked(end)?;
    Some((number.parse().ok()?, unit.trim_start()))
}

impl FromStr for DurationText {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "'{text}' is not a duration; write a whole number and a unit (us, ms, s, m, h), for example 250ms"
            )
        };
        let (number, unit) = split(text.trim()).ok_or_else(wrong)?;
        let duration = match unit {
            "us" => Some(Duration::from_micros(number)),
            "ms" => Some(Duration::from_millis(number)),
            "s" => Some(Duration::from_secs(number)),
            "m" => number.checked_mul(60).map(Duration::from_secs),
            "h" => number.checked_mul(3600).map(Duration::from_secs),
            _ => None,
        };
        // A deadline must be addable to an instant, so a duration beyond a year is a mistake rather than a wish.
        duration
            .filter(|duration| *duration <= Duration::from_hours(366 * 24))
            .map(Self)
            .ok_or_else(wrong)
    }
}

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "'{text}' is not a size; write a whole number and a unit (B, KiB, MiB, GiB), for example 64MiB"
            )
        };
        let (number, unit) = split(text.trim()).ok_or_else(wrong)?;
        let factor: u64 = match unit {
            "B" => 1,
            "KB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => return Err(wrong()),
        };
        let bytes = number
            .checked_mul(factor)
            .and_then(|bytes| usize::try_from(bytes).ok());
        bytes
            .filter(|bytes| isize::try_from(*bytes).is_ok())
            .map(Self)
            .ok_or_else(wrong)
    }
}

impl fmt::Display for DurationText {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.0.as_micros();
        if micros.is_multiple_of(1_000_000) && micros > 0 {
            write!(formatter, "{}s", micros / 1_000_000)
        } else if micros.is_multiple_of(1_000) {
            write!(formatter, "{}ms", micros / 1_000)
        } else {
            write!(formatter, "{micros}us")
        }
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, name) in [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")] {
            if self.0 >= unit && self.0.is_multiple_of(unit) {
                return write!(formatter, "{}{name}", self.0 / unit);
            }
        }
        write!(formatter, "{}B", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit() {
        let parse = |text: &str| text.parse::<DurationText>().map(Duration::from);
        assert_eq!(parse("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse("0ms"), Ok(Duration::ZERO));
        assert_eq!(parse("2m"), Ok(Duration::from_secs(120)));
        for wrong in [
            "30",
            "",
            "ms",
            "-1s",
            "1.5s",
            "1 fortnight",
            "99999999999999999999s",
            "18446744073709551615h",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_need_a_unit() {
        let parse = |text: &str| text.parse::<ByteSize>().map(ByteSize::bytes);
        assert_eq!(parse("64MiB"), Ok(64 << 20));
        assert_eq!(parse("1KB"), Ok(1_000));
        for wrong in [
            "64",
            "MiB",
            "1.5GiB",
            "-1B",
            "18446744073709551615GiB",
            "9223372036854775808B",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_printed_can_be_read_again() {
        for text in ["0ms", "250ms", "30s", "17us", "90s"] {
            assert_eq!(
                text.parse::<DurationText>()
                    .map(|duration| duration.to_string()),
                Ok(text.to_owned())
            );
        }
        for text in ["0B", "1000B", "32KiB", "64MiB", "1GiB"] {
            assert_eq!(
                text.parse::<ByteSize>().map(|size| size.to_string()),
                Ok(text.to_owned())
            );
        }
    }
}
