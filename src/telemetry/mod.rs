//! Telemetry: what the process says about itself. A leaf that every layer may use.
//!
//! Invariant: nothing here can make a request wait.

pub mod collector;
mod json_log;
mod log_writer;
pub mod logging;
pub mod metrics;
pub mod panics;
pub mod progress;
pub mod request_ids;
pub mod supervision;
mod text_log;
mod timestamp;
pub mod traces;
