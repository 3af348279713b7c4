//! Several things that are wrong at once, as one line.
//!
//! Invariant: the line is bounded, however many there are.

use std::fmt;

/// The most faults that one message names.
const MOST_NAMED: usize = 8;

/// Refuses if there are faults: with the only one, or with all of them as `several`.
///
/// # Errors
/// If there are any.
pub fn refuse<E>(mut faults: Vec<E>, several: impl FnOnce(Vec<E>) -> E) -> Result<(), E> {
    match (faults.len(), faults.pop()) {
        (_, None) => Ok(()),
        (1, Some(fault)) => Err(fault),
        (_, Some(last)) => {
            faults.push(last);
            Err(several(faults))
        }
    }
}

/// The first of several faults, numbered.
pub struct Faults<'a, E>(pub &'a [E]);

impl<E: fmt::Display> fmt::Display for Faults<'_, E> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().take(MOST_NAMED).enumerate() {
            let before = if index == 0 { "" } else { "; " };
            write!(formatter, "{before}({}) {fault}", index + 1)?;
        }
        match self.0.len().saturating_sub(MOST_NAMED) {
            0 => Ok(()),
            more => write!(formatter, "; and {more} more"),
        }
    }
}
