//! The highest numbers that a model's settings may have, in flags and in sidecars alike.
//!
//! Invariant: a mistyped number is told, and never makes the server take all memory or threads that there are.

use std::num::NonZeroUsize;

/// Sessions of one model.
pub const MAX_INSTANCES: usize = 1024;

/// Threads of one session.
pub const MAX_THREADS: usize = 1024;

/// Threads of one model: those of all its sessions together.
pub const MAX_MODEL_THREADS: usize = 1024;

/// CPUs of a machine that settings were measured on.
pub const MAX_CPUS: usize = 65_536;

/// Rows of one execution.
pub const MAX_ROWS: usize = 1 << 20;

/// What is wrong with as many sessions of as many threads, if anything.
#[must_use]
pub fn too_many_threads(instances: NonZeroUsize, threads: NonZeroUsize) -> Option<String> {
    let all = instances.saturating_mul(threads).get();
    (all > MAX_MODEL_THREADS).then(|| {
        format!(
            "{instances} instances of {threads} threads are {all} threads, more than the {MAX_MODEL_THREADS} that a model may have; lower one of both"
        )
    })
}
