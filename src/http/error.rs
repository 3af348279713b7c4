//! Everything that can go wrong with a request, and one table from cause to status, code and outcome.
//!
//! Invariant: the text that a client sees is ours. It holds no path, address, version or library text, and at most
//! [`MAX_BODY`] bytes of it are sent.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

use crate::inference::{Exhausted, InvalidRequest};
use crate::models::registry::Fault;
use crate::service::error::ServeError;
use crate::telemetry::metrics::Outcome;
use crate::wire::{DecodeError, EncodeError};

/// The largest error body, in bytes.
pub const MAX_BODY: usize = 512;

/// Why a request is not answered with what it asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiError {
    /// 400: not what the model, or HTTP, takes.
    Invalid(String),
    /// 400: where the request ends could be read in two ways, or in none.
    Framing(&'static str),
    /// 401: no API key, or one that is not known.
    Unauthorized,
    /// 404: no such route or model.
    NotFound(String),
    /// 405: the route exists, with another method.
    MethodNotAllowed,
    /// 408: the body did not arrive in time.
    BodyTimeout,
    /// 413: the body is larger than is taken, in bytes.
    BodyTooLarge(usize),
    /// 414: the URI is longer than is taken, in bytes.
    UriTooLong(usize),
    /// 431: the headers are larger than is taken.
    HeadersTooLarge(String),
    /// 415: not a type, character set or encoding that is taken.
    UnsupportedMediaType(String),
    /// 422: well-formed, but it cannot be computed, or not be answered in this form.
    Unprocessable(String),
    /// 500: our fault.
    Internal,
    /// The prediction could not be made.
    Serve(ServeError),
}

impl ApiError {
    /// The status, code and counted outcome of each cause.
    fn row(&self) -> (StatusCode, &'static str, Outcome) {
        match self {
            Self::Invalid(_) | Self::Framing(_) => {
                (StatusCode::BAD_REQUEST, "invalid_request", Outcome::Invalid)
            }
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "unauthorized", Outcome::Invalid),
            Self::NotFound(_) => (StatusCode::NOT_FOUND, "not_found", Outcome::Invalid),
            Self::MethodNotAllowed => (
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                Outcome::Invalid,
            ),
            Self::BodyTimeout => (
                StatusCode::REQUEST_TIMEOUT,
                "request_timeout",
                Outcome::Timeout,
            ),
            Self::BodyTooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "too_large", Outcome::Invalid),
            Self::UriTooLong(_) => (StatusCode::URI_TOO_LONG, "too_large", Outcome::Invalid),
            Self::HeadersTooLarge(_) => (
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "too_large",
                Outcome::Invalid,
            ),
            Self::UnsupportedMediaType(_) => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                Outcome::Invalid,
            ),
            Self::Unprocessable(_) => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "unprocessable",
                Outcome::Invalid,
            ),
            Self::Internal => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                Outcome::Error,
            ),
            Self::Serve(error) => {
                let (status, code) = row_of(error);
                (status, code, error.outcome())
            }
        }
    }

    /// The status of the answer.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.row().0
    }

    /// The stable word by which programs tell causes apart.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.row().1
    }

    /// How the prediction is counted.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        self.row().2
    }

    /// One sentence for the client.
    #[must_use]
    pub fn message(&self) -> String {
        match self {
            Self::Invalid(message)
            | Self::NotFound(message)
            | Self::HeadersTooLarge(message)
            | Self::UnsupportedMediaType(message)
            | Self::Unprocessable(message) => message.clone(),
            Self::Framing(message) => (*message).to_owned(),
            Self::Unauthorized => {
                "expected an API key of this server, as 'Authorization: Bearer KEY'".to_owned()
            }
            Self::MethodNotAllowed => {
                "this route does not take that method; see the Allow header".to_owned()
            }
            Self::BodyTimeout => "the request's body did not arrive in time".to_owned(),
            Self::BodyTooLarge(limit) => format!(
                "the request's body is larger than {limit} bytes (counted decompressed); send less in one request"
            ),
            Self::UriTooLong(limit) => format!("the request's URI is longer than {limit} bytes"),
            Self::Internal => INTERNAL.to_owned(),
            Self::Serve(error) => message_of(error),
        }
    }

    /// Whether the rest of the connection's bytes cannot be trusted or are not worth reading.
    fn closes_connection(&self) -> bool {
        matches!(
            self,
            Self::BodyTimeout
                | Self::Framing(_)
                | Self::BodyTooLarge(_)
                | Self::Serve(ServeError::RequestTooLarge)
                | Self::UriTooLong(_)
                | Self::HeadersTooLarge(_)
        )
    }

    fn retry_after(&self) -> Option<u64> {
        let Self::Serve(error) = self else {
            return None;
        };
        match error {
            ServeError::Overloaded { retry_after, .. } => {
                Some(retry_after.as_millis().div_ceil(1000).clamp(1, 60) as u64)
            }
            ServeError::Starting
            | ServeError::Broken(_)
            | ServeError::Draining
            | ServeError::RequestTooLarge => Some(1),
            _ => None,
        }
    }
}

/// The status and code of each cause that the service knows.
fn row_of(error: &ServeError) -> (StatusCode, &'static str) {
    match error {
        ServeError::UnknownModel
        | ServeError::UnknownVersion
        | ServeError::DefaultModelGone
        | ServeError::NoDefaultModel => (StatusCode::NOT_FOUND, "not_found"),
        ServeError::Invalid(_) => (StatusCode::BAD_REQUEST, "invalid_request"),
        ServeError::AnswerTooLarge | ServeError::ValuesTooLarge | ServeError::Refused { .. } => {
            (StatusCode::UNPROCESSABLE_ENTITY, "unprocessable")
        }
        ServeError::Overloaded { .. } | ServeError::RequestTooLarge => {
            (StatusCode::TOO_MANY_REQUESTS, "overloaded")
        }
        ServeError::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        ServeError::Starting => (StatusCode::SERVICE_UNAVAILABLE, "not_ready"),
        ServeError::Broken(fault) => (StatusCode::SERVICE_UNAVAILABLE, fault.code()),
        ServeError::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
        ServeError::DeadlineExceeded => (StatusCode::GATEWAY_TIMEOUT, "deadline_exceeded"),
    }
}

/// What is told of a failure that is ours.
const INTERNAL: &str = "the server failed to answer; the failure is logged under this request's id";

/// One sentence for each cause that the service knows.
fn message_of(error: &ServeError) -> String {
    let text = match error {
        ServeError::Invalid(message) => message,
        ServeError::UnknownModel => "no such model; GET /ready lists the models",
        ServeError::UnknownVersion => {
            "no such version of this model is served; GET /ready lists the versions"
        }
        ServeError::DefaultModelGone => {
            "the default model is not served now; call one as /v1/models/{model}:predict (GET /ready lists them)"
        }
        ServeError::NoDefaultModel => {
            "none of the models is the default one; call one as /v1/models/{model}:predict (GET /ready lists them), or have --default-model or a sidecar name it"
        }
        ServeError::Starting => "the server is not ready: the models are being loaded",
        ServeError::Broken(Fault::DeviceLost) => {
            "the server has lost its GPU and waits to be restarted; try another replica"
        }
        ServeError::Broken(fault) => {
            return format!("the server is not ready: {}", fault.reason());
        }
        ServeError::Draining => {
            "the server is draining and takes no more requests; try another replica"
        }
        ServeError::Overloaded { reason, .. } => {
            return format!(
                "the server is overloaded ({reason}); try again after the seconds in Retry-After"
            );
        }
        ServeError::DeadlineExceeded => "the request was not answered within its deadline",
        ServeError::RequestTooLarge => {
            "the request by itself takes more memory than --max-inflight-bytes allows for all requests; send fewer rows per request"
        }
        ServeError::AnswerTooLarge => {
            "the answer takes more memory than --max-inflight-bytes allows; send fewer rows per request"
        }
        ServeError::ValuesTooLarge => {
            "these values make the model take more memory than --max-inflight-bytes allows; send fewer or smaller ones"
        }
        ServeError::Refused { operator, inputs } => {
            let who = operator
                .as_deref()
                .map(|name| format!("the model's {name}"));
            return format!(
                "{} cannot compute these values (for example, an index is out of range, or sizes do not fit each other); the inputs were {inputs}",
                who.as_deref().unwrap_or("the model")
            );
        }
        ServeError::Internal => INTERNAL,
    };
    text.to_owned()
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    error: &'a str,
    code: &'a str,
}

/// The body of an error, its message shortened until all of it fits into [`MAX_BODY`] bytes.
pub(super) fn body(message: &str, code: &str) -> Vec<u8> {
    let write = |error: &str| serde_json::to_vec(&ErrorBody { error, code }).unwrap_or_default();
    let whole = write(message);
    if whole.len() <= MAX_BODY {
        return whole;
    }
    let budget = MAX_BODY.saturating_sub(write("...").len());
    let mut used = 0;
    let fits = |character: &char| {
        used += match character {
            // How JSON escapes them.
            '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
            '\0'..='\u{1f}' => 6,
            other => other.len_utf8(),
        };
        used <= budget
    };
    let shortened: String = message
        .chars()
        .take_while(fits)
        .chain("...".chars())
        .collect();
    write(&shortened)
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status(), body(&self.message(), self.code())).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        if let Some(seconds) = self.retry_after() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self == Self::Unauthorized {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.closes_connection() {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        // The access log says what the client was told.
        response.extensions_mut().insert(self);
        response
    }
}

impl From<InvalidRequest> for ApiError {
    fn from(error: InvalidRequest) -> Self {
        Self::Invalid(error.0)
    }
}

impl From<DecodeError> for ApiError {
    fn from(error: DecodeError) -> Self {
        match error {
            DecodeError::Invalid(error) => error.into(),
            DecodeError::OutOfMemory(exhausted) => exhausted.into(),
        }
    }
}

impl From<Exhausted> for ApiError {
    fn from(exhausted: Exhausted) -> Self {
        ServeError::of_request_memory(exhausted).into()
    }
}

impl From<ServeError> for ApiError {
    fn from(error: ServeError) -> Self {
        Self::Serve(error)
    }
}

impl From<EncodeError> for ApiError {
    fn from(error: EncodeError) -> Self {
        match error {
            EncodeError::NotFinite { output } => Self::Unprocessable(format!(
                "output '{output}' holds NaN or infinity, which JSON cannot express; ask for it alone ('outputs') and with 'Accept: application/octet-stream'"
            )),
            EncodeError::TooLarge { max_bytes } => Self::Unprocessable(format!(
                "the answer is larger than {max_bytes} bytes; select fewer outputs or send fewer rows"
            )),
            EncodeError::NotRows { output } => Self::Unprocessable(format!(
                "output '{output}' does not have one row for each instance; send 'inputs' instead of 'instances'"
            )),
            EncodeError::SeveralOutputs => {
                Self::Invalid("a raw answer is one tensor, but several outputs are selected; select one with 'outputs'".to_owned())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_bodies_are_json_of_bounded_size_whatever_the_message() {
        for message in ["", "plain"] {
            let value: serde_json::Value =
                serde_json::from_slice(&body(message, "internal")).unwrap();
            assert_eq!(
                (&value["error"], &value["code"]),
                (&message.into(), &"internal".into())
            );
        }
        for message in [
            "x".repeat(2000),
            "\u{1}\"\n\u{7f}ä".repeat(700),
            "😀".repeat(300),
        ] {
            let body = body(&message, "invalid_request");
            assert!(
                body.len() <= MAX_BODY && body.len() > MAX_BODY - 8,
                "{}",
                body.len()
            );
            let value: serde_json::Value = serde_json::from_slice(&body).unwrap();
            let told = value["error"].as_str().unwrap();
            assert!(message.starts_with(told.strip_suffix("...").unwrap()));
        }
    }

    #[test]
    fn client_data_is_never_a_server_error() {
        for error in [
            ApiError::from(InvalidRequest(String::new())),
            ApiError::from(ServeError::Refused {
                operator: None,
                inputs: "x".into(),
            }),
            ApiError::from(ServeError::ValuesTooLarge),
            ApiError::from(ServeError::AnswerTooLarge),
            ApiError::from(ServeError::Invalid("x".into())),
            ApiError::from(EncodeError::NotFinite {
                output: String::new(),
            }),
            ApiError::from(EncodeError::TooLarge { max_bytes: 1 }),
            ApiError::from(EncodeError::NotRows {
                output: String::new(),
            }),
            ApiError::from(DecodeError::OutOfMemory(Exhausted::Now)),
            ApiError::from(DecodeError::OutOfMemory(Exhausted::Ever)),
        ] {
            assert!(error.status().is_client_error(), "{error:?}");
        }
    }
}
