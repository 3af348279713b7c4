//! What a model is, asked over HTTP: its signature, its device and why it is that one.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test stops at the first thing that is wrong"
)]

use serde_json::{Value, json};
use testing::{Server, fixture, repository};

#[test]
fn a_model_s_metadata_are_its_signature_in_the_open_inference_protocol() {
    let server = Server::start(&["--model", &fixture("two")]);
    let answer = server.get("/v2/models/two");
    assert_eq!(answer.status, 200);
    let metadata = answer.json();
    assert_eq!(
        (
            &metadata["name"],
            &metadata["versions"],
            &metadata["platform"]
        ),
        (&json!("two"), &json!(["1"]), &json!("onnxruntime_onnx"))
    );
    assert_eq!(
        metadata["inputs"],
        json!([
            {"name": "a", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "b", "datatype": "INT64", "shape": [-1]}
        ])
    );
    assert_eq!(
        metadata["outputs"],
        json!([
            {"name": "sum", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "twice", "datatype": "INT64", "shape": [-1]}
        ])
    );
    let unknown = server.get("/v2/models/three");
    assert_eq!(
        (unknown.status, &unknown.json()["code"]),
        (404, &json!("not_found"))
    );
}

#[test]
fn labels_and_the_author_s_words_are_there() {
    let path = repository("models/best.onnx");
    let server = Server::start(&["--model", path.to_str().unwrap()]);
    let metadata = server.get("/v2/models/digits").json();
    let probabilities = &metadata["outputs"][0];
    assert_eq!(probabilities["labels"][7], "7", "{metadata}");
    assert!(
        metadata["properties"]["description"]
            .as_str()
            .unwrap()
            .contains("digits")
    );
}

#[test]
fn who_left_the_choice_to_the_server_is_told_in_four_places_that_it_took_the_cpu() {
    let reason = "this ONNX Runtime is built without CUDA";
    let server = Server::start(&["--model", &fixture("addone"), "--device", "auto"]);

    let loaded = server
        .log
        .wait_for(|line| line["message"] == "model loaded")
        .unwrap();
    assert_eq!(
        (&loaded["device"], &loaded["fallback"]),
        (&json!("cpu"), &json!(reason))
    );

    let ready = &server.get("/ready").json()["models"][0];
    assert_eq!(
        (&ready["device"], &ready["device_reason"]),
        (&json!("cpu"), &json!(reason))
    );
    assert_eq!(ready["nodes"], json!({"CPUExecutionProvider": 1}));

    let properties = server.get("/v2/models/addone").json()["properties"].clone();
    assert_eq!(
        (&properties["device"], &properties["device_reason"]),
        (&json!("cpu"), &json!(reason))
    );
    assert_eq!(properties["nodes"], "CPUExecutionProvider 1");

    let labels = [
        ("device", "cpu"),
        ("execution_provider", "CPUExecutionProvider"),
    ];
    assert_eq!(server.metric("ml_model_info", &labels), Some(1.0));

    // Who asked for the CPU is told nothing of the kind.
    let server = Server::start(&["--model", &fixture("addone"), "--device", "cpu"]);
    assert_eq!(
        server.get("/ready").json()["models"][0]["device_reason"],
        Value::Null
    );
}
