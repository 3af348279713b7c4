//! Connections: deadlines, limits and framing, while good clients notice nothing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test stops at the first thing that is wrong"
)]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use testing::{Client, Random, Request, Server};

/// Short deadlines, so that tests need not wait long.
const SHORT: [&str; 10] = [
    "--first-byte-timeout",
    "500ms",
    "--header-timeout",
    "500ms",
    "--body-timeout",
    "700ms",
    "--write-timeout",
    "700ms",
    "--keep-alive-timeout",
    "700ms",
];

fn valid() -> Request {
    Request::json("/predict", r#"{"inputs": [[1,2,3,4]]}"#)
}

/// Sends good predictions while `attack` runs; every one must be answered.
fn beside_good_clients(server: &Server, attack: impl FnOnce()) {
    let (done, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut client = server.connect();
                while !done.load(Ordering::Relaxed) {
                    let answer = client.send(&valid()).unwrap();
                    assert_eq!(answer.status, 200);
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // The good clients must end even when the attack finds something wrong.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(attack));
        done.store(true, Ordering::Relaxed);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
    assert!(answered.load(Ordering::Relaxed) > 0);
}

/// Waits until the server has closed `client`; returns how long that took.
fn closed_after(client: &mut Client, started: Instant) -> Duration {
    client.read_to_end();
    started.elapsed()
}

#[test]
fn an_old_connection_ends_with_a_whole_answer() {
    let server = Server::fixture("addone", &["--max-connection-age", "500ms"]);
    let mut busy = server.connect();
    let mut idle = server.connect();
    let started = Instant::now();
    assert!(!idle.send(&valid()).unwrap().closes());
    let mut answered = 0;
    loop {
        let answer = busy.send(&valid()).unwrap();
        assert_eq!(answer.status, 200);
        answered += 1;
        if answer.closes() {
            break;
        }
    }
    assert!(started.elapsed() >= Duration::from_millis(450) && answered > 1);
    assert_eq!(busy.read_to_end(), b"");
    // One that waited meanwhile is not closed under its client's hands: its next answer says it.
    testing::eventually("the other one is old", || {
        started.elapsed() > Duration::from_millis(550)
    });
    let last = idle.send(&valid()).unwrap();
    assert!(last.status == 200 && last.closes());
    let fresh = server.connect().send(&valid()).unwrap();
    assert!(fresh.status == 200 && !fresh.closes());
}

#[test]
fn an_old_client_is_told_the_end_of_an_old_connection_without_contradiction() {
    let server = Server::fixture("addone", &["--max-connection-age", "1ms"]);
    let mut client = server.connect();
    // The first one may come before the connection is old.
    loop {
        let request = b"GET /health HTTP/1.0\r\nHost: x\r\nConnection: keep-alive\r\n\r\n";
        client.write(request).unwrap();
        let answer = client.read().unwrap();
        match answer.header("connection") {
            Some("keep-alive") => {}
            said => {
                assert_eq!(said, Some("close"));
                break;
            }
        }
    }
    assert_eq!(client.read_to_end(), b"");
}

#[test]
fn peers_that_send_nothing_or_dribble_are_closed() {
    let server = Server::fixture("addone", &SHORT);
    beside_good_clients(&server, || {
        let started = Instant::now();
        let mut silent: Vec<Client> = (0..100).map(|_| server.connect()).collect();
        let mut half: Vec<Client> = (0..100).map(|_| server.connect()).collect();
        for client in &mut half {
            client.write(b"POST /predict HTTP/1.1\r\nHo").unwrap();
        }
        let mut h2 = server.connect();
        h2.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        // One that never pauses long, and never ends its head either.
        let mut slow = server.connect();
        while slow.write(b"x").is_ok() {
            assert!(
                started.elapsed() < Duration::from_secs(20),
                "a dribbled head is never cut off"
            );
            testing::pause(Duration::from_millis(50));
        }
        for client in silent.iter_mut().chain(&mut half).chain([&mut h2]) {
            let took = closed_after(client, started);
            assert!(took < Duration::from_secs(20), "{took:?}");
        }
    });
}

#[test]
fn slow_bodies_are_told_so_and_closed() {
    let server = Server::fixture("addone", &SHORT);
    beside_good_clients(&server, || {
        let mut peers: Vec<Client> = (0..50).map(|_| server.connect()).collect();
        for client in &mut peers {
            client.write(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n{\"inputs\"").unwrap();
        }
        for client in &mut peers {
            let answer = client.read().unwrap();
            assert_eq!(
                (answer.status, &answer.json()["code"]),
                (408, &"request_timeout".into())
            );
            client.read_to_end();
        }
    });
    assert_eq!(
        server.metric("ml_predictions_total", &[("status", "timeout")]),
        Some(50.0)
    );
}

#[test]
fn kept_connections_are_closed_when_they_pause_too_long_and_not_before() {
    let server = Server::fixture("addone", &SHORT);
    let mut client = server.connect();
    for _ in 0..3 {
        assert_eq!(client.send(&valid()).unwrap().status, 200);
        testing::pause(Duration::from_millis(300));
    }
    let started = Instant::now();
    let took = closed_after(&mut client, started);
    assert!(
        took > Duration::from_millis(200) && took < Duration::from_secs(20),
        "{took:?}"
    );
}

/// A request for `bytes` of raw floats, from the fixture `big`.
fn download(bytes: usize) -> Request {
    Request::json("/predict", format!("{{\"inputs\": [[{}]]}}", bytes / 4))
        .header("Accept", "application/octet-stream")
}

/// Waits until the server has no more open files than `before`.
fn wait_for_its_end(server: &Server, before: f64) {
    // The connection that asks is one of them, both times.
    testing::eventually("the connection is closed", || {
        server.metric("process_open_fds", &[]).unwrap() <= before
    });
}

#[test]
fn a_peer_that_does_not_read_is_closed_however_long_idle_connections_are_kept() {
    let flags = ["--write-timeout", "700ms", "--keep-alive-timeout", "1h"];
    let server = Server::fixture("big", &flags);
    let before = server.metric("process_open_fds", &[]).unwrap();
    let mut client = server.connect();
    // Far more than sockets buffer.
    client.write(&download(40_000_000).bytes()).unwrap();
    let answered = [("status", "success")];
    testing::eventually("it is answered", || {
        server.metric("ml_predictions_total", &answered) == Some(1.0)
    });
    wait_for_its_end(&server, before);
    assert!(client.read().is_err(), "the answer is cut");
}

#[test]
fn an_answer_on_its_way_is_not_an_idle_connection() {
    let server = Server::fixture("big", &["--keep-alive-timeout", "500ms"]);
    let mut client = server.connect();
    client.read_at(10_000_000);
    let answer = client.send(&download(40_000_000)).unwrap();
    assert_eq!((answer.status, answer.body.len()), (200, 40_000_000));
    // Now it is one.
    assert!(client.read_to_end().is_empty());
}

#[test]
fn a_peer_that_reads_slowly_gets_its_whole_answer() {
    let server = Server::fixture("big", &["--write-timeout", "2s"]);
    let mut client = server.connect();
    client.read_at(300_000);
    let answer = client.send(&download(5_000_000)).unwrap();
    assert_eq!((answer.status, answer.body.len()), (200, 5_000_000));
}

#[test]
fn limits_hold_on_every_route() {
    let server = Server::fixture("addone", &["--max-body-size", "1MiB"]);
    for (method, path) in [
        ("POST", "/predict"),
        ("POST", "/invocations"),
        ("POST", "/v1/models/addone:predict"),
        ("GET", "/health"),
        ("GET", "/metrics"),
        ("GET", "/unknown"),
    ] {
        let request = Request::new(method, path).header("Content-Type", "application/json");
        let status = |request: Request| {
            let mut client = server.connect();
            client.write(&request.bytes()).unwrap();
            client.read().map_or(0, |answer| answer.status)
        };
        assert_eq!(
            status(request.clone().header("X-Large", &"h".repeat(64 << 10))),
            431,
            "{path}"
        );
        let many = (0..101).fold(request.clone(), |request, number| {
            request.header(&format!("x-{number}"), "1")
        });
        assert_eq!(status(many), 431, "{path}");
        let long = Request::new(method, &format!("{path}?{}", "q".repeat(9_000)));
        assert_eq!(status(long), 414, "{path}");
        if method == "POST" {
            assert_eq!(
                status(request.clone().body(vec![b' '; (1 << 20) + 1])),
                413,
                "{path}"
            );
            let exact = [
                br#"{"inputs": [[1,2,3,4]]}"#.to_vec(),
                vec![b' '; (1 << 20) - 23],
            ]
            .concat();
            assert_eq!(status(request.clone().body(exact)), 200, "{path}");
            assert_eq!(
                status(request.header("Content-Length", "1000000000000000000")),
                413,
                "{path}"
            );
        }
    }
    // Far beyond the limits, the head is not even read to its end.
    let mut client = server.connect();
    let _ = client.write(&Request::new("GET", &format!("/{}", "u".repeat(70_000))).bytes());
    assert_eq!(client.read().unwrap().status, 414);
}

#[test]
fn a_body_that_will_be_refused_is_not_invited() {
    let server = Server::fixture("addone", &["--max-body-size", "1MiB"]);
    let expecting = |length: &str| {
        let mut client = server.connect();
        let head = format!(
            "POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\nExpect: 100-continue\r\n\r\n"
        );
        client.write(head.as_bytes()).unwrap();
        client
    };
    assert_eq!(expecting("99999999").read().unwrap().status, 413);
    let body = br#"{"inputs": [[1,2,3,4]]}"#;
    let mut client = expecting(&body.len().to_string());
    assert_eq!(client.read().unwrap().status, 100);
    client.write(body).unwrap();
    assert_eq!(client.read().unwrap().status, 200);
}

#[test]
fn a_refusal_reaches_a_client_that_writes_its_whole_body_first() {
    let server = Server::fixture("addone", &["--max-body-size", "64KiB"]);
    for _ in 0..20 {
        let answer = server.request(&Request::json("/predict", vec![b' '; 2 << 20]));
        assert_eq!(answer.status, 413);
    }
}

#[test]
fn chunked_bodies_are_taken_whatever_their_chunks_and_bounded() {
    let server = Server::fixture(
        "addone",
        &["--max-body-size", "1MiB", "--body-timeout", "30s"],
    );
    let head = b"POST /predict HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut client = server.connect();
    client.write(head).unwrap();
    let body = format!("{}{{\"inputs\": [[1,2,3,4]]}}", " ".repeat(100_000));
    let chunks: Vec<u8> = body
        .bytes()
        .flat_map(|byte| [b'1', b'\r', b'\n', byte, b'\r', b'\n'])
        .collect();
    let before = server.status_figure("VmRSS");
    client.write(&chunks).unwrap();
    client.write(b"0\r\n\r\n").unwrap();
    assert_eq!(client.read().unwrap().status, 200);
    let grown = server.status_figure("VmRSS").saturating_sub(before);
    assert!(grown < 8 << 10, "{grown} kB for a body of 100 kB");

    let mut endless = server.connect();
    endless.write(head).unwrap();
    let chunk = [b"10000\r\n".to_vec(), vec![b' '; 1 << 16], b"\r\n".to_vec()].concat();
    let mut sent = 0;
    while endless.stream.write_all(&chunk).is_ok() {
        sent += 1;
        assert!(sent < 200, "13 MB were taken against a limit of one");
        if sent >= 20 {
            break;
        }
    }
    assert_eq!(endless.read().unwrap().status, 413);
}

#[test]
fn what_follows_the_last_request_does_not_cost_its_answer() {
    let server = Server::fixture("addone", &[]);
    let last = valid().header("Connection", "close").bytes();
    let more = valid().bytes().repeat(2_000);
    for _ in 0..20 {
        let mut client = server.connect();
        client.write(&[&last[..], &more].concat()).unwrap();
        assert_eq!(client.read().unwrap().status, 200);
        // Not a reset, at which what the client has not read yet may be lost.
        let said_so = client.stream.shutdown(Shutdown::Write);
        let end = said_so.and_then(|()| client.stream.read(&mut [0]));
        assert!(matches!(end, Ok(0)), "{end:?}");
    }
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let server = Server::fixture("addone", &[]);
    let mut client = server.connect();
    let requests: Vec<u8> = (0..20)
        .flat_map(|number| {
            Request::json("/predict", format!("{{\"inputs\": [[{number},0,0,0]]}}")).bytes()
        })
        .collect();
    client.write(&requests).unwrap();
    for number in 0..20_u8 {
        let answer = client.read().unwrap();
        assert_eq!(
            answer.json()["outputs"]["y"][0][0],
            serde_json::json!(f64::from(number) + 1.0)
        );
    }
}

#[test]
fn what_two_parties_could_read_differently_is_refused() {
    let server = Server::fixture("addone", &[]);
    let first_status = |bytes: &[u8]| {
        let mut client = server.connect();
        client.write(bytes).unwrap();
        client.read().map_or(0, |answer| answer.status)
    };
    assert_eq!(
        first_status(b"GET /health HTTP/1.1\r\n\r\n"),
        400,
        "no Host"
    );
    assert_eq!(
        first_status(b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
        400,
        "two of them"
    );
    assert_eq!(
        first_status(b"GET /health HTTP/1.0\r\n\r\n"),
        200,
        "HTTP/1.0 has none"
    );
    for ambiguous in [
        &b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n{}"[..],
        b"POST /predict HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\n{    }",
        b"GET /health HTTP/1.1\r\nHost : a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ] {
        let status = first_status(ambiguous);
        assert!(matches!(status, 400 | 0), "{status}: {}", String::from_utf8_lossy(ambiguous));
    }
    let both = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /health HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut client = server.connect();
    client.write(both).unwrap();
    let text = String::from_utf8_lossy(&client.read_to_end()).into_owned();
    assert_eq!(
        text.matches("HTTP/1.1 ").count(),
        1,
        "the second request is not served: {text}"
    );
}

#[test]
fn a_storm_of_broken_connections_leaves_no_trace() {
    let server = Server::fixture("addone", &[]);
    let request = valid().bytes();
    beside_good_clients(&server, || {
        let mut random = Random::new(12);
        let mut held = Vec::new();
        for _ in 0..2_000 {
            let mut client = server.connect();
            let length = usize::try_from(random.below(request.len() as u64 + 1)).unwrap();
            client.write(&request[..length]).unwrap();
            // Closing with an answer unread resets the connection; closing before it abandons the request.
            held.push(client);
            if held.len() > 20 {
                held.remove(usize::try_from(random.below(20)).unwrap());
            }
        }
    });
    testing::eventually("nothing is left", || {
        server.metric("ml_requests_in_flight", &[]) == Some(0.0)
            && server.metric("ml_queue_rows", &[]) == Some(0.0)
    });
    assert_eq!(server.metric("panics_total", &[]), Some(0.0));
    assert!(server.metric("process_open_fds", &[]).unwrap() < 64.0);
}

/// Sends `head` of a prediction, and `body` with or after it. The status and whether the connection ends.
fn framed(server: &Server, head: &str, body: &str, together: bool) -> u16 {
    let head = format!("POST /predict HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n");
    let mut client = server.connect();
    if together {
        client
            .write(&[head.as_bytes(), body.as_bytes()].concat())
            .unwrap();
    } else {
        client.write(head.as_bytes()).unwrap();
        testing::pause(Duration::from_millis(20));
        // It may have been refused by now.
        let _ = client.write(body.as_bytes());
    }
    let text = String::from_utf8_lossy(&client.read_to_end()).into_owned();
    let answers = text.matches("HTTP/1.1 ").count();
    assert!(answers <= 1, "what follows is taken for a request: {text}");
    text.split(' ')
        .nth(1)
        .map_or(0, |status| status.parse().unwrap())
}

#[test]
fn a_body_is_chunked_by_one_word_or_refused_and_the_connection_ends() {
    let patient = ["--body-timeout", "1h", "--keep-alive-timeout", "1s"];
    let server = Server::fixture("addone", &patient);
    let text = r#"{"inputs": [[1,2,3,4]]}"#;
    let body = format!("{:x}\r\n{text}\r\n0\r\n\r\n", text.len());
    for head in ["chunked", "Chunked", "CHUNKED", " chunked ", "\tchunked"] {
        let head = format!("Transfer-Encoding:{head}");
        assert_eq!(framed(&server, &head, &body, true), 200, "{head}");
    }
    let smuggled = format!("{body}GET /health HTTP/1.1\r\nHost: a\r\n\r\n");
    for coding in [
        "gzip, chunked",
        "foo, chunked",
        "chunked, chunked",
        "chunked\r\nTransfer-Encoding: chunked",
        "gzip\r\nTransfer-Encoding: chunked",
        "identity, chunked",
        ", chunked",
        "chunked,",
        "\"chunked\"",
        "chunked;q=1",
        "xchunked",
        "chunked gzip",
        "identity",
        "gzip",
        "chunked, identity",
        "chunked\r\nTransfer-Encoding: identity",
        "",
    ] {
        let head = format!("Transfer-Encoding: {coding}");
        for together in [true, false] {
            assert_eq!(framed(&server, &head, &smuggled, together), 400, "{head}");
        }
    }
}

#[test]
fn a_chunk_that_declares_too_much_is_refused_when_its_size_is_known() {
    let patient = [
        "--body-timeout",
        "1h",
        "--max-body-size",
        "1MiB",
        "--keep-alive-timeout",
        "1s",
    ];
    let server = Server::fixture("addone", &patient);
    let chunked = "Transfer-Encoding: chunked";
    let first = format!("80000\r\n{}\r\n", " ".repeat(0x80000));
    for size in [
        "100000000\r\n",
        "100001\r\n{",
        "FFFFFFFFFFFFFFF\r\n",
        "ffffffffffffffff\r\n",
        "200000;name=value\r\n",
        &format!("{first}80001\r\n"),
    ] {
        for together in [true, false] {
            let status = framed(&server, chunked, size, together);
            assert_eq!(status, 413, "{}", &size[size.len().saturating_sub(40)..]);
        }
    }
    assert_eq!(
        framed(&server, "Content-Length: 4294967296", "{", true),
        413
    );
    // What is no size is refused as soon as it is known, too.
    for size in [
        "10000000000000000000000000\r\n{",
        "-1\r\n{",
        "+5\r\n{    ",
        "0x5\r\n{    ",
        "g\r\n{",
        "\r\n{",
        " \r\n{",
        "1 1\r\n{",
        "3\r\n{  xx",
        &format!("1;{}", "x".repeat(100_000)),
        &format!("0\r\n{}", "a: b\r\n".repeat(100_000)),
    ] {
        for together in [true, false] {
            let status = framed(&server, chunked, size, together);
            assert!(
                matches!(status, 400 | 413 | 431 | 0),
                "{status}: {}",
                &size[..size.len().min(40)]
            );
        }
    }
    let spaces = " ".repeat((1 << 20) - 23);
    let exact = format!("100000\r\n{{\"inputs\": [[1,2,3,4]]}}{spaces}\r\n0\r\n\r\n");
    for together in [true, false] {
        assert_eq!(framed(&server, chunked, &exact, together), 200);
    }
}

#[test]
fn what_cannot_be_read_is_told_as_what_it_is_with_the_id_of_its_line() {
    let server = Server::fixture("addone", &["--max-uri-size", "100B"]);
    let chunked = "POST /predict HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let long = "a".repeat(70_000);
    for (request, status, part) in [
        (
            format!("{chunked}g\r\n"),
            400,
            "not framed as RFC 9112 has it",
        ),
        (
            format!("{chunked}0x16\r\n"),
            400,
            "not framed as RFC 9112 has it",
        ),
        (
            format!("{chunked}1\r\n{{}}\r\n0\r\n\r\n"),
            400,
            "not framed as RFC 9112 has it",
        ),
        (
            format!("GET /{long} HTTP/1.1\r\n\r\n"),
            414,
            "longer than 100 bytes",
        ),
        (
            chunked.replace("chunked", "gzip"),
            400,
            "how its body is framed",
        ),
        (
            chunked.replace("chunked", "identity"),
            400,
            "only chunked is taken",
        ),
        ("no HTTP at all\r\n\r\n".to_owned(), 400, "its first line"),
        (
            "POST /predict HTTP/1.1\r\nContent-Length: 18446744073709551615\r\n\r\n".to_owned(),
            431,
            "or a length that no body has",
        ),
    ] {
        let start = &request[..request.len().min(80)];
        let mut client = server.connect();
        client.write(request.as_bytes()).unwrap();
        let answer = client.read().unwrap();
        assert_eq!(answer.status, status, "{start}: {}", answer.text());
        let told = answer.json()["error"].as_str().unwrap().to_owned();
        assert!(told.contains(part), "{start}: {told}");
        let id = answer.header("x-request-id").unwrap().to_owned();
        let line = server
            .log
            .wait_for(|line| line["request_id"] == id.as_str());
        assert_eq!(line.unwrap()["status"], status, "{start}");
    }
}
