//! One connection: HTTP/1.1 by hyper, with the deadlines that hyper does not have.
//!
//! A connection is always in one phase, and each phase but the handler's own has a deadline: the first byte, the head
//! of a request, the pause between requests, and a peer that does not read. Invariant: a peer can hold a connection
//! no longer than these deadlines allow, and stopping loses no request whose head was received.

use std::convert::Infallible;
use std::future::Future;
use std::io::IoSlice;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::future::RouteFuture;
use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tower::Service as _;

use super::drain::Drain;

/// How long an idle connection is kept after accepting stopped: a request that is on its way then is still answered.
const LINGER: Duration = Duration::from_millis(500);

/// How long, and how many bytes, an unread request body is read to its end after the answer. Closing a socket with
/// unread bytes makes the kernel reset the connection, and the client may lose an answer it has not read yet.
const LINGERING_CLOSE: Duration = Duration::from_secs(2);
const LINGERING_BYTES: usize = 4 << 20;

/// The most bytes of an answer that are copied to be sent as one piece.
const SENT_TOGETHER: usize = 1024;

/// The bounds of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionConfig {
    /// From being accepted to the first byte.
    pub first_byte_timeout: Duration,
    /// From the first byte of a request's head to its end.
    pub header_timeout: Duration,
    /// While the peer takes no bytes of an answer.
    pub write_timeout: Duration,
    /// Between an answer and the next request.
    pub keep_alive_timeout: Duration,
    /// The largest head of a request that is read at all, in bytes.
    pub max_head_bytes: usize,
    /// The most headers that are read at all.
    pub max_headers: usize,
}

impl ConnectionConfig {
    /// The shortest deadline: looking that often means to be late for none.
    fn shortest(&self) -> Duration {
        self.first_byte_timeout
            .min(self.header_timeout)
            .min(self.write_timeout)
            .min(self.keep_alive_timeout)
    }
}

const AWAITING_FIRST_BYTE: u8 = 0;
const READING_HEAD: u8 = 1;
const IN_REQUEST: u8 = 2;
const IDLE: u8 = 3;
const CLOSING: u8 = 4;

/// What the stream, the service and the bodies of one connection know of each other. All live on one task, so plain
/// atomic loads and stores suffice; they only make the connection's future `Send`.
struct Phase {
    start: Instant,
    phase: AtomicU8,
    /// When the phase began, in microseconds since `start`.
    since: AtomicU64,
    /// When the peer stopped taking bytes, in microseconds since `start`, plus one; zero while it takes them.
    write_stalled: AtomicU64,
    /// Whether a request's body was left unread.
    unread_body: AtomicBool,
}

impl Phase {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            phase: AtomicU8::new(AWAITING_FIRST_BYTE),
            since: AtomicU64::new(0),
            write_stalled: AtomicU64::new(0),
            unread_body: AtomicBool::new(false),
        }
    }

    /// Microseconds since the connection's start.
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn get(&self) -> u8 {
        self.phase.load(Ordering::Relaxed)
    }

    fn enter(&self, phase: u8) {
        // A request's handler keeps its own deadlines, so that nobody asks when this phase began.
        if phase != IN_REQUEST {
            self.since.store(self.now(), Ordering::Relaxed);
        }
        self.phase.store(phase, Ordering::Relaxed);
    }

    fn bytes_arrived(&self) {
        if matches!(self.get(), AWAITING_FIRST_BYTE | IDLE) {
            self.enter(READING_HEAD);
        }
    }

    fn write_progressed(&self, progressed: bool) {
        let stalled = self.write_stalled.load(Ordering::Relaxed);
        if progressed {
            if stalled != 0 {
                self.write_stalled.store(0, Ordering::Relaxed);
            }
        } else if stalled == 0 {
            self.write_stalled.store(self.now() + 1, Ordering::Relaxed);
        }
    }

    /// Whether a deadline has passed; if not, when to look again.
    fn next_deadline(&self, config: &ConnectionConfig) -> Result<Instant, ()> {
        let at =
            |micros: u64, timeout: Duration| self.start + Duration::from_micros(micros) + timeout;
        let now = Instant::now();
        let since = self.since.load(Ordering::Relaxed);
        let phase_deadline = match self.get() {
            AWAITING_FIRST_BYTE => Some(at(since, config.first_byte_timeout)),
            READING_HEAD => Some(at(since, config.header_timeout)),
            IDLE => Some(at(since, config.keep_alive_timeout)),
            CLOSING => Some(at(since, LINGERING_CLOSE)),
            _ => None,
        };
        let stalled = self.write_stalled.load(Ordering::Relaxed);
        let write_deadline = (stalled != 0).then(|| at(stalled - 1, config.write_timeout));
        if phase_deadline
            .into_iter()
            .chain(write_deadline)
            .any(|deadline| deadline <= now)
        {
            return Err(());
        }
        // A phase that begins later has its deadline later than this, so it will not be missed.
        Ok(phase_deadline
            .into_iter()
            .chain(write_deadline)
            .fold(now + config.shortest(), Instant::min))
    }
}

/// Serves one connection until it ends, breaks a deadline, or is stopped.
pub(super) async fn serve(
    stream: TcpStream,
    router: Router,
    config: ConnectionConfig,
    drain: Drain,
) {
    // Answers are written whole, so waiting to fill packets only delays them.
    let _ = stream.set_nodelay(true);
    let phase = Arc::new(Phase::new());
    let stream = PhasedStream {
        stream,
        phase: Arc::clone(&phase),
        discarded: 0,
        write_closed: false,
    };
    let service = PhasedService {
        router,
        phase: Arc::clone(&phase),
        drain: drain.clone(),
    };
    let connection = http1::Builder::new()
        .keep_alive(true)
        .max_buf_size(config.max_head_bytes.max(8192))
        .max_headers(config.max_headers)
        .pipeline_flush(false)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let mut timer = pin!(tokio::time::sleep_until(
        (Instant::now() + config.shortest()).into()
    ));
    let mut stopped: Option<Instant> = None;
    let (mut stopping, mut aborting) = (drain.stopping(), drain.aborting());
    loop {
        tokio::select! {
            biased;
            _ = connection.as_mut() => return,
            () = &mut aborting => {
                if phase.get() == IN_REQUEST {
                    drain.note_aborted();
                }
                return;
            }
            () = &mut stopping, if stopped.is_none() => {
                let end = Instant::now() + LINGER;
                stopped = Some(end);
                if phase.get() == IN_REQUEST {
                    connection.as_mut().graceful_shutdown();
                }
                let earlier = end.min(timer.deadline().into_std());
                timer.as_mut().reset(earlier.into());
            }
            () = timer.as_mut() => {
                let Ok(next) = phase.next_deadline(&config) else { return };
                match stopped {
                    // The connection was polled just before, so whatever had arrived by now has been read.
                    Some(end) if end <= Instant::now() => match phase.get() {
                        AWAITING_FIRST_BYTE | READING_HEAD | IDLE => return,
                        _ => {
                            connection.as_mut().graceful_shutdown();
                            timer.as_mut().reset(next.into());
                        }
                    },
                    Some(end) => timer.as_mut().reset(next.min(end).into()),
                    None => timer.as_mut().reset(next.into()),
                }
            }
        }
    }
}

/// A stream that notes in which phase bytes come and go.
struct PhasedStream {
    stream: TcpStream,
    phase: Arc<Phase>,
    discarded: usize,
    write_closed: bool,
}

impl AsyncRead for PhasedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.phase.bytes_arrived();
        }
        result
    }
}

impl AsyncWrite for PhasedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.phase.write_progressed(result.is_ready());
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        // The head of an answer and a small body are sent as one piece: the kernel takes longer to look at two than a
        // copy does.
        let mut together = [0; SENT_TOGETHER];
        let stream = Pin::new(&mut self.stream);
        let result = match join(slices, &mut together) {
            Some(bytes) => stream.poll_write(context, bytes),
            None => stream.poll_write_vectored(context, slices),
        };
        self.phase.write_progressed(result.is_ready());
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    /// Ends the answer, and reads what is left of an unread body so that the answer is not lost with it.
    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        if !self.write_closed {
            ready!(Pin::new(&mut self.stream).poll_shutdown(context))?;
            self.write_closed = true;
            self.phase.enter(CLOSING);
        }
        if !self.phase.unread_body.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        let mut scratch = [0; 8192];
        loop {
            let mut buffer = ReadBuf::new(&mut scratch);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer))?;
            let read = buffer.filled().len();
            self.discarded += read;
            if read == 0 || self.discarded >= LINGERING_BYTES {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

/// What stands in `slices`, put together in `buffer` if it is several pieces and fits.
fn join<'b>(slices: &[IoSlice<'_>], buffer: &'b mut [u8]) -> Option<&'b [u8]> {
    let length: usize = slices.iter().map(|slice| slice.len()).sum();
    if slices.len() < 2 || length > buffer.len() {
        return None;
    }
    let mut end = 0;
    for slice in slices {
        let start = end;
        end += slice.len();
        buffer.get_mut(start..end)?.copy_from_slice(slice);
    }
    buffer.get(..end)
}

/// The router, seen from one connection.
struct PhasedService {
    router: Router,
    phase: Arc<Phase>,
    drain: Drain,
}

impl hyper::service::Service<Request<Incoming>> for PhasedService {
    type Response = Response<AnswerBody>;
    type Error = Infallible;
    type Future = AnswerFuture;

    fn call(&self, request: Request<Incoming>) -> AnswerFuture {
        self.phase.enter(IN_REQUEST);
        let request = request.map(|body| RequestBody {
            body,
            phase: Arc::clone(&self.phase),
        });
        AnswerFuture {
            inner: self.router.clone().call(request),
            phase: Arc::clone(&self.phase),
            drain: self.drain.clone(),
        }
    }
}

pin_project! {
    /// The router's answer, told to close the connection when the server drains.
    struct AnswerFuture {
        #[pin]
        inner: RouteFuture<Infallible>,
        phase: Arc<Phase>,
        drain: Drain,
    }
}

impl Future for AnswerFuture {
    type Output = Result<Response<AnswerBody>, Infallible>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Ok(mut response) = ready!(this.inner.poll(context));
        if this.drain.is_closing() {
            response
                .headers_mut()
                .insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Poll::Ready(Ok(response.map(|body| AnswerBody {
            body,
            phase: Arc::clone(this.phase),
        })))
    }
}

/// A request's body that notes whether it was read to its end.
struct RequestBody {
    body: Incoming,
    phase: Arc<Phase>,
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
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
        if !self.body.is_end_stream() {
            self.phase.unread_body.store(true, Ordering::Relaxed);
        }
    }
}

/// An answer's body that ends the request's phase when hyper has taken all of it.
struct AnswerBody {
    body: axum::body::Body,
    phase: Arc<Phase>,
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
        self.phase.enter(IDLE);
    }
}
