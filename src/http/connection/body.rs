//! The bodies of one connection: whether a request's was read to its end, and when an answer's is complete.
//!
//! Invariant: each is noted when it is dropped, however that comes about.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::shared::Shared;
use crate::http::phase::Event;

/// A request's body that notes whether it was read to its end.
pub(super) struct RequestBody {
    body: Incoming,
    ended: bool,
    shared: Arc<Shared>,
}

impl RequestBody {
    pub(super) fn new(body: Incoming, shared: Arc<Shared>) -> Self {
        shared
            .body_read
            .store(body.is_end_stream(), Ordering::Relaxed);
        shared.end_doubted.store(false, Ordering::Relaxed);
        Self {
            body,
            ended: false,
            shared,
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        // A chunked body does not know of itself that it has ended.
        self.ended |= frame.is_none();
        if self.ended || self.body.is_end_stream() {
            self.shared.body_read.store(true, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if !self.ended && !self.body.is_end_stream() {
            self.shared.unread_body.store(true, Ordering::Relaxed);
        }
    }
}

/// An answer's body. hyper drops it when it has all of it in its buffers, which is long before a slow peer has it.
pub(super) struct AnswerBody {
    body: axum::body::Body,
    shared: Arc<Shared>,
}

impl AnswerBody {
    pub(super) fn new(body: axum::body::Body, shared: Arc<Shared>) -> Self {
        Self { body, shared }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for AnswerBody {
    fn drop(&mut self) {
        self.shared.note(Event::AnswerComplete);
    }
}
