//! What holds for the whole process and can only be said while it has one thread: that ONNX Runtime tells nobody, and
//! that memory which is freed goes back to the system.
//!
//! Invariant: [`prepare`] is called before anything else, by every program that loads ONNX Runtime.
#![allow(
    unsafe_code,
    reason = "the environment and the allocator are the process's; see the safety comments"
)]

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::runtime::library::NO_TELEMETRY;

/// Allocations from this size on are mappings of their own, which are gone when they are freed. Left to itself, glibc
/// raises this bound to 32 MiB and keeps up to twice that for each of its arenas. Smaller bodies and answers are reused.
const MAPPED_FROM: i32 = 1 << 20;

/// Free memory at the end of an arena that is kept.
const KEPT: i32 = 8 << 20;

/// What was free in the allocator's arenas after it was given back the last time.
#[cfg(target_env = "gnu")]
static GIVEN_BACK: AtomicUsize = AtomicUsize::new(0);

/// Free memory inside the allocator's arenas that is worth a look through all of them.
#[cfg(target_env = "gnu")]
const WORTH_TRIMMING: usize = 16 << 20;

/// Gives free memory back that lies between allocations: what ONNX Runtime takes of it beside its arenas, for texts and
/// for the tables of some operators, is freed in pieces. To be called now and then; takes a while where there is much.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: both only look at, and give back, memory that the allocator owns.
    unsafe {
        // Pages that were given back count as free as well, so that only what has come since is of interest.
        let free = libc::mallinfo2().fordblks;
        let before = GIVEN_BACK.fetch_min(free, Ordering::Relaxed);
        if free > before.saturating_add(WORTH_TRIMMING) {
            libc::malloc_trim(WORTH_TRIMMING / 2);
            GIVEN_BACK.store(libc::mallinfo2().fordblks, Ordering::Relaxed);
        }
    }
}

/// Prepares the process. To be called first in `main`.
///
/// # Safety
/// The process has no other thread, which might read the environment meanwhile.
pub unsafe fn prepare() {
    // SAFETY: as the caller promises.
    unsafe { std::env::set_var(NO_TELEMETRY.0, NO_TELEMETRY.1) };
    #[cfg(target_env = "gnu")]
    // SAFETY: `mallopt` takes numbers only; an unsuitable one is refused without effect.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_FROM);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
    }
}
