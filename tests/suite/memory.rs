//! What requests, runs and answers hold: bounded before it is taken, and given back.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test stops at the first thing that is wrong"
)]

use std::time::Instant;

use nix::sys::signal::Signal;
use serde_json::json;
use testing::{Client, PATIENCE, Request, Server};

const LIMIT: [&str; 2] = ["--max-inflight-bytes", "64MiB"];

/// What may be held besides what `LIMIT` bounds, in kB.
const BESIDES: u64 = 64 << 10;

/// Resident memory, in kB.
fn resident(server: &Server) -> u64 {
    server.status_figure("VmRSS")
}

/// The most that was resident since the start, in kB.
fn peak(server: &Server) -> u64 {
    server.status_figure("VmHWM")
}

/// Asks for `count` ones, as many bytes times four.
fn ones(count: u64) -> Request {
    Request::json("/predict", json!({"inputs": [[count]]}).to_string())
        .header("Accept", "application/octet-stream")
}

fn is_answered(server: &Server) {
    let answer = server.request(&ones(3));
    assert_eq!((answer.status, answer.body.len()), (200, 12));
}

fn waits_until_memory_is_back(server: &Server, start: u64) {
    testing::eventually(&format!("no more than 32 MiB above {start} kB"), || {
        resident(server) <= start + (32 << 10)
    });
}

#[test]
fn values_that_ask_for_more_memory_than_there_is_are_refused_before_it_is_taken() {
    let server = Server::fixture("big", &LIMIT);
    let start = resident(&server);
    for count in [2_147_483_648_u64, 1 << 40, 500_000_000, 30_000_000] {
        let answer = server.request(&ones(count));
        assert_eq!(
            (answer.status, &answer.json()["code"]),
            (422, &json!("unprocessable")),
            "{count}: {}",
            answer.text()
        );
        is_answered(&server);
    }
    // As one of the rows of a request, and beside others that are innocent.
    let answer = server.predict(&json!({"inputs": [[1], [2_147_483_648_u64]]}));
    assert_eq!(answer.status, 422, "{}", answer.text());
    std::thread::scope(|scope| {
        for client in 0..4 {
            let server = &server;
            scope.spawn(move || {
                for number in 0..20 {
                    if client == 0 {
                        let answer = server.request(&ones(2_147_483_648));
                        assert_eq!(answer.status, 422, "{}", answer.text());
                    } else {
                        let count = 1 + number % 5;
                        let answer = server.request(&ones(count));
                        assert_eq!(answer.status, 200);
                        assert_eq!(answer.body.len() as u64, 4 * count);
                    }
                }
            });
        }
    });
    assert!(peak(&server) < start + (64 << 10) + BESIDES);
    assert_eq!(server.get("/health").status, 200);
    waits_until_memory_is_back(&server, start);
}

#[test]
fn answers_that_nobody_reads_are_bounded_in_sum_and_keep_nobody_else_out() {
    let server = Server::fixture("big", &[&LIMIT[..], &["--max-batch-size", "1"]].concat());
    let start = resident(&server);
    let mut clients: Vec<Client> = (0..100).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.write(&ones(1 << 20).bytes()).unwrap();
    }
    // All of them have been refused, or have as much of their answer as the system holds for them.
    let counted = |status: &str| {
        let labels = [("status", status)];
        server
            .metric("ml_predictions_total", &labels)
            .unwrap_or(0.0)
    };
    let deadline = Instant::now() + PATIENCE;
    while counted("success") + counted("overloaded") < 100.0 {
        assert!(Instant::now() < deadline, "not every client is served");
    }
    assert!(counted("overloaded") > 0.0);
    assert!(peak(&server) < start + (64 << 10) + BESIDES);
    is_answered(&server);
    drop(clients);
    waits_until_memory_is_back(&server, start);
    assert_eq!(server.request(&ones(1 << 20)).status, 200);
}

#[test]
fn answers_out_of_shared_executions_are_bounded_in_sum_however_large_they_are() {
    const MOST: u64 = 256 << 10;
    let flags = ["--instances", "1", "--max-batch-size", "32"];
    let delay = ["--max-queue-delay", "100ms"];
    // Of sixteen megabytes, which share no execution, and of four, which do.
    for length in [4000_usize, 1000] {
        let limit = ["--max-inflight-bytes", "256MiB"];
        let server = Server::fixture("widen", &[&limit[..], &flags, &delay].concat());
        let start = resident(&server);
        let mut clients: Vec<Client> = (0..100).map(|_| server.connect()).collect();
        for client in &mut clients {
            let request = Request::raw("/predict", vec![0; 4 * length])
                .header("X-Tensor-Shape", &format!("1,{length}"))
                .header("Accept", "application/octet-stream");
            client.write(&request.bytes()).unwrap();
        }
        let counted = |status: &str| {
            let labels = [("status", status)];
            server
                .metric("ml_predictions_total", &labels)
                .unwrap_or(0.0)
        };
        let deadline = Instant::now() + PATIENCE;
        while counted("success") + counted("overloaded") < 100.0 {
            assert!(Instant::now() < deadline, "not every client is served");
        }
        let (answered, most) = (counted("success"), peak(&server) - start);
        assert!(answered >= 14.0 && counted("overloaded") > 0.0);
        assert!(
            most < MOST + BESIDES,
            "{answered} answers, {most} kB above the start"
        );
    }
}

#[test]
fn an_answer_that_is_too_large_leaves_no_memory_behind() {
    let server = Server::fixture("big", &["--max-output-size", "8MiB"]);
    let start = resident(&server);
    let answer = server.request(&ones(100 << 20));
    assert_eq!(answer.status, 422, "{}", answer.text());
    is_answered(&server);
    waits_until_memory_is_back(&server, start);
}

#[test]
fn strings_are_reserved_with_all_that_they_take() {
    let server = Server::fixture("identity_string", &LIMIT);
    let start = resident(&server);
    // Twelve million empty strings: four bytes each on the wire, and many times that in memory.
    let raw = Request::raw("/predict", vec![0; 48 << 20]);
    let answer = server.request(&raw);
    assert!(answer.text().contains("by itself"), "{}", answer.text());
    assert_eq!(
        (answer.status, &answer.json()["code"]),
        (429, &json!("overloaded")),
        "{}",
        answer.text()
    );
    let row = r#"["","",""]"#;
    let rows = vec![row; 2 << 20].join(",");
    let answer = server.request(&Request::json(
        "/predict",
        format!(r#"{{"inputs":[{rows}]}}"#),
    ));
    assert_eq!(answer.status, 429, "{}", answer.text());
    assert!(peak(&server) < start + (64 << 10) + BESIDES);
    let few = server.predict(&json!({"inputs": [["a", "", "c"]]}));
    assert_eq!(few.json()["outputs"]["y"], json!([["a", "", "c"]]));
    waits_until_memory_is_back(&server, start);
}

#[test]
fn weights_and_reloads_leave_the_bound_of_runs_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let model = testing::heavy(folder.path());
    let server = Server::start(&[&["--model", &model, "--instances", "2"], &LIMIT[..]].concat());
    let start = resident(&server);
    for reload in 0..3 {
        for count in [500_000_000_u64, 20 << 20] {
            let answer = server.request(&ones(count));
            assert_eq!(answer.status, 422, "{reload}: {}", answer.text());
        }
        // One that fits is served, before and after.
        let answer = server.request(&ones(4 << 20));
        assert_eq!((answer.status, answer.body.len()), (200, 16 << 20));
        server.signal(Signal::SIGHUP);
        let reloads = || server.metric("ml_model_reloads_total", &[("result", "success")]);
        let deadline = Instant::now() + PATIENCE;
        while reloads() != Some(f64::from(reload + 1)) {
            assert!(Instant::now() < deadline, "the model is not loaded again");
        }
    }
    // Both models' weights, laid out anew, while one replaces the other.
    let weights = 6 * (testing::HEAVY_WEIGHTS >> 10);
    assert!(peak(&server) < start + weights + (64 << 10) + BESIDES);
    is_answered(&server);
}
