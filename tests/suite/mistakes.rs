//! The mistakes that clients make with headers, bodies and names: each is refused, and told by what has to be changed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test stops at the first thing that is wrong"
)]

use std::io::Write;

use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use serde_json::json;
use testing::{Request, Response, Server};

const BODY: &str = r#"{"inputs": [[1, 2, 3, 4]]}"#;

fn valid() -> Request {
    Request::new("POST", "/predict").body(BODY)
}

fn raw() -> Request {
    Request::raw("/predict", vec![0; 32])
}

/// The message of a refusal with this status and code.
fn refusal(answer: &Response, status: u16, code: &str) -> String {
    let text = answer.text();
    assert_eq!(answer.status, status, "{text}");
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert!(answer.body.len() <= 512, "{text}");
    let body = answer.json();
    assert_eq!(body["code"], code, "{text}");
    body["error"].as_str().unwrap().to_owned()
}

#[test]
fn a_header_that_may_stand_once_and_stands_twice_is_refused_by_its_name() {
    let server = Server::fixture("dyn", &[]);
    let mut client = server.connect();
    for (name, request, first, second) in [
        (
            "Content-Type",
            valid(),
            "application/json",
            "application/json",
        ),
        (
            "Content-Type",
            valid(),
            "application/json",
            "application/octet-stream",
        ),
        (
            "X-Tensor-Shape",
            Request::raw("/predict", vec![0; 32]),
            "2,4",
            "4,2",
        ),
        (
            "X-Tensor-Shape",
            Request::raw("/predict", vec![0; 32]),
            "2,4",
            "2,4",
        ),
        ("X-Request-Timeout-Ms", valid(), "1000", "2000"),
        ("X-Request-Timeout-Ms", valid(), "1000", "1000"),
    ] {
        let once = request.clone().header(name, first);
        assert_eq!(client.send(&once).unwrap().status, 200, "{name}");
        let twice = once.header(&name.to_ascii_uppercase(), second);
        let told = refusal(&client.send(&twice).unwrap(), 400, "invalid_request");
        assert!(
            told.contains(&format!("the header {name} stands 2 times")),
            "{told}"
        );
    }
    // A list may go over several lines, and several ids are as good as none.
    let list = valid()
        .header("Accept", "text/html")
        .header("Accept", "application/json")
        .header("X-Request-Id", "one")
        .header("X-Request-Id", "two");
    let answer = client.send(&list).unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("x-request-id").unwrap().len(), 32);
}

#[test]
fn a_second_credential_is_refused_by_the_name_of_its_header() {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys");
    std::fs::write(&keys, "a-key\n").unwrap();
    let server = Server::fixture("addone", &["--api-key-file", keys.to_str().unwrap()]);
    let once = valid().header("Authorization", "Bearer a-key");
    assert_eq!(server.request(&once).status, 200);
    let twice = once.header("Authorization", "Bearer a-key");
    let told = refusal(&server.request(&twice), 400, "invalid_request");
    assert!(
        told.contains("the header Authorization stands 2 times"),
        "{told}"
    );
}

#[test]
fn numbers_in_headers_are_digits_and_nothing_else() {
    let server = Server::fixture("dyn", &[]);
    let mut client = server.connect();
    for good in ["1000", "0001000", "4294967295", " 1000 "] {
        let request = valid().header("X-Request-Timeout-Ms", good);
        assert_eq!(client.send(&request).unwrap().status, 200, "{good:?}");
    }
    for wrong in [
        "+5",
        "-5",
        "0",
        "",
        "1_0",
        "1 0",
        "5ms",
        "1e3",
        "1.5",
        "0x10",
        "٣",
        "４",
        "1,2",
        "4294967296",
        "99999999999999999999999",
        "\u{a0}5",
    ] {
        let request = valid().header("X-Request-Timeout-Ms", wrong);
        let told = refusal(&client.send(&request).unwrap(), 400, "invalid_request");
        assert!(
            told.contains("X-Request-Timeout-Ms is a whole number"),
            "{wrong:?}: {told}"
        );
    }
    for good in ["2,4", "2, 4", " 2 ,\t4 ", "02,4"] {
        let request = raw().header("X-Tensor-Shape", good);
        assert_eq!(client.send(&request).unwrap().status, 200, "{good:?}");
    }
    for wrong in [
        "+2,4",
        "2,+4",
        "-2,-4",
        "2,,4",
        "2,4,",
        ",",
        "2_,4",
        "2;4",
        "2.0,4",
        "2,4x",
        "[2,4]",
        "２,4",
        "18446744073709551616,4",
        "18446744073709551615,4",
        "2 4",
    ] {
        let request = raw().header("X-Tensor-Shape", wrong);
        refusal(&client.send(&request).unwrap(), 400, "invalid_request");
    }
    for wrong in ["+1", "2", "inf", "0.1234", "1e0"] {
        let accept = format!("application/octet-stream;q={wrong}");
        let told = client.send(&valid().header("Accept", &accept)).unwrap();
        let told = refusal(&told, 400, "invalid_request");
        assert!(told.contains("Accept"), "{told}");
    }
}

#[test]
fn compressed_bodies_end_where_their_stream_ends() {
    let server = Server::fixture("addone", &[]);
    let mut client = server.connect();
    let mut send = |coding: &str, body: Vec<u8>| {
        let request = Request::new("POST", "/predict")
            .header("Content-Encoding", coding)
            .body(body);
        client.send(&request).unwrap()
    };
    let (mut zlib, mut gzip, mut deflate) = (
        ZlibEncoder::new(Vec::new(), Compression::fast()),
        GzEncoder::new(Vec::new(), Compression::fast()),
        DeflateEncoder::new(Vec::new(), Compression::fast()),
    );
    for writer in [&mut zlib as &mut dyn Write, &mut gzip, &mut deflate] {
        writer.write_all(BODY.as_bytes()).unwrap();
    }
    let (zlib, gzip) = (zlib.finish().unwrap(), gzip.finish().unwrap());
    let deflate = deflate.finish().unwrap();
    let mut second = GzEncoder::new(Vec::new(), Compression::fast());
    second.write_all(b"  \n").unwrap();
    let second = second.finish().unwrap();
    for (coding, body) in [
        ("deflate", zlib.clone()),
        ("gzip", gzip.clone()),
        ("x-gzip", gzip.clone()),
        ("gzip", [gzip.as_slice(), &second].concat()),
        ("identity", BODY.into()),
    ] {
        assert_eq!(send(coding, body).status, 200, "{coding}");
    }
    for (coding, body, part) in [
        (
            "deflate",
            [zlib.as_slice(), b"x"].concat(),
            "1 bytes follow",
        ),
        (
            "deflate",
            [zlib.as_slice(), &zlib].concat(),
            "bytes follow the end",
        ),
        (
            "deflate",
            zlib[..zlib.len() - 1].to_vec(),
            "is cut off, or other bytes follow its end",
        ),
        (
            "deflate",
            zlib[..zlib.len() / 2].to_vec(),
            "is cut off, or other bytes follow its end",
        ),
        ("deflate", deflate, "raw deflate (RFC 1951)"),
        ("deflate", gzip.clone(), "raw deflate (RFC 1951)"),
        ("deflate", Vec::new(), "zlib"),
        ("gzip", [gzip.as_slice(), b"x"].concat(), "gzip (RFC 1952)"),
        ("gzip", [gzip.as_slice(), &zlib].concat(), "gzip (RFC 1952)"),
        (
            "gzip",
            gzip[..gzip.len() - 1].to_vec(),
            "is cut off, or other bytes follow its end",
        ),
        ("gzip", zlib, "gzip (RFC 1952)"),
        ("gzip", BODY.into(), "gzip (RFC 1952)"),
    ] {
        let told = refusal(&send(coding, body), 400, "invalid_request");
        assert!(told.contains(part), "{coding}: {told}");
    }
    for coding in ["gzip, deflate", "gzip, gzip", "br", "gzip;q=1"] {
        let told = refusal(&send(coding, gzip.clone()), 415, "unsupported_media_type");
        assert!(
            told.contains("gzip or deflate") || told.contains("gzip and deflate"),
            "{told}"
        );
    }
}

#[test]
fn a_model_s_name_that_is_not_utf8_is_not_found_like_any_other() {
    let server = Server::fixture("addone", &[]);
    let mut client = server.connect();
    for bytes in ["%ff", "%c3%28", "a%80b", "%ed%a0%80"] {
        for request in [
            Request::json(&format!("/v1/models/{bytes}:predict"), BODY),
            Request::new("GET", &format!("/v2/models/{bytes}")),
        ] {
            let told = refusal(&client.send(&request).unwrap(), 404, "not_found");
            assert!(told.contains("GET /ready lists the models"), "{told}");
        }
    }
}

#[test]
fn messages_say_what_the_model_wants_in_each_datatype() {
    for (model, body, status, parts) in [
        (
            "two",
            json!({"inputs": [[1, 2]]}),
            400,
            [
                "'inputs' is to be an object, got an array",
                "a FP32[N,2], b INT64[N]",
            ],
        ),
        (
            "two",
            json!({"instances": [{"a": [1, 2], "c": 1}]}),
            400,
            ["unknown input 'c' in instance 0", "a FP32[N,2], b INT64[N]"],
        ),
        (
            "two",
            json!({"inputs": {"a": [[1, 2]], "b": [1.5]}}),
            400,
            ["input 'b' expects integers (INT64)", "a fraction"],
        ),
        (
            "two",
            json!({"inputs": {"a": [[1, 2]], "b": [[1]]}}),
            400,
            [
                "input 'b' expects a number (INT64), got an array",
                "its shape is [N]",
            ],
        ),
        (
            "identity_string",
            json!({"inputs": [["a", "b", 3]]}),
            400,
            ["input 'x' expects a string (BYTES)", "got a number"],
        ),
        (
            "identity_bool",
            json!({"inputs": [[true, false, 1]]}),
            400,
            ["input 'x' expects true or false (BOOL)", "got a number"],
        ),
        (
            "fixed_batch",
            json!({"inputs": [[1, 2, 3]]}),
            400,
            ["input 'x' expects FP32[2,3]", "2 elements in dimension 0"],
        ),
        (
            "embed",
            json!({"inputs": [[3, 999]]}),
            422,
            [
                "the model's operator Gather",
                "the inputs were ids INT64[1, 2]",
            ],
        ),
    ] {
        let server = Server::fixture(model, &[]);
        let code = if status == 422 {
            "unprocessable"
        } else {
            "invalid_request"
        };
        let told = refusal(&server.predict(&body), status, code);
        for part in parts {
            assert!(told.contains(part), "{model} {body}: {told}");
        }
        assert!(!told.contains("invalid JSON"), "{told}");
    }
}
