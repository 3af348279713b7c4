//! The service, as one connection calls it.
//!
//! Invariant: each request is noted before its handler is called; on a reserve place none but those for probes and metrics
//! reach a handler; and an answer whose head is made there, while the server drains, or on a connection that has become old,
//! says that the connection ends.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use http::header::{CONNECTION, HeaderValue, TRANSFER_ENCODING};
use http::{Request, Response, Version};
use hyper::body::Incoming;
use pin_project_lite::pin_project;

use super::body::{AnswerBody, RequestBody};
use super::shared::Shared;
use crate::net::drain::Drain;
use crate::net::phase::Event;
use crate::net::places::{NoPlace, Place};
use crate::net::site::{Edge, HttpService};

/// The service, seen from one connection.
pub(super) struct WatchedService<S> {
    pub(super) service: S,
    /// Says what is answered on a reserve place, too.
    pub(super) edge: Arc<dyn Edge>,
    pub(super) shared: Arc<Shared>,
    pub(super) drain: Drain,
    pub(super) place: Arc<Place>,
}

impl<S> WatchedService<S> {
    /// Whether this request first needs a regular place.
    fn needs_place(&self, request: &Request<Incoming>) -> bool {
        let path = request.uri().path();
        self.place.is_on_reserve()
            && !self.place.try_move()
            && !self.edge.is_quiet(request.method(), path)
    }
}

impl<S: HttpService> hyper::service::Service<Request<Incoming>> for WatchedService<S> {
    type Response = Response<AnswerBody<S::Body>>;
    type Error = Infallible;
    type Future = AnswerFuture<S>;

    fn call(&self, request: Request<Incoming>) -> AnswerFuture<S> {
        self.shared.note(Event::RequestBegan);
        // Of the request before, hyper has read everything, or it would not have come to this one.
        self.shared.unread_body.store(0, Ordering::Relaxed);
        let needs_place = self.needs_place(&request);
        let version = request.version();
        let chunked = request.headers().contains_key(TRANSFER_ENCODING);
        let request = request.map(|body| RequestBody::new(body, chunked, Arc::clone(&self.shared)));
        let mut service = self.service.clone();
        let inner = if needs_place {
            let place = Arc::clone(&self.place);
            Inner::Waiting {
                waiting: Box::pin(async move { place.move_or_refuse().await }),
                request: Some((service, request)),
            }
        } else {
            Inner::Called {
                answer: service.call(request),
            }
        };
        AnswerFuture {
            inner,
            edge: Arc::clone(&self.edge),
            version,
            shared: Arc::clone(&self.shared),
            drain: self.drain.clone(),
            place: Arc::clone(&self.place),
        }
    }
}

pin_project! {
    /// The service's answer, told to close the connection when the server drains or the connection is old.
    pub(super) struct AnswerFuture<S>
    where
        S: HttpService,
    {
        #[pin]
        inner: Inner<S>,
        edge: Arc<dyn Edge>,
        version: Version,
        shared: Arc<Shared>,
        drain: Drain,
        place: Arc<Place>,
    }
}

pin_project! {
    #[project = InnerProjection]
    enum Inner<S>
    where
        S: HttpService,
    {
        /// The service has the request.
        Called {
            #[pin]
            answer: S::Future,
        },
        /// The request waits for a regular place.
        Waiting {
            waiting: Pin<Box<dyn Future<Output = bool> + Send>>,
            request: Option<(S, Request<RequestBody>)>,
        },
    }
}

impl<S: HttpService> Future for AnswerFuture<S> {
    type Output = Result<Response<AnswerBody<S::Body>>, Infallible>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let InnerProjection::Waiting { waiting, request } = this.inner.as_mut().project() {
            let has_place = ready!(waiting.as_mut().poll(context));
            if let Some((mut service, mut request)) = request.take() {
                if !has_place {
                    request.extensions_mut().insert(NoPlace);
                }
                let answer = service.call(request);
                this.inner.set(Inner::Called { answer });
            }
        }
        let mut response = match this.inner.project() {
            InnerProjection::Called { answer } => {
                let Ok(response) = ready!(answer.poll(context));
                response
            }
            // It became the other a moment ago.
            InnerProjection::Waiting { .. } => return Poll::Pending,
        };
        this.shared
            .note_answer(this.edge.request_id(response.headers()));
        if this.drain.is_closing() || this.place.is_on_reserve() || this.shared.is_old() {
            response
                .headers_mut()
                .insert(CONNECTION, HeaderValue::from_static("close"));
            // To an answer of HTTP/1.1 hyper would add that an older client may go on.
            *response.version_mut() = *this.version;
        }
        Poll::Ready(Ok(
            response.map(|body| AnswerBody::new(body, Arc::clone(this.shared)))
        ))
    }
}
