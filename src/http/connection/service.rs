//! The router, as one connection calls it.
//!
//! Invariant: each request is noted before its handler is called, and an answer whose head is made while the server drains
//! says that the connection ends.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use axum::Router;
use axum::routing::future::RouteFuture;
use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response};
use hyper::body::Incoming;
use pin_project_lite::pin_project;
use tower::Service as _;

use super::body::{AnswerBody, RequestBody};
use super::shared::Shared;
use crate::http::drain::Drain;
use crate::http::middleware::REQUEST_ID;
use crate::http::phase::Event;

/// The router, seen from one connection.
pub(super) struct WatchedService {
    pub(super) router: Router,
    pub(super) shared: Arc<Shared>,
    pub(super) drain: Drain,
}

impl hyper::service::Service<Request<Incoming>> for WatchedService {
    type Response = Response<AnswerBody>;
    type Error = Infallible;
    type Future = AnswerFuture;

    fn call(&self, request: Request<Incoming>) -> AnswerFuture {
        self.shared.note(Event::RequestBegan);
        // Of the request before, hyper has read everything, or it would not have come to this one.
        self.shared.unread_body.store(false, Ordering::Relaxed);
        let request = request.map(|body| RequestBody::new(body, Arc::clone(&self.shared)));
        AnswerFuture {
            inner: self.router.clone().call(request),
            shared: Arc::clone(&self.shared),
            drain: self.drain.clone(),
        }
    }
}

pin_project! {
    /// The router's answer, told to close the connection when the server drains.
    pub(super) struct AnswerFuture {
        #[pin]
        inner: RouteFuture<Infallible>,
        shared: Arc<Shared>,
        drain: Drain,
    }
}

impl Future for AnswerFuture {
    type Output = Result<Response<AnswerBody>, Infallible>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Ok(mut response) = ready!(this.inner.poll(context));
        this.shared.note_answer(response.headers().get(&REQUEST_ID));
        if this.drain.is_closing() {
            response
                .headers_mut()
                .insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Poll::Ready(Ok(
            response.map(|body| AnswerBody::new(body, Arc::clone(this.shared)))
        ))
    }
}
