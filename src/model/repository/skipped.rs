//! What lies in a repository and is not served, each with the reason.
//!
//! Invariant: the list is bounded, whatever lies there; what is beyond it is counted.

use std::ffi::OsStr;
use std::fmt;

/// The most entries that are named.
const MOST_NAMED: usize = 128;

/// The most entries that one line names.
const MOST_IN_A_LINE: usize = 3;

/// Something in a repository that is not served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Where it lies, relative to the repository.
    pub path: String,
    /// Why it is not served, and what to do.
    pub reason: String,
}

impl fmt::Display for Skipped {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.path, self.reason)
    }
}

/// Everything in a repository that is not served.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SkippedList {
    named: Vec<Skipped>,
    more: usize,
}

impl SkippedList {
    /// Adds what lies at `path`, or counts it.
    pub fn push(&mut self, path: String, reason: String) {
        if self.named.len() < MOST_NAMED {
            self.named.push(Skipped { path, reason });
        } else {
            self.more += 1;
        }
    }

    /// Adds all of `other`, or counts them.
    pub fn append(&mut self, other: Self) {
        for Skipped { path, reason } in other.named {
            self.push(path, reason);
        }
        self.more += other.more;
    }

    /// Those that are named, in the order of their paths.
    #[must_use]
    pub fn named(&self) -> &[Skipped] {
        &self.named
    }

    /// How many more there are.
    #[must_use]
    pub fn more(&self) -> usize {
        self.more
    }
}

/// The first few, for a message of one line; nothing if there are none.
impl fmt::Display for SkippedList {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, skipped) in self.named.iter().take(MOST_IN_A_LINE).enumerate() {
            let before = if index == 0 { "; not served: " } else { ", " };
            write!(formatter, "{before}{} ({})", skipped.path, skipped.reason)?;
        }
        match self.named.len().saturating_sub(MOST_IN_A_LINE) + self.more {
            0 => Ok(()),
            more => write!(formatter, ", and {more} more"),
        }
    }
}

/// A file's name as it can be shown on one line.
pub(super) fn shown(name: &OsStr) -> String {
    let mut text = String::new();
    for character in name.to_string_lossy().chars() {
        if character.is_control() {
            text.extend(character.escape_default());
        } else {
            text.push(character);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_bounded_and_counts_the_rest() {
        let mut list = SkippedList::default();
        assert_eq!(list.to_string(), "");
        for index in 0..MOST_NAMED + 5 {
            list.push(format!("a/v{index}"), "is no version".to_owned());
        }
        assert_eq!((list.named().len(), list.more()), (MOST_NAMED, 5));
        let text = list.to_string();
        assert!(
            text.starts_with("; not served: a/v0 (is no version), a/v1 "),
            "{text}"
        );
        assert!(text.ends_with(", and 130 more"), "{text}");
    }

    #[test]
    fn a_name_is_shown_on_one_line() {
        assert_eq!(shown(OsStr::new("a\nb ä")), "a\\nb ä");
    }
}
