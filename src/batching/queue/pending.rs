//! What waits in the queue: a request, and the way back to its client.
//!
//! Invariant: an answer is given by giving the entry up, so that nobody is answered twice.

use std::time::Instant;

use tokio::sync::oneshot;

use crate::batching::ScheduleError;
use crate::inference::{InferenceRequest, InferenceResponse};

/// One request in the queue, with the way back to its client.
#[derive(Debug)]
pub struct Pending {
    /// What is to be computed.
    pub request: InferenceRequest,
    /// Where the answer goes; closed when the client has left.
    pub respond: oneshot::Sender<Result<InferenceResponse, ScheduleError>>,
    /// When it was queued.
    pub enqueued_at: Instant,
}

impl Pending {
    /// Sends the answer. A client that left meanwhile is nobody's error.
    pub fn answer(self, result: Result<InferenceResponse, ScheduleError>) {
        // The memory is given back first, because whoever has the answer may send the next request at once.
        drop(self.request);
        let _ = self.respond.send(result);
    }

    /// Whether somebody still waits for the answer at `now`.
    #[must_use]
    pub fn is_wanted(&self, now: Instant) -> bool {
        !self.respond.is_closed() && self.request.deadline() > now
    }
}
