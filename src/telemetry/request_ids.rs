//! The ids under which the log and traces know a request.
//!
//! Invariant: they are fit to be repeated in a line of the log, and cloning them allocates nothing.

use http::HeaderValue;
use tracing::field::{DisplayValue, display};

use super::traces::{SpanId, TraceId, TraceIds};

/// The ids of one request, which go wherever something may have to be told of it.
#[derive(Debug, Clone)]
pub struct RequestIds {
    /// `X-Request-Id`, the client's own or ours.
    id: HeaderValue,
    /// The place in a trace, if it has one.
    trace: Option<TraceIds>,
}

impl RequestIds {
    /// Of a request with the id `id`, which is text, and its place in a `trace`.
    #[must_use]
    pub fn new(id: HeaderValue, trace: Option<TraceIds>) -> Self {
        Self { id, trace }
    }

    /// The request's id, as a header has it.
    #[must_use]
    pub fn header(&self) -> &HeaderValue {
        &self.id
    }

    /// The request's id.
    #[must_use]
    pub fn id(&self) -> &str {
        self.id.to_str().unwrap_or("-")
    }

    /// The trace that the request is part of, for the log.
    #[must_use]
    pub fn trace_id(&self) -> Option<DisplayValue<TraceId>> {
        self.trace.map(|ids| display(ids.trace_id))
    }

    /// The span that stands for the request in that trace, for the log.
    #[must_use]
    pub fn span_id(&self) -> Option<DisplayValue<SpanId>> {
        self.trace.map(|ids| display(ids.span_id))
    }
}
