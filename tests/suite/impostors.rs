//! Files that are no models, and models that cannot be loaded: what they are, and what to do.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test stops at the first thing that is wrong"
)]

use std::fs;
use std::process::Stdio;

use testing::{Server, fixture, program};

/// The one line with which a start fails that is to serve `model`.
fn refused(model: &str, level: &str) -> (String, String) {
    let output = program()
        .env("HOST", "127.0.0.1")
        .env("PORT", "0")
        .args(["--model", model, "--log-level", level])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{model}: {text}");
    assert_eq!(text.lines().count(), 1, "{model}: {text}");
    (text, String::from_utf8(output.stdout).unwrap())
}

#[test]
fn a_file_that_is_something_else_is_named_with_the_fix() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model.onnx");
    for (bytes, parts) in [
        (
            &b"version https://git-lfs.github.com/spec/v1\noid sha256:5c\nsize 9\n"[..],
            ["a Git LFS pointer", "git lfs pull"],
        ),
        (
            b"<!DOCTYPE html>\n<html><body>Not found</body></html>",
            ["an HTML page", "download the file itself"],
        ),
        (b"\x1f\x8b\x08\0\0\0\0\0", ["gzip", "unpack it"]),
        (
            b"PK\x03\x04\0\0\0\0model/data.pkl",
            ["a PyTorch file", "torch.onnx.export"],
        ),
        (b"\x80\x04\x95\0sklearn.svm", ["scikit-learn", "skl2onnx"]),
        (b"\x20\0\0\0ORTM\0\0\0\0", ["(.ort)", "the .onnx file"]),
        (b"\x20\0\0\0TFL3\0\0\0\0", ["TensorFlow Lite", "tf2onnx"]),
        (b"GGUF\x03\0\0\0", ["GGUF", "optimum-cli"]),
        (b"{\"format\": 1}", ["a JSON text", "the .onnx file"]),
        (
            b"https://host/m.onnx\r\n",
            ["an address, and not the file", "download what is behind it"],
        ),
        (&[0; 5000], ["nothing but zeros", "copy or download"]),
    ] {
        fs::write(&model, bytes).unwrap();
        let (text, _) = refused(model.to_str().unwrap(), "off");
        for part in ["model.onnx is not an ONNX model: it is"]
            .iter()
            .chain(&parts)
        {
            assert!(text.contains(part), "{text}");
        }
    }
}

#[test]
fn a_model_that_onnx_runtime_refuses_is_told_in_our_words_and_logged_in_the_library_s() {
    for (name, parts) in [
        (
            "newer_format",
            &["IR version is 99", "newer ONNX Runtime"][..],
        ),
        (
            "newer_opset",
            &["operator set 999 of ai.onnx", "opset_version="],
        ),
        (
            "unknown_operator",
            &["operator Hologram is not in operator set 17"],
        ),
        (
            "custom_operator",
            &["StringUpper", "'ai.onnx.contrib'", "in the client"],
        ),
        ("cyclic", &["its graph is not valid", "onnx.checker"]),
        ("mixed_types", &["datatypes in its graph", "onnx.checker"]),
    ] {
        let (text, log) = refused(&fixture(name), "debug");
        for part in parts {
            assert!(text.contains(part), "{text}");
        }
        for library in [".cc:", ".h:", "onnxruntime::", "std::", "(-1)"] {
            assert!(!text.contains(library), "{text}");
        }
        let lines: Vec<serde_json::Value> = log
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let original = lines
            .iter()
            .find(|line| line["message"] == "ONNX Runtime refused a model");
        let original = original.unwrap_or_else(|| panic!("{log}"));
        assert!(original["onnxruntime"].is_string(), "{original}");
    }
}

#[test]
fn a_good_model_that_refuses_made_up_inputs_starts_without_a_complaint() {
    for name in ["addressed", "label_one", "optional", "noop"] {
        let server = Server::fixture(name, &[]);
        let complaints: Vec<_> = server
            .log
            .lines()
            .into_iter()
            .filter(|line| line["level"] == "WARN" || line["level"] == "ERROR")
            // What the model really is, is told.
            .filter(|line| !line["message"].as_str().unwrap().contains("one by one"))
            .collect();
        assert!(complaints.is_empty(), "{name}: {complaints:?}");
        let ready = server.get("/ready").text();
        for library in ["Non-zero status", ".cc:", "Status Message"] {
            assert!(!ready.contains(library), "{name}: {ready}");
        }
    }
    let server = Server::fixture("addressed", &["--log-level", "debug"]);
    let library = server.log.lines();
    assert!(
        library.iter().any(|line| line["target"] == "onnxruntime"),
        "{library:?}"
    );
}
