//! The stages of stopping, as the connections see them.
//!
//! Invariant: stages only ever go forward, and each includes the ones before it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// A cheap handle by which the owner stops the connections stage by stage.
#[derive(Debug, Clone, Default)]
pub struct Drain {
    closing: Arc<AtomicBool>,
    stopping: Stage,
    aborting: Stage,
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
        self.stopping.reach();
    }

    /// Stage 3: whatever is left ends at once.
    pub fn abort(&self) {
        self.stop_accepting();
        self.aborting.reach();
    }

    /// Whether answers tell their clients to close.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Whether stage 3 is reached.
    pub(crate) fn is_aborting(&self) -> bool {
        self.aborting.is_reached()
    }

    /// Requests that were received and, because of stage 3, not answered to the last byte.
    #[must_use]
    pub fn aborted_requests(&self) -> usize {
        self.aborted_requests.load(Ordering::Relaxed)
    }

    pub(super) fn stopping(&self) -> StageReached {
        self.stopping.reached()
    }

    pub(super) fn aborting(&self) -> StageReached {
        self.aborting.reached()
    }

    pub(super) fn note_aborted(&self) {
        self.aborted_requests.fetch_add(1, Ordering::Relaxed);
    }
}

/// A stage that everybody can wait for.
#[derive(Debug, Clone, Default)]
struct Stage {
    reached: Arc<AtomicBool>,
    token: CancellationToken,
}

impl Stage {
    fn reach(&self) {
        // First what is looked at, then what wakes those who look.
        self.reached.store(true, Ordering::Release);
        self.token.cancel();
    }

    fn is_reached(&self) -> bool {
        self.reached.load(Ordering::Acquire)
    }

    fn reached(&self) -> StageReached {
        StageReached {
            reached: Arc::clone(&self.reached),
            cancelled: Box::pin(self.token.clone().cancelled_owned()),
            registered: false,
        }
    }
}

/// Ends when a stage is reached. To be polled by one task only.
///
/// A connection polls it several times for every request. The token takes a lock that all connections share each time; so
/// it is asked once, to be woken by it, and from then on only when the stage is known to be reached.
#[derive(Debug)]
pub(super) struct StageReached {
    reached: Arc<AtomicBool>,
    cancelled: Pin<Box<WaitForCancellationFutureOwned>>,
    registered: bool,
}

impl Future for StageReached {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.registered && !self.reached.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        self.registered = true;
        self.cancelled.as_mut().poll(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn whoever_waits_for_a_stage_is_woken_by_it_and_by_no_earlier_one() {
        let drain = Drain::default();
        let tasks: Vec<_> = (0..50)
            .map(|_| {
                let (mut stopping, mut aborting) = (drain.stopping(), drain.aborting());
                tokio::spawn(async move {
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
