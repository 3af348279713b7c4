//! The kinds of values that settings have, each with a sentence for what it is not.
//!
//! Invariant: words ignore case and blanks around them; what is ambiguous or out of range is refused with what is
//! expected and an example.

use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum as _;
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap_complete::Shell;

use crate::model::{self, limits};
use crate::units::{ByteSize, DurationText, whole_number};

/// The deepest JSON: no tensor has more dimensions than this.
const MAX_JSON_DEPTH: usize = 1024;

/// The most headers: the HTTP library holds no more than 24,576 of them, and twice the limit is read.
const MAX_HEADERS: usize = 10_000;

/// The most rows that may wait or arrive at once: far more than any memory holds.
const MAX_COUNT: usize = u32::MAX as usize;

/// The longest URI that the HTTP library takes, in bytes.
const MAX_URI: usize = u16::MAX as usize - 1;

/// Something that is on or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Switch(pub bool);

impl FromStr for Switch {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim().to_ascii_lowercase().as_str() {
            "on" | "true" | "yes" | "1" => Ok(Self(true)),
            "off" | "false" | "no" | "0" => Ok(Self(false)),
            _ => Err(format!("'{text}' is neither on nor off; write on or off")),
        }
    }
}

/// A time, or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionalTime(pub Option<Duration>);

impl FromStr for OptionalTime {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.trim().eq_ignore_ascii_case("off") {
            return Ok(Self(None));
        }
        let time: DurationText = text.parse().map_err(|error| format!("{error}, or off"))?;
        let time = Duration::from(time);
        if time.is_zero() {
            return Err(format!(
                "'{text}' is no time; write off, or a time such as 10s"
            ));
        }
        Ok(Self(Some(time)))
    }
}

impl fmt::Display for OptionalTime {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => formatter.write_str("off"),
            Some(time) => DurationText::from(time).fmt(formatter),
        }
    }
}

/// The shortest pause between two looks at files, which cost some system calls each.
const MIN_INTERVAL: Duration = Duration::from_millis(10);

/// How often something is looked at, or off.
pub(super) fn interval(text: &str) -> Result<OptionalTime, String> {
    let interval: OptionalTime = text.parse()?;
    if interval.0.is_some_and(|interval| interval < MIN_INTERVAL) {
        return Err(format!(
            "'{text}' would look again and again without a rest; write off, or at least {}, for example 10s",
            DurationText::from(MIN_INTERVAL)
        ));
    }
    Ok(interval)
}

/// The port of a listener.
pub(super) fn port(text: &str) -> Result<u16, String> {
    let port = whole_number(text.trim());
    port.ok_or_else(|| {
        format!("'{text}' is not a port; write a number from 0 to 65535, for example 8000")
    })
}

/// How many there are of something that there must be.
pub(super) fn count(text: &str) -> Result<NonZeroUsize, String> {
    bounded(text, MAX_COUNT, 32)
}

/// Sessions of a model.
pub(super) fn instances(text: &str) -> Result<NonZeroUsize, String> {
    bounded(text, limits::MAX_INSTANCES, 4)
}

/// Threads of a session.
pub(super) fn threads(text: &str) -> Result<NonZeroUsize, String> {
    bounded(text, limits::MAX_THREADS, 4)
}

/// Rows of an execution.
pub(super) fn rows(text: &str) -> Result<NonZeroUsize, String> {
    bounded(text, limits::MAX_ROWS, 32)
}

/// Levels of JSON.
pub(super) fn json_depth(text: &str) -> Result<NonZeroUsize, String> {
    bounded(text, MAX_JSON_DEPTH, 32)
}

/// Headers of a request.
pub(super) fn headers(text: &str) -> Result<NonZeroUsize, String> {
    bounded(text, MAX_HEADERS, 100)
}

fn bounded(text: &str, most: usize, example: usize) -> Result<NonZeroUsize, String> {
    let number = whole_number(text.trim())
        .filter(|number| *number <= most)
        .and_then(NonZeroUsize::new);
    number.ok_or_else(|| {
        format!("'{text}' is not a whole number from 1 to {most}; write one, for example {example}")
    })
}

/// A time that must pass: a deadline of nothing would refuse everybody.
pub(super) fn positive_time(text: &str) -> Result<DurationText, String> {
    let time: DurationText = text.parse()?;
    if Duration::from(time).is_zero() {
        return Err(format!(
            "'{text}' would leave no time at all; write a longer one, for example 10s"
        ));
    }
    Ok(time)
}

/// A size that lets something pass.
pub(super) fn positive_size(text: &str) -> Result<ByteSize, String> {
    at_least_a_byte(text, "64MiB")
}

fn at_least_a_byte(text: &str, example: &str) -> Result<ByteSize, String> {
    let size: ByteSize = text.parse()?;
    if size.bytes() == 0 {
        return Err(format!(
            "'{text}' would let nothing pass; write a larger size, for example {example}"
        ));
    }
    Ok(size)
}

/// The size of a URI.
pub(super) fn uri_size(text: &str) -> Result<ByteSize, String> {
    let size = at_least_a_byte(text, "8KiB")?;
    if size.bytes() > MAX_URI {
        return Err(format!(
            "'{text}' is more than a URI can have here; write at most {MAX_URI}B, for example 8KiB"
        ));
    }
    Ok(size)
}

/// The path of a file or folder, which need not be UTF-8.
pub(super) fn path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().try_map(|text| {
        if text.to_str().is_some_and(|text| text.trim().is_empty()) {
            return Err("it is blank");
        }
        Ok(PathBuf::from(text))
    })
}

/// A shell that completions can be made for.
pub(super) fn shell(text: &str) -> Result<Shell, String> {
    let word = text.trim();
    let known = Shell::value_variants();
    known
        .iter()
        .copied()
        .find(|shell| shell.to_string().eq_ignore_ascii_case(word))
        .ok_or_else(|| {
            let names: Vec<String> = known.iter().map(Shell::to_string).collect();
            format!(
                "'{text}' is no shell that is known; write one of {}",
                names.join(", ")
            )
        })
}

/// The name of a model.
pub(super) fn model_name(text: &str) -> Result<String, String> {
    if model::is_name(text) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "'{text}' cannot be a model's name; use 1 to 128 letters, digits, '.', '_' or '-', not beginning with '.', for example digits"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_ignore_case() {
        for text in ["on", "ON", "True", "yes", "1", " on "] {
            assert_eq!(text.parse(), Ok(Switch(true)), "{text}");
        }
        for text in ["off", "Off", "FALSE", "no", "0"] {
            assert_eq!(text.parse(), Ok(Switch(false)), "{text}");
        }
        for text in ["off", "OFF", " Off "] {
            assert_eq!(text.parse(), Ok(OptionalTime(None)), "{text}");
        }
        assert!("offf".parse::<OptionalTime>().is_err());
        assert!("o".parse::<Switch>().is_err());
    }

    #[test]
    fn numbers_are_digits_within_their_range() {
        assert_eq!(port("0"), Ok(0));
        assert_eq!(port(" 65535 "), Ok(65535));
        assert_eq!(count("7").map(NonZeroUsize::get), Ok(7));
        for wrong in [
            "",
            "65536",
            "+80",
            "-1",
            "8000.0",
            "0x50",
            "eighty",
            "99999999999999999999",
        ] {
            assert!(port(wrong).is_err(), "{wrong}");
        }
        assert!(count("0").is_err());
        assert!(count("+1").is_err());
        assert!(threads("1024").is_ok());
        assert_eq!(
            threads("1025"),
            Err("'1025' is not a whole number from 1 to 1024; write one, for example 4".to_owned())
        );
        assert!(headers("10001").is_err());
        assert!(json_depth("1025").is_err());
    }

    #[test]
    fn what_would_refuse_everybody_is_no_setting() {
        assert!(positive_time("1ms").is_ok());
        assert!(positive_time("0s").is_err());
        assert!(positive_size("1B").is_ok());
        assert!(positive_size("0MiB").is_err());
        assert!(uri_size("65534B").is_ok());
        assert!(uri_size("64KiB").is_err());
        assert!(model_name("").is_err());
        assert!(model_name("a/b").is_err());
    }
}
