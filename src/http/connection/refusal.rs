//! Requests that hyper refuses by itself, because their head is not HTTP or too large.
//!
//! Invariant: the router's middleware is told of each once, so that it has a line in the log and a count like any other;
//! and its answer has the form of every other error.

use axum::Router;
use axum::body::Body;
use http::{HeaderValue, Request, StatusCode};
use tower::Service as _;

use crate::http::error::{self, ApiError};
use crate::http::middleware::{self, REQUEST_ID, RefusedHead};

/// Tells `router` of the request with which a connection ended, if `error` says that hyper refused one. `id` is the one
/// that the refusal was answered with, if it was.
pub(super) async fn tell(mut router: Router, error: &hyper::Error, id: Option<HeaderValue>) {
    let Some(refused) = refused(error, id) else {
        return;
    };
    let mut request = Request::new(Body::empty());
    request.extensions_mut().insert(refused);
    // What is returned is for nobody: hyper has answered already.
    let Ok(_) = router.call(request).await;
}

/// Our answer in the place of `answer`, with the id that it has, if that is one of hyper's own: a status without a body.
pub(super) fn in_words(answer: &[u8], max_uri: usize) -> Option<(HeaderValue, Vec<u8>)> {
    let status = answer.strip_prefix(b"HTTP/1.1 ")?.get(..3)?;
    let error = match status {
        b"400" => ApiError::Invalid(
            "the request cannot be read as HTTP/1.1: its first line, one of its headers, or how its body is framed is wrong (of transfer codings, only chunked is taken)"
                .to_owned(),
        ),
        b"414" => ApiError::UriTooLong(max_uri),
        b"431" => ApiError::HeadersTooLarge(
            "the request has more or larger headers than are read, or a length that no body has"
                .to_owned(),
        ),
        _ => return None,
    };
    let id = middleware::new_id();
    let body = error::body(&error.message(), error.code());
    let head = format!(
        "HTTP/1.1 {}\r\ncontent-type: application/json\r\n{REQUEST_ID}: {}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        error.status(),
        id.to_str().ok()?,
        body.len()
    );
    Some((id, [head.as_bytes(), &body].concat()))
}

/// What hyper has answered, as its own table has it.
fn refused(error: &hyper::Error, id: Option<HeaderValue>) -> Option<RefusedHead> {
    if !error.is_parse() {
        return None;
    }
    let reason = error.to_string();
    let status = if error.is_parse_version_h2() {
        // It closes the connection without a word.
        None
    } else if !error.is_parse_too_large() {
        Some(StatusCode::BAD_REQUEST)
    } else if reason.contains("URI") {
        Some(StatusCode::URI_TOO_LONG)
    } else {
        Some(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)
    };
    let id = id.filter(|_| status.is_some());
    Some(RefusedHead { status, reason, id })
}
