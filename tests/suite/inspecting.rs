//! What `inspect` and `tune` print: requests that were run, JSON for programs, progress beside the result.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test stops at the first thing that is wrong"
)]

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testing::{Request, Server, fixture, program};

fn run(arguments: &[&str]) -> Output {
    let mut command = program();
    command.args(arguments).stdin(Stdio::null());
    command.output().unwrap()
}

fn inspect_json(model: &str) -> Value {
    let output = run(&["inspect", "--json", model]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn the_request_that_is_printed_works_also_where_zeros_or_sizes_of_one_do_not() {
    // One divided by zero is infinite, which JSON cannot say.
    for name in ["recip", "lookup", "mixed_batch", "image", "same_name"] {
        let described = inspect_json(&fixture(name));
        let line = described["models"][0]["request"]["curl"]
            .as_str()
            .unwrap()
            .to_owned();
        let text = String::from_utf8(run(&["inspect", &fixture(name)]).stdout).unwrap();
        assert!(
            text.contains(&format!("try        {line}\n")),
            "{name}: {text}"
        );
        if Command::new("curl").arg("--version").output().is_err() {
            eprintln!("SKIPPED: there is no curl to run {line}");
            continue;
        }
        let server = Server::fixture(name, &[]);
        let command = line
            .replace("localhost:8000", &server.address.to_string())
            .replace("curl ", "curl -s -f ");
        let output = Command::new("sh").args(["-c", &command]).output().unwrap();
        assert!(output.status.success(), "{command}");
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(answer["outputs"].is_object(), "{answer}");
    }
}

#[test]
fn where_no_request_is_found_what_was_seen_is_said() {
    let negative = fixture("negative");
    let text = String::from_utf8(run(&["inspect", &negative]).stdout).unwrap();
    assert!(
        text.contains("no request was found whose answer JSON can express: zeros, halves and ones give NaN or infinity"),
        "{text}"
    );
    assert_eq!(inspect_json(&negative)["models"][0]["request"], Value::Null);
    // What a refusal of the answer asks for then works.
    let server = Server::fixture("negative", &[]);
    let answer = server.predict(&json!({"inputs": [[1, 2]]}));
    assert_eq!(answer.status, 422);
    let told = answer.json()["error"].as_str().unwrap().to_owned();
    assert!(
        told.contains("output 'y' holds NaN or infinity")
            && told.contains("alone ('outputs') and with 'Accept: application/octet-stream'"),
        "{told}"
    );
    let alone = json!({"inputs": [[1, 2]], "outputs": ["y"]}).to_string();
    let raw = Request::json("/predict", alone).header("accept", "application/octet-stream");
    assert_eq!(server.request(&raw).status, 200);
}

#[test]
fn every_model_that_cannot_be_described_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["truncated", "addone", "not_onnx"] {
        let place = folder.path().join(name).join("1");
        std::fs::create_dir_all(&place).unwrap();
        std::fs::copy(fixture(name), place.join("model.onnx")).unwrap();
    }
    let output = run(&["inspect", folder.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stderr).unwrap();
    for part in [
        "2 models cannot",
        "truncated/1/model.onnx",
        "not_onnx/1/model.onnx",
    ] {
        assert!(told.contains(part), "{told}");
    }
    assert_eq!(told.lines().count(), 1, "{told}");
}

#[test]
fn a_model_that_cannot_be_served_keeps_no_other_from_being_described() {
    let folder = tempfile::tempdir().unwrap();
    for (name, place) in [("two", "a/1"), ("not_onnx", "b/1"), ("two", "c/1")] {
        let place = folder.path().join(place);
        std::fs::create_dir_all(&place).unwrap();
        std::fs::copy(fixture(name), place.join("model.onnx")).unwrap();
    }
    std::fs::write(folder.path().join("c/1/model.toml"), "nmae = 1").unwrap();
    for json in [false, true] {
        let mut arguments = vec!["inspect", folder.path().to_str().unwrap()];
        arguments.extend(json.then_some("--json"));
        let output = run(&arguments);
        assert_eq!(output.status.code(), Some(1));
        let told = String::from_utf8(output.stderr).unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let broken = ["b/1/model.onnx", "c/1/model.toml"];
        assert!(broken.iter().all(|part| told.contains(part)), "{told}");
        assert_eq!(told.lines().count(), 1, "{told}");
        if json {
            let described: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(described["models"][0]["name"], "a");
            let failed = described["failed"].as_array().unwrap();
            assert_eq!(failed.len(), 2, "{text}");
            let named = |part: &&str| failed.iter().any(|it| it.as_str().unwrap().contains(*part));
            assert!(broken.iter().all(named), "{text}");
        } else {
            assert!(text.starts_with("a version 1\n"), "{text}");
        }
    }
}

#[test]
fn json_is_one_object_with_all_that_the_text_says() {
    let folder = tempfile::tempdir().unwrap();
    for place in ["a/1", "a/v2", "b/3"] {
        let place = folder.path().join(place);
        std::fs::create_dir_all(&place).unwrap();
        std::fs::copy(fixture("two"), place.join("model.onnx")).unwrap();
    }
    let described = inspect_json(folder.path().to_str().unwrap());
    let models = described["models"].as_array().unwrap();
    let names: Vec<&Value> = models.iter().map(|model| &model["name"]).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(described["skipped"][0]["path"], "a/v2");
    assert!(described["onnxruntime"].is_string());
    let model = &models[1];
    assert_eq!(model["version"], "3");
    assert_eq!(model["sha256"].as_str().unwrap().len(), 64);
    assert_eq!(
        model["inputs"],
        json!([
            {"name": "a", "datatype": "FP32", "shape": ["N", 2], "labels": []},
            {"name": "b", "datatype": "INT64", "shape": ["N"], "labels": []},
        ])
    );
    assert_eq!(model["batching"]["merged"], true);
    assert_eq!(model["request"]["shapes"], json!({"a": [1, 2], "b": [1]}));
}

#[test]
fn a_table_is_sorted_and_long_work_is_told_beside_it() {
    let started = Instant::now();
    let output = run(&["tune", "--dry-run", "--time", "3s", &fixture("image")]);
    let took = started.elapsed();
    let text = String::from_utf8(output.stdout).unwrap();
    let rows: Vec<Vec<usize>> = text
        .lines()
        .filter_map(|line| {
            let fields = line.split_whitespace().take(3);
            fields
                .map(|field| field.parse().ok())
                .collect::<Option<Vec<usize>>>()
        })
        .filter(|row| row.len() == 3)
        .collect();
    assert!(rows.len() > 2, "{text}");
    assert!(rows.is_sorted(), "{text}");
    let told = String::from_utf8(output.stderr).unwrap();
    // It is told after a second; a machine that needs less has nothing to tell.
    if took > Duration::from_millis(1500) {
        assert!(!told.is_empty(), "nothing was told in {took:?}");
    }
    for line in told.lines() {
        assert!(
            line.starts_with("image: ") && line.contains(" ... ("),
            "{told}"
        );
    }
}
