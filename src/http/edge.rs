//! What the connections ask of this edge where no request reaches a route.
//!
//! Invariant: a head that is refused has one line in the log and one count, like any other request; and its answer has the
//! form of every other error.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Method, StatusCode};

use super::app::App;
use super::error::{self, ApiError};
use super::middleware::{self, REQUEST_ID};
use crate::net::site::{Edge, Refusal, RefusedHead};

/// The edge of one router.
pub(super) struct RouterEdge(pub(super) Arc<App>);

impl Edge for RouterEdge {
    fn is_quiet(&self, method: &Method, path: &str) -> bool {
        self.0.quiet_routes.are_asked(method, path)
    }

    fn request_id<'h>(&self, headers: &'h HeaderMap) -> Option<&'h HeaderValue> {
        headers.get(&REQUEST_ID)
    }

    fn refusal(&self, status: StatusCode) -> Option<Refusal> {
        let error = match status {
            StatusCode::BAD_REQUEST => ApiError::Invalid(
                "the request cannot be read as HTTP/1.1: its first line, one of its headers, or how its body is framed is wrong (of transfer codings, only chunked is taken)"
                    .to_owned(),
            ),
            StatusCode::URI_TOO_LONG => ApiError::UriTooLong(self.0.config.max_uri_size),
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => ApiError::HeadersTooLarge(
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
        Some(Refusal {
            id,
            bytes: [head.as_bytes(), &body].concat(),
        })
    }

    fn refused(&self, head: &RefusedHead) {
        middleware::tell_refused(&self.0, head);
    }
}
