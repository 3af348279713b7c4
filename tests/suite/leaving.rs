//! Clients that send no more, and clients that are gone: who has sent a whole request is answered until it is known to be
//! gone.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test stops at the first thing that is wrong"
)]

use std::io::Write;
use std::net::Shutdown;
use std::process::Stdio;

use testing::{Request, Server};

/// A request that takes the fixture `loop` some half a second.
const SLOW: &str = r#"{"inputs": [1000000]}"#;

/// One that it does not come to the end of.
const ENDLESS: &str = r#"{"inputs": [2000000000]}"#;

/// The fixture `loop`, which executes one request at a time.
fn slow_server() -> Server {
    let flags = [
        "--instances",
        "1",
        "--body-timeout",
        "1h",
        "--keep-alive-timeout",
        "1h",
    ];
    Server::fixture("loop", &flags)
}

/// Sends `pieces` one after the other, says that no more comes, and reads the answer and the end.
fn ask_and_send_no_more(server: &Server, pieces: &[&[u8]]) -> u16 {
    let mut client = server.connect();
    for piece in pieces {
        client.write(piece).unwrap();
        std::thread::yield_now();
    }
    client.stream.shutdown(Shutdown::Write).unwrap();
    let answer = client.read().unwrap();
    assert!(client.read_to_end().is_empty());
    answer.status
}

fn predictions(server: &Server, status: &str) -> Option<f64> {
    server.metric("ml_predictions_total", &[("status", status)])
}

#[test]
fn a_client_that_sends_no_more_gets_its_answer_however_slow_the_model_is() {
    let server = slow_server();
    let whole = Request::json("/predict", SLOW).bytes();
    let (head, body) = whole.split_at(whole.len() - SLOW.len());
    assert_eq!(ask_and_send_no_more(&server, &[&whole]), 200);
    assert_eq!(ask_and_send_no_more(&server, &[head, body]), 200);
    assert_eq!(
        ask_and_send_no_more(&server, &[head, &body[..9], &body[9..]]),
        200
    );
    let head = b"POST /predict HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let body = format!("{:x}\r\n{SLOW}\r\n0\r\n\r\n", SLOW.len());
    let whole = [&head[..], body.as_bytes()].concat();
    assert_eq!(ask_and_send_no_more(&server, &[&whole]), 200);
    assert_eq!(ask_and_send_no_more(&server, &[head, body.as_bytes()]), 200);
    let (most, last) = body.as_bytes().split_at(body.len() - 5);
    assert_eq!(ask_and_send_no_more(&server, &[head, most, last]), 200);
    assert_eq!(predictions(&server, "success"), Some(6.0));
    assert_eq!(predictions(&server, "cancelled"), Some(0.0));
}

#[test]
fn two_hundred_of_two_hundred_are_answered_by_the_bundled_model() {
    let server = Server::start(&[]);
    let body = std::fs::read(testing::repository("models/samples/digit-7.json")).unwrap();
    let request = Request::json("/predict", body).bytes();
    let (head, body) = request.split_at(request.len() / 2);
    for _ in 0..100 {
        assert_eq!(ask_and_send_no_more(&server, &[&request]), 200);
        assert_eq!(ask_and_send_no_more(&server, &[head, body]), 200);
    }
    for path in ["/health", "/metrics", "/v2/models/digits"] {
        let request = Request::new("GET", path).bytes();
        assert_eq!(ask_and_send_no_more(&server, &[&request]), 200);
    }
    assert_eq!(
        ask_and_send_no_more(&server, &[b"GET /health HTTP/1.0\r\n\r\n"]),
        200
    );
}

#[test]
fn requests_that_were_sent_at_once_are_all_answered_to_who_sends_no_more() {
    let server = slow_server();
    let mut client = server.connect();
    let requests: Vec<u8> = [SLOW, r#"{"inputs": [3]}"#, SLOW, r#"{"inputs": [5]}"#]
        .iter()
        .flat_map(|body| Request::json("/predict", *body).bytes())
        .collect();
    client.write(&requests).unwrap();
    client.stream.shutdown(Shutdown::Write).unwrap();
    for _ in 0..4 {
        assert_eq!(client.read().unwrap().status, 200);
    }
    assert!(client.read_to_end().is_empty());
}

#[test]
fn a_request_whose_body_breaks_off_is_an_error_at_once() {
    let server = slow_server();
    for request in [
        &b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{"[..],
        b"POST /predict HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"in",
        b"POST /predict HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
        b"POST /predict HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n",
    ] {
        let mut client = server.connect();
        client.write(request).unwrap();
        client.stream.shutdown(Shutdown::Write).unwrap();
        let text = String::from_utf8(client.read_to_end()).unwrap();
        assert!(
            text.is_empty() || text.starts_with("HTTP/1.1 400 "),
            "{text}"
        );
    }
    let in_flight = || server.metric("ml_requests_in_flight", &[("model_name", "loop")]);
    testing::eventually("a broken request ends", || in_flight() == Some(0.0));
    assert_eq!(predictions(&server, "success"), Some(0.0));
}

#[test]
fn a_reset_drops_the_request_also_behind_the_word_that_no_more_is_sent() {
    let server = slow_server();
    let mut running = server.connect();
    running
        .write(&Request::json("/predict", ENDLESS).bytes())
        .unwrap();
    let in_flight = || server.metric("ml_requests_in_flight", &[("model_name", "loop")]);
    testing::eventually("it runs", || in_flight() == Some(1.0));
    // Bytes behind the request, which nobody reads before it is answered: a stray one, an empty line, another request.
    let request = Request::json("/predict", SLOW).bytes();
    let many = request.repeat(2000);
    for (cancelled, sends_no_more, behind) in [
        (1.0, false, &b""[..]),
        (2.0, true, b""),
        (3.0, true, b""),
        (4.0, false, b"P"),
        (5.0, false, b"\r\n"),
        (6.0, false, &request),
        (7.0, true, &request),
        (8.0, false, &many),
    ] {
        let mut client = server.connect();
        client.write(&[&request, behind].concat()).unwrap();
        testing::eventually("it waits", || in_flight() == Some(2.0));
        if sends_no_more {
            client.stream.shutdown(Shutdown::Write).unwrap();
        }
        client.reset();
        testing::eventually("a reset is noticed", || {
            predictions(&server, "cancelled") == Some(cancelled)
        });
        assert_eq!(in_flight(), Some(1.0));
    }
    running.stream.shutdown(Shutdown::Write).unwrap();
    running.reset();
    testing::eventually("a reset is noticed", || {
        predictions(&server, "cancelled") == Some(9.0)
    });
    assert_eq!(in_flight(), Some(0.0));
}

#[test]
fn a_client_that_resets_during_its_body_has_left_and_sent_nothing_wrong() {
    let server = slow_server();
    let in_flight = || server.metric("ml_requests_in_flight", &[("model_name", "loop")]);
    for (left, head) in [
        (1.0, "Content-Length: 100\r\n\r\n{"),
        (2.0, "Transfer-Encoding: chunked\r\n\r\n5\r\n{\"in"),
        (
            3.0,
            "Content-Encoding: gzip\r\nContent-Length: 100\r\n\r\n{",
        ),
    ] {
        let mut client = server.connect();
        let head = format!("POST /predict HTTP/1.1\r\nHost: a\r\n{head}");
        client.write(head.as_bytes()).unwrap();
        testing::eventually("its body is awaited", || in_flight() == Some(1.0));
        client.reset();
        testing::eventually("it is known to have left", || {
            predictions(&server, "cancelled") == Some(left)
        });
        assert_eq!(predictions(&server, "invalid"), Some(0.0));
    }
    let told = |left: bool| {
        let lines = server.log.lines();
        let told = lines.iter().filter(|line| line["route"] == "/predict");
        told.filter(|line| (line["answered"] == false) == left)
            .count()
    };
    testing::eventually("each has its line", || told(true) == 3);
    assert_eq!(told(false), 0);
}

#[test]
fn a_client_that_was_killed_costs_no_more_than_its_run() {
    let server = slow_server();
    // The connection that asks is a descriptor, too, both times.
    let before = server.metric("process_open_fds", &[]);
    let mut client = std::process::Command::new("python3")
        .args(["-c", "import socket, sys; s = socket.create_connection(('127.0.0.1', int(sys.argv[1]))); s.sendall(sys.stdin.buffer.read()); print('sent', flush=True); s.recv(1)"])
        .arg(server.address.port().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = client.stdin.take().unwrap();
    stdin
        .write_all(&Request::json("/predict", SLOW).bytes())
        .unwrap();
    drop(stdin);
    let in_flight = || server.metric("ml_requests_in_flight", &[("model_name", "loop")]);
    testing::eventually("it arrives", || in_flight() == Some(1.0));
    client.kill().unwrap();
    client.wait().unwrap();
    testing::eventually("it is in flight no more", || in_flight() == Some(0.0));
    let (succeeded, cancelled) = (
        predictions(&server, "success"),
        predictions(&server, "cancelled"),
    );
    assert!(
        matches!(
            (succeeded, cancelled),
            (Some(1.0), Some(0.0)) | (Some(0.0), Some(1.0))
        ),
        "{succeeded:?} {cancelled:?}"
    );
    testing::eventually("its connection is closed", || {
        server.metric("process_open_fds", &[]) <= before
    });
    assert_eq!(
        server.predict(&serde_json::json!({"inputs": [3]})).status,
        200
    );
}
