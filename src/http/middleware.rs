//! What happens to every request, whatever its route: limits of the head, its API key, an id, a trace, and one line in
//! the log.
//!
//! Invariant: there is one line per request and one count, however it ends, and what the line repeats of the client's own
//! text is short and escaped.

use std::future::{Future, poll_fn};
use std::hash::{BuildHasher, RandomState};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version, header};

use super::app::App;
use super::error::ApiError;
use super::headers;
use crate::net::NoPlace;
use crate::net::site::RefusedHead;
use crate::service::Facts;
use crate::service::error::ServeError;
use crate::telemetry::panics;
use crate::telemetry::request_ids::RequestIds;
use crate::telemetry::traces::{RequestTrace, Stage};

/// The header that carries a request's id.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The caller's place in its trace.
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// What tracing systems add to it.
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The route of a request that matched none.
const UNMATCHED: &str = "unmatched";

/// What stands for the status of a request that was not answered.
const NO_STATUS: &str = "none";

/// The longest id of a client that is kept.
const MAX_ID: usize = 128;

/// When a request arrived, and under which ids the log and traces know it.
#[derive(Debug, Clone)]
pub(super) struct Arrival {
    /// Its deadline counts from here.
    pub(super) at: Instant,
    /// What the log and traces call it.
    pub(super) ids: RequestIds,
}

/// The middleware around every route: see the module's own text.
pub(super) async fn around(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Response {
    let at = Instant::now();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = Route(route);
    // Probes and scrapes come every few seconds from everywhere and say nothing when all is well.
    let quiet = app.quiet_routes.are_asked(request.method(), route.name());
    let method = method_name(request.method());
    let trace = (!quiet).then(|| start_trace(&app, request.headers(), method, route.name()));
    let place = trace.as_ref().and_then(RequestTrace::ids);
    let arrival = Arrival {
        at,
        ids: RequestIds::new(request_id(request.headers()), place),
    };
    request.extensions_mut().insert(arrival.clone());
    let entry = Entry {
        app,
        arrival,
        method,
        route,
        quiet,
        ended: false,
    };
    let app = &entry.app;
    let admitted = check_place(&request)
        .and_then(|()| check_head(app, &request))
        .and_then(|()| check_key(app, &request, quiet));
    let mut response = match admitted {
        Ok(()) => {
            let mut answering = pin!(next.run(request));
            let id = entry.arrival.ids.header();
            // Should the handler panic, the log says with which request.
            poll_fn(|context| panics::about(id, || answering.as_mut().poll(context))).await
        }
        Err(error) => error.into_response(),
    };
    response
        .headers_mut()
        .insert(REQUEST_ID, entry.arrival.ids.header().clone());
    if let Some(trace) = trace {
        finish_trace(trace, app, &response, &entry.arrival);
    }
    entry.answered(&response);
    response
}

/// The route that a request matched, from the closed set of those that there are.
struct Route(Option<MatchedPath>);

impl Route {
    fn name(&self) -> &str {
        self.0.as_ref().map_or(UNMATCHED, MatchedPath::as_str)
    }
}

/// A request's place in the log and the metrics. Dropped with the request's future, it says that there was no answer.
struct Entry {
    app: Arc<App>,
    arrival: Arrival,
    method: &'static str,
    route: Route,
    quiet: bool,
    /// Whether it was told how the request ended.
    ended: bool,
}

impl Entry {
    fn answered(mut self, response: &Response) {
        self.ended = true;
        let (route, status) = (self.route.name(), response.status());
        self.app.metrics.count_response(route, status.as_str());
        log(response, &self.arrival, self.method, route, self.quiet);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let (route, ids) = (self.route.name(), &self.arrival.ids);
        self.app.metrics.count_response(route, NO_STATUS);
        let reason = if self.app.drain.is_aborting() {
            "the server stopped before it was answered"
        } else {
            "the connection ended"
        };
        tracing::info!(
            target: "access",
            request_id = ids.id(), trace_id = ids.trace_id(), span_id = ids.span_id(),
            method = self.method, route, answered = false,
            duration_ms = milliseconds(self.arrival.at.elapsed()), reason,
            "request"
        );
    }
}

/// Counts a request whose head was refused before it had a route, and writes its line.
pub(super) fn tell_refused(app: &App, head: &RefusedHead) {
    let status = head.status.as_ref().map_or(NO_STATUS, StatusCode::as_str);
    app.metrics.count_response(UNMATCHED, status);
    let request_id = head.id.clone().unwrap_or_else(new_id);
    let (request_id, error) = (request_id.to_str().unwrap_or("-"), head.reason.as_str());
    let route = UNMATCHED;
    match head.status.map(|status| status.as_u16()) {
        Some(status) => {
            tracing::info!(target: "access", request_id, route, status, error, "request");
        }
        None => {
            tracing::info!(target: "access", request_id, route, answered = false, reason = error, "request");
        }
    }
}

/// The request's place in its caller's trace, or a trace of its own.
fn start_trace(app: &App, headers: &HeaderMap, method: &'static str, route: &str) -> RequestTrace {
    // Two parents are as good as none, by the recommendation.
    let mut parents = headers.get_all(TRACEPARENT).iter();
    let parent = parents.next().filter(|_| parents.next().is_none());
    let parent = parent.and_then(|value| value.to_str().ok());
    let state = headers
        .get(TRACESTATE)
        .and_then(|value| value.to_str().ok());
    app.tracer.request(parent, state, method, route)
}

fn finish_trace(trace: RequestTrace, app: &App, response: &Response, arrival: &Arrival) {
    let facts = response.extensions().get::<Facts>();
    let stage = facts.map(|facts| Stage {
        started_at: facts.started_at,
        queue: facts.timings.queue,
        execution: facts.timings.compute_input + facts.timings.compute_infer,
        rows: facts.rows,
        batch_rows: facts.batch_rows,
        model: &facts.model.metadata.name,
        version: &facts.model.metadata.version,
        device: &facts.model.device,
    });
    let error = response.extensions().get::<ApiError>();
    trace.finish(
        &app.tracer,
        arrival.ids.id(),
        response.status().as_u16(),
        error.map(ApiError::code),
        stage,
    );
}

/// The client's own id if there is one that is fit to be repeated, else a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let fit = |value: &&HeaderValue| {
        (1..=MAX_ID).contains(&value.len()) && value.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    let mut ids = headers.get_all(&REQUEST_ID).iter();
    ids.next()
        .filter(|_| ids.next().is_none())
        .filter(fit)
        .cloned()
        .unwrap_or_else(new_id)
}

/// An id that no other process and no other request has: a random prefix and a count.
pub(super) fn new_id() -> HeaderValue {
    static PREFIX: LazyLock<u64> =
        LazyLock::new(|| RandomState::new().hash_one(std::process::id()));
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let id = (u128::from(*PREFIX) << 64) | u128::from(COUNT.fetch_add(1, Ordering::Relaxed));
    HeaderValue::try_from(format!("{id:032x}")).unwrap_or(HeaderValue::from_static("-"))
}

/// The method from a closed set.
fn method_name(method: &http::Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}

/// Refuses a request that came when every place was taken, before a byte of its body is read.
fn check_place(request: &Request) -> Result<(), ApiError> {
    match request.extensions().get::<NoPlace>() {
        Some(NoPlace) => Err(ApiError::Serve(ServeError::Overloaded {
            reason: "all connections are taken",
            retry_after: Duration::from_secs(1),
        })),
        None => Ok(()),
    }
}

/// Holds the head of a request against the limits, and refuses what two parties could read differently.
fn check_head(app: &App, request: &Request) -> Result<(), ApiError> {
    let config = &app.config;
    let uri = request.uri();
    let uri_length = uri.path_and_query().map_or(0, |path| path.as_str().len())
        + uri
            .authority()
            .map_or(0, |authority| authority.as_str().len());
    if uri_length > config.max_uri_size {
        return Err(ApiError::UriTooLong(config.max_uri_size));
    }
    let headers = request.headers();
    if headers.len() > config.max_headers {
        return Err(ApiError::HeadersTooLarge(format!(
            "the request has more than {} headers",
            config.max_headers
        )));
    }
    let size: usize = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + 4)
        .sum();
    if size > config.max_header_size {
        return Err(ApiError::HeadersTooLarge(format!(
            "the request's headers are larger than {} bytes",
            config.max_header_size
        )));
    }
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() || (host.is_none() && request.version() == Version::HTTP_11) {
        return Err(ApiError::Invalid(
            "expected exactly one Host header".to_owned(),
        ));
    }
    check_framing(headers)
}

/// Refuses a body whose end another server on the way could find elsewhere: hyper takes any list of codings whose last one
/// is `chunked` as if it were the only one.
fn check_framing(headers: &HeaderMap) -> Result<(), ApiError> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let Some(coding) = codings.next() else {
        return Ok(());
    };
    let text = coding.to_str().map(str::trim);
    if codings.next().is_some() || !text.is_ok_and(|text| text.eq_ignore_ascii_case("chunked")) {
        return Err(ApiError::Framing(
            "expected Transfer-Encoding 'chunked' and nothing else; a body may be compressed by Content-Encoding",
        ));
    }
    if headers.contains_key(header::CONTENT_LENGTH) {
        return Err(ApiError::Framing(
            "Content-Length and Transfer-Encoding exclude each other",
        ));
    }
    Ok(())
}

/// Refuses who brings no key, before a byte of the body is read. Probes and metrics are for platforms, which have none.
fn check_key(app: &App, request: &Request, open: bool) -> Result<(), ApiError> {
    let Some(keys) = app.config.api_keys.as_ref().filter(|_| !open) else {
        return Ok(());
    };
    headers::only(request.headers(), &header::AUTHORIZATION)?;
    if keys.admit(request.headers()) {
        Ok(())
    } else {
        Err(ApiError::Unauthorized)
    }
}

fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

fn log(response: &Response, arrival: &Arrival, method: &'static str, route: &str, quiet: bool) {
    let ids = &arrival.ids;
    let (request_id, trace_id, span_id) = (ids.id(), ids.trace_id(), ids.span_id());
    let status = response.status().as_u16();
    let duration_ms = milliseconds(arrival.at.elapsed());
    if let Some(facts) = response.extensions().get::<Facts>() {
        tracing::info!(
            target: "access",
            request_id, trace_id, span_id, method, route, status, duration_ms,
            rows = facts.rows,
            batch = facts.batch_rows,
            queue_ms = milliseconds(facts.timings.queue),
            inference_ms = milliseconds(facts.timings.compute_infer),
            "request"
        );
    } else if let Some(error) = response.extensions().get::<ApiError>() {
        tracing::info!(
            target: "access",
            request_id, trace_id, span_id, method, route, status, duration_ms,
            code = error.code(), error = error.message(),
            "request"
        );
    } else if quiet && response.status().is_success() {
        tracing::debug!(target: "access", request_id, method, route, status, duration_ms, "request");
    } else {
        tracing::info!(target: "access", request_id, trace_id, span_id, method, route, status, duration_ms, "request");
    }
}
