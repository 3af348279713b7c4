//! A number that nobody else has, to keep many processes or connections from doing something in the same moment.
//!
//! Invariant: nothing that must be secret depends on it.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};

/// A number from 0 to 1, another one with each call.
#[must_use]
pub fn chance() -> f64 {
    // Each is made with other keys, which the system gave the process at random.
    let random = RandomState::new().build_hasher().finish();
    #[expect(clippy::cast_precision_loss, reason = "any number between will do")]
    let chance = random as f64 / u64::MAX as f64;
    chance
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_spread_between_nothing_and_one() {
        let numbers: Vec<f64> = (0..1000).map(|_| chance()).collect();
        assert!(numbers.iter().all(|number| (0.0..=1.0).contains(number)));
        let low = numbers.iter().filter(|number| **number < 0.5).count();
        assert!((350..650).contains(&low), "{low}");
    }
}
