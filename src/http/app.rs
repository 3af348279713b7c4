//! What the handlers share.

use std::sync::Arc;
use std::time::Duration;

use super::api_keys::ApiKeys;
use super::quiet::QuietRoutes;
use crate::models::registry::Registry;
use crate::net::drain::Drain;
use crate::service::Service;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traces::Tracer;

/// The bounds of requests and answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpConfig {
    /// The deadline of a request that brings no shorter one.
    pub request_timeout: Duration,
    /// From a request's head to the last byte of its body.
    pub body_timeout: Duration,
    /// Bytes of a body, decompressed.
    pub max_body_size: usize,
    /// Bytes of an answer.
    pub max_output_size: usize,
    /// Bytes of all headers together.
    pub max_header_size: usize,
    /// Number of headers.
    pub max_headers: usize,
    /// Bytes of a URI.
    pub max_uri_size: usize,
    /// Nested arrays and objects in JSON.
    pub max_json_depth: usize,
    /// Further routes that answer like `/ready`, as hosting platforms ask for.
    pub health_routes: Vec<String>,
    /// Further routes that answer like `/predict`.
    pub predict_routes: Vec<String>,
    /// Who may use the routes other than probes and metrics; anybody if not given.
    pub api_keys: Option<ApiKeys>,
}

/// What the handlers share.
pub struct App {
    /// The models, and whether they can be used.
    pub registry: Arc<Registry>,
    /// Everything that is counted.
    pub metrics: Arc<Metrics>,
    /// What makes predictions.
    pub service: Arc<Service>,
    /// The bounds of requests and answers.
    pub config: HttpConfig,
    /// What makes the spans of requests.
    pub tracer: Tracer,
    /// How the server stops.
    pub(super) drain: Drain,
    /// Probes and metrics.
    pub(super) quiet_routes: QuietRoutes,
}

impl App {
    /// The shared state of a server.
    #[must_use]
    pub fn new(
        registry: Arc<Registry>,
        metrics: Arc<Metrics>,
        service: Arc<Service>,
        config: HttpConfig,
        tracer: Tracer,
        drain: Drain,
    ) -> Self {
        let quiet_routes = QuietRoutes::new(&config.health_routes, &config.predict_routes);
        Self {
            registry,
            metrics,
            service,
            config,
            tracer,
            drain,
            quiet_routes,
        }
    }
}
