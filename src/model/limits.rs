//! The highest numbers that a model's settings may have, in flags and in sidecars alike.
//!
//! Invariant: a mistyped number is told, and never makes the server take all memory or threads that there are.

use std::num::NonZeroUsize;

/// Sessions of one model.
pub const MAX_INSTANCES: usize = 1024;

/// Threads of one session.
pub const MAX_THREADS: usize = 1024;

/// CPUs of a machine that settings were measured on.
pub const MAX_CPUS: usize = 65_536;

/// Rows of one execution.
pub const MAX_ROWS: usize = 1 << 20;

/// Reads a whole number from 1 to `MAX`.
///
/// # Errors
/// What was expected, and what was there.
pub fn count<const MAX: usize>(text: &str) -> Result<NonZeroUsize, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = digits.then(|| text.parse().ok()).flatten();
    number
        .filter(|number: &NonZeroUsize| number.get() <= MAX)
        .ok_or_else(|| format!("expected a whole number from 1 to {MAX}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_from_one_to_its_limit() {
        for (text, number) in [("1", 1), ("8", 8), ("08", 8)] {
            assert_eq!(count::<8>(text).unwrap().get(), number);
        }
        for text in ["", "0", "9", "-1", "+1", "1.0", "x", "99999999999999999999"] {
            let error = count::<8>(text).unwrap_err();
            assert_eq!(error, "expected a whole number from 1 to 8", "{text}");
        }
    }
}
