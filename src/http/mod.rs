//! The edge: the only place that knows axum, HTTP and JSON. All routes stand on this page.
//!
//! A request passes the accept loop ([`accept`]), its connection ([`connection`]), what is common to all routes
//! (`middleware`), and a handler. Invariant: every status comes from the one table in [`error`].

pub mod accept;
pub mod api_keys;
mod body;
pub mod connection;
pub mod drain;
pub mod error;
mod exposition;
mod headers;
mod health;
mod media;
mod metadata;
mod middleware;
mod phase;
mod predict;
pub mod wire;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::Method;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use tower_http::catch_panic::CatchPanicLayer;

use crate::batching::MemoryBudget;
use crate::registry::Registry;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traces::Tracer;
use api_keys::ApiKeys;
use drain::Drain;
use error::ApiError;

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
    /// The memory that requests may hold at once.
    pub budget: MemoryBudget,
    /// The bounds of requests and answers.
    pub config: HttpConfig,
    /// What makes the spans of requests.
    pub tracer: Tracer,
    /// How the server stops.
    drain: Drain,
    /// Probes and metrics: they ask for no key, and their successes are not worth a line in the log.
    quiet_routes: Vec<String>,
}

impl App {
    /// The shared state of a server.
    #[must_use]
    pub fn new(
        registry: Arc<Registry>,
        metrics: Arc<Metrics>,
        budget: MemoryBudget,
        config: HttpConfig,
        tracer: Tracer,
        drain: Drain,
    ) -> Self {
        let mut quiet_routes: Vec<String> = ["/health", "/ready", "/ping", "/metrics"]
            .map(str::to_owned)
            .to_vec();
        quiet_routes.extend(config.health_routes.iter().cloned());
        Self {
            registry,
            metrics,
            budget,
            config,
            tracer,
            drain,
            quiet_routes,
        }
    }
}

/// The fixed routes. No route changes the server.
fn routes() -> [(&'static str, MethodRouter<Arc<App>>); 8] {
    [
        ("/predict", post(predict::predict)),
        ("/invocations", post(predict::predict)),
        ("/v1/models/{call}", post(predict::predict_named)),
        ("/v2/models/{model}", get(metadata::metadata)),
        ("/health", get(health::live)),
        ("/ready", get(health::ready)),
        ("/ping", get(health::ready)),
        ("/metrics", get(exposition::metrics)),
    ]
}

/// Every route and layer of the server.
pub fn router(app: Arc<App>) -> Router {
    let mut router = Router::new();
    let mut taken: Vec<String> = Vec::new();
    let fixed = routes()
        .into_iter()
        .map(|(path, route)| (path.to_owned(), route));
    let health = app
        .config
        .health_routes
        .iter()
        .map(|path| (path.clone(), get(health::ready)));
    let predict = app
        .config
        .predict_routes
        .iter()
        .map(|path| (path.clone(), post(predict::predict)));
    for (path, route) in fixed.chain(health).chain(predict) {
        // A platform may ask for a route by the name that it has anyway.
        if !taken.contains(&path) {
            router = router.route(&path, route);
            taken.push(path);
        }
    }
    router
        .fallback(async || {
            ApiError::NotFound("no such route; predictions are POST /predict".to_owned())
        })
        .method_not_allowed_fallback(async |_: Method| ApiError::MethodNotAllowed)
        // One layer of two, because each one that a route gets by itself costs every request some allocations.
        .layer((
            middleware::AroundLayer(Arc::clone(&app)),
            CatchPanicLayer::custom(|_| -> Response { ApiError::Internal.into_response() }),
        ))
        .with_state(app)
}

/// Rows as a histogram counts them.
#[expect(clippy::cast_precision_loss, reason = "row counts are far below 2^53")]
fn rows_as_f64(rows: usize) -> f64 {
    rows as f64
}
