//! Rows of strangers share an execution only where that was shown to change nothing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test stops at the first thing that is wrong"
)]

mod support;

use std::fs;

use serde_json::{Value, json};
use support::{Request, Server, fixture, program};

/// The server's figures on how the requests for `model` are merged: on or off, and why.
fn merging(server: &Server) -> (String, String) {
    let scrape = server.metrics();
    let mut infos = scrape
        .samples
        .iter()
        .filter(|sample| sample.metric == "ml_model_batching_info");
    let info = infos.next().unwrap();
    assert!(infos.next().is_none());
    let label = |name| info.labels.get(name).unwrap().to_owned();
    (label("batching"), label("reason"))
}

fn reason(server: &Server) -> Value {
    server.get("/ready").json()["models"][0]["not_batched_because"].clone()
}

#[test]
fn a_model_whose_rows_depend_on_each_other_is_executed_request_by_request_and_says_why() {
    let server = Server::start(&["--model", &fixture("neighbours"), "--instances", "1"]);
    assert_eq!(
        merging(&server),
        ("off".to_owned(), "neighbours".to_owned())
    );
    let reason = reason(&server);
    let reason = reason.as_str().unwrap();
    assert!(
        reason.contains("output 'y' of a row depends on the rows beside it"),
        "{reason}"
    );
    let told = server.log.wait_for(|line| {
        line["level"] == "WARN"
            && line["reason"] == reason
            && line["message"]
                .as_str()
                .is_some_and(|message| message.contains("one by one"))
    });
    assert!(told.is_some());

    // Alone, the mean is the row itself. One that had met a stranger would show.
    let request = Request::json("/predict", r#"{"inputs": [[1, 2, 3, 4]]}"#);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut client = server.connect();
                for _ in 0..50 {
                    let answer = client.send(&request).unwrap();
                    assert_eq!(answer.json()["outputs"]["y"], json!([[0.0, 0.0, 0.0, 0.0]]));
                }
            });
        }
    });
}

#[test]
fn a_model_whose_rows_are_independent_is_batched() {
    for name in ["addone", "embed", "two", "identity_string", "identity_bool"] {
        let server = Server::start(&["--model", &fixture(name)]);
        assert_eq!(merging(&server), ("on".to_owned(), String::new()), "{name}");
        assert_eq!(reason(&server), Value::Null);
    }
}

#[test]
fn each_reason_not_to_batch_has_a_name() {
    for (name, flags, expected) in [
        ("random", &[][..], "random"),
        ("fixed_batch", &[], "signature"),
        ("addone", &["--max-batch-size", "1"], "limit"),
    ] {
        let path = fixture(name);
        let mut all = vec!["--model", path.as_str()];
        all.extend(flags);
        let server = Server::start(&all);
        assert_eq!(
            merging(&server),
            ("off".to_owned(), expected.to_owned()),
            "{name}"
        );
    }
}

#[test]
fn who_knows_better_says_so_in_the_sidecar() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("m.onnx");
    fs::copy(fixture("random"), &model).unwrap();
    fs::write(folder.path().join("m.toml"), "[batching]\ncheck = false\n").unwrap();
    let server = Server::start(&["--model", model.to_str().unwrap()]);
    assert_eq!(merging(&server), ("on".to_owned(), String::new()));
}

#[test]
fn inspect_says_whether_requests_would_be_merged() {
    let output = program()
        .args(["inspect", &fixture("neighbours")])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("batching   none: output 'y' of a row depends"),
        "{text}"
    );
}
