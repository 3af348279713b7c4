//! Requests that hyper refuses by itself, because their head is not HTTP or too large.
//!
//! Invariant: the router's middleware is told of each once, so that it has a line in the log and a count like any other;
//! and its answer has the form of every other error.

use axum::Router;
use axum::body::Body;
use http::{Request, StatusCode};
use tower::Service as _;

use crate::http::error::{self, ApiError};
use crate::http::middleware::RefusedHead;

/// The longest URI that hyper takes, in bytes.
const LONGEST_URI: usize = u16::MAX as usize - 1;

/// Tells `router` of the request with which a connection ended, if `error` says that hyper refused one.
pub(super) async fn tell(mut router: Router, error: &hyper::Error) {
    let Some(refused) = refused(error) else {
        return;
    };
    let mut request = Request::new(Body::empty());
    request.extensions_mut().insert(refused);
    // What is returned is for nobody: hyper has answered already.
    let Ok(_) = router.call(request).await;
}

/// Our answer in the place of `answer`, if that is one of hyper's own: a status without a body.
pub(super) fn in_words(answer: &[u8]) -> Option<Vec<u8>> {
    let status = answer.strip_prefix(b"HTTP/1.1 ")?.get(..3)?;
    let error = match status {
        b"400" => ApiError::Invalid(
            "the request is no HTTP/1.1: its first line or one of its headers cannot be read"
                .to_owned(),
        ),
        b"414" => ApiError::UriTooLong(LONGEST_URI),
        b"431" => ApiError::HeadersTooLarge(
            "the request has more headers, or larger ones, than are read".to_owned(),
        ),
        _ => return None,
    };
    let body = error::body(&error.message(), error.code());
    let head = format!(
        "HTTP/1.1 {}\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        error.status(),
        body.len()
    );
    Some([head.as_bytes(), &body].concat())
}

/// What hyper has answered, as its own table has it.
fn refused(error: &hyper::Error) -> Option<RefusedHead> {
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
    Some(RefusedHead { status, reason })
}
