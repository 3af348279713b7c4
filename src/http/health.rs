//! Probes: is the process alive, and does it answer predictions?
//!
//! Invariant: liveness depends on nothing that a restart would not cure; not on load, not on the queue.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

use super::app::App;
use crate::models::registry::Phase;

#[derive(Serialize)]
struct Live {
    live: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
}

#[derive(Serialize)]
struct Ready<'a> {
    ready: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
    /// The model of requests that name none, if there is one.
    default_model: Option<&'a str>,
    models: Vec<ReadyModel<'a>>,
    /// What lies in the repository and is not served. The list is bounded.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    skipped: Vec<SkippedEntry<'a>>,
    /// How many more there are.
    #[serde(skip_serializing_if = "is_zero")]
    skipped_more: usize,
}

#[derive(Serialize)]
struct SkippedEntry<'a> {
    /// Relative to the repository.
    path: &'a str,
    reason: &'a str,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

#[derive(Serialize)]
struct ReadyModel<'a> {
    name: &'a str,
    version: &'a str,
    device: &'a str,
    execution_provider: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    device_reason: Option<&'a str>,
    nodes: BTreeMap<&'a str, usize>,
    instances: usize,
    /// The most rows of an execution by the settings. Missing where a request has no rows to be counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_batch_size: Option<usize>,
    /// Missing where a request has no rows to be counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_request_rows: Option<usize>,
    /// The most rows of an execution that requests really share; 1 where they are not merged.
    merge_rows: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_batched_because: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unmeasured: Option<&'a str>,
}

/// `GET /health`: 200 from the first moment; 503 only when a restart is the cure.
pub(super) async fn live(State(app): State<Arc<App>>) -> Response {
    let fault = app.registry.fault();
    let body = Live {
        live: fault.is_none(),
        error: fault.map(crate::models::registry::Fault::reason),
        code: fault.map(crate::models::registry::Fault::code),
    };
    json(
        if fault.is_none() {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        },
        &body,
    )
}

/// `GET /ready`: 200 with what is served, 503 with the reason why nothing is, or not all that is required.
pub(super) async fn ready(State(app): State<Arc<App>>) -> Response {
    let (error, code) = match (app.registry.phase(), app.registry.fault()) {
        (Phase::Draining, _) => (Some("the server is draining"), Some("draining")),
        (_, Some(fault)) => (Some(fault.reason()), Some(fault.code())),
        (Phase::Starting, None) => (Some("the models are being loaded"), Some("not_ready")),
        (Phase::Ready, None) if app.registry.is_incomplete() => (
            Some(
                "a model that is required cannot be served, and 'skipped' says which; the others answer",
            ),
            Some("not_ready"),
        ),
        (Phase::Ready, None) => (None, None),
    };
    let models = app.registry.models();
    let models = models.all().map(|model| ReadyModel {
        name: &model.metadata.name,
        version: &model.metadata.version,
        device: &model.device,
        execution_provider: model.execution_provider,
        device_reason: model.fallback.as_deref(),
        nodes: model.assignment.counts(),
        instances: model.scheduler.instances(),
        max_batch_size: model.max_batch_size(),
        max_request_rows: model.max_request_rows(),
        merge_rows: model.scheduler.config().merge_rows,
        not_batched_because: model.not_batched_because(),
        unmeasured: model.unmeasured(),
    });
    let skipped = app.registry.skipped();
    let default_model = app.registry.default_model();
    let default_model = default_model.as_ref().map(|model| &*model.metadata.name);
    let body = Ready {
        ready: error.is_none(),
        error,
        code,
        default_model,
        models: models.collect(),
        skipped: skipped
            .named()
            .iter()
            .map(|skipped| SkippedEntry {
                path: &skipped.path,
                reason: &skipped.reason,
            })
            .collect(),
        skipped_more: skipped.more(),
    };
    json(
        if error.is_none() {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        },
        &body,
    )
}

/// Writes `body` as an answer that nobody may keep.
pub(super) fn json(status: StatusCode, body: &impl Serialize) -> Response {
    let body = serde_json::to_vec(body).unwrap_or_default();
    let mut response = (status, body).into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
