//! The highest numbers that a model's settings may have, in flags and in sidecars alike.
//!
//! Invariant: a mistyped number is told, and never makes the server take all memory or threads that there are.

/// Sessions of one model.
pub const MAX_INSTANCES: usize = 1024;

/// Threads of one session.
pub const MAX_THREADS: usize = 1024;

/// CPUs of a machine that settings were measured on.
pub const MAX_CPUS: usize = 65_536;

/// Rows of one execution.
pub const MAX_ROWS: usize = 1 << 20;
