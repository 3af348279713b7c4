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
use thiserror::Error;

use super::shared::{Shared, UNKNOWN};
use crate::net::phase::Event;

/// Any error, as bodies have it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a body is not received: a chunk declares more bytes than a body may have.
#[derive(Debug, Error)]
#[error("a chunk is larger than a body may be")]
pub struct DeclaredTooLarge;

/// A request's body that notes whether it was read to its end.
pub struct RequestBody {
    body: Incoming,
    ended: bool,
    shared: Arc<Shared>,
}

impl RequestBody {
    /// The body of a request, which may be `chunked`.
    pub(super) fn new(body: Incoming, chunked: bool, shared: Arc<Shared>) -> Self {
        shared.chunked.store(chunked, Ordering::Relaxed);
        if !chunked {
            shared.declared_too_large.store(false, Ordering::Relaxed);
        }
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
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.shared.declared_too_large.load(Ordering::Relaxed) {
            return Poll::Ready(Some(Err(DeclaredTooLarge.into())));
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        // A chunked body does not know of itself that it has ended.
        self.ended |= frame.is_none();
        if self.ended || self.body.is_end_stream() {
            self.shared.body_read.store(true, Ordering::Relaxed);
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
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
        self.shared.chunked.store(false, Ordering::Relaxed);
        self.shared
            .declared_too_large
            .store(false, Ordering::Relaxed);
        if !self.ended && !self.body.is_end_stream() {
            let left = self.body.size_hint().exact().unwrap_or(UNKNOWN);
            self.shared.unread_body.store(left, Ordering::Relaxed);
        }
    }
}

/// An answer's body. hyper drops it when it has all of it in its buffers, which is long before a slow peer has it.
pub(super) struct AnswerBody<B> {
    body: B,
    shared: Arc<Shared>,
}

impl<B> AnswerBody<B> {
    pub(super) fn new(body: B, shared: Arc<Shared>) -> Self {
        Self { body, shared }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for AnswerBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B> Drop for AnswerBody<B> {
    fn drop(&mut self) {
        self.shared.note(Event::AnswerComplete);
    }
}
