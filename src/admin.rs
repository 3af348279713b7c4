//! The admin port: probes and metrics on an accept loop, a thread and a runtime of their own.
//!
//! Invariant: it answers from before the models are loaded until the process ends, whatever happens on the main port.

use std::net::TcpListener;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crate::net::accept;
use crate::net::config::ListenerConfig;
use crate::net::drain::Drain;
use crate::net::site::{HttpService, Site};
use crate::telemetry::metrics::Metrics;

/// Connections to the admin port at once, beside those in reserve: a cluster's probes and several Prometheus servers.
pub const MAX_CONNECTIONS: usize = 32;

/// Its places in reserve.
pub const RESERVE: usize = 32;

/// The running admin port.
pub struct Admin {
    drain: Drain,
    thread: JoinHandle<()>,
}

impl Admin {
    /// Serves `site` on `listener` on a thread of its own.
    ///
    /// # Errors
    /// When the operating system gives no thread, or nothing to wait with.
    pub fn start<S: HttpService>(
        listener: TcpListener,
        site: Site<S>,
        config: ListenerConfig,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        let drain = Drain::default();
        let serving = accept::serve(listener, site, config, drain.clone(), metrics);
        let thread = thread::Builder::new()
            .name("admin".to_owned())
            .spawn(move || runtime.block_on(serving))?;
        Ok(Self { drain, thread })
    }

    /// Ends it. Blocks for some milliseconds.
    pub fn stop(self) {
        self.drain.abort();
        // A panic in it was counted and logged where it happened.
        drop(self.thread.join());
    }
}
