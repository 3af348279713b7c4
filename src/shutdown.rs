//! Stopping: the drain sequence under one grace period.
//!
//! Invariant: what was accepted is answered before the process ends, unless the grace period ends first.

use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use crate::models::registry::Registry;
use crate::net::drain::Drain;
use crate::signals::Stop;

/// How the server stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainConfig {
    /// How long requests are still taken after readiness was withdrawn, so that load balancers can notice.
    pub delay: Duration,
    /// How long accepted requests may then take.
    pub timeout: Duration,
}

/// Drains the server: unready at once, a delay, no new connections, the accepted requests, the instances.
///
/// `hurry` ends the grace period early.
pub(crate) async fn drain(
    registry: &Registry,
    connections: &Drain,
    mut serving: JoinHandle<()>,
    config: DrainConfig,
    stop: Stop,
    hurry: impl Future<Output = ()>,
) {
    let started = Instant::now();
    registry.drain();
    connections.start_closing();
    tracing::info!(signal = stop.name(), "draining");
    let sequence = async {
        if stop == Stop::Terminate {
            tokio::time::sleep(config.delay).await;
        }
        connections.stop_accepting();
        let finished = tokio::time::timeout(config.timeout, &mut serving).await;
        finished.is_ok()
    };
    let finished = tokio::select! {
        finished = sequence => finished,
        () = hurry => false,
    };
    if !finished {
        connections.abort();
        // Aborted connections end as soon as they are polled; the bound is for what must not happen.
        let _ = tokio::time::timeout(Duration::from_secs(1), &mut serving).await;
        let requests = connections.aborted_requests();
        if requests > 0 {
            tracing::warn!(
                requests,
                "the grace period ended before these requests were answered"
            );
        }
    }
    // Requests that nobody waits for any more are all that instances can still be busy with.
    let deadline = if finished {
        started + config.delay + config.timeout
    } else {
        Instant::now()
    };
    let mut joined = true;
    let models = registry.models();
    for model in models.all() {
        model.scheduler.close();
    }
    for model in models.all() {
        joined &= model.scheduler.join(deadline);
    }
    let seconds = started.elapsed().as_secs_f64();
    tracing::info!(seconds, instances_joined = joined, "stopped");
}
