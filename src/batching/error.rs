//! Why a request was not answered.
//!
//! Invariant: the set is closed; each edge has one table from it to what its clients are told.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

/// Why a request was not answered.
#[derive(Debug, Clone, Error)]
pub enum ScheduleError {
    /// Too much is waiting, or the deadline cannot be met.
    #[error("the server is overloaded: {reason}")]
    Overloaded {
        /// What is full.
        reason: &'static str,
        /// When it is worth trying again.
        retry_after: Duration,
    },
    /// The server is about to stop.
    #[error("the server is draining")]
    ShuttingDown,
    /// Not answered within the deadline.
    #[error("the deadline passed before the answer was ready")]
    DeadlineExceeded,
    /// The model refused the values.
    #[error("the model refused the values")]
    Refused {
        /// What ONNX Runtime said, which is not for clients.
        reason: Arc<str>,
        /// Names, datatypes and shapes of the inputs that it was given.
        inputs: Arc<str>,
    },
    /// The values make the model take more memory than runs may.
    #[error("the values take more memory than runs may")]
    TooLarge,
    /// The model refused inputs that disagree with each other.
    #[error("{0}")]
    Disagreement(Arc<str>),
    /// The GPU is lost, and only a restart may help.
    #[error("the GPU is lost")]
    DeviceLost,
    /// Our fault.
    #[error("the execution failed")]
    Internal(Arc<str>),
}
