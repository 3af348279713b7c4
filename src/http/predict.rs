//! `POST /predict` and its other names: receive, decode, submit, encode.
//!
//! Invariant: however a prediction ends, a client that leaves included, it is counted once.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use percent_encoding::percent_decode_str;

use super::App;
use super::body::{self, Coding};
use super::error::ApiError;
use super::headers;
use super::media;
use super::middleware::{Arrival, PredictionRecord};
use crate::batching::ScheduleError;
use crate::inference::{Exhausted, InferenceRequest, InferenceResponse, Reservation};
use crate::model::ModelMetadata;
use crate::registry::{Fault, Phase, ServedModel};
use crate::telemetry::metrics::Outcome;
use crate::telemetry::panics;
use crate::telemetry::request_ids::RequestIds;
use crate::tensor::Tensor;
use crate::units::whole_number;
use crate::wire::{self, DecodeError, DecodeLimits, Form, Selection};

/// Bodies from this size on are decoded on a thread of their own, so that probes and small requests do not wait.
const LARGE_BODY: usize = 256 << 10;

/// JSON answers from this many elements on are printed on a thread of their own, for the same reason.
const LARGE_ANSWER: usize = 64 << 10;

/// What an element takes in JSON: the digits of most numbers, and a comma.
const ELEMENT_TEXT: usize = 16;

/// Answers up to this size are not worth keeping a reservation for: all connections together hold few bytes of them.
const HELD_FROM: usize = 4096;

/// The shape of a raw body, or of a raw answer.
const TENSOR_SHAPE: HeaderName = HeaderName::from_static("x-tensor-shape");

/// The datatype of a raw answer.
const TENSOR_DATATYPE: HeaderName = HeaderName::from_static("x-tensor-datatype");

/// The deadline that a client brings, in milliseconds.
const REQUEST_TIMEOUT: HeaderName = HeaderName::from_static("x-request-timeout-ms");

/// Where the time went.
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// `POST /predict`, `/invocations` and Vertex AI's route: the default model.
pub(super) async fn predict(State(app): State<Arc<App>>, request: Request) -> Response {
    let model = match model_or_reason(&app, None) {
        Ok(model) => model,
        Err(error) => return error.into_response(),
    };
    answer(&app, &model, request).await
}

/// `POST /v1/models/{model}:predict`.
pub(super) async fn predict_named(
    State(app): State<Arc<App>>,
    call: Result<Path<String>, PathRejection>,
    request: Request,
) -> Response {
    let Ok(Path(call)) = call else {
        return not_utf8().into_response();
    };
    let Some(name) = call.strip_suffix(":predict") else {
        return ApiError::NotFound(
            "no such route; a model is called as /v1/models/{model}:predict".to_owned(),
        )
        .into_response();
    };
    let model = match model_or_reason(&app, Some(name)) {
        Ok(model) => model,
        Err(error) => return error.into_response(),
    };
    answer(&app, &model, request).await
}

/// A model that is named by bytes which are no UTF-8, such as `%ff`.
pub(super) fn not_utf8() -> ApiError {
    ApiError::NotFound(
        "no such model, as its name in the path is not UTF-8; GET /ready lists the models"
            .to_owned(),
    )
}

/// The model that is meant, or why there is none.
pub(super) fn model_or_reason(app: &App, name: Option<&str>) -> Result<Arc<ServedModel>, ApiError> {
    if app.registry.phase() == Phase::Starting {
        return Err(ApiError::NotReady("the models are being loaded"));
    }
    let model = match name {
        Some(name) => app.registry.get(name),
        None => app.registry.default_model(),
    };
    model.ok_or_else(|| {
        ApiError::NotFound(match name {
            Some(_) => "no such model; GET /ready lists the models".to_owned(),
            None => match app.registry.default_name() {
                Some(_) => "the default model is not served now; call one as /v1/models/{model}:predict (GET /ready lists them)".to_owned(),
                None => "several models are served and none is the default one; call one as /v1/models/{model}:predict (GET /ready lists them), or have --default-model or a sidecar name it".to_owned(),
            },
        })
    })
}

/// Counts a prediction when it ends: as what it became, or as cancelled when the client left.
struct Tally<'a> {
    model: &'a ServedModel,
    arrived_at: Instant,
    outcome: Outcome,
}

impl Drop for Tally<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The client is still there, and gets 500.
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

/// Answers a prediction with `model`, and counts it.
async fn answer(app: &App, model: &Arc<ServedModel>, request: Request) -> Response {
    let arrival = request.extensions().get::<Arrival>().cloned();
    let arrived_at = arrival
        .as_ref()
        .map_or_else(Instant::now, |arrival| arrival.at);
    model.metrics.in_flight.inc();
    let mut tally = Tally {
        model,
        arrived_at,
        outcome: Outcome::Cancelled,
    };
    #[cfg(feature = "testkit")]
    crate::testkit::panic_at("handler");
    match run(app, model, request, arrived_at, arrival.as_ref()).await {
        Ok(response) => {
            tally.outcome = Outcome::Success;
            response
        }
        Err(error) => {
            tally.outcome = error.outcome();
            error.into_response()
        }
    }
}

async fn run(
    app: &App,
    model: &Arc<ServedModel>,
    request: Request,
    arrived_at: Instant,
    arrival: Option<&Arrival>,
) -> Result<Response, ApiError> {
    if let Some(fault) = app.registry.fault() {
        return Err(match fault {
            Fault::DeviceLost => ApiError::DeviceLost,
            Fault::InstanceHung | Fault::InstanceDead | Fault::Stuck => {
                ApiError::NotReady(fault.reason())
            }
        });
    }
    let (head, body) = request.into_parts();
    let deadline = arrived_at
        + requested_timeout(&head.headers)?.map_or(app.config.request_timeout, |asked| {
            asked.min(app.config.request_timeout)
        });
    let ask = Ask::read(&head, model)?;
    let mut reservation = app.budget.reservation();
    let body_deadline = deadline.min(arrived_at + app.config.body_timeout);
    // One timer for the whole request: setting one up, and taking it down, is the dearer part of waiting.
    let mut expired = pin!(tokio::time::sleep_until(body_deadline.into()));
    let body = body::receive(
        body,
        &head.headers,
        app.config.max_body_size,
        expired.as_mut(),
        &mut reservation,
    )
    .await?;
    let mut decoded = decode(app, model, &ask, body, deadline, reservation, arrival).await?;
    if let Some(selection) = ask.selection {
        if decoded.selection.is_some() {
            return Err(ApiError::Invalid(
                "outputs are selected both in the body and in the URI; use one".to_owned(),
            ));
        }
        decoded.selection = Some(selection);
    }
    // From here on for the answer, until its last byte has left.
    let mut memory = app.budget.reservation();
    let expected = decoded.request.expected_output_bytes(&model.metadata);
    memory.grow(expected).map_err(answer_too_large)?;
    decoded.request.note_output_reserved(expected);
    if let Some(arrival) = arrival {
        decoded.request.note_ids(arrival.ids.clone());
    }
    let rows = decoded.request.rows();
    model.metrics.batch_size.observe(super::rows_as_f64(rows));
    let (selection, form) = (decoded.selection, decoded.form);
    let response = model
        .scheduler
        .submit_until(decoded.request, expired)
        .await
        .map_err(|error| failed(error, model, arrival))?;
    let (timings, started_at, batch_rows) =
        (response.timings, response.started_at, response.batch_rows);
    let encoding = Encoding {
        raw: ask.raw_answer,
        selection,
        form,
        max_bytes: app.config.max_output_size,
    };
    let views = || response.outputs.iter().map(Tensor::view);
    let elements: usize = views().map(|view| view.len()).sum();
    let outputs: usize = views().map(|view| view.byte_len()).sum();
    let text = if encoding.raw {
        0
    } else {
        elements
            .saturating_mul(ELEMENT_TEXT)
            .min(encoding.max_bytes)
    };
    memory
        .resize(outputs.saturating_add(text))
        .map_err(answer_too_large)?;
    let answer = if !encoding.raw && elements >= LARGE_ANSWER {
        let metadata = Arc::clone(&model.metadata);
        let work = move || encoding.apply(response, &metadata, memory);
        elsewhere("encode", arrival, work)
            .await
            .unwrap_or(Err(ApiError::Internal))
    } else {
        encoding.apply(response, &model.metadata, memory)
    };
    let mut answer = answer?;
    record(
        &mut answer,
        PredictionRecord {
            model: Arc::clone(model),
            rows,
            started_at,
            batch_rows,
            timings,
        },
    );
    Ok(answer)
}

/// What the client is told of a prediction that failed. What is our own fault is told in the log as well.
fn failed(error: ScheduleError, model: &ServedModel, arrival: Option<&Arrival>) -> ApiError {
    if let ScheduleError::Internal(reason) = &error {
        let ids = arrival.map(|arrival| &arrival.ids);
        tracing::error!(
            request_id = ids.map(RequestIds::id),
            trace_id = ids.and_then(RequestIds::trace_id),
            span_id = ids.and_then(RequestIds::span_id),
            %reason,
            "a prediction failed by our fault"
        );
    }
    ApiError::of(error, &model.operators)
}

/// How an answer is to be written.
struct Encoding {
    raw: bool,
    selection: Option<Selection>,
    form: Form,
    max_bytes: usize,
}

impl Encoding {
    /// The answer, which holds `memory` until it has been sent.
    fn apply(
        &self,
        response: InferenceResponse,
        metadata: &ModelMetadata,
        mut memory: Reservation,
    ) -> Result<Response, ApiError> {
        let selection = self.selection.as_ref();
        if self.raw {
            let raw = wire::encode_raw(&response.outputs, metadata, selection, self.max_bytes)?;
            drop(response);
            memory.resize(raw.held_bytes).map_err(answer_too_large)?;
            let body = held(raw.body, memory);
            return Ok(raw_response(body, &raw.shape, raw.datatype));
        }
        let mut text = wire::encode_json(
            &response.outputs,
            metadata,
            selection,
            self.form,
            self.max_bytes,
        )?;
        drop(response);
        if text.len() > HELD_FROM {
            // It has grown by doubling.
            text.shrink_to_fit();
        }
        memory.resize(text.capacity()).map_err(answer_too_large)?;
        let mut answer = Response::new(held(text, memory).into());
        answer.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        Ok(answer)
    }
}

/// An answer's bytes, and the memory that is reserved for them.
struct Held<T> {
    bytes: T,
    _memory: Reservation,
}

impl<T: AsRef<[u8]>> AsRef<[u8]> for Held<T> {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

/// `bytes` for which `memory` is reserved as long as anybody holds them: hyper does until the system has taken them.
fn held<T>(bytes: T, memory: Reservation) -> Bytes
where
    T: AsRef<[u8]> + Into<Bytes> + Send + 'static,
{
    if bytes.as_ref().len() <= HELD_FROM {
        return bytes.into();
    }
    Bytes::from_owner(Held {
        bytes,
        _memory: memory,
    })
}

/// The client is told by what is full.
fn answer_too_large(exhausted: Exhausted) -> ApiError {
    match exhausted {
        Exhausted::Now => exhausted.into(),
        Exhausted::Ever => ApiError::Unprocessable(
            "the answer takes more memory than --max-inflight-bytes allows; send fewer rows per request"
                .to_owned(),
        ),
    }
}

/// What the head of a request asks for.
struct Ask {
    format: wire::BodyFormat,
    coding: Coding,
    shape: Option<String>,
    raw_answer: bool,
    selection: Option<Selection>,
}

impl Ask {
    fn read(head: &Parts, model: &ServedModel) -> Result<Self, ApiError> {
        let shape = headers::only(&head.headers, &TENSOR_SHAPE)?
            .map(|value| value.to_str().map(str::to_owned));
        let shape = shape.transpose().map_err(|_| {
            ApiError::Invalid("X-Tensor-Shape is a list of sizes such as 2,3".to_owned())
        })?;
        Ok(Self {
            format: media::body_format(&head.headers)?,
            coding: Coding::of(&head.headers)?,
            shape,
            raw_answer: media::wants_raw(&head.headers)?,
            selection: selection_in(head.uri.query().unwrap_or_default(), model)?,
        })
    }
}

/// The outputs named in the query: `outputs=y`, several separated by commas.
fn selection_in(query: &str, model: &ServedModel) -> Result<Option<Selection>, ApiError> {
    let mut selection: Option<Selection> = None;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if key != "outputs" {
            return Err(ApiError::Invalid(format!(
                "unknown query parameter '{}'; the only one is outputs",
                wire::json::quote(key)
            )));
        }
        let selection = selection.get_or_insert_default();
        for name in value.split(',') {
            let name = percent_decode_str(name).decode_utf8_lossy();
            wire::select(selection, &name, &model.metadata)?;
        }
    }
    Ok(selection)
}

/// The deadline that the client brings, in milliseconds.
fn requested_timeout(headers: &HeaderMap) -> Result<Option<Duration>, ApiError> {
    let Some(value) = headers::only(headers, &REQUEST_TIMEOUT)? else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or("(not text)");
    match whole_number::<u32>(text).filter(|milliseconds| *milliseconds > 0) {
        Some(milliseconds) => Ok(Some(Duration::from_millis(milliseconds.into()))),
        None => Err(ApiError::Invalid(format!(
            "X-Request-Timeout-Ms is a whole number of milliseconds from 1 to {}, such as 250; got '{}'",
            u32::MAX,
            wire::json::quote(text)
        ))),
    }
}

/// What is to be computed, and how it is to be answered.
struct Decoded {
    request: InferenceRequest,
    selection: Option<Selection>,
    form: Form,
}

/// Decodes `body` into a request, which takes the reservation along.
fn decode_now(
    body: Bytes,
    format: wire::BodyFormat,
    shape: Option<&str>,
    metadata: &ModelMetadata,
    limits: DecodeLimits,
    deadline: Instant,
    mut reservation: Reservation,
) -> Result<Decoded, DecodeError> {
    let decoded = wire::decode(body, format, shape, metadata, limits, &mut reservation)?;
    let (inputs, max_rows) = (decoded.inputs, limits.max_rows);
    Ok(Decoded {
        request: InferenceRequest::new(metadata, inputs, max_rows, deadline, reservation)?,
        selection: decoded.selection,
        form: decoded.form,
    })
}

/// Inflates and decodes `body`; on a thread of its own where that takes long.
async fn decode(
    app: &App,
    model: &Arc<ServedModel>,
    ask: &Ask,
    body: Bytes,
    deadline: Instant,
    mut reservation: Reservation,
    arrival: Option<&Arrival>,
) -> Result<Decoded, ApiError> {
    let limits = DecodeLimits {
        max_rows: model.scheduler.config().max_request_rows,
        max_json_depth: app.config.max_json_depth,
    };
    let (format, coding, shape, max_bytes) = (
        ask.format,
        ask.coding,
        ask.shape.clone(),
        app.config.max_body_size,
    );
    let long = coding != Coding::Identity
        || (format == wire::BodyFormat::Json && body.len() >= LARGE_BODY);
    if !long {
        return Ok(decode_now(
            body,
            format,
            shape.as_deref(),
            &model.metadata,
            limits,
            deadline,
            reservation,
        )?);
    }
    let metadata = Arc::clone(&model.metadata);
    let work = move || {
        let body = body::inflate(body, coding, max_bytes, &mut reservation)?;
        Ok(decode_now(
            body,
            format,
            shape.as_deref(),
            &metadata,
            limits,
            deadline,
            reservation,
        )?)
    };
    elsewhere("decode", arrival, work)
        .await
        .unwrap_or(Err(ApiError::Internal))
}

/// Does `work` on a thread of its own. Should it panic, the log says with which request, and there is no result.
async fn elsewhere<T: Send + 'static>(
    #[cfg_attr(not(feature = "testkit"), expect(unused_variables))] stage: &'static str,
    arrival: Option<&Arrival>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let id = arrival.map(|arrival| arrival.ids.header().clone());
    let work = move || {
        #[cfg(feature = "testkit")]
        crate::testkit::panic_at(stage);
        work()
    };
    let told = move || match id {
        Some(id) => panics::about(&id, work),
        None => work(),
    };
    tokio::task::spawn_blocking(told).await.ok()
}

fn raw_response(body: Bytes, shape: &[usize], datatype: &'static str) -> Response {
    let mut answer = Response::new(body.into());
    let headers = answer.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    let mut text = BytesMut::with_capacity(shape.len() * 8);
    let mut digits = itoa::Buffer::new();
    for (axis, size) in shape.iter().enumerate() {
        text.extend_from_slice(if axis > 0 { b"," } else { b"" });
        text.extend_from_slice(digits.format(*size).as_bytes());
    }
    if let Ok(shape) = HeaderValue::from_maybe_shared(text.freeze()) {
        headers.insert(TENSOR_SHAPE, shape);
    }
    headers.insert(TENSOR_DATATYPE, HeaderValue::from_static(datatype));
    answer
}

/// Tells the client, and the access log, where the time went.
fn record(answer: &mut Response, record: PredictionRecord) {
    let mut text = BytesMut::with_capacity(64);
    text.extend_from_slice(b"queue;dur=");
    write_milliseconds(&mut text, record.timings.queue);
    text.extend_from_slice(b", infer;dur=");
    write_milliseconds(&mut text, record.timings.compute_infer);
    if let Ok(value) = HeaderValue::from_maybe_shared(text.freeze()) {
        answer.headers_mut().insert(SERVER_TIMING, value);
    }
    answer.extensions_mut().insert(record);
}

/// Writes `duration` in milliseconds with three decimals. Integers suffice, which are printed in a tenth of the time
/// that exactly rounded floats take.
fn write_milliseconds(text: &mut BytesMut, duration: Duration) {
    let microseconds = (duration.as_nanos() + 500) / 1000;
    let mut digits = itoa::Buffer::new();
    text.extend_from_slice(digits.format(microseconds / 1000).as_bytes());
    // A thousand more, so that there are three digits behind the first.
    let fraction = digits.format(1000 + microseconds % 1000).as_bytes();
    text.extend_from_slice(b".");
    text.extend_from_slice(fraction.get(1..).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milliseconds_have_three_decimals_and_are_rounded() {
        let text = |nanoseconds| {
            let mut text = BytesMut::new();
            write_milliseconds(&mut text, Duration::from_nanos(nanoseconds));
            String::from_utf8(text.to_vec()).unwrap()
        };
        assert_eq!(text(0), "0.000");
        assert_eq!(text(1_499), "0.001");
        assert_eq!(text(1_500), "0.002");
        assert_eq!(text(999_999_999), "1000.000");
        assert_eq!(text(12_345_678), "12.346");
    }
}
