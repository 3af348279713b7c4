//! How the CPUs are divided among models.
//!
//! Invariant: what all models start by themselves together are no more threads than there are CPUs, or one for each model.

use std::num::NonZeroUsize;
use std::thread;

/// The CPUs that this process may use: the number that the container's quota allows, not the number that the host has.
#[must_use]
pub fn available() -> usize {
    thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

/// The CPUs of each of so many models, of `all` that there are. Nobody knows which of them will be asked most, so each has
/// as many as any other; whoever knows better says so by flags, or in the sidecars.
#[must_use]
pub fn share(all: usize, models: usize) -> usize {
    (all / models.max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_share_the_cpus_and_each_has_one() {
        for (all, models, each) in [
            (2, 0, 2),
            (2, 1, 2),
            (2, 5, 1),
            (8, 2, 4),
            (8, 3, 2),
            (1, 1, 1),
            (64, 64, 1),
        ] {
            assert_eq!(share(all, models), each, "{all} {models}");
            assert!(models * share(all, models) <= all.max(models));
        }
    }
}
