//! One connection: HTTP/1.1 by hyper, with the deadlines that hyper does not have.
//!
//! What the deadlines are stands in `phase`; `stream`, `service` and `body` tell it what happens, and `serve` does what it
//! says.
//! Invariant: a peer can hold a connection no longer than these deadlines allow, an answer that it takes is never cut,
//! and neither stopping nor giving way to others loses a request whose head was received.

mod body;
mod chunks;
mod service;
mod shared;
mod stream;
mod transport;

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use http::StatusCode;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::config::ConnectionConfig;
use super::drain::Drain;
use super::giving_way;
use super::phase::{Micros, Phase, Verdict};
use super::places::Place;
use super::site::{HttpService, RefusedHead, Site};
use crate::chance::chance;
pub use body::{BoxError, DeclaredTooLarge, RequestBody};
use service::WatchedService;
pub(super) use shared::Shared;
use stream::WatchedStream;
use transport::Transport;

/// Serves one connection until it ends, breaks a deadline, gives way, or is stopped.
pub(super) async fn serve<S: HttpService>(
    stream: TcpStream,
    site: Site<S>,
    config: ConnectionConfig,
    drain: Drain,
    place: Place,
) {
    // Answers are written whole, so waiting to fill packets only delays them.
    let _ = stream.set_nodelay(true);
    serve_stream(stream, site, config, drain, Arc::new(place)).await;
}

async fn serve_stream<T: Transport, S: HttpService>(
    stream: T,
    site: Site<S>,
    config: ConnectionConfig,
    drain: Drain,
    place: Arc<Place>,
) {
    let limits = config.limits();
    let shared = Arc::new(Shared::new(config.max_age.map(aged)));
    poll_fn(|context| {
        shared.departure.of(context.waker());
        Poll::Ready(())
    })
    .await;
    place.belongs_to(&shared);
    let Site { service, edge } = site;
    let stream = WatchedStream::new(stream, Arc::clone(&shared), Arc::clone(&edge), &config);
    let service = WatchedService {
        service,
        edge: Arc::clone(&edge),
        shared: Arc::clone(&shared),
        drain: drain.clone(),
        place: Arc::clone(&place),
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
    let mut stopping = pin!(drain.stopping());
    let mut aborting = pin!(drain.aborting());
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
            ended = connection.as_mut() => {
                if let Some(refused) = ended.err().and_then(|error| refused(&error, &shared)) {
                    edge.refused(&refused);
                }
                return;
            }
            () = &mut aborting => {
                if shared.state().owes_an_answer() {
                    drain.note_aborted();
                }
                return;
            }
            () = &mut stopping, if stopped.is_none() => {
                stopped = Some(shared.now());
            }
            () = asked_to_give_way(&shared) => {
                // What has arrived until now is read first, and whoever has sent a request stays.
                let polled = poll_fn(|context| Poll::Ready(connection.as_mut().poll(context)));
                if let Poll::Ready(ended) = polled.await {
                    if let Some(refused) = ended.err().and_then(|error| refused(&error, &shared)) {
                        edge.refused(&refused);
                    }
                    return;
                }
                let state = shared.state();
                let waits = giving_way::waiting(&state, place.kind(), shared.now()).is_some();
                let unread = shared.unread_bytes.load(Ordering::Relaxed);
                if waits && !(unread && state.phase != Phase::Closing) {
                    place.note_gave_way(state.phase);
                    return;
                }
                shared.departure.answer();
            }
            () = timer.as_mut() => {}
        }
    }
}

/// What hyper has answered, as its own table has it.
fn refused(error: &hyper::Error, shared: &Shared) -> Option<RefusedHead> {
    if !error.is_parse() {
        return None;
    }
    let reason = error.to_string();
    let status = if error.is_parse_version_h2() {
        // It closes the connection without a word.
        None
    } else if !error.is_parse_too_large() {
        Some(StatusCode::BAD_REQUEST)
    } else if reason.contains("URI") {
        Some(StatusCode::URI_TOO_LONG)
    } else {
        Some(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)
    };
    let id = shared.refused().filter(|_| status.is_some());
    Some(RefusedHead { status, reason, id })
}

/// `age`, give or take a tenth: connections that came about together need not all be made again together.
fn aged(age: Duration) -> Duration {
    age.mul_f64(0.9 + 0.2 * chance())
}

/// Ends when somebody needs the place. Costs a look at a flag.
async fn asked_to_give_way(shared: &Shared) {
    poll_fn(|_| {
        if shared.departure.is_asked_for() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::{get, post};
    use bytes::Bytes;
    use http::{HeaderMap, HeaderValue, Method};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::task::JoinHandle;
    use tokio::time::Instant;

    use super::*;
    use crate::net::config::{ListenerConfig, Port};
    use crate::net::places::Places;
    use crate::net::site::{Edge, Refusal};
    use crate::telemetry::metrics::Metrics;

    const BIG: usize = 200_000;

    const CONFIG: ConnectionConfig = ConnectionConfig {
        first_byte_timeout: Duration::from_secs(10),
        header_timeout: Duration::from_secs(10),
        write_timeout: Duration::from_secs(5),
        keep_alive_timeout: Duration::from_millis(500),
        max_age: None,
        max_head_bytes: 8192,
        max_headers: 100,
        max_body_bytes: 1 << 20,
    };

    #[test]
    fn connections_of_one_moment_grow_old_in_different_moments() {
        let ages: Vec<Duration> = (0..100).map(|_| aged(Duration::from_secs(100))).collect();
        let (least, most) = (ages.iter().min().unwrap(), ages.iter().max().unwrap());
        assert!(least.as_secs() >= 90 && most.as_secs() <= 110, "{ages:?}");
        assert!(most.abs_diff(*least).as_secs() >= 10, "{ages:?}");
    }

    /// An edge without probes or words of its own.
    struct NoEdge;

    impl Edge for NoEdge {
        fn is_quiet(&self, _: &Method, _: &str) -> bool {
            false
        }

        fn request_id<'h>(&self, _: &'h HeaderMap) -> Option<&'h HeaderValue> {
            None
        }

        fn refusal(&self, _: StatusCode) -> Option<Refusal> {
            None
        }

        fn refused(&self, _: &RefusedHead) {}
    }

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
            let site = Site {
                service: router,
                edge: Arc::new(NoEdge),
            };
            let metrics = Arc::new(Metrics::new().unwrap());
            let listener = ListenerConfig {
                port: Port::Main,
                max_connections: 1,
                reserve: 1,
                connection: CONFIG,
            };
            let place = Arc::new(Places::new(listener, metrics).last());
            let served = tokio::spawn(serve_stream(far_end, site, CONFIG, drain.clone(), place));
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
    async fn a_body_that_nobody_wants_is_taken_to_its_end_if_it_is_small_and_else_hardly_begun_with()
     {
        // What it declares, what is sent of it, and the least and the most that is taken.
        for (declared, least, most) in [
            (Some(2_usize << 20), 2 << 20, 2 << 20),
            (Some(32 << 20), 256 << 10, 512 << 10),
            (None, 4 << 20, 5 << 20),
        ] {
            let framing = match declared {
                Some(bytes) => format!("Content-Length: {bytes}"),
                None => "Transfer-Encoding: chunked".to_owned(),
            };
            let head = format!(
                "POST /unread HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{framing}\r\n\r\n"
            );
            let mut peer = Peer::sends(&head).await;
            let piece = if declared.is_some() {
                "x".repeat(1 << 10)
            } else {
                format!("3f0\r\n{}\r\n", "x".repeat(0x3f0))
            };
            let mut taken = 0;
            while taken < declared.unwrap_or(8 << 20)
                && peer.stream.write_all(piece.as_bytes()).await.is_ok()
            {
                taken += piece.len();
            }
            assert!((least..=most).contains(&taken), "{framing}: {taken}");
            let (answer, _) = peer.takes_all().await;
            assert!(answer.ends_with("unread"), "{answer}");
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
