//! Whether ONNX Runtime loads something.
//!
//! Invariant: nobody can stop that, so that who ends the process has to know of it.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Loads that ONNX Runtime has not ended.
static LOADS: AtomicUsize = AtomicUsize::new(0);

/// ONNX Runtime loads a model while this is there.
#[must_use = "it ends when this is dropped"]
pub struct LoadInProgress(());

impl LoadInProgress {
    /// It begins.
    pub fn begin() -> Self {
        LOADS.fetch_add(1, Ordering::SeqCst);
        Self(())
    }

    /// Whether there is any.
    #[must_use]
    pub fn is_any() -> bool {
        LOADS.load(Ordering::SeqCst) > 0
    }
}

impl Drop for LoadInProgress {
    fn drop(&mut self) {
        LOADS.fetch_sub(1, Ordering::SeqCst);
    }
}
