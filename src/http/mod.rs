//! The edge: the only place that knows axum, HTTP and JSON. All routes stand on this page.
//!
//! A request comes from its connection ([`net`](crate::net)), passes what is common to all routes (`middleware`), and is
//! answered by a handler; `edge` speaks for the routes where none is reached. Invariant: every status comes from the one table in [`error`].

pub mod api_keys;
mod app;
mod body;
mod edge;
pub mod error;
mod headers;
mod health;
mod media;
mod metadata;
mod metrics;
mod middleware;
mod predict;
mod quiet;

use std::sync::Arc;

use axum::Router;
use axum::http::Method;
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use tower_http::catch_panic::CatchPanicLayer;

use crate::net::site::Site;
pub use app::{App, HttpConfig};
use edge::RouterEdge;
use error::ApiError;

/// What a route is for. Routes that are for the same may have the same path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Predictions with the default model.
    Predict,
    /// Predictions with the model that the path names.
    PredictNamed,
    /// What a model is.
    Metadata,
    /// Whether the process is alive.
    Live,
    /// Whether predictions are answered.
    Ready,
    /// What is counted.
    Metrics,
}

impl Purpose {
    /// The method by which it is asked for. Routes of two methods can share a path.
    fn method(self) -> Method {
        match self {
            Self::Predict | Self::PredictNamed => Method::POST,
            Self::Metadata | Self::Live | Self::Ready | Self::Metrics => Method::GET,
        }
    }

    /// As messages call it.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Predict | Self::PredictNamed => "predictions",
            Self::Metadata => "a model's metadata",
            Self::Live => "liveness",
            Self::Ready => "readiness",
            Self::Metrics => "metrics",
        }
    }
}

/// The fixed routes. No route changes the server.
fn routes() -> [(&'static str, Purpose, MethodRouter<Arc<App>>); 10] {
    [
        ("/predict", Purpose::Predict, post(predict::predict)),
        ("/invocations", Purpose::Predict, post(predict::predict)),
        (
            "/v1/models/{call}",
            Purpose::PredictNamed,
            post(predict::predict_named),
        ),
        (
            "/v1/models/{model}/versions/{call}",
            Purpose::PredictNamed,
            post(predict::predict_version),
        ),
        (
            "/v2/models/{model}",
            Purpose::Metadata,
            get(metadata::metadata),
        ),
        (
            "/v2/models/{model}/versions/{version}",
            Purpose::Metadata,
            get(metadata::version_metadata),
        ),
        ("/health", Purpose::Live, get(health::live)),
        ("/ready", Purpose::Ready, get(health::ready)),
        ("/ping", Purpose::Ready, get(health::ready)),
        ("/metrics", Purpose::Metrics, get(metrics::metrics)),
    ]
}

/// The fixed route that answers `path` already, as people write it, and what it is for. A path that a pattern takes only
/// to say that there is no such route is free.
#[must_use]
pub fn purpose(path: &str) -> Option<(String, Purpose)> {
    let answers = |pattern: &str| {
        let (mut segments, mut wanted) = (path.split('/'), pattern.split('/'));
        loop {
            match (segments.next(), wanted.next()) {
                (None, None) => return true,
                (Some(segment), Some(pattern))
                    if segment == pattern || (pattern.starts_with('{') && !segment.is_empty()) => {}
                _ => return false,
            }
        }
    };
    let mut routes = routes().into_iter();
    let (pattern, purpose, _) = routes.find(|(pattern, purpose, _)| {
        answers(pattern) && (*purpose != Purpose::PredictNamed || path.ends_with(":predict"))
    })?;
    let call = if pattern.contains("{model}") {
        "{version}:predict"
    } else {
        "{model}:predict"
    };
    Some((pattern.replace("{call}", call), purpose))
}

/// The model that `path` names, if it is the route of one model's predictions.
#[must_use]
pub fn model_of(path: &str) -> Option<&str> {
    let call = path.strip_prefix("/v1/models/")?.strip_suffix(":predict")?;
    Some(call.split_once("/versions/").map_or(call, |(name, _)| name))
}

/// What the main port serves: every route.
#[must_use]
pub fn site(app: Arc<App>) -> Site<Router> {
    Site {
        edge: Arc::new(RouterEdge(Arc::clone(&app))),
        service: router(app),
    }
}

/// What the admin port serves: probes and metrics, without a key.
#[must_use]
pub fn admin_site(app: &App) -> Site<Router> {
    let app = App::new(
        Arc::clone(&app.registry),
        Arc::clone(&app.metrics),
        Arc::clone(&app.service),
        HttpConfig {
            predict_routes: Vec::new(),
            api_keys: None,
            ..app.config.clone()
        },
        app.tracer.clone(),
        app.drain.clone(),
    );
    let app = Arc::new(app);
    let probes = health_routes(&app.config);
    let quiet: Vec<_> = fixed_routes()
        .filter(|(path, ..)| app.quiet_routes.has(path))
        .collect();
    let missing = "no such route on the admin port, which has probes and metrics alone";
    Site {
        edge: Arc::new(RouterEdge(Arc::clone(&app))),
        service: assemble(app, quiet.into_iter().chain(probes), missing),
    }
}

/// A path, what its route is for, and what answers it.
type Route = (String, Purpose, MethodRouter<Arc<App>>);

fn fixed_routes() -> impl Iterator<Item = Route> {
    let routes = routes().into_iter();
    routes.map(|(path, purpose, route)| (path.to_owned(), purpose, route))
}

/// The platform's names for readiness.
fn health_routes(config: &HttpConfig) -> Vec<Route> {
    let paths = config.health_routes.iter();
    paths
        .map(|path| (path.clone(), Purpose::Ready, get(health::ready)))
        .collect()
}

/// Every route and layer of the server.
fn router(app: Arc<App>) -> Router {
    let health = health_routes(&app.config);
    let predict: Vec<_> = app
        .config
        .predict_routes
        .iter()
        .map(|path| (path.clone(), Purpose::Predict, post(predict::predict)))
        .collect();
    let missing = "no such route; predictions are POST /predict";
    let all = fixed_routes().chain(health).chain(predict);
    assemble(app, all, missing)
}

/// The routes of `table`, what is `missing` besides, and what happens to every request.
fn assemble(
    app: Arc<App>,
    table: impl IntoIterator<Item = Route>,
    missing: &'static str,
) -> Router {
    let mut router = Router::new();
    let mut taken: Vec<(String, Method)> = Vec::new();
    for (path, purpose, methods) in table {
        let route = (path, purpose.method());
        // A platform may ask for a route by the name that it has anyway.
        if !taken.contains(&route) {
            router = router.route(&route.0, methods);
            taken.push(route);
        }
    }
    router
        .fallback(async move || ApiError::NotFound(missing.to_owned()))
        .method_not_allowed_fallback(async |_: Method| ApiError::MethodNotAllowed)
        // One layer of two, because a router boxes each one that it is given for every request.
        .layer((
            from_fn_with_state(Arc::clone(&app), middleware::around),
            CatchPanicLayer::custom(|_| -> Response { ApiError::Internal.into_response() }),
        ))
        .with_state(app)
}
