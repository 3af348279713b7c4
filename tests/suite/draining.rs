//! Stopping under load: what was accepted is answered, and the process ends in time.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test stops at the first thing that is wrong"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use testing::{Client, Request, Server};

/// What one client saw until it was turned away.
#[derive(Debug, Default)]
struct Tally {
    answered: AtomicUsize,
    lost: AtomicUsize,
    wrong: AtomicUsize,
}

/// Sends predictions back to back over kept-alive connections until no connection can be had any more.
///
/// A request counts as lost when it was written on an established connection and no answer came. The one exception is
/// a kept-alive connection that the server had closed before the request was written.
fn hammer(address: std::net::SocketAddr, tally: &Tally, started: &AtomicUsize, body: &[u8]) {
    let request = Request::raw("/predict", body);
    while let Ok(mut client) = Client::connect(address) {
        loop {
            match client.send(&request) {
                Ok(answer) => {
                    let right = answer.status == 200
                        && answer.json()["outputs"]["label"] == serde_json::json!([7]);
                    tally
                        .wrong
                        .fetch_add(usize::from(!right), Ordering::Relaxed);
                    tally.answered.fetch_add(1, Ordering::Relaxed);
                    started.fetch_add(1, Ordering::Relaxed);
                    if answer.closes() {
                        break;
                    }
                }
                Err(error) => {
                    eprintln!("lost: {error}");
                    tally.lost.fetch_add(1, Ordering::Relaxed);
                    break;
                }
            }
        }
    }
}

/// Stops a fresh server with SIGTERM under 50 kept-alive clients, beside `half_open` peers of each kind. Counts the
/// requests that were answered from then on, lost, and answered wrongly.
fn stop_under_load(half_open: usize) -> (usize, usize, usize) {
    let server = Server::start(&["--drain-timeout", "8s"]);
    let address = server.address;
    let body = std::fs::read(testing::repository("models/samples/digit-7.f32")).unwrap();
    let tally = Arc::new(Tally::default());
    let started = Arc::new(AtomicUsize::new(0));
    let mut peers = Vec::new();
    for bytes in [
        &b""[..],
        b"POST /predict HTTP/1.1\r\nHost: a\r\nConte",
        b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{",
    ] {
        for _ in 0..half_open {
            let mut peer = server.connect();
            peer.write(bytes).unwrap();
            peers.push(peer);
        }
    }
    let clients: Vec<_> = (0..50)
        .map(|_| {
            let (tally, started, body) = (Arc::clone(&tally), Arc::clone(&started), body.clone());
            std::thread::spawn(move || hammer(address, &tally, &started, &body))
        })
        .collect();
    testing::eventually("there is load", || started.load(Ordering::Relaxed) >= 800);
    let before = tally.answered.load(Ordering::Relaxed);
    let stopped_at = Instant::now();
    server.signal(Signal::SIGTERM);
    let status = server.wait();
    let took = stopped_at.elapsed();
    for client in clients {
        client.join().unwrap();
    }
    assert_eq!(status.code(), Some(0));
    // With half a body outstanding, the whole grace period is used, and no more.
    assert!(took < Duration::from_secs(12), "{took:?}");
    let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
    (
        count(&tally.answered) - before,
        count(&tally.lost),
        count(&tally.wrong),
    )
}

#[test]
fn sigterm_under_load_loses_nothing_that_was_accepted() {
    for _ in 0..10 {
        let (answered, lost, wrong) = stop_under_load(0);
        assert_eq!((lost, wrong), (0, 0));
        assert!(answered > 0, "nothing was on its way when it stopped");
    }
}

/// Asks the fixture `big` for `bytes` of raw floats, and waits until the answer is on its way.
fn begin_download(server: &Server, client: &mut Client, bytes: usize) {
    let request = Request::json("/predict", format!("{{\"inputs\": [[{}]]}}", bytes / 4))
        .header("Accept", "application/octet-stream");
    client.write(&request.bytes()).unwrap();
    testing::eventually("it is answered", || {
        server.metric("ml_predictions_total", &[("status", "success")]) == Some(1.0)
    });
}

#[test]
fn an_answer_on_its_way_is_sent_to_its_end() {
    let flags = ["--drain-timeout", "50s", "--keep-alive-timeout", "500ms"];
    let server = Server::fixture("big", &flags);
    let mut client = server.connect();
    begin_download(&server, &mut client, 40_000_000);
    client.read_at(10_000_000);
    server.signal(Signal::SIGTERM);
    let answer = client.read().unwrap();
    assert_eq!((answer.status, answer.body.len()), (200, 40_000_000));
    assert!(client.read_to_end().is_empty());
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn an_answer_that_is_not_taken_within_the_grace_period_is_reported() {
    let server = Server::fixture("big", &["--drain-timeout", "2s"]);
    let mut client = server.connect();
    begin_download(&server, &mut client, 40_000_000);
    server.signal(Signal::SIGTERM);
    let cut = server
        .log
        .wait_for(|line| {
            line["message"] == "the grace period ended before these requests were answered"
        })
        .expect("a line that says so");
    assert_eq!(cut["requests"], 1);
    assert_eq!(server.wait().code(), Some(0));
    assert!(client.read().is_err(), "the answer is cut");
}

#[test]
fn half_open_peers_neither_delay_the_end_beyond_the_grace_period_nor_cost_a_request() {
    let (_, lost, wrong) = stop_under_load(20);
    assert_eq!((lost, wrong), (0, 0));
}

#[test]
fn during_the_drain_delay_readiness_is_gone_and_predictions_are_answered() {
    let server = Server::start(&["--drain-delay", "2s"]);
    let mut kept = server.connect();
    assert_eq!(
        kept.send(&Request::new("GET", "/ready")).unwrap().status,
        200
    );
    server.signal(Signal::SIGTERM);
    server
        .log
        .wait_for(|line| line["message"] == "draining")
        .expect("a line that says so");
    let ready = server.get("/ready");
    assert_eq!(
        (ready.status, &ready.json()["code"]),
        (503, &"draining".into())
    );
    let body = std::fs::read(testing::repository("models/samples/digit-3.json")).unwrap();
    let answer = kept.send(&Request::json("/predict", body)).unwrap();
    assert_eq!(answer.status, 200);
    assert!(answer.closes());
    assert_eq!(server.get("/health").status, 200);
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn a_request_that_outlives_the_grace_period_is_cut_and_the_end_is_clean() {
    let server = Server::fixture(
        "loop",
        &["--drain-timeout", "500ms", "--request-timeout", "60s"],
    );
    let mut client = server.connect();
    client
        .write(&Request::json("/predict", r#"{"inputs": [2000000000]}"#).bytes())
        .unwrap();
    testing::eventually("it is executed", || {
        server.metric("ml_requests_in_flight", &[("model_name", "loop")]) == Some(1.0)
    });
    server.signal(Signal::SIGTERM);
    let started = Instant::now();
    assert_eq!(server.wait().code(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(10));
    assert!(client.read().is_err());
}

#[test]
fn a_second_interrupt_hurries() {
    let server = Server::fixture(
        "loop",
        &["--drain-timeout", "60s", "--request-timeout", "60s"],
    );
    let mut client = server.connect();
    client
        .write(&Request::json("/predict", r#"{"inputs": [2000000000]}"#).bytes())
        .unwrap();
    testing::eventually("it is executed", || {
        server.metric("ml_requests_in_flight", &[("model_name", "loop")]) == Some(1.0)
    });
    server.signal(Signal::SIGINT);
    server
        .log
        .wait_for(|line| line["message"] == "draining")
        .expect("a line that says so");
    let started = Instant::now();
    server.signal(Signal::SIGINT);
    assert_eq!(server.wait().code(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[test]
fn an_idle_connection_is_answered_once_more_while_the_server_stops() {
    let server = Server::start(&[]);
    let mut idle = server.connect();
    assert_eq!(
        idle.send(&Request::new("GET", "/health")).unwrap().status,
        200
    );
    server.signal(Signal::SIGTERM);
    server
        .log
        .wait_for(|line| line["message"] == "draining")
        .expect("a line that says so");
    let answer = idle.send(&Request::new("GET", "/health")).unwrap();
    assert_eq!(answer.status, 200);
    assert!(answer.closes());
    assert_eq!(server.wait().code(), Some(0));
}

/// It may be reading the model, making sessions, or trying batches. None of that can be stopped, and none of it may crash
/// the process when its libraries are taken down.
#[test]
fn a_server_that_is_stopped_while_it_loads_ends_cleanly() {
    let folder = tempfile::tempdir().unwrap();
    let model = testing::heavy(folder.path());
    for signal in [Signal::SIGTERM, Signal::SIGINT].repeat(8) {
        let server = Server::spawn(&["--model", &model], &[]);
        server.signal(signal);
        let status = server.wait();
        assert_eq!(status.code(), Some(0), "{signal}: {status:?}");
    }
}
