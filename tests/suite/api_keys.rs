//! API keys: who may predict, when the operator says that not everybody may.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test stops at the first thing that is wrong"
)]

use std::io::Write;

use testing::{Request, Server, fixture, program};

const BODY: &str = r#"{"inputs": [[1,2,3,4]]}"#;

fn key_file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

/// A server of the model that adds one, for which two keys are good.
fn serve() -> (Server, tempfile::NamedTempFile) {
    let file = key_file("# shop\nkey-of-the-shop\n\nkey-of-the-lab\n");
    let path = file.path().to_str().unwrap();
    let environment = [
        ("API_KEY_FILE", path),
        ("AIP_HEALTH_ROUTE", "/alive"),
        ("AIP_PREDICT_ROUTE", "/guess"),
    ];
    let model = fixture("addone");
    (Server::start_with(&["--model", &model], &environment), file)
}

#[test]
fn on_the_path_of_a_probe_predictions_need_a_key_and_the_probe_needs_none() {
    let file = key_file("key-of-the-shop\n");
    let environment = [
        ("API_KEY_FILE", file.path().to_str().unwrap()),
        ("AIP_HEALTH_ROUTE", "/vertex"),
        ("AIP_PREDICT_ROUTE", "/vertex"),
    ];
    let server = Server::start_with(&["--model", &fixture("addone")], &environment);
    assert_eq!(server.get("/vertex").status, 200);
    let request = Request::json("/vertex", BODY);
    assert_eq!(server.request(&request).status, 401);
    let allowed = request.header("Authorization", "Bearer key-of-the-shop");
    assert_eq!(server.request(&allowed).status, 200);
}

#[test]
fn predictions_need_one_of_the_keys_on_every_route() {
    let (server, _file) = serve();
    for path in [
        "/predict",
        "/invocations",
        "/v1/models/addone:predict",
        "/guess",
    ] {
        let request = Request::json(path, BODY);
        for key in ["key-of-the-shop", "key-of-the-lab"] {
            let allowed = request
                .clone()
                .header("Authorization", &format!("Bearer {key}"));
            assert_eq!(server.request(&allowed).status, 200, "{path}");
        }
        for refused in [
            request.clone(),
            request
                .clone()
                .header("Authorization", "Bearer key-of-the-moon"),
            request.clone().header("Authorization", "Bearer # shop"),
            request
                .clone()
                .header("Authorization", "Basic key-of-the-shop"),
            request.clone().header("X-Api-Key", "key-of-the-shop"),
        ] {
            let answer = server.request(&refused);
            assert_eq!(
                (answer.status, &answer.json()["code"]),
                (401, &"unauthorized".into()),
                "{path}"
            );
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
            assert!(!answer.text().contains("key-of-the"), "{}", answer.text());
        }
    }
}

#[test]
fn probes_and_metrics_need_none_and_nothing_else_is_told_without_one() {
    let (server, _file) = serve();
    for path in ["/health", "/ready", "/ping", "/metrics", "/alive"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    for path in [
        "/",
        "/admin",
        "/v1/models/other:predict",
        "/v2/models/addone",
        "/predict",
    ] {
        assert_eq!(server.get(path).status, 401, "{path}");
    }
    let known = Request::new("GET", "/admin").header("Authorization", "Bearer key-of-the-lab");
    assert_eq!(server.request(&known).status, 404);
}

#[test]
fn a_refused_body_is_not_read_and_no_key_reaches_the_log() {
    let (server, _file) = serve();
    // The body that is announced never comes; a server that waited for it would answer 408.
    let head = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 60000000\r\nAuthorization: Bearer key-of-the-moon\r\n\r\n";
    let mut client = server.connect();
    client.write(head.as_bytes()).unwrap();
    let answer = client.read().unwrap();
    assert_eq!(answer.status, 401);
    let allowed = Request::json("/predict", BODY).header("Authorization", "Bearer key-of-the-shop");
    assert_eq!(server.request(&allowed).status, 200);
    let log = server
        .log
        .wait_for(|line| line["status"] == 200 && line["route"] == "/predict");
    assert!(log.is_some());
    assert!(
        server
            .log
            .lines()
            .iter()
            .any(|line| line["code"] == "unauthorized")
    );
    assert!(
        !server
            .log
            .lines()
            .iter()
            .any(|line| line.to_string().contains("key-of-the"))
    );
}

#[test]
fn keys_that_cannot_be_had_end_the_start_with_one_line_that_shows_none() {
    let broken = key_file("good\nnot a key\n");
    let empty = key_file("# later\n");
    for (path, part) in [
        (broken.path().to_str().unwrap(), "line 2 of"),
        (empty.path().to_str().unwrap(), "holds no API key"),
        ("/nowhere/keys", "cannot be read: No such file"),
    ] {
        let output = program().args(["--api-key-file", path]).output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert_eq!(told.trim_end().lines().count(), 1, "{told}");
        assert!(
            told.contains(part) && told.contains("API_KEY_FILE"),
            "{told}"
        );
        assert!(!told.contains("not a key\n"), "{told}");
    }
}
