//! How a prediction is counted.
//!
//! Invariant: however it ends, a client that leaves included, it is counted once.

use std::time::Instant;

use crate::models::served::ServedModel;
use crate::telemetry::metrics::Outcome;

/// Counts a prediction when it is dropped: as what it became, or as cancelled when the client left.
pub struct OutcomeGuard<'m> {
    model: &'m ServedModel,
    arrived_at: Instant,
    outcome: Outcome,
}

impl<'m> OutcomeGuard<'m> {
    /// A prediction with `model` begins, whose request arrived at `arrived_at`.
    #[must_use]
    pub fn new(model: &'m ServedModel, arrived_at: Instant) -> Self {
        model.metrics.in_flight.inc();
        Self {
            model,
            arrived_at,
            outcome: Outcome::Cancelled,
        }
    }

    /// It ended so.
    pub fn ended(mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for OutcomeGuard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The client is still there, and is told of an error.
            self.outcome = Outcome::Error;
        }
        let metrics = &self.model.metrics;
        metrics.in_flight.dec();
        metrics.counter(self.outcome).inc();
        if matches!(
            self.outcome,
            Outcome::Success | Outcome::Timeout | Outcome::Error
        ) {
            metrics
                .duration
                .observe(self.arrived_at.elapsed().as_secs_f64());
        }
    }
}
