//! Requests that hyper refuses by itself, because their head is not HTTP or too large.
//!
//! Invariant: the router's middleware is told of each once, so that it has a line in the log and a count like any other.

use axum::Router;
use axum::body::Body;
use http::{Request, StatusCode};
use tower::Service as _;

use crate::http::middleware::RefusedHead;

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
