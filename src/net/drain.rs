//! The stages of stopping, as the connections see them.
//!
//! Invariant: stages only ever go forward, and each includes the ones before it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

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

    /// Whether stage 3 is reached.
    pub(crate) fn is_aborting(&self) -> bool {
        self.aborting.is_cancelled()
    }

    /// Requests that were received and, because of stage 3, not answered to the last byte.
    #[must_use]
    pub fn aborted_requests(&self) -> usize {
        self.aborted_requests.load(Ordering::Relaxed)
    }

    pub(super) fn stopping(&self) -> WaitForCancellationFutureOwned {
        self.stopping.clone().cancelled_owned()
    }

    pub(super) fn aborting(&self) -> WaitForCancellationFutureOwned {
        self.aborting.clone().cancelled_owned()
    }

    pub(super) fn note_aborted(&self) {
        self.aborted_requests.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn whoever_waits_for_a_stage_is_woken_by_it_and_by_no_earlier_one() {
        let drain = Drain::default();
        let tasks: Vec<_> = (0..50)
            .map(|_| {
                let (stopping, aborting) = (drain.stopping(), drain.aborting());
                tokio::spawn(async move {
                    let (mut stopping, mut aborting) = (pin!(stopping), pin!(aborting));
                    tokio::select! {
                        biased;
                        () = &mut stopping => {}
                        () = &mut aborting => panic!("aborted before it was stopped"),
                    }
                    aborting.await;
                })
            })
            .collect();
        tokio::task::yield_now().await;
        drain.stop_accepting();
        assert!(drain.is_closing());
        drain.abort();
        for task in tasks {
            task.await.unwrap();
        }
        drain.stopping().await;
    }
}
