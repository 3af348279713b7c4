//! The admin port: probes and metrics, whatever happens on the main one.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test stops at the first thing that is wrong"
)]

use std::net::TcpListener;
use std::process::Output;
use std::time::Instant;

use nix::sys::signal::Signal;
use testing::{Client, PATIENCE, Request, Response, Server, fixture, program};

const ROUTES: [&str; 4] = ["/health", "/ready", "/ping", "/metrics"];

fn valid() -> Request {
    Request::json("/predict", r#"{"inputs": [[1,2,3,4]]}"#)
}

/// One request to the admin port of `server`.
fn ask(server: &Server, request: &Request) -> std::io::Result<Response> {
    Client::connect(server.admin.expect("an admin port"))?.send(request)
}

fn get(server: &Server, path: &str) -> Response {
    ask(server, &Request::new("GET", path)).expect("an answer")
}

#[test]
fn it_has_probes_and_metrics_alone_and_asks_for_no_key() {
    let keys = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(keys.path(), "a-key-of-this-test\n").unwrap();
    let keys = keys.path().display().to_string();
    let model = fixture("addone");
    let server = Server::start_with(
        &[
            "--admin-port",
            "0",
            "--api-key-file",
            &keys,
            "--model",
            &model,
        ],
        &[
            ("AIP_HEALTH_ROUTE", "/platform/ready"),
            ("AIP_PREDICT_ROUTE", "/platform/predict"),
        ],
    );
    assert_ne!(server.admin, Some(server.address));
    for path in ROUTES.into_iter().chain(["/platform/ready"]) {
        assert_eq!(get(&server, path).status, 200, "{path}");
        assert_eq!(server.get(path).status, 200, "the main port keeps {path}");
        let wrong = ask(&server, &Request::new("POST", path)).unwrap();
        assert_eq!(wrong.status, 405, "{path}");
    }
    for path in [
        "/predict",
        "/invocations",
        "/v1/models/addone:predict",
        "/v2/models/addone",
        "/platform/predict",
        "/",
    ] {
        for request in [Request::new("GET", path), Request::json(path, "{}")] {
            let answer = ask(&server, &request).unwrap();
            assert_eq!(
                (answer.status, &answer.json()["code"]),
                (404, &"not_found".into()),
                "{path}"
            );
        }
    }
    assert_eq!(server.request(&valid()).status, 401);
    let text = get(&server, "/metrics").text();
    assert!(text.contains("\nml_ready 1\n"), "{text}");
}

#[test]
fn it_is_off_unless_asked_for() {
    assert_eq!(Server::fixture("addone", &[]).admin, None);
}

#[test]
fn it_answers_before_the_models_are_loaded() {
    for _ in 0..5 {
        let server = Server::spawn(&["--admin-port", "0"], &[]);
        let (health, ready) = (get(&server, "/health"), get(&server, "/ready"));
        assert_eq!(health.status, 200);
        if ready.status != 200 {
            assert_eq!(
                (ready.status, &ready.json()["code"]),
                (503, &"not_ready".into())
            );
        }
        let ready = server.log.wait_for(|line| line["message"] == "ready");
        assert!(ready.is_some());
        assert_eq!(get(&server, "/ready").status, 200);
    }
}

#[test]
fn it_answers_through_the_drain_until_the_process_ends() {
    let model = fixture("loop");
    let flags = [
        "--admin-port",
        "0",
        "--model",
        &model,
        "--drain-timeout",
        "60s",
        "--request-timeout",
        "60s",
    ];
    let server = Server::start(&flags);
    let mut kept = Client::connect(server.admin.unwrap()).unwrap();
    assert_eq!(
        kept.send(&Request::new("GET", "/ready")).unwrap().status,
        200
    );
    let mut client = server.connect();
    let request = Request::json("/predict", r#"{"inputs": [3000000]}"#);
    client.write(&request.bytes()).unwrap();
    testing::eventually("it is on its way", || {
        server.metric("ml_requests_in_flight", &[]) == Some(1.0)
    });
    server.signal(Signal::SIGTERM);
    let draining = server.log.wait_for(|line| line["message"] == "draining");
    assert!(draining.is_some());
    // The main port takes nobody any more.
    let deadline = Instant::now() + PATIENCE;
    while Client::connect(server.address).is_ok() {
        assert!(Instant::now() < deadline);
    }
    for _ in 0..3 {
        for ready in [
            get(&server, "/ready"),
            kept.send(&Request::new("GET", "/ready")).unwrap(),
        ] {
            assert_eq!(
                (ready.status, &ready.json()["code"]),
                (503, &"draining".into())
            );
        }
        assert_eq!(get(&server, "/health").status, 200);
        let text = get(&server, "/metrics").text();
        assert!(text.contains("\nml_requests_in_flight{model_name=\"loop\"} 1\n"));
    }
    assert_eq!(client.read().unwrap().status, 200);
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn probes_are_answered_there_however_both_ports_are_held() {
    let model = fixture("addone");
    let server = Server::start(&[
        "--admin-port",
        "0",
        "--model",
        &model,
        "--max-connections",
        "16",
    ]);
    let mut held = Vec::new();
    for address in [server.address, server.admin.unwrap()] {
        for number in 0..200 {
            let mut client = Client::connect(address).unwrap();
            let bytes: &[u8] = match number % 4 {
                0 => b"",
                1 => b"GET /health HTTP/1.1\r\nHo",
                2 => b"POST /health HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{",
                _ => &b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n".repeat(50),
            };
            // Some have given way by now.
            let _ = client.write(bytes);
            held.push(client);
        }
    }
    for number in 0..100 {
        for path in ROUTES {
            let answer = ask(&server, &Request::new("GET", path));
            let answer = answer.unwrap_or_else(|error| panic!("{number} {path}: {error}"));
            assert_eq!(answer.status, 200, "{path}");
        }
    }
    drop(held);
}

/// What the program says with these ports.
fn start(port: &str, admin_port: &str) -> Output {
    program()
        .env("HOST", "127.0.0.1")
        .env("PORT", port)
        .env("ADMIN_PORT", admin_port)
        .args(["--model", &fixture("addone")])
        .output()
        .unwrap()
}

#[test]
fn a_port_that_cannot_be_had_is_told() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = start("0", &port);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    for part in [&port[..], "in use", "--admin-port", "ADMIN_PORT"] {
        assert!(text.contains(part), "{text}");
    }
    let output = start("8123", "8123");
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    for part in ["8123", "--admin-port", "ADMIN_PORT", "--port", "PORT"] {
        assert!(text.contains(part), "{text}");
    }
}
