//! The router, as one connection calls it.
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

use axum::Router;
use axum::routing::future::RouteFuture;
use http::header::{CONNECTION, HeaderValue, TRANSFER_ENCODING};
use http::{Request, Response, Version};
use hyper::body::Incoming;
use pin_project_lite::pin_project;
use tower::Service as _;

use super::body::{AnswerBody, RequestBody};
use super::shared::Shared;
use crate::http::drain::Drain;
use crate::http::middleware::REQUEST_ID;
use crate::http::phase::Event;
use crate::http::places::{NoPlace, Place};
use crate::http::quiet::QuietRoutes;

/// The router, seen from one connection.
pub(super) struct WatchedService {
    pub(super) router: Router,
    pub(super) shared: Arc<Shared>,
    pub(super) drain: Drain,
    pub(super) place: Arc<Place>,
    /// What is answered on a reserve place, too.
    pub(super) quiet_routes: Arc<QuietRoutes>,
}

impl WatchedService {
    /// Whether this request first needs a regular place.
    fn needs_place(&self, request: &Request<Incoming>) -> bool {
        let path = request.uri().path();
        self.place.is_on_reserve()
            && !self.place.try_move()
            && !self.quiet_routes.are_asked(request.method(), path)
    }
}

impl hyper::service::Service<Request<Incoming>> for WatchedService {
    type Response = Response<AnswerBody>;
    type Error = Infallible;
    type Future = AnswerFuture;

    fn call(&self, request: Request<Incoming>) -> AnswerFuture {
        self.shared.note(Event::RequestBegan);
        // Of the request before, hyper has read everything, or it would not have come to this one.
        self.shared.unread_body.store(false, Ordering::Relaxed);
        let needs_place = self.needs_place(&request);
        let version = request.version();
        let chunked = request.headers().contains_key(TRANSFER_ENCODING);
        let request = request.map(|body| RequestBody::new(body, chunked, Arc::clone(&self.shared)));
        let mut router = self.router.clone();
        let inner = if needs_place {
            let place = Arc::clone(&self.place);
            Inner::Waiting {
                waiting: Box::pin(async move { place.move_or_refuse().await }),
                request: Some((router, request)),
            }
        } else {
            Inner::Routed {
                answer: router.call(request),
            }
        };
        AnswerFuture {
            inner,
            version,
            shared: Arc::clone(&self.shared),
            drain: self.drain.clone(),
            place: Arc::clone(&self.place),
        }
    }
}

pin_project! {
    /// The router's answer, told to close the connection when the server drains or the connection is old.
    pub(super) struct AnswerFuture {
        #[pin]
        inner: Inner,
        version: Version,
        shared: Arc<Shared>,
        drain: Drain,
        place: Arc<Place>,
    }
}

pin_project! {
    #[project = InnerProjection]
    enum Inner {
        /// The router has the request.
        Routed {
            #[pin]
            answer: RouteFuture<Infallible>,
        },
        /// The request waits for a regular place.
        Waiting {
            waiting: Pin<Box<dyn Future<Output = bool> + Send>>,
            request: Option<(Router, Request<RequestBody>)>,
        },
    }
}

impl Future for AnswerFuture {
    type Output = Result<Response<AnswerBody>, Infallible>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let InnerProjection::Waiting { waiting, request } = this.inner.as_mut().project() {
            let has_place = ready!(waiting.as_mut().poll(context));
            if let Some((mut router, mut request)) = request.take() {
                if !has_place {
                    request.extensions_mut().insert(NoPlace);
                }
                let answer = router.call(request);
                this.inner.set(Inner::Routed { answer });
            }
        }
        let mut response = match this.inner.project() {
            InnerProjection::Routed { answer } => {
                let Ok(response) = ready!(answer.poll(context));
                response
            }
            // It became the other a moment ago.
            InnerProjection::Waiting { .. } => return Poll::Pending,
        };
        this.shared.note_answer(response.headers().get(&REQUEST_ID));
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
