//! Every request has one line in the log and one count, however it ends: also without an answer, refused before it is
//! understood, or by a panic.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::float_cmp,
    reason = "a test stops at the first thing that is wrong, and counts are whole numbers"
)]

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use testing::faults::Faults;
use testing::{Client, Request, Server, fixture};

const BODY: &str = r#"{"inputs": [[1, 2, 3, 4]]}"#;

/// The series of the requests by route and status, with their values.
fn responses(text: &str) -> Vec<(String, String, f64)> {
    let ours = text
        .lines()
        .filter_map(|line| line.strip_prefix("ml_http_responses_total{route=\""));
    ours.map(|rest| {
        let (route, rest) = rest.split_once("\",status=\"").unwrap();
        let (status, value) = rest.split_once("\"} ").unwrap();
        (route.to_owned(), status.to_owned(), value.parse().unwrap())
    })
    .collect()
}

fn count(server: &Server, route: &str, status: &str) -> f64 {
    let labels = [("route", route), ("status", status)];
    server
        .metric("ml_http_responses_total", &labels)
        .unwrap_or(0.0)
}

fn line_of(server: &Server, id: &str) -> Value {
    let of = |line: &Value| line["target"] == "access" && line["request_id"] == id;
    server.log.wait_for(of).expect("a line of the request")
}

#[test]
fn a_request_whose_client_leaves_has_a_line_and_a_count_without_a_status() {
    // It waits for company that does not come.
    let flags = ["--max-queue-delay", "25s", "--max-batch-size", "4"];
    let server = Server::fixture("addone", &flags);
    let mut client = server.connect();
    let waiting = Request::json("/predict", BODY).header("X-Request-Id", "left");
    client.write(&waiting.bytes()).unwrap();
    testing::eventually("the request waits", || {
        server.metric("ml_queue_rows", &[]) == Some(1.0)
    });
    // As when the client's process dies with data unread: the connection is reset.
    socket2::SockRef::from(&client.stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(client);
    let line = line_of(&server, "left");
    assert_eq!(line["answered"], false, "{line}");
    assert_eq!(line["reason"], "the connection ended", "{line}");
    assert_eq!(line["status"], Value::Null, "{line}");
    assert_eq!(
        (&line["method"], &line["route"]),
        (&json!("POST"), &json!("/predict"))
    );
    assert!(line["duration_ms"].is_number(), "{line}");
    assert_eq!(count(&server, "/predict", "none"), 1.0);
    let cancelled = server.metric("ml_predictions_total", &[("status", "cancelled")]);
    assert_eq!(cancelled, Some(1.0));
}

#[test]
fn a_request_that_the_drain_cuts_off_says_so() {
    let server = Server::fixture("addone", &["--drain-timeout", "200ms"]);
    let mut client = server.connect();
    let request = Request::json("/predict", BODY)
        .header("X-Request-Id", "cut")
        .header("Content-Length", "1000");
    client.write(&request.bytes()).unwrap();
    testing::eventually("the request is being received", || {
        server.metric("ml_requests_in_flight", &[]) == Some(1.0)
    });
    server.signal(Signal::SIGTERM);
    let line = line_of(&server, "cut");
    assert_eq!(line["answered"], false, "{line}");
    assert_eq!(
        line["reason"], "the server stopped before it was answered",
        "{line}"
    );
}

#[test]
fn an_answer_of_which_the_client_does_not_take_all_is_told_beside_its_line() {
    let server = Server::fixture("passthrough_wide", &["--write-timeout", "1s"]);
    let mut client = server.connect();
    let request = Request::raw("/predict?outputs=y", vec![0; 32_000_000])
        .header("Accept", "application/octet-stream")
        .header("X-Request-Id", "untaken");
    client.write(&request.bytes()).unwrap();
    assert_eq!(line_of(&server, "untaken")["status"], 200);
    drop(client);
    let untaken = |line: &Value| line["request_id"] == "untaken" && line["delivered"] == false;
    let line = server.log.wait_for(untaken).expect("a line");
    assert_eq!(line["target"], "access");
    // It was answered, and is counted as that.
    assert_eq!(count(&server, "/predict", "200"), 1.0);
    assert_eq!(count(&server, "/predict", "none"), 0.0);
}

#[test]
fn requests_that_are_refused_as_no_http_have_a_line_and_a_count() {
    let server = Server::fixture(
        "addone",
        &["--max-header-size", "4KiB", "--max-uri-size", "65000B"],
    );
    let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(66_000));
    let large = format!(
        "GET / HTTP/1.1\r\nHost: a\r\nA: {}\r\n\r\n",
        "x".repeat(90_000)
    );
    for (bytes, status) in [
        ("NO HTTP AT ALL\r\n\r\n".to_owned(), "400"),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nbad header\r\n\r\n".to_owned(),
            "400",
        ),
        ("GET / HTTP/9.9\r\nHost: a\r\n\r\n".to_owned(), "400"),
        (long, "414"),
        (large, "431"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), "none"),
    ] {
        let before = count(&server, "unmatched", status);
        let lines = server.log.lines().len();
        let mut client = server.connect();
        // Also behind a request that was understood.
        assert_eq!(
            client
                .send(&Request::json("/predict", BODY))
                .unwrap()
                .status,
            200
        );
        // The server may have closed before it was all sent.
        let _ = client.write(bytes.as_bytes());
        let answer = String::from_utf8(client.read_to_end()).unwrap();
        let answered = answer.split(' ').nth(1).unwrap_or("none");
        assert_eq!(answered, status, "{answer}");
        if let Some((head, body)) = answer.split_once("\r\n\r\n") {
            // As every other error.
            let code = match status {
                "400" => "invalid_request",
                _ => "too_large",
            };
            assert!(head.contains("content-type: application/json"), "{head}");
            assert!(head.contains("connection: close"), "{head}");
            let body: Value = serde_json::from_str(body).unwrap();
            assert_eq!(body["code"], code, "{body}");
            assert!(body["error"].is_string(), "{body}");
        }
        testing::eventually("it is counted", || {
            (count(&server, "unmatched", status) - before - 1.0).abs() < 0.5
        });
        let answered_with = json!(status.parse::<u16>().ok());
        testing::eventually("it is logged", || {
            server.log.lines().iter().skip(lines).any(|line| {
                line["target"] == "access"
                    && line["route"] == "unmatched"
                    && (line["status"] == answered_with || line["answered"] == false)
                    && line["request_id"].is_string()
            })
        });
    }
}

#[test]
fn every_request_is_counted_once_by_a_route_and_a_status_of_few() {
    let server = Server::fixture("addone", &["--request-timeout", "5s"]);
    let mut client = server.connect();
    let mut sent = 0.0;
    let mut expect = |request: Request, status: u16| {
        let answer = client.send(&request).unwrap();
        assert_eq!(answer.status, status, "{}: {}", request.path, answer.text());
        sent += 1.0;
    };
    expect(Request::json("/predict", BODY), 200);
    expect(Request::json("/predict", "{"), 400);
    expect(Request::new("GET", "/predict"), 405);
    expect(Request::new("GET", "/nothing"), 404);
    expect(Request::json("/v1/models/addone:predict", BODY), 200);
    expect(Request::json("/v1/models/other:predict", BODY), 404);
    expect(Request::new("GET", "/v2/models/addone"), 200);
    expect(Request::new("GET", "/health"), 200);
    let methods = ["GET", "POST", "PUT", "PROPFIND", "X"];
    for number in 0..4000 {
        let method = methods[number % methods.len()];
        let path = match number % 4 {
            0 => format!("/path{number}"),
            1 => format!("/v2/models/name{number}"),
            2 => format!("/v1/models/name{number}:predict"),
            _ => format!("/%ff{number}"),
        };
        let answer = client.send(&Request::new(method, &path)).unwrap();
        assert!(answer.status >= 400, "{method} {path}");
        sent += 1.0;
    }
    let counted = responses(&server.get("/metrics").text());
    let total: f64 = counted.iter().map(|(.., value)| value).sum();
    assert_eq!(total, sent, "{counted:?}");
    assert!(counted.len() <= 12, "{counted:?}");
    for (route, status) in [
        ("/predict", "200"),
        ("/predict", "400"),
        ("/predict", "405"),
        ("/v1/models/{call}", "200"),
        ("/v1/models/{call}", "404"),
        ("/v2/models/{model}", "200"),
        ("unmatched", "404"),
    ] {
        let found = counted.iter().any(|(a, b, _)| a == route && b == status);
        assert!(found, "{route} {status}: {counted:?}");
    }
}

#[test]
fn requests_without_a_key_are_counted_and_logged() {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys");
    fs::write(&keys, "a-key\n").unwrap();
    let server = Server::fixture("addone", &["--api-key-file", keys.to_str().unwrap()]);
    let request = Request::json("/predict", BODY).header("X-Request-Id", "keyless");
    assert_eq!(server.request(&request).status, 401);
    assert_eq!(line_of(&server, "keyless")["status"], 401);
    assert_eq!(count(&server, "/predict", "401"), 1.0);
}

#[test]
fn a_panic_is_answered_500_counted_as_an_error_and_logged_with_its_request() {
    let faults = Faults::new();
    let server = faults.serve(&[
        "--model",
        &fixture("addone"),
        "--max-request-rows",
        "100000",
    ]);
    // Large enough for threads of their own, where bodies are decoded and answers written.
    let rows = vec!["[1,2,3,4]"; 60_000].join(",");
    let large = format!("{{\"inputs\": [{rows}]}}");
    let mut errors = 0.0;
    for (place, body) in [
        ("handler", BODY),
        ("decode", &large),
        ("encode", &large),
        ("run", BODY),
    ] {
        faults.set(&format!("panic {place}\n"));
        let request = Request::json("/predict", body).header("X-Request-Id", place);
        let answer = server.request(&request);
        faults.set("");
        errors += 1.0;
        assert_eq!(answer.status, 500, "{place}: {}", answer.text());
        assert_eq!(answer.json()["code"], "internal", "{place}");
        assert!(!answer.text().contains("a test asked"), "{}", answer.text());
        let line = line_of(&server, place);
        assert_eq!(
            (&line["status"], &line["code"]),
            (&json!(500), &json!("internal"))
        );
        let panic = server
            .log
            .wait_for(|line| line["message"] == "panic" && line["request_id"] == place);
        let panic = panic.expect("a line of the panic");
        let reason = panic["reason"].as_str().unwrap();
        assert!(reason.contains("a test asked"), "{panic}");
        assert!(
            panic["place"].as_str().unwrap().contains("testkit.rs"),
            "{panic}"
        );
        assert!(panic["thread"].is_string(), "{panic}");
        let metric = |status| server.metric("ml_predictions_total", &[("status", status)]);
        assert_eq!(metric("error"), Some(errors), "{place}");
        assert_eq!(metric("cancelled"), Some(0.0), "{place}");
        assert_eq!(server.metric("panics_total", &[]), Some(errors), "{place}");
        // The next one is served as if nothing had been.
        assert_eq!(server.request(&Request::json("/predict", BODY)).status, 200);
    }
    let routes = count(&server, "/predict", "500");
    assert_eq!(routes, errors);
}

#[test]
fn what_the_library_said_of_a_refused_request_stands_in_the_log_under_its_id() {
    let server = Server::fixture("embed", &[]);
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let request = Request::json("/predict", r#"{"inputs": [[999999, 1]]}"#)
        .header("X-Request-Id", "refused")
        .header("traceparent", &format!("00-{trace}-00f067aa0ba902b7-01"));
    let answer = server.request(&request);
    assert_eq!(answer.status, 422, "{}", answer.text());
    let failed =
        |line: &Value| line["message"] == "an execution failed" && line["request_id"] == "refused";
    let line = server.log.wait_for(failed).expect("a line of the run");
    assert_eq!(line["trace_id"], trace, "{line}");
    let said = line["error"].as_str().unwrap();
    assert!(said.contains("Gather"), "{line}");
    let message = answer.json()["error"].as_str().unwrap().to_owned();
    assert!(message.contains("operator Gather"), "{message}");
    assert!(!message.contains("Status"), "{message}");
}

#[test]
fn work_in_the_background_goes_on_after_a_panic_which_is_logged_and_counted() {
    let faults = Faults::new();
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("addone.onnx");
    fs::copy(fixture("addone"), &model).unwrap();
    // As an exporter needs somebody to export to.
    let server = faults.serve(&[
        "--model",
        model.to_str().unwrap(),
        "--watch-model",
        "50ms",
        "--otlp-endpoint",
        "http://127.0.0.1:9",
    ]);
    for (place, thread) in [
        ("watchdog", "watchdog"),
        ("reload", "models"),
        ("exporter", "OpenTelemetry.Traces.BatchProcessor"),
        ("log", "log"),
    ] {
        let before = server.metric("panics_total", &[]).unwrap();
        faults.set(&format!("panic {place}\n"));
        testing::eventually(place, || {
            // Something to export and to log.
            assert_eq!(server.request(&Request::json("/predict", BODY)).status, 200);
            server.metric("panics_total", &[]).unwrap() > before
        });
        faults.set("");
        let panic = server.log.wait_for(|line| {
            let reason = line["reason"].as_str().unwrap_or_default();
            line["message"] == "panic" && reason.ends_with(&format!("panic in {place}"))
        });
        let panic = panic.unwrap_or_else(|| panic!("{place}: {:?}", server.log.lines()));
        assert_eq!(
            (&panic["level"], &panic["thread"]),
            (&json!("ERROR"), &json!(thread))
        );
    }
    for work in ["watchdog", "models"] {
        let told = |line: &Value| {
            line["work"] == work
                && line["message"]
                    == "work in the background panicked, and begins again after a pause"
        };
        assert!(server.log.wait_for(told).is_some(), "{work}");
    }
    // The reloads go on.
    fs::copy(fixture("addten"), folder.path().join("new")).unwrap();
    fs::rename(folder.path().join("new"), &model).unwrap();
    testing::eventually("the model is reloaded", || {
        let answer = server.predict(&json!({"inputs": [[1, 2, 3, 4]]}));
        answer.json()["outputs"]["y"] == json!([[11.0, 12.0, 13.0, 14.0]])
    });
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn a_model_whose_loading_panics_is_refused_and_the_one_before_serves_on() {
    let faults = Faults::new();
    let server = faults.serve(&["--model", &fixture("addone")]);
    faults.set("panic load\n");
    server.signal(Signal::SIGHUP);
    let refused = |line: &Value| {
        let reason = line["reason"].as_str().unwrap_or_default();
        line["model"] == "addone" && reason.contains("panicked, which is a defect")
    };
    assert!(server.log.wait_for(refused).is_some());
    let failures = || server.metric("ml_model_reloads_total", &[("result", "failure")]);
    assert_eq!(failures(), Some(1.0));
    testing::eventually("it is told", || {
        server.metric("ml_model_reload_blocked", &[]) == Some(1.0)
    });
    assert_eq!(server.request(&Request::json("/predict", BODY)).status, 200);
    faults.set("");
    server.signal(Signal::SIGHUP);
    testing::eventually("it is loaded again", || {
        server.metric("ml_model_reload_blocked", &[]) == Some(0.0)
    });
}

#[test]
fn a_server_that_accepts_nothing_any_more_ends_so_that_it_is_started_anew() {
    let faults = Faults::new();
    let complaint = tempfile::NamedTempFile::new().unwrap();
    let mut command = testing::program();
    command
        .args(["--model", &fixture("addone"), "--host", "127.0.0.1"])
        .args(["--port", "0"])
        .env("TESTKIT_FAULTS", faults.path())
        .stderr(complaint.reopen().unwrap());
    let server = Server::spawn_command(command);
    faults.set("panic accept\n");
    // Whether it gets an answer does not matter.
    drop(server.connect());
    let ended = |line: &Value| line["message"] == "panic" && line["thread"] == "http";
    assert!(server.log.wait_for(ended).is_some());
    assert_eq!(server.wait().code(), Some(1));
    let told = fs::read_to_string(complaint.path()).unwrap();
    assert_eq!(told.lines().count(), 1, "{told}");
    assert!(
        told.contains("no connection is accepted any more"),
        "{told}"
    );
}

/// The fault stands for threads that hang in native code, which no test can bring about by itself.
#[test]
fn a_server_whose_connections_are_stuck_says_so_on_the_admin_port_and_what_cures_it() {
    let faults = Faults::new();
    let server = faults.serve(&["--model", &fixture("addone"), "--admin-port", "0"]);
    let health = || {
        let mut client = Client::connect(server.admin.unwrap()).unwrap();
        client.send(&Request::new("GET", "/health")).unwrap()
    };
    assert_eq!(health().status, 200);
    faults.set("panic beat\n");
    testing::eventually("it is unhealthy", || health().status == 503);
    assert_eq!(
        health().json()["error"],
        "the threads of connections are stuck"
    );
    let told = |line: &Value| line["message"] == "the threads of connections are stuck";
    assert!(server.log.wait_for(told).is_some());
}

#[test]
fn a_panic_while_the_models_are_loaded_ends_the_start_with_one_line() {
    let faults = Faults::new();
    faults.set("panic start\n");
    let output = testing::program()
        .args(["--model", &fixture("addone")])
        .args(["--port", "0", "--host", "127.0.0.1"])
        .env("TESTKIT_FAULTS", faults.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(told.lines().count(), 1, "{told}");
    let expected = "panicked, which is a defect of this server";
    assert!(told.contains(expected), "{told}");
    let log = String::from_utf8(output.stdout).unwrap();
    assert!(log.contains("a test asked for a panic in start"), "{log}");
}

#[test]
fn lines_that_nobody_reads_in_time_are_dropped_counted_and_told() {
    let (server, mut log) = Unread::start();
    assert_eq!(server.dropped(), 0);
    // A pipe and the buffer hold ten megabytes.
    let id = "i".repeat(128);
    let request = Request::new("GET", "/nothing").header("X-Request-Id", &id);
    let all: Vec<u8> = request.bytes().repeat(500);
    testing::eventually("lines are dropped", || {
        let mut client = testing::Client::connect(server.address).unwrap();
        client.write(&all).unwrap();
        for _ in 0..500 {
            assert_eq!(client.read().unwrap().status, 404);
        }
        server.dropped() > 0
    });
    let told = log.read_until("lines of the log were dropped");
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["level"], "WARN", "{told}");
    assert!(told["lines"].as_u64().unwrap() > 0, "{told}");
}

#[test]
fn a_server_whose_log_is_closed_serves_on_and_counts_what_nobody_gets() {
    let (server, log) = Unread::start();
    drop(log);
    let mut client = testing::Client::connect(server.address).unwrap();
    testing::eventually("lines are dropped", || {
        let answer = client.send(&Request::json("/predict", BODY)).unwrap();
        assert_eq!(answer.status, 200);
        server.dropped() > 0
    });
}

/// A server whose log is read when the test wants it.
struct Unread {
    child: std::process::Child,
    address: std::net::SocketAddr,
}

/// The unread log of a server.
struct UnreadLog(std::io::BufReader<std::process::ChildStdout>);

impl Unread {
    fn start() -> (Self, UnreadLog) {
        let mut command = testing::program();
        command.args(["--model", &fixture("addone")]);
        command.env("HOST", "127.0.0.1").env("PORT", "0");
        command.stdout(std::process::Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut log = UnreadLog(std::io::BufReader::new(child.stdout.take().unwrap()));
        let listening = log.read_until("\"listening\"");
        log.read_until("\"ready\"");
        let listening: Value = serde_json::from_str(&listening).unwrap();
        let address = listening["address"].as_str().unwrap().parse().unwrap();
        (Self { child, address }, log)
    }

    /// The lines of the log that it has dropped.
    fn dropped(&self) -> u64 {
        let mut client = testing::Client::connect(self.address).unwrap();
        let answer = client.send(&Request::new("GET", "/metrics")).unwrap();
        let text = answer.text();
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix("ml_log_lines_dropped_total "));
        value.unwrap().parse().unwrap()
    }
}

impl UnreadLog {
    /// Reads on to the line that holds `text`.
    fn read_until(&mut self, text: &str) -> String {
        let mut line = String::new();
        while !line.contains(text) {
            line.clear();
            let read = std::io::BufRead::read_line(&mut self.0, &mut line).unwrap();
            assert!(read > 0, "the log ended before {text}");
        }
        line
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
