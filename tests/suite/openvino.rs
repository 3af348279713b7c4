//! The CPU by OpenVINO: the same answers, the truth about what ran where, and what is missing in words.
//!
//! `make openvino` fetches the libraries; without them these tests say that they were skipped.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test stops at the first thing that is wrong"
)]

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use testing::{Request, Server, fixture, program, repository, skipped};

/// Floats, integers, several inputs and outputs, open and fixed shapes.
const MODELS: [&str; 10] = [
    "addone",
    "addten",
    "cumsum",
    "dyn",
    "embed",
    "fixed_batch",
    "identity_float16",
    "identity_int64",
    "recip",
    "two",
];

fn folder() -> Option<PathBuf> {
    let folder = repository(".tools/openvino");
    if folder.join("libonnxruntime.so").exists() {
        return Some(folder);
    }
    skipped(format_args!(
        "OpenVINO is not there (make openvino; x86-64 only), so that nothing ran on it"
    ));
    None
}

fn serve(folder: &Path, model: &str) -> Server {
    let library = folder.join("libonnxruntime.so");
    let flags = ["--device", "openvino", "--onnxruntime"];
    let model = fixture(model);
    let flags = [&flags[..], &[library.to_str().unwrap(), "--model", &model]].concat();
    Server::start(&flags)
}

/// The body of the request that `inspect` finds for `model`.
fn example(model: &str) -> String {
    let output = program()
        .args(["inspect", &fixture(model)])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (_, body) = text.split_once("-d '").expect("a request to try");
    body.split_once('\'').unwrap().0.to_owned()
}

fn complaint(model: &str, library: Option<&Path>) -> String {
    let mut command = program();
    command.args(["inspect", &fixture(model), "--device", "openvino"]);
    if let Some(library) = library {
        command.arg("--onnxruntime").arg(library);
    }
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// Whether all numbers are as near as FP32 lets them be.
fn close(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| close(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            let same = |(name, value): (&String, &Value)| {
                other.get(name).is_some_and(|other| close(value, other))
            };
            one.len() == other.len() && one.iter().all(same)
        }
        (Value::Number(one), Value::Number(other)) => {
            let (one, other) = (one.as_f64().unwrap(), other.as_f64().unwrap());
            (one - other).abs() <= 1e-5 * one.abs().max(1.0)
        }
        _ => one == other,
    }
}

#[test]
fn openvino_answers_as_the_cpu_does() {
    let Some(folder) = folder() else { return };
    for model in MODELS {
        let body = example(model);
        let answer = |server: &Server| {
            let answer = server.request(&Request::json("/predict", body.clone()));
            assert_eq!(answer.status, 200, "{model}: {body}");
            answer.json()["outputs"].clone()
        };
        let on_cpu = answer(&Server::fixture(model, &["--device", "cpu"]));
        let by_openvino = answer(&serve(&folder, model));
        assert!(
            close(&on_cpu, &by_openvino),
            "{model}: {on_cpu} on the CPU, {by_openvino} by OpenVINO"
        );
    }
}

#[test]
fn what_openvino_executes_is_told_everywhere() {
    let Some(folder) = folder() else { return };
    let server = serve(&folder, "addone");
    let ready = server.get("/ready").json()["models"][0].clone();
    assert_eq!(ready["device"], "openvino");
    assert_eq!(ready["nodes"], json!({"OpenVINOExecutionProvider": 1}));
    assert_eq!(ready["max_batch_size"], 32, "{ready}");
    let labels = [("execution_provider", "OpenVINOExecutionProvider")];
    assert_eq!(server.metric("ml_model_info", &labels), Some(1.0));
}

#[test]
fn a_model_of_which_openvino_executes_nothing_is_refused() {
    let Some(folder) = folder() else { return };
    let told = complaint("identity_string", Some(&folder.join("libonnxruntime.so")));
    assert!(told.contains("kernels for none of the 1 nodes"), "{told}");
}

#[test]
fn a_library_that_is_missing_is_named_with_what_to_do() {
    let Some(folder) = folder() else { return };
    for missing in ["libtbb.so", "libonnxruntime_providers_openvino.so"] {
        let copy = tempfile::tempdir().unwrap();
        for entry in folder.read_dir().unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            // ONNX Runtime looks beside its own file, wherever a link to it lies.
            let link = copy.path().join(name);
            if name.starts_with("libonnxruntime.so") {
                std::fs::copy(&path, link).unwrap();
            } else if !name.starts_with(missing) {
                std::os::unix::fs::symlink(&path, link).unwrap();
            }
        }
        if missing == "libtbb.so" {
            // The loader follows a link to its folder, where the library is.
            let _ = std::fs::remove_file(copy.path().join("libopenvino.so.2541"));
            std::fs::copy(
                folder.join("libopenvino.so.2541"),
                copy.path().join("libopenvino.so.2541"),
            )
            .unwrap();
        }
        let told = complaint("addone", Some(&copy.path().join("libonnxruntime.so")));
        assert!(
            told.contains(&format!("the library {missing} is missing")),
            "{told}"
        );
        assert!(told.contains("make openvino"), "{told}");
    }
}

#[test]
fn a_library_without_openvino_says_so() {
    let told = complaint("addone", None);
    for part in [
        "device openvino cannot be used: this ONNX Runtime is built without OpenVINO",
        "make openvino",
        "--device (DEVICE) to cpu",
    ] {
        assert!(told.contains(part), "{told}");
    }
}
