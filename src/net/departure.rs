//! How a connection is asked for its place, and how it answers.
//!
//! Invariant: whoever asks is answered once, also by the end of the connection.

use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// How one connection is asked to give way.
#[derive(Default)]
pub(super) struct Departure {
    asked: AtomicBool,
    /// Whoever waits for its answer.
    asking: Mutex<Option<oneshot::Sender<()>>>,
    waker: Mutex<Option<Waker>>,
}

impl Departure {
    /// Says whom to wake.
    pub(super) fn of(&self, waker: &Waker) {
        *self.waker.lock() = Some(waker.clone());
    }

    pub(super) fn is_asked_for(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }

    /// Declines, or says that it has gone.
    pub(super) fn answer(&self) {
        let asking = self.asking.lock().take();
        self.asked.store(false, Ordering::Release);
        // Nobody may wait any more.
        let _ = asking.map(|asking| asking.send(()));
    }

    pub(super) fn ask(&self) -> oneshot::Receiver<()> {
        let (asking, answer) = oneshot::channel();
        *self.asking.lock() = Some(asking);
        self.asked.store(true, Ordering::Release);
        if let Some(waker) = &*self.waker.lock() {
            waker.wake_by_ref();
        }
        answer
    }
}
