//! `POST /predict` and its other names: receive, decode, have predicted, encode.
//!
//! Invariant: the body is received only for a request that the service has admitted.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use percent_encoding::percent_decode_str;

use super::app::App;
use super::body::{self, Coding};
use super::error::ApiError;
use super::headers;
use super::media;
use super::middleware::Arrival;
use crate::inference::{InferenceResponse, Reservation};
use crate::model::ModelMetadata;
use crate::models::served::ServedModel;
use crate::service::error::ServeError;
use crate::service::{Caller, Facts, OutcomeGuard, Prediction, Ticket};
use crate::telemetry::metrics::Outcome;
use crate::telemetry::panics;
use crate::tensor::Tensor;
use crate::units::whole_number;
use crate::wire::{self, DecodeLimits, Decoded, Form, Selection};

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
    answer(&app, None, None, request).await
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
    answer(&app, Some(name), None, request).await
}

/// `POST /v1/models/{model}/versions/{version}:predict`.
pub(super) async fn predict_version(
    State(app): State<Arc<App>>,
    call: Result<Path<(String, String)>, PathRejection>,
    request: Request,
) -> Response {
    let Ok(Path((name, call))) = call else {
        return not_utf8().into_response();
    };
    let Some(version) = call.strip_suffix(":predict") else {
        return ApiError::NotFound(
            "no such route; a version of a model is called as /v1/models/{model}/versions/{version}:predict"
                .to_owned(),
        )
        .into_response();
    };
    answer(&app, Some(&name), Some(version), request).await
}

/// A model that is named by bytes which are no UTF-8, such as `%ff`.
pub(super) fn not_utf8() -> ApiError {
    ApiError::NotFound(
        "no such model, as its name in the path is not UTF-8; GET /ready lists the models"
            .to_owned(),
    )
}

/// Answers a prediction with this version of the model called `name`, or with the highest, or with the default model, and
/// has it counted.
async fn answer(
    app: &App,
    name: Option<&str>,
    version: Option<&str>,
    request: Request,
) -> Response {
    let model = match app.service.resolve(name, version) {
        Ok(model) => model,
        Err(error) => return ApiError::from(error).into_response(),
    };
    let arrival = request.extensions().get::<Arrival>();
    let caller = Caller {
        arrived_at: arrival.map_or_else(Instant::now, |arrival| arrival.at),
        ids: arrival.map(|arrival| arrival.ids.clone()),
    };
    let counted = OutcomeGuard::new(&model, caller.arrived_at);
    #[cfg(feature = "testkit")]
    crate::testkit::panic_at("handler");
    match run(app, &model, request, &caller).await {
        Ok(response) => {
            counted.ended(Outcome::Success);
            response
        }
        Err(error) => {
            counted.ended(error.outcome());
            error.into_response()
        }
    }
}

async fn run(
    app: &App,
    model: &Arc<ServedModel>,
    request: Request,
    caller: &Caller,
) -> Result<Response, ApiError> {
    app.service.check()?;
    let (head, body) = request.into_parts();
    let timeout = requested_timeout(&head.headers)?;
    let options = PredictOptions::read(&head, model)?;
    let mut ticket = app.service.admit(model, caller, timeout)?;
    let body_deadline = ticket
        .deadline
        .min(caller.arrived_at + app.config.body_timeout);
    // One timer for the whole request: setting one up, and taking it down, is the dearer part of waiting.
    let mut expired = pin!(tokio::time::sleep_until(body_deadline.into()));
    let body = body::receive(
        body,
        &head.headers,
        app.config.max_body_size,
        expired.as_mut(),
        &mut ticket.memory,
    )
    .await?;
    let (mut decoded, ticket) = decode(app, model, &options, body, ticket, caller).await?;
    if let Some(selection) = options.selection {
        if decoded.selection.is_some() {
            return Err(ApiError::Invalid(
                "outputs are selected both in the body and in the URI; use one".to_owned(),
            ));
        }
        decoded.selection = Some(selection);
    }
    let (selection, form) = (decoded.selection, decoded.form);
    let predicting = app
        .service
        .predict(model, ticket, decoded.inputs, caller, expired);
    let Prediction {
        response,
        mut memory,
        facts,
    } = predicting.await?;
    let encoding = Encoding {
        raw: options.raw_answer,
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
        .map_err(ServeError::of_answer_memory)?;
    let answer = if !encoding.raw && elements >= LARGE_ANSWER {
        let metadata = Arc::clone(&model.metadata);
        let work = move || encoding.apply(response, &metadata, memory);
        elsewhere("encode", caller, work)
            .await
            .unwrap_or(Err(ApiError::Internal))
    } else {
        encoding.apply(response, &model.metadata, memory)
    };
    let mut answer = answer?;
    tell(&mut answer, facts);
    Ok(answer)
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
            memory
                .resize(raw.held_bytes)
                .map_err(ServeError::of_answer_memory)?;
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
        memory
            .resize(text.capacity())
            .map_err(ServeError::of_answer_memory)?;
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

/// What the head of a request asks for.
struct PredictOptions {
    format: wire::BodyFormat,
    coding: Coding,
    shape: Option<String>,
    raw_answer: bool,
    selection: Option<Selection>,
}

impl PredictOptions {
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

/// Inflates and decodes `body`, on a thread of its own where that takes long. The ticket's memory grows with it.
async fn decode(
    app: &App,
    model: &Arc<ServedModel>,
    options: &PredictOptions,
    body: Bytes,
    mut ticket: Ticket,
    caller: &Caller,
) -> Result<(Decoded, Ticket), ApiError> {
    let limits = DecodeLimits {
        max_rows: model.scheduler.config().max_request_rows,
        max_json_depth: app.config.max_json_depth,
    };
    let (format, coding, max_bytes) = (options.format, options.coding, app.config.max_body_size);
    let long = coding != Coding::Identity
        || (format == wire::BodyFormat::Json && body.len() >= LARGE_BODY);
    if !long {
        let shape = options.shape.as_deref();
        let memory = &mut ticket.memory;
        let decoded = wire::decode(body, format, shape, &model.metadata, limits, memory)?;
        return Ok((decoded, ticket));
    }
    let (metadata, shape) = (Arc::clone(&model.metadata), options.shape.clone());
    let work = move || {
        let memory = &mut ticket.memory;
        let body = body::inflate(body, coding, max_bytes, memory)?;
        let shape = shape.as_deref();
        let decoded = wire::decode(body, format, shape, &metadata, limits, memory)?;
        Ok((decoded, ticket))
    };
    elsewhere("decode", caller, work)
        .await
        .unwrap_or(Err(ApiError::Internal))
}

/// Does `work` on a thread of its own. Should it panic, the log says with which request, and there is no result.
async fn elsewhere<T: Send + 'static>(
    #[cfg_attr(not(feature = "testkit"), expect(unused_variables))] stage: &'static str,
    caller: &Caller,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let id = caller.ids.as_ref().map(|ids| ids.header().clone());
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
    let sizes: Vec<String> = shape.iter().map(usize::to_string).collect();
    if let Ok(shape) = HeaderValue::try_from(sizes.join(",")) {
        headers.insert(TENSOR_SHAPE, shape);
    }
    headers.insert(TENSOR_DATATYPE, HeaderValue::from_static(datatype));
    answer
}

/// Tells the client, and the access log, where the time went.
fn tell(answer: &mut Response, facts: Facts) {
    let (queue, infer) = (facts.timings.queue, facts.timings.compute_infer);
    let (queue, infer) = (milliseconds(queue), milliseconds(infer));
    if let Ok(value) = HeaderValue::try_from(format!("queue;dur={queue}, infer;dur={infer}")) {
        answer.headers_mut().insert(SERVER_TIMING, value);
    }
    answer.extensions_mut().insert(facts);
}

/// `duration` in milliseconds, rounded to three decimals.
fn milliseconds(duration: Duration) -> impl fmt::Display {
    let microseconds = (duration.as_nanos() + 500) / 1000;
    fmt::from_fn(move |text| write!(text, "{}.{:03}", microseconds / 1000, microseconds % 1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milliseconds_have_three_decimals_and_are_rounded() {
        let text = |nanoseconds| milliseconds(Duration::from_nanos(nanoseconds)).to_string();
        assert_eq!(text(0), "0.000");
        assert_eq!(text(1_499), "0.001");
        assert_eq!(text(1_500), "0.002");
        assert_eq!(text(999_999_999), "1000.000");
        assert_eq!(text(12_345_678), "12.346");
    }
}
