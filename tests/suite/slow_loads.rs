//! A model whose load takes very long, or never ends, keeps no other waiting.
//!
//! How long others wait is a minute; the program under test is told to be less patient.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test stops at the first thing that is wrong"
)]

use std::fs;

use nix::sys::signal::Signal;
use serde_json::Value;
use testing::Server;
use testing::faults::Faults;
use testing::models::{Repository, answer_of};

/// A server of `repository` whose loads may keep others waiting for so many milliseconds.
fn serve(repository: &Repository, faults: &Faults, patience: &str) -> Server {
    faults.set(&format!("patience {patience}"));
    let path = repository.path("");
    let (path, faults) = (path.to_str().unwrap(), faults.path());
    let environment = [("TESTKIT_FAULTS", faults.to_str().unwrap())];
    Server::spawn(&["--model", path, "--drain-delay", "0s"], &environment)
}

fn is_still_loaded(line: &Value, model: &str) -> bool {
    let message = line["message"].as_str().unwrap_or_default();
    line["model"] == model && message.contains("is still being loaded")
}

/// How many threads of `server` load a model.
fn loading(server: &Server) -> usize {
    let tasks = fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap();
    let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name == "load\n").count()
}

#[test]
fn a_load_that_never_ends_keeps_no_other_model_from_being_served_at_the_start_or_later() {
    let repository =
        Repository::with(&[("endless", "a/1/model.onnx"), ("addone", "b/1/model.onnx")]);
    let faults = Faults::new();
    let server = serve(&repository, &faults, "100");
    let line = server.log.wait_for(|line| is_still_loaded(line, "a"));
    assert_eq!(line.unwrap()["level"], "WARN");
    testing::eventually("the other one serves", || {
        answer_of(&server, "b") == Some(2.0)
    });
    // It is required like every other that was there at the start.
    let ready = || server.get("/ready");
    assert_eq!(ready().status, 503);
    let skipped = || ready().json()["skipped"].clone();
    assert_eq!(skipped()[0]["path"], "a");
    let reason = skipped()[0]["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("is still being loaded"), "{reason}");
    assert_eq!(server.metric("ml_model_reload_blocked", &[]), Some(1.0));
    assert_eq!(server.get("/health").status, 200);

    // What comes later is loaded, and the same files are not begun with a second time.
    repository.put("addten", "c/1/model.onnx");
    server.signal(Signal::SIGHUP);
    testing::eventually("what has come is loaded", || {
        answer_of(&server, "c") == Some(11.0)
    });
    testing::eventually("one load is under way", || loading(&server) == 1);
    // Other files are.
    repository.put("addone", "a/1/model.onnx");
    server.signal(Signal::SIGHUP);
    testing::eventually("the mended model serves", || {
        answer_of(&server, "a") == Some(2.0)
    });
    testing::eventually("nothing is missing", || ready().status == 200);
    assert_eq!(skipped(), Value::Null);
    assert_eq!(server.metric("ml_model_reload_blocked", &[]), Some(0.0));
    // Nobody can end a load that was begun; the server stops all the same.
    testing::eventually("one load is under way", || loading(&server) == 1);
    server.signal(Signal::SIGTERM);
    assert!(server.wait().success());
}

#[test]
fn a_model_that_others_did_not_wait_for_serves_as_soon_as_it_is_loaded() {
    let repository = Repository::with(&[
        ("addone", "a/1/model.onnx"),
        ("addone", "b/1/model.onnx"),
        ("not_onnx", "c/1/model.onnx"),
    ]);
    repository.write("c/1/model.toml", "required = false");
    let faults = Faults::new();
    let server = serve(&repository, &faults, "0");
    testing::eventually("all that can be loaded is", || {
        server.get("/ready").status == 200
    });
    assert_eq!(["a", "b"].map(|it| answer_of(&server, it)), [Some(2.0); 2]);
    let failed = |name| {
        let labels = [("model_name", name), ("version", "1")];
        server.metric("ml_model_load_failed", &labels)
    };
    testing::eventually("the broken one is counted", || failed("c") == Some(1.0));

    // What it replaces goes with one request for a reload, although nobody waited for that either.
    fs::rename(repository.path("a/1"), repository.path("old")).unwrap();
    repository.put("addten", "a/2/model.onnx");
    server.signal(Signal::SIGHUP);
    testing::eventually("the new version serves", || {
        answer_of(&server, "a") == Some(11.0)
    });
    let version = |number| {
        server
            .get(&format!("/v2/models/a/versions/{number}"))
            .status
    };
    testing::eventually("the old one is gone", || version(1) == 404);
    assert_eq!(version(2), 200);
    // Those that were there are loaded again, too.
    testing::eventually("all were loaded again", || {
        server.metric("ml_model_reloads_total", &[("result", "success")]) == Some(2.0)
    });
    assert_eq!(answer_of(&server, "b"), Some(2.0));
}

#[test]
fn a_server_whose_only_model_is_loaded_without_end_waits_for_it_and_stops_when_told_to() {
    let repository = Repository::with(&[("endless", "a/1/model.onnx")]);
    let faults = Faults::new();
    let server = serve(&repository, &faults, "0");
    assert!(
        server
            .log
            .wait_for(|line| is_still_loaded(line, "a"))
            .is_some()
    );
    // It is starting, and not broken.
    let ready = server.get("/ready");
    assert_eq!(ready.status, 503);
    let text = ready.text();
    assert!(text.contains("the models are being loaded"), "{text}");
    assert_eq!(server.get("/health").status, 200);
    server.signal(Signal::SIGTERM);
    assert!(server.wait().success());
}
