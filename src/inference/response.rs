//! What a model answered to one request, and where the time went.
//!
//! Invariant: an answer holds its own rows of an execution, and never those of somebody else.

use std::time::{Duration, Instant};

use crate::tensor::Tensor;

/// Where the time of one request went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// From being queued to the start of its execution.
    pub queue: Duration,
    /// Gathering the inputs of the batch.
    pub compute_input: Duration,
    /// ONNX Runtime's run.
    pub compute_infer: Duration,
}

/// The answer to one request.
#[derive(Debug, Clone)]
pub struct InferenceResponse {
    /// The outputs in the order of the signature.
    pub outputs: Vec<Tensor>,
    /// Where the time went.
    pub timings: Timings,
    /// When the execution that it rode in began.
    pub started_at: Instant,
    /// Rows of the execution that it rode in.
    pub batch_rows: usize,
}
