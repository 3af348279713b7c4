//! Malformed requests get the status they deserve, every time, and cost nobody else anything.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::too_many_lines,
    reason = "a test stops at the first thing that is wrong"
)]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use testing::{Random, Request, Response, Server};

/// One malformed request: what is wrong with it, the fixture it is sent to, and the statuses that are right.
struct Case {
    name: &'static str,
    model: &'static str,
    request: Request,
    statuses: &'static [u16],
}

fn json(name: &'static str, body: impl Into<Vec<u8>>) -> Case {
    Case {
        name,
        model: "addone",
        request: Request::json("/predict", body),
        statuses: &[400],
    }
}

fn typed(name: &'static str, model: &'static str, body: &str) -> Case {
    Case {
        name,
        model,
        request: Request::json("/predict", body),
        statuses: &[400],
    }
}

fn raw(name: &'static str, shape: &str, body: impl Into<Vec<u8>>) -> Case {
    let request = Request::raw("/predict", body).header("X-Tensor-Shape", shape);
    Case {
        name,
        model: "addone",
        request,
        statuses: &[400],
    }
}

fn with(name: &'static str, request: Request, statuses: &'static [u16]) -> Case {
    Case {
        name,
        model: "addone",
        request,
        statuses,
    }
}

/// One row of `addone`.
const ROW: &str = "[1,2,3,4]";

fn rows(count: usize) -> String {
    format!(
        "{{\"inputs\": {{\"x\": [{}]}}}}",
        vec![ROW; count].join(",")
    )
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

fn valid() -> Request {
    Request::json("/predict", rows(1))
}

/// The corpus. Requests of protocols that state shapes and datatypes beside the data are expressed in the nearest way
/// that this route has: by nesting, or by `X-Tensor-Shape` beside a raw body.
fn corpus() -> Vec<Case> {
    let deep = |depth: usize| {
        format!(
            "{{\"inputs\": {{\"x\": {}{}}}}}",
            "[".repeat(depth),
            "]".repeat(depth)
        )
    };
    let nested = |value: &str| format!("{{\"inputs\": {{\"x\": [[1,2,3,{value}]]}}}}");
    let ok = &[200];
    let mut cases = vec![
        // Valid controls.
        with("control: named column", valid(), ok),
        with(
            "control: bare array",
            Request::json("/predict", format!("{{\"inputs\": [{ROW}]}}")),
            ok,
        ),
        with(
            "control: rows",
            Request::json("/predict", format!("{{\"instances\": [{ROW}]}}")),
            ok,
        ),
        with(
            "control: batch of 8",
            Request::json("/predict", rows(8)),
            ok,
        ),
        with(
            "control: long id",
            valid().header("X-Request-Id", &"i".repeat(256)),
            ok,
        ),
        with(
            "control: flat data",
            Request::raw("/predict", vec![0; 32]),
            ok,
        ),
        // The body as a whole.
        json("1 empty body", ""),
        json("2 an open brace", "{"),
        json("3 null", "null"),
        json("4 an array", "[]"),
        json("5 a string", "\"x\""),
        json("6 an empty object", "{}"),
        json("7 inputs is an empty array", r#"{"inputs": []}"#),
        json("8 inputs is an empty object", r#"{"inputs": {}}"#),
        json("9 unknown input", r#"{"inputs": {"q": [[1,2,3,4]]}}"#),
        json(
            "10 the same input twice",
            r#"{"inputs": {"x": [[1,2,3,4]], "x": [[1,2,3,4]]}}"#,
        ),
        json(
            "11 a duplicate key",
            r#"{"inputs": {"x": [[1,2,3,4]]}, "inputs": {"x": [[1,2,3,4]]}}"#,
        ),
        json("12 no batch dimension", r#"{"inputs": {"x": [1,2,3,4]}}"#),
        json(
            "13 a stated datatype",
            r#"{"inputs": {"x": [[1,2,3,4]]}, "datatype": "FP32"}"#,
        ),
        json("14 no data", r#"{"inputs": {"x": null}}"#),
        json(
            "15-17 tensors of another protocol",
            r#"{"inputs": [{"name": "x", "shape": [1,4], "datatype": "FP31", "data": [1,2,3,4]}]}"#,
        ),
        // Shapes.
        json(
            "18 five values in a row",
            r#"{"inputs": {"x": [[1,2,3,4,5]]}}"#,
        ),
        json(
            "19 three values in a row",
            r#"{"inputs": {"x": [[1,2,3]]}}"#,
        ),
        raw("20 five values for four", "1,4", vec![0; 20]),
        raw("21 rank 1", "4", vec![0; 16]),
        json("22 rank 3", r#"{"inputs": {"x": [[[1],[2],[3],[4]]]}}"#),
        raw("23 a negative dimension", "-1,4", vec![0; 16]),
        json("24 no rows", r#"{"inputs": {"x": []}}"#),
        raw("24 no rows, stated", "0,4", vec![]),
        json("25 nine rows", rows(9)),
        raw("25 nine rows, stated", "9,4", vec![0; 144]),
        raw("26 a fraction as dimension", "1.0,4", vec![0; 16]),
        raw("27 a word as dimension", "one,4", vec![0; 16]),
        raw("28 2^63-1 rows", "9223372036854775807,4", vec![0; 16]),
        raw("29 2^64 rows", "18446744073709551616,4", vec![0; 16]),
        raw(
            "30 a product that overflows",
            "16,1152921504606846978",
            vec![0; 4],
        ),
        raw("31 zero times 2^62", "0,4611686018427387904", vec![]),
        raw("32 65 dimensions", &vec!["1"; 65].join(","), vec![0; 4]),
        // Values.
        json("33 null among the data", nested("null")),
        json("34 a string among the data", nested("\"1\"")),
        json("35 true among the data", nested("true")),
        json("36 NaN", nested("NaN")),
        json("37 Infinity", nested("Infinity")),
        json("38 1e999", nested("1e999")),
        json("39 1e39", nested("1e39")),
        json(
            "40 ragged nesting",
            r#"{"inputs": {"x": [[1,2,3,4],[1,2,3]]}}"#,
        ),
        json("41 depth 1,000", deep(1_000)),
        json("42 depth 250,000", deep(250_000)),
        json(
            "43 deep and cut off",
            "{\"inputs\": ".to_owned() + &"[".repeat(250_000),
        ),
        json("43 deep objects", "{\"inputs\": ".repeat(100_000)),
        json("44 text after the value", rows(1) + "x"),
        json(
            "45 not UTF-8",
            [b"{\"inputs\": {\"x\xff\": 1}}".to_vec()].concat(),
        ),
        json("46 a byte order mark", "\u{feff}".to_owned() + &rows(1)),
        json("47 UTF-16", utf16(&rows(1))),
        json(
            "48 a lone surrogate",
            r#"{"inputs": {"\ud800": [[1,2,3,4]]}}"#,
        ),
        json(
            "49 U+0000 in a name",
            r#"{"inputs": {"x\u0000": [[1,2,3,4]]}}"#,
        ),
        json(
            "50 a name of 900 KB",
            format!("{{\"inputs\": {{\"{}\": 1}}}}", "x".repeat(900_000)),
        ),
        json(
            "51 unknown output",
            format!("{{\"inputs\": [{ROW}], \"outputs\": [\"q\"]}}"),
        ),
        json(
            "52 the same output twice",
            format!("{{\"inputs\": [{ROW}], \"outputs\": [\"y\",\"y\"]}}"),
        ),
        json(
            "53 20,000 outputs",
            format!(
                "{{\"inputs\": [{ROW}], \"outputs\": [{}]}}",
                vec!["\"y\""; 20_000].join(",")
            ),
        ),
        json(
            "54 deep parameters",
            format!("{{\"parameters\": {}}}", "[".repeat(200)),
        ),
        // Other datatypes.
        typed(
            "55 INT64: 2^63",
            "identity_int64",
            r#"{"inputs": [[1,2,9223372036854775808]]}"#,
        ),
        typed(
            "56 INT64: 1.5",
            "identity_int64",
            r#"{"inputs": [[1,2,1.5]]}"#,
        ),
        typed(
            "57 INT8: 128",
            "identity_int8",
            r#"{"inputs": [[1,2,128]]}"#,
        ),
        typed(
            "58 UINT8: -1",
            "identity_uint8",
            r#"{"inputs": [[1,2,-1]]}"#,
        ),
        typed(
            "59 BOOL: 2",
            "identity_bool",
            r#"{"inputs": [[true,false,2]]}"#,
        ),
        typed(
            "60 BYTES: 7",
            "identity_string",
            r#"{"inputs": [["a","b",7]]}"#,
        ),
        typed(
            "60 BYTES: U+0000",
            "identity_string",
            r#"{"inputs": [["a","b","\u0000"]]}"#,
        ),
        // Lengths.
        raw("63 a shape beyond the body", "8,4", vec![0; 16]),
        raw("64 a shape that is not the body's", "2,4", vec![0; 16]),
        with(
            "64 no whole row",
            Request::raw("/predict", vec![0; 17]),
            &[400],
        ),
        with(
            "64 no whole element",
            Request::raw("/predict", vec![0; 18]).header("X-Tensor-Shape", "1,4"),
            &[400],
        ),
        // Types, methods and names.
        with(
            "66 no type is JSON",
            Request::new("POST", "/predict").body(rows(1)),
            ok,
        ),
        with(
            "66 text",
            Request::new("POST", "/predict")
                .header("Content-Type", "text/plain")
                .body(rows(1)),
            &[415],
        ),
        with(
            "66 a form",
            Request::new("POST", "/predict")
                .header("Content-Type", "application/x-www-form-urlencoded")
                .body("x=1"),
            &[415],
        ),
        with(
            "67 multipart with a long boundary",
            Request::new("POST", "/predict")
                .header(
                    "Content-Type",
                    &format!("multipart/form-data; boundary={}", "b".repeat(20_000)),
                )
                .body("x"),
            &[415],
        ),
        with(
            "68 another character set",
            Request::new("POST", "/predict")
                .header("Content-Type", "application/json; charset=utf-16")
                .body(rows(1)),
            &[415],
        ),
        with(
            "69 brotli",
            valid().header("Content-Encoding", "br"),
            &[415],
        ),
        with(
            "69 two codings",
            valid().header("Content-Encoding", "gzip, gzip"),
            &[415],
        ),
        with(
            "69 not gzip at all",
            valid().header("Content-Encoding", "gzip"),
            &[400],
        ),
        with("70 GET", Request::new("GET", "/predict"), &[405]),
        with(
            "71 unknown model",
            Request::json("/v1/models/other:predict", rows(1)),
            &[404],
        ),
        with(
            "72 no such call",
            Request::json("/v1/models/addone:explain", rows(1)),
            &[404],
        ),
    ];
    for length in ["99999999999999999999", "-1", "abc", ""] {
        // Framing that HTTP itself does not know is refused before any route sees it.
        let request = valid().header("Content-Length", length);
        cases.push(with("61-62 a Content-Length that is none", request, &[400]));
    }
    for timeout in ["0", "-1", "abc", "", "99999999999999999999"] {
        cases.push(with(
            "62 a deadline that is none",
            valid().header("X-Request-Timeout-Ms", timeout),
            &[400],
        ));
    }
    cases
}

/// Whether `answer` is an error as promised: small JSON with a code, and nothing of the server's inside in it.
fn check_error(name: &str, answer: &Response) {
    assert!(
        answer.body.len() <= 512,
        "{name}: {} bytes",
        answer.body.len()
    );
    if answer.body.is_empty() {
        // hyper answers requests that are no HTTP by itself, without a body.
        assert!(name.starts_with("61-62"), "{name}: no body");
        return;
    }
    let value = answer.json();
    let (message, code) = (
        value["error"].as_str().unwrap(),
        value["code"].as_str().unwrap(),
    );
    let expected = match answer.status {
        400 => "invalid_request",
        404 => "not_found",
        405 => "method_not_allowed",
        415 => "unsupported_media_type",
        other => panic!("{name}: {other}"),
    };
    assert_eq!(code, expected, "{name}");
    assert!(!message.is_empty(), "{name}");
    for inside in [
        "/home",
        "/usr",
        "/root",
        "src/",
        ".rs",
        "onnxruntime",
        "ONNX",
        "127.0.0.1",
        "panicked",
    ] {
        assert!(!message.contains(inside), "{name}: {message}");
    }
}

#[test]
fn the_whole_corpus_gets_its_statuses_beside_good_clients_that_notice_nothing() {
    let flags = ["--max-request-rows", "8", "--max-body-size", "2MiB"];
    let models = [
        "addone",
        "identity_int64",
        "identity_int8",
        "identity_uint8",
        "identity_bool",
        "identity_string",
    ];
    let servers = models.map(|model| (model, Server::fixture(model, &flags)));
    let server_of = |model: &str| &servers.iter().find(|(name, _)| *name == model).unwrap().1;
    let resident_before = server_of("addone").status_figure("VmRSS");
    let cases = corpus();

    // Every case fifty times, in an order that mixes them.
    let mut order: Vec<usize> = (0..cases.len())
        .flat_map(|case| std::iter::repeat_n(case, 50))
        .collect();
    let mut random = Random::new(20);
    for index in (1..order.len()).rev() {
        order.swap(
            index,
            usize::try_from(random.below(index as u64 + 1)).unwrap(),
        );
    }
    let (next, done) = (AtomicUsize::new(0), AtomicBool::new(false));
    let good = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = server_of("addone").connect();
                while !done.load(Ordering::Relaxed) {
                    let number = good.fetch_add(1, Ordering::Relaxed) % 1_000_000;
                    let body = format!("{{\"inputs\": [[{number},0,0,0]]}}");
                    let answer = client.send(&Request::json("/predict", body)).unwrap();
                    let expected = serde_json::json!([[number + 1, 1, 1, 1]])
                        .to_string()
                        .replace(',', ".0,")
                        .replace("1]]", "1.0]]");
                    assert_eq!(answer.status, 200);
                    assert!(
                        answer.text().contains(&expected),
                        "{} {expected}",
                        answer.text()
                    );
                }
            });
        }
        let senders: Vec<_> = (0..16)
            .map(|_| {
                scope.spawn(|| {
                    let mut clients = models.map(|model| (model, server_of(model).connect()));
                    while let Some(case) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let case = &cases[*case];
                        let client = &mut clients
                            .iter_mut()
                            .find(|(name, _)| *name == case.model)
                            .unwrap()
                            .1;
                        let answer = client
                            .send(&case.request)
                            .unwrap_or_else(|error| panic!("{}: {error}", case.name));
                        assert!(
                            case.statuses.contains(&answer.status),
                            "{}: {} {}",
                            case.name,
                            answer.status,
                            answer.text()
                        );
                        if answer.status != 200 {
                            check_error(case.name, &answer);
                        }
                        if answer.closes() {
                            *client = server_of(case.model).connect();
                        }
                    }
                })
            })
            .collect();
        let results: Vec<_> = senders
            .into_iter()
            .map(std::thread::ScopedJoinHandle::join)
            .collect();
        done.store(true, Ordering::Relaxed);
        assert!(
            results.iter().all(Result::is_ok),
            "a request was answered wrongly"
        );
    });
    assert!(
        good.load(Ordering::Relaxed) > 100,
        "the good clients were served meanwhile"
    );

    for (model, server) in &servers {
        assert_eq!(server.get("/health").status, 200, "{model}");
        for (name, labels) in [
            ("panics_total", vec![]),
            ("ml_predictions_total", vec![("status", "error")]),
            ("ml_requests_in_flight", vec![]),
            ("ml_queue_rows", vec![]),
        ] {
            assert_eq!(server.metric(name, &labels), Some(0.0), "{model} {name}");
        }
    }
    let grown = server_of("addone")
        .status_figure("VmRSS")
        .saturating_sub(resident_before);
    assert!(grown < 60 << 10, "resident memory grew by {grown} kB");
}

#[test]
fn names_that_climb_reach_nothing() {
    let server = Server::fixture("addone", &[]);
    let mut client = server.connect();
    for name in [
        "..",
        ".",
        "../addone",
        "../../etc/passwd",
        "/etc/passwd",
        "addone/..",
        "a/../addone",
        "..\\addone",
        "addone%00",
        "~root",
        "..;",
    ] {
        for encoded in [
            name.to_owned(),
            name.replace('.', "%2e").replace('/', "%2f"),
            name.replace('.', "%252e").replace('/', "%252f"),
        ] {
            let path = format!("/v1/models/{}:predict", encoded.replace('\\', "%5c"));
            let answer = client.send(&Request::json(&path, rows(1))).unwrap();
            assert!(
                matches!(answer.status, 404 | 400),
                "{path}: {}",
                answer.status
            );
            assert!(!answer.text().contains("root:"), "{path}");
        }
    }
}

#[test]
fn only_the_documented_routes_answer() {
    let server = Server::fixture("addone", &[]);
    let mut client = server.connect();
    let documented = [
        ("POST", "/predict"),
        ("POST", "/invocations"),
        ("GET", "/health"),
        ("HEAD", "/health"),
        ("GET", "/ready"),
        ("HEAD", "/ready"),
        ("GET", "/ping"),
        ("HEAD", "/ping"),
        ("GET", "/metrics"),
        ("HEAD", "/metrics"),
        ("GET", "/v2/models/addone"),
        ("HEAD", "/v2/models/addone"),
    ];
    let paths = [
        "/",
        "/predict",
        "/predict/",
        "/predict/x",
        "/invocations",
        "/health",
        "/healthz",
        "/ready",
        "/ping",
        "/metrics",
        "/metrics/",
        "/v1",
        "/v1/models",
        "/v1/models/addone",
        "/v1/models/addone:unload",
        "/admin",
        "/shutdown",
        "/quit",
        "/reload",
        "/load",
        "/unload",
        "/config",
        "/debug/pprof",
        "/logging",
        "/..",
        "//predict",
        "/%2e%2e/predict",
        "/PREDICT",
        "/v2/models/addone",
        "/v2/repository/models/addone/load",
        "/.env",
    ];
    for path in paths {
        for method in [
            "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT",
        ] {
            if method == "HEAD" || method == "CONNECT" {
                // Their answers have no body whatever their length says, so each needs a connection of its own.
                let mut own = server.connect();
                own.write(
                    &Request::new(method, path)
                        .header("Connection", "close")
                        .bytes(),
                )
                .unwrap();
                let text = String::from_utf8_lossy(&own.read_to_end()).into_owned();
                let status: u16 = text
                    .split(' ')
                    .nth(1)
                    .and_then(|status| status.parse().ok())
                    .unwrap_or(400);
                assert_eq!(
                    status < 400,
                    documented.contains(&(method, path)),
                    "{method} {path}: {status}"
                );
                continue;
            }
            let answer = client
                .send(&Request::new(method, path).body(if method == "POST" {
                    rows(1)
                } else {
                    String::new()
                }))
                .unwrap();
            let expected = documented.contains(&(method, path));
            assert_eq!(
                answer.status == 200,
                expected,
                "{method} {path}: {}",
                answer.status
            );
            if !expected {
                assert!(
                    matches!(answer.status, 404 | 405 | 400),
                    "{method} {path}: {}",
                    answer.status
                );
            }
        }
    }
}
