//! Telemetry: what the process says about itself. A leaf that every layer may use.
//!
//! Invariant: nothing here can make a request wait.

mod clock;
pub mod collector;
mod json_log;
mod log_writer;
pub mod logging;
pub mod metrics;
pub mod progress;
mod text_log;
pub mod traces;

use std::sync::Arc;

use metrics::Metrics;

/// Counts every panic of the process from now on, and logs it as one line.
pub fn count_panics(metrics: &Arc<Metrics>) {
    let panics = metrics.panics.clone();
    std::panic::set_hook(Box::new(move |panic| {
        panics.inc();
        let place = panic
            .location()
            .map(ToString::to_string)
            .unwrap_or_default();
        let message = panic.payload_as_str().unwrap_or("(no message)");
        tracing::error!(place, message, "panic");
    }));
}
