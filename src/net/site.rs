//! What a listener serves: a service, and an edge that speaks for it where no request reaches the service.
//!
//! Invariant: nothing in this module tree knows a route, or what a body means; and nothing names the library that the
//! service is made with.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body;

use super::connection::{BoxError, RequestBody};

/// A service that answers every request, and is always ready: what has to wait, waits in its futures.
pub trait HttpService:
    tower::Service<
        Request<RequestBody>,
        Response = Response<<Self as HttpService>::Body>,
        Error = Infallible,
        Future: Send + 'static,
    > + Clone
    + Send
    + Sync
    + 'static
{
    /// The bodies of its answers.
    type Body: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static;
}

impl<S, B> HttpService for S
where
    S: tower::Service<Request<RequestBody>, Response = Response<B>, Error = Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
{
    type Body = B;
}

/// What only the edge knows of its requests and answers.
pub trait Edge: Send + Sync + 'static {
    /// Whether a request is a probe or a scrape, which is answered even when every regular place is taken.
    fn is_quiet(&self, method: &Method, path: &str) -> bool;

    /// By what the log knows the request of an answer with these headers.
    fn request_id<'h>(&self, headers: &'h HeaderMap) -> Option<&'h HeaderValue>;

    /// The whole answer to a head that was refused with `status`, in the form of every other error; none if that status
    /// has no words of its own.
    fn refusal(&self, status: StatusCode) -> Option<Refusal>;

    /// Takes note of a head that was refused, so that it has a line in the log and a count like any other request.
    fn refused(&self, head: &RefusedHead);
}

/// An answer to a head that no service has seen.
#[derive(Debug)]
pub struct Refusal {
    /// The id under which it is in the log.
    pub id: HeaderValue,
    /// Its head and its body.
    pub bytes: Vec<u8>,
}

/// A request whose head was refused, because it is not HTTP or too large.
#[derive(Debug)]
pub struct RefusedHead {
    /// What was answered, if anything.
    pub status: Option<StatusCode>,
    /// What was wrong, in the words of the parser.
    pub reason: String,
    /// The id that the answer has.
    pub id: Option<HeaderValue>,
}

/// What is served on every connection of a listener.
#[derive(Clone)]
pub struct Site<S> {
    /// Answers the requests.
    pub service: S,
    /// Speaks for it where it is not asked.
    pub edge: Arc<dyn Edge>,
}
