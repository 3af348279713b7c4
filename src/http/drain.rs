//! The stages of stopping, as the connections see them.
//!
//! Invariant: stages only ever go forward, and each includes the ones before it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio_util::sync::CancellationToken;

/// A cheap handle by which the owner stops the connections stage by stage.
#[derive(Debug, Clone, Default)]
pub struct Drain {
    closing: Arc<AtomicBool>,
    stopping: CancellationToken,
    aborting: CancellationToken,
    aborted_requests: Arc<AtomicUsize>,
}

impl Drain {
    /// Stage 1: every answer from now on tells its client to close the connection and go elsewhere.
    pub fn start_closing(&self) {
        self.closing.store(true, Ordering::Release);
    }

    /// Stage 2: no new connections; kept-alive ones end when their request is answered, or when none comes.
    pub fn stop_accepting(&self) {
        self.start_closing();
        self.stopping.cancel();
    }

    /// Stage 3: whatever is left ends at once.
    pub fn abort(&self) {
        self.stop_accepting();
        self.aborting.cancel();
    }

    /// Whether answers tell their clients to close.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Requests that were received and not answered because of stage 3.
    #[must_use]
    pub fn aborted_requests(&self) -> usize {
        self.aborted_requests.load(Ordering::Relaxed)
    }

    pub(super) fn stopping(&self) -> &CancellationToken {
        &self.stopping
    }

    pub(super) fn aborting(&self) -> &CancellationToken {
        &self.aborting
    }

    pub(super) fn note_aborted(&self) {
        self.aborted_requests.fetch_add(1, Ordering::Relaxed);
    }
}
