//! Numbers as people write them, and durations and sizes: a number and a unit, `250ms` or `64MiB`.
//!
//! Invariant: a bare number is refused, because nobody can tell seconds from milliseconds by looking at `30`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A duration that was written with a unit: `us`, `ms`, `s`, `m` (or `min`) or `h`, in upper or lower case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DurationText(Duration);

/// A number of bytes that was written with a unit: `B`, `KiB`, `MiB`, `GiB`, `TiB` (or `Ki` and so on), or `KB`, `MB`,
/// `GB`, `TB` (powers of ten), in upper or lower case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(usize);

/// A whole number: decimal digits and nothing else. Rust's own reading takes a sign as well; `+5` is more often a mistake
/// than a five, and whoever stands between client and server may not take it.
#[must_use]
pub fn whole_number<T: FromStr>(text: &str) -> Option<T> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
    is_plain.then(|| text.parse().ok()).flatten()
}

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

/// Splits `250ms` into 250 and `ms`, the unit in lower case: no two units differ in case alone. A number beyond all that
/// can be counted is the largest one.
fn split(text: &str) -> Option<(u64, String)> {
    let text = text.trim();
    let end = text
        .find(|character: char| !character.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(end)?;
    if number.is_empty() {
        return None;
    }
    // Of digits alone, nothing else can be wrong.
    let number = number.parse().unwrap_or(u64::MAX);
    Some((number, unit.trim_start().to_lowercase()))
}

impl FromStr for DurationText {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = "write a whole number and a unit (us, ms, s, m, h), for example 250ms";
        let (number, unit) =
            split(text).ok_or_else(|| format!("'{text}' is not a duration; {expected}"))?;
        let micros: u64 = match unit.as_str() {
            // Two characters look like the Greek letter.
            "us" | "\u{b5}s" | "\u{3bc}s" => 1,
            "ms" => 1_000,
            "s" => 1_000_000,
            "m" | "min" => 60 * 1_000_000,
            "h" => 3600 * 1_000_000,
            "" => return Err(format!("'{text}' has no unit; {expected}")),
            _ => return Err(format!("'{text}' is not a duration; {expected}")),
        };
        // A deadline must be addable to an instant, so a duration beyond a year is a mistake rather than a wish.
        number
            .checked_mul(micros)
            .map(Duration::from_micros)
            .filter(|duration| *duration <= Duration::from_hours(366 * 24))
            .map(Self)
            .ok_or_else(|| format!("'{text}' is longer than a year; write less, for example 250ms"))
    }
}

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = "write a whole number and a unit (B, KiB, MiB, GiB), for example 64MiB";
        let (number, unit) =
            split(text).ok_or_else(|| format!("'{text}' is not a size; {expected}"))?;
        let factor: u64 = match unit.as_str() {
            "b" => 1,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "tb" => 1_000_000_000_000,
            // Kubernetes writes them without the B.
            "ki" | "kib" => 1 << 10,
            "mi" | "mib" => 1 << 20,
            "gi" | "gib" => 1 << 30,
            "ti" | "tib" => 1 << 40,
            "" => return Err(format!("'{text}' has no unit; {expected}")),
            // Docker means powers of two by them, and Kubernetes powers of ten.
            "k" | "m" | "g" | "t" => {
                let unit = unit.to_uppercase();
                return Err(format!(
                    "'{text}' can mean two sizes; write {number}{unit}iB (powers of 1024) or {number}{unit}B (powers of 1000)"
                ));
            }
            _ => return Err(format!("'{text}' is not a size; {expected}")),
        };
        let bytes = number
            .checked_mul(factor)
            .and_then(|bytes| usize::try_from(bytes).ok());
        bytes
            .filter(|bytes| isize::try_from(*bytes).is_ok())
            .map(Self)
            .ok_or_else(|| {
                format!("'{text}' is more than there can be; write less, for example 64MiB")
            })
    }
}

impl fmt::Display for DurationText {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.0.as_micros();
        if micros.is_multiple_of(3_600_000_000) && micros > 0 {
            write!(formatter, "{}h", micros / 3_600_000_000)
        } else if micros.is_multiple_of(1_000_000) && micros > 0 {
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
        for (unit, name) in [
            (1 << 40, "TiB"),
            (1 << 30, "GiB"),
            (1 << 20, "MiB"),
            (1 << 10, "KiB"),
        ] {
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
        assert_eq!(parse(" 250 MS "), Ok(Duration::from_millis(250)));
        assert_eq!(parse("2Min"), parse("120S"));
        assert_eq!(parse("3\u{b5}s"), parse("3us"));
        assert!(parse("30").unwrap_err().contains("has no unit"));
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
        assert_eq!(parse("64mib"), parse("64 MiB"));
        assert_eq!(parse("64Mi"), parse("64MIB"));
        assert_eq!(parse("1kB"), Ok(1_000));
        assert!(parse("64").unwrap_err().contains("has no unit"));
        let two = parse("64m").unwrap_err();
        assert!(two.contains("64MiB") && two.contains("64MB"), "{two}");
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
