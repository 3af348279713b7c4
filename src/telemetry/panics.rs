//! Panics: each is counted, and is one line of the log, with the request that it was about where that is known.
//!
//! Invariant: no panic is silent, wherever it happens, and none is raw text on standard error.

use std::cell::Cell;
use std::sync::Arc;

use http::HeaderValue;

use super::metrics::Metrics;

thread_local! {
    /// The request that this thread works for.
    static REQUEST: Cell<Option<HeaderValue>> = const { Cell::new(None) };
}

/// Counts every panic of the process in `metrics` from now on, and logs it as one line.
pub fn count(metrics: &Arc<Metrics>) {
    let panics = metrics.panics.clone();
    std::panic::set_hook(Box::new(move |panic| {
        panics.inc();
        let place = panic
            .location()
            .map(ToString::to_string)
            .unwrap_or_default();
        let reason = panic.payload_as_str().unwrap_or("(no message)");
        let request = REQUEST.take();
        let request_id = request.as_ref().and_then(|id| id.to_str().ok());
        let thread = std::thread::current();
        let thread = thread.name();
        tracing::error!(thread, request_id, place, reason, "panic");
        REQUEST.set(request);
    }));
}

/// Does `work`, which is for the request `id`. Should it panic, the line of the panic names that request.
pub fn about<T>(id: &HeaderValue, work: impl FnOnce() -> T) -> T {
    /// Puts back what was there, also when `work` panics.
    struct Before(Option<HeaderValue>);
    impl Drop for Before {
        fn drop(&mut self) {
            REQUEST.set(self.0.take());
        }
    }
    let _before = Before(REQUEST.replace(Some(id.clone())));
    work()
}
