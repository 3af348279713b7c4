//! The bound of the memory of runs on the CPU, by the memory that there is.
//!
//! Invariant: where it is known how much there is, runs may hold no more than a quarter of it, and half of it those of a
//! model of which one row takes more.

/// The memory that runs on the CPU may hold at once, in bytes. Weights are not part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunMemory {
    /// What suffices for most models.
    pub usual: usize,
    /// What it may be raised to for a model of which one row takes more.
    pub most: usize,
}

impl RunMemory {
    /// `wanted` bytes, and in any case no more than a quarter of the `memory` that there is, because requests and answers
    /// may hold as much again; half of it for a model of which one row takes more.
    #[must_use]
    pub fn within(memory: Option<usize>, wanted: usize) -> Self {
        let part = |part: usize| memory.map_or(wanted, |memory| memory / part);
        Self {
            usual: wanted.min(part(4)),
            most: part(2),
        }
    }
}
