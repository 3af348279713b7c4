//! `GET /metrics`: everything that is counted, in Prometheus' text format.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, header};

use super::app::App;
use super::error::ApiError;

/// The content type of the text format.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Brings the gauges up to date and prints every family.
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    app.registry.check(Instant::now());
    app.metrics.ready.set(i64::from(app.registry.is_ready()));
    let text = app.metrics.encode().map_err(|error| {
        tracing::error!(%error, "the metrics could not be encoded");
        ApiError::Internal
    })?;
    let mut response = text.into_response();
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(TEXT_FORMAT));
    Ok(response)
}
