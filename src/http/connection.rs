//! One connection: HTTP/1.1 by hyper, with the deadlines that hyper does not have.
//!
//! What the deadlines are stands in `phase`; here is what tells it what happens, and does what it says.
//! Invariant: a peer can hold a connection no longer than these deadlines allow, an answer that it takes is never cut,
//! and stopping loses no request whose head was received.

use std::convert::Infallible;
use std::future::Future;
use std::io::IoSlice;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

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
use tokio::time::Instant;
use tower::Service as _;

use super::drain::Drain;
use super::phase::{Event, Limits, Micros, Phase, State, Verdict, micros};

/// How many bytes are read and thrown away after the last answer.
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
    /// While the peer takes no bytes of an answer, or so few that it falls behind by so much.
    pub write_timeout: Duration,
    /// Between an answer and the next request.
    pub keep_alive_timeout: Duration,
    /// The largest head of a request that is read at all, in bytes.
    pub max_head_bytes: usize,
    /// The most headers that are read at all.
    pub max_headers: usize,
}

impl ConnectionConfig {
    fn limits(&self) -> Limits {
        Limits {
            first_byte: micros(self.first_byte_timeout),
            head: micros(self.header_timeout),
            write: micros(self.write_timeout),
            keep_alive: micros(self.keep_alive_timeout),
        }
    }
}

/// What the stream, the service and the bodies of one connection know of each other. All live on one task, so plain
/// atomic loads and stores suffice; they only make the connection's future `Send`.
struct Shared {
    start: Instant,
    /// The fields of a [`State`].
    phase: AtomicU8,
    since: AtomicU64,
    /// One more than the time; zero if the peer takes bytes.
    blocked: AtomicU64,
    arrears: AtomicU64,
    /// Whether the body of the last request was left unread.
    unread_body: AtomicBool,
}

impl Shared {
    fn new() -> Self {
        let shared = Self {
            start: Instant::now(),
            phase: AtomicU8::new(0),
            since: AtomicU64::new(0),
            blocked: AtomicU64::new(0),
            arrears: AtomicU64::new(0),
            unread_body: AtomicBool::new(false),
        };
        shared.store(State::new());
        shared
    }

    fn now(&self) -> Micros {
        micros(self.start.elapsed())
    }

    fn instant(&self, at: Micros) -> Instant {
        self.start + Duration::from_micros(at)
    }

    fn state(&self) -> State {
        State {
            phase: Phase::from_index(self.phase.load(Ordering::Relaxed)),
            since: self.since.load(Ordering::Relaxed),
            blocked: self.blocked.load(Ordering::Relaxed).checked_sub(1),
            arrears: self.arrears.load(Ordering::Relaxed),
        }
    }

    fn store(&self, state: State) {
        self.phase.store(state.phase.index(), Ordering::Relaxed);
        self.since.store(state.since, Ordering::Relaxed);
        let blocked = state.blocked.map_or(0, |since| since.saturating_add(1));
        self.blocked.store(blocked, Ordering::Relaxed);
        self.arrears.store(state.arrears, Ordering::Relaxed);
    }

    fn note(&self, event: Event) {
        let before = self.state();
        let after = before.on(event, || self.now());
        if after != before {
            self.store(after);
        }
    }

    fn note_write(&self, result: &Poll<std::io::Result<usize>>) {
        match result {
            Poll::Ready(Ok(bytes)) => self.note(Event::BytesTaken(*bytes)),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.note(Event::WriteBlocked),
        }
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
    serve_stream(stream, router, config, drain).await;
}

async fn serve_stream<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    router: Router,
    config: ConnectionConfig,
    drain: Drain,
) {
    let limits = config.limits();
    let shared = Arc::new(Shared::new());
    let stream = WatchedStream {
        stream,
        shared: Arc::clone(&shared),
        end_withheld: false,
        discarded: 0,
        write_closed: false,
    };
    let service = WatchedService {
        router,
        shared: Arc::clone(&shared),
        drain: drain.clone(),
    };
    let connection = http1::Builder::new()
        .keep_alive(true)
        .max_buf_size(config.max_head_bytes.max(8192))
        .max_headers(config.max_headers)
        .pipeline_flush(false)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let mut timer = pin!(tokio::time::sleep_until(shared.start));
    let mut stopped: Option<Micros> = None;
    let (mut stopping, mut aborting) = (drain.stopping(), drain.aborting());
    loop {
        // The connection was polled just before, so whatever had arrived by now has been read.
        let state = shared.state();
        match state.verdict(&limits, stopped, shared.now()) {
            Verdict::Close => return,
            Verdict::KeepUntil(at) => timer.as_mut().reset(shared.instant(at)),
        }
        // The head of its answer is still to come, and says that the connection ends.
        if stopped.is_some() && state.phase == Phase::InRequest {
            connection.as_mut().graceful_shutdown();
        }
        tokio::select! {
            biased;
            _ = connection.as_mut() => return,
            () = &mut aborting => {
                if shared.state().owes_an_answer() {
                    drain.note_aborted();
                }
                return;
            }
            () = &mut stopping, if stopped.is_none() => {
                stopped = Some(shared.now());
            }
            () = timer.as_mut() => {}
        }
    }
}

/// A stream that tells what comes and goes.
struct WatchedStream<S> {
    stream: S,
    shared: Arc<Shared>,
    /// Whether hyper was not told that the peer sends no more.
    end_withheld: bool,
    discarded: usize,
    write_closed: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WatchedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        // hyper takes the end of what a peer sends for its end, and drops an answer that is on its way. But it may have
        // said only that this was its last request. One that is gone resets the connection when more is written.
        let sending = self.shared.state().phase == Phase::Sending;
        if sending && self.end_withheld {
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if buffer.filled().len() > before {
            self.shared.note(Event::BytesArrived);
        } else if sending && buffer.remaining() > 0 {
            self.end_withheld = true;
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WatchedStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.shared.note_write(&result);
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
        self.shared.note_write(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// hyper flushes when its own buffers are empty, and only then.
    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        self.shared.note(Event::AllWritten);
        if std::mem::take(&mut self.end_withheld) {
            // hyper was told to wait for what will not come.
            context.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }

    /// Ends the answer, and reads what the peer has sent meanwhile, or is still sending, so that the answer is not lost:
    /// the kernel resets a connection that is closed with unread bytes.
    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        if !self.write_closed {
            ready!(Pin::new(&mut self.stream).poll_shutdown(context))?;
            self.write_closed = true;
            self.shared.note(Event::WriteClosed);
        }
        let mut scratch = [0; 8192];
        loop {
            let mut buffer = ReadBuf::new(&mut scratch);
            let result = Pin::new(&mut self.stream).poll_read(context, &mut buffer);
            let more_may_come =
                self.discarded > 0 || self.shared.unread_body.load(Ordering::Relaxed);
            if result.is_pending() && !more_may_come {
                return Poll::Ready(Ok(()));
            }
            ready!(result)?;
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
struct WatchedService {
    router: Router,
    shared: Arc<Shared>,
    drain: Drain,
}

impl hyper::service::Service<Request<Incoming>> for WatchedService {
    type Response = Response<AnswerBody>;
    type Error = Infallible;
    type Future = AnswerFuture;

    fn call(&self, request: Request<Incoming>) -> AnswerFuture {
        self.shared.note(Event::RequestBegan);
        // Of the request before, hyper has read everything, or it would not have come to this one.
        self.shared.unread_body.store(false, Ordering::Relaxed);
        let request = request.map(|body| RequestBody {
            body,
            ended: false,
            shared: Arc::clone(&self.shared),
        });
        AnswerFuture {
            inner: self.router.clone().call(request),
            shared: Arc::clone(&self.shared),
            drain: self.drain.clone(),
        }
    }
}

pin_project! {
    /// The router's answer, told to close the connection when the server drains.
    struct AnswerFuture {
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
        if this.drain.is_closing() {
            response
                .headers_mut()
                .insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Poll::Ready(Ok(response.map(|body| AnswerBody {
            body,
            shared: Arc::clone(this.shared),
        })))
    }
}

/// A request's body that notes whether it was read to its end.
struct RequestBody {
    body: Incoming,
    ended: bool,
    shared: Arc<Shared>,
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
struct AnswerBody {
    body: axum::body::Body,
    shared: Arc<Shared>,
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

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use axum::routing::{get, post};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::task::JoinHandle;

    use super::*;

    const BIG: usize = 200_000;

    const CONFIG: ConnectionConfig = ConnectionConfig {
        first_byte_timeout: Duration::from_secs(10),
        header_timeout: Duration::from_secs(10),
        write_timeout: Duration::from_secs(5),
        keep_alive_timeout: Duration::from_millis(500),
        max_head_bytes: 8192,
        max_headers: 100,
    };

    /// A peer of a connection, which holds a kilobyte on its way, in a time that passes only while everybody waits.
    struct Peer {
        stream: DuplexStream,
        served: JoinHandle<()>,
        drain: Drain,
        start: Instant,
        taken: Vec<u8>,
    }

    impl Peer {
        async fn sends(bytes: &str) -> Self {
            let router = Router::new()
                .route("/big", get(async || vec![b'x'; BIG]))
                .route("/small", get(async || "small"))
                .route("/nothing", get(async || StatusCode::NO_CONTENT))
                .route(
                    "/slow",
                    get(async || {
                        tokio::time::sleep(Duration::from_secs(60)).await;
                    }),
                )
                .route("/read", post(async |_: Bytes| "read"))
                .route("/unread", post(async || "unread"));
            let (stream, far_end) = tokio::io::duplex(1024);
            let drain = Drain::default();
            let served = tokio::spawn(serve_stream(far_end, router, CONFIG, drain.clone()));
            let start = Instant::now();
            let mut peer = Self {
                stream,
                served,
                drain,
                start,
                taken: Vec::new(),
            };
            peer.send(bytes).await;
            peer
        }

        async fn send(&mut self, bytes: &str) {
            self.stream.write_all(bytes.as_bytes()).await.unwrap();
        }

        /// Takes `bytes` at most, every `pause`, until the server ends the connection or `enough` of a body were taken.
        /// Says how much of it that is.
        async fn takes(&mut self, bytes: usize, pause: Duration, enough: usize) -> usize {
            let mut piece = vec![0; bytes];
            loop {
                let head = self.taken.windows(4).position(|end| end == b"\r\n\r\n");
                let body = head.map_or(0, |head| self.taken.len() - head - 4);
                if body >= enough {
                    return body;
                }
                match self.stream.read(&mut piece).await.unwrap() {
                    0 => return body,
                    read => self.taken.extend_from_slice(&piece[..read]),
                }
                tokio::time::sleep(pause).await;
            }
        }

        /// Everything until the connection ends, and when that was.
        async fn takes_all(&mut self) -> (String, Duration) {
            let mut all = Vec::new();
            self.stream.read_to_end(&mut all).await.unwrap();
            (String::from_utf8(all).unwrap(), self.start.elapsed())
        }
    }

    /// Whether `took` is `expected`, but for the steps of the timer.
    fn about(took: Duration, expected: Duration) -> bool {
        took >= expected && took < expected + Duration::from_millis(5)
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_a_byte_now_and_then_is_closed() {
        let mut peer = Peer::sends("GET /big HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let taken = peer.takes(1, Duration::from_secs(1), BIG).await;
        assert!(taken < 2_000, "{taken}");
        peer.served.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_is_closed_after_the_write_timeout() {
        let peer = Peer::sends("GET /big HTTP/1.1\r\nHost: a\r\n\r\n").await;
        peer.served.await.unwrap();
        assert!(about(peer.start.elapsed(), CONFIG.write_timeout));
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_enough_gets_everything_however_long_it_takes() {
        let mut peer = Peer::sends("GET /big HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let pause = Duration::from_millis(200);
        assert_eq!(peer.takes(1024, pause, usize::MAX).await, BIG);
        assert!(peer.start.elapsed() > Duration::from_secs(30));
    }

    #[tokio::test(start_paused = true)]
    async fn the_pause_between_requests_begins_when_the_answer_is_written() {
        for path in ["GET /small", "HEAD /big", "GET /nothing", "GET /unknown"] {
            let request = format!("{path} HTTP/1.1\r\nHost: a\r\n\r\n");
            let mut peer = Peer::sends(&request).await;
            let (_, ended) = peer.takes_all().await;
            assert!(about(ended, CONFIG.keep_alive_timeout), "{path} {ended:?}");
            assert_eq!(peer.drain.aborted_requests(), 0);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_are_sent_at_once_are_answered_at_the_pace_of_the_peer() {
        let requests = "GET /big HTTP/1.1\r\nHost: a\r\n\r\n".repeat(3);
        let mut peer = Peer::sends(&requests).await;
        let taken = peer
            .takes(1024, Duration::from_millis(100), usize::MAX)
            .await;
        assert!(taken > 3 * BIG, "{taken}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_behind_an_answer_that_did_not_wait_for_its_body_is_answered() {
        let mut peer =
            Peer::sends("POST /unread HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody").await;
        peer.send("GET /small HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let (answers, ended) = peer.takes_all().await;
        assert_eq!(answers.matches("200 OK").count(), 2, "{answers}");
        assert!(about(ended, CONFIG.keep_alive_timeout), "{ended:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_says_it_will_send_no_more_gets_the_rest_of_its_answer() {
        let mut peer = Peer::sends("GET /big HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let taken = peer.takes(100, Duration::ZERO, 100).await;
        peer.stream.shutdown().await.unwrap();
        let (rest, ended) = peer.takes_all().await;
        assert_eq!(taken + rest.len(), BIG);
        assert!(about(ended, Duration::ZERO), "{ended:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_lets_the_peer_take_its_answer_and_then_waits_no_longer() {
        let mut peer = Peer::sends("GET /big HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let pause = Duration::from_millis(20);
        peer.takes(1024, pause, BIG / 4).await;
        peer.drain.stop_accepting();
        assert_eq!(peer.takes(1024, pause, BIG).await, BIG);
        let started = Instant::now();
        peer.takes_all().await;
        let waited = started.elapsed();
        assert!(waited < Duration::from_millis(700), "{waited:?}");
        assert_eq!(peer.drain.aborted_requests(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_comes_while_an_answer_is_taken_after_the_stop_is_answered() {
        let mut peer = Peer::sends("GET /big HTTP/1.1\r\nHost: a\r\n\r\n").await;
        peer.takes(1024, Duration::ZERO, 1).await;
        peer.drain.stop_accepting();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(peer.takes(1024, Duration::ZERO, BIG).await, BIG);
        peer.send("GET /small HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let (rest, _) = peer.takes_all().await;
        assert!(rest.contains("connection: close"), "{rest}");
        assert!(rest.ends_with("small"), "{rest}");
    }

    #[tokio::test(start_paused = true)]
    async fn requests_without_the_whole_of_their_answer_are_counted_when_they_are_aborted() {
        for (path, aborted) in [("big", 1), ("slow", 1), ("small", 0)] {
            let request = format!("GET /{path} HTTP/1.1\r\nHost: a\r\n\r\n");
            let peer = Peer::sends(&request).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
            peer.drain.abort();
            peer.served.await.unwrap();
            assert_eq!(peer.drain.aborted_requests(), aborted, "{path}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_body_that_was_not_read_to_its_end_delays_the_close() {
        let lingering = Duration::from_secs(2);
        let head = "HTTP/1.1\r\nHost: a\r\nConnection: close\r\n";
        for (path, body, expected) in [
            (
                "read",
                "Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
                Duration::ZERO,
            ),
            ("read", "Content-Length: 4\r\n\r\nbody", Duration::ZERO),
            (
                "unread",
                "Transfer-Encoding: chunked\r\n\r\n4\r\nbo",
                lingering,
            ),
            ("unread", "Content-Length: 4\r\n\r\nbo", lingering),
        ] {
            let mut peer = Peer::sends(&format!("POST /{path} {head}{body}")).await;
            let (answer, _) = peer.takes_all().await;
            assert!(answer.ends_with(path), "{answer}");
            peer.served.await.unwrap();
            let ended = peer.start.elapsed();
            assert!(about(ended, expected), "{path} {body:?} {ended:?}");
        }
    }
}
