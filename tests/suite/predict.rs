//! What surrounds a prediction: deadlines, poison, selection, compression, headers, and the other names of the route.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test stops at the first thing that is wrong"
)]

use std::io::Write;
use std::time::{Duration, Instant};

use serde_json::json;
use testing::{PATIENCE, Request, Server};

#[test]
fn only_the_culprits_of_a_poisoned_batch_fail() {
    let server = Server::fixture("embed", &["--max-queue-delay", "2ms"]);
    std::thread::scope(|scope| {
        for client in 0..64_i64 {
            let server = &server;
            scope.spawn(move || {
                let mut connection = server.connect();
                for number in 0..60_i64 {
                    let index = (client + number) % 10;
                    let poisoned = (client * 60 + number) % 20 == 0;
                    let wrong = if number % 2 == 0 { 10 } else { -11 };
                    let ids = [index, if poisoned { wrong } else { 9 - index }];
                    let answer = connection
                        .send(&Request::json(
                            "/predict",
                            json!({"inputs": [ids]}).to_string(),
                        ))
                        .unwrap();
                    if poisoned {
                        assert_eq!(
                            (answer.status, &answer.json()["code"]),
                            (422, &json!("unprocessable"))
                        );
                        continue;
                    }
                    let vector = |id: i64| {
                        [0.0, 0.25, 0.5, 0.75]
                            .map(|part| part + f64::from(i32::try_from(id).unwrap()))
                    };
                    assert_eq!(
                        answer.json()["outputs"]["vectors"],
                        json!([[vector(ids[0]), vector(ids[1])]])
                    );
                }
            });
        }
    });
    assert_eq!(
        server.metric("ml_predictions_total", &[("status", "success")]),
        Some(64.0 * 57.0)
    );
    assert_eq!(
        server.metric("ml_predictions_total", &[("status", "invalid")]),
        Some(64.0 * 3.0)
    );
}

#[test]
fn a_request_without_an_answer_in_time_is_told_so_and_its_run_ends() {
    let server = Server::fixture("loop", &["--instances", "1"]);
    let long = Request::json("/predict", r#"{"inputs": [2000000000]}"#)
        .header("X-Request-Timeout-Ms", "100");
    let answer = server.request(&long);
    assert_eq!(
        (answer.status, &answer.json()["code"]),
        (504, &json!("deadline_exceeded"))
    );
    // The only instance would be busy for many minutes if the run had not been interrupted.
    let short = server.request(&Request::json("/predict", r#"{"inputs": [3]}"#));
    assert_eq!(
        (short.status, short.json()["outputs"]["count"].clone()),
        (200, json!([3]))
    );
}

#[test]
fn expired_work_is_never_executed() {
    let server = Server::fixture("loop", &["--instances", "1", "--max-batch-size", "1"]);
    let mut busy = server.connect();
    busy.write(
        &Request::json("/predict", r#"{"inputs": [2000000000]}"#)
            .header("X-Request-Timeout-Ms", "1500")
            .bytes(),
    )
    .unwrap();
    let deadline = Instant::now() + PATIENCE;
    while server.metric("ml_requests_in_flight", &[]) != Some(1.0) {
        assert!(Instant::now() < deadline);
    }
    for _ in 0..5 {
        let late =
            Request::json("/predict", r#"{"inputs": [1]}"#).header("X-Request-Timeout-Ms", "20");
        let status = server.request(&late).status;
        assert!(matches!(status, 504 | 429), "{status}");
    }
    assert_eq!(busy.read().unwrap().status, 504);
    assert_eq!(
        server
            .request(&Request::json("/predict", r#"{"inputs": [1]}"#))
            .status,
        200
    );
    let executed = server.metrics();
    let count = executed
        .samples
        .iter()
        .find(|sample| sample.metric == "ml_executed_batch_size");
    let prometheus_parse::Value::Histogram(buckets) = &count.unwrap().value else {
        panic!("not a histogram")
    };
    assert!(
        (buckets.last().unwrap().count - 1.0).abs() < 0.5,
        "only the last request was executed to its end"
    );
}

#[test]
fn a_run_in_progress_is_a_reason_to_refuse_a_deadline_that_cannot_be_met() {
    let server = Server::fixture("loop", &["--instances", "1", "--max-batch-size", "1"]);
    let run = Request::json("/predict", r#"{"inputs": [200000]}"#);
    let mut longest = Duration::ZERO;
    for _ in 0..3 {
        let start = Instant::now();
        assert_eq!(server.request(&run).status, 200);
        longest = longest.max(start.elapsed());
    }
    let mut busy = server.connect();
    busy.write(&run.bytes()).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while server.metric("ml_requests_in_flight", &[]) != Some(1.0) {
        assert!(Instant::now() < deadline);
    }
    // Long enough for a run, but not for what is left of the other one and a run.
    let timeout = (longest * 5 / 4).as_millis().to_string();
    let answer = server.request(&run.header("X-Request-Timeout-Ms", &timeout));
    assert_eq!(
        (answer.status, &answer.json()["code"]),
        (429, &json!("overloaded"))
    );
    assert!(answer.header("retry-after").is_some());
    assert_eq!(busy.read().unwrap().status, 200);
}

#[test]
fn numbers_that_json_cannot_express_are_refused_or_sent_raw() {
    let server = Server::fixture("recip", &[]);
    let refused = server.predict(&json!({"inputs": [[0, -0.0, 1, 2]]}));
    assert_eq!(
        (refused.status, &refused.json()["code"]),
        (422, &json!("unprocessable"))
    );
    assert!(refused.text().contains("application/octet-stream"));
    let body = json!({"inputs": [[0, -0.0, 1, 1e-38]]}).to_string();
    let raw = server
        .request(&Request::json("/predict", body).header("Accept", "application/octet-stream"));
    let expected = [f32::INFINITY, f32::NEG_INFINITY, 1.0, 1.0 / 1e-38];
    assert_eq!(raw.body, bytemuck::cast_slice::<f32, u8>(&expected));
}

#[test]
fn batches_are_bounded_by_the_maximum() {
    let server = Server::fixture("addone", &["--max-batch-size", "8"]);
    let rows = |count: usize| {
        server
            .predict(&json!({"inputs": vec![[1, 2, 3, 4]; count]}))
            .status
    };
    assert_eq!([0, 1, 8, 9, 80].map(rows), [400, 200, 200, 200, 200]);
    std::thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| {
                let mut client = server.connect();
                for _ in 0..50 {
                    let body = json!({"inputs": vec![[1, 2, 3, 4]; 5]}).to_string();
                    assert_eq!(
                        client
                            .send(&Request::json("/predict", body))
                            .unwrap()
                            .status,
                        200
                    );
                }
            });
        }
    });
    let text = server.get("/metrics").text();
    let bucket = |edge: &str| {
        let prefix = format!(
            "ml_executed_batch_size_bucket{{model_name=\"addone\",version=\"1\",le=\"{edge}\"}} "
        );
        text.lines()
            .find_map(|line| line.strip_prefix(prefix.as_str()))
            .unwrap()
            .to_owned()
    };
    assert_eq!(
        bucket("8"),
        bucket("+Inf"),
        "no execution has more than eight rows"
    );
}

#[test]
fn answers_and_bodies_beyond_their_limits_are_refused() {
    let server = Server::fixture("big", &["--max-output-size", "100KiB"]);
    assert_eq!(server.predict(&json!({"inputs": [[10]]})).status, 200);
    for accept in ["application/json", "application/octet-stream"] {
        let body = Request::json("/predict", r#"{"inputs": [[1000000]]}"#).header("Accept", accept);
        let answer = server.request(&body);
        assert_eq!(
            (answer.status, &answer.json()["code"]),
            (422, &json!("unprocessable")),
            "{accept}"
        );
    }
    // A size that no machine has is the request's fault, and nothing else suffers from it.
    let absurd = server.predict(&json!({"inputs": [[1_000_000_000_000_000_000_i64]]}));
    assert_eq!(absurd.status, 422, "{}", absurd.text());
    assert_eq!(server.predict(&json!({"inputs": [[10]]})).status, 200);
}

fn compressed(body: &[u8], gzip: bool) -> Vec<u8> {
    if gzip {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(body).unwrap();
        encoder.finish().unwrap()
    } else {
        let mut encoder =
            flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(body).unwrap();
        encoder.finish().unwrap()
    }
}

#[test]
fn compressed_bodies_are_taken_up_to_their_inflated_size() {
    let server = Server::fixture("addone", &["--max-body-size", "64KiB"]);
    let body = json!({"inputs": [[1, 2, 3, 4]]}).to_string();
    for (coding, gzip) in [("gzip", true), ("deflate", false)] {
        let request = Request::json("/predict", compressed(body.as_bytes(), gzip))
            .header("Content-Encoding", coding);
        let answer = server.request(&request);
        assert_eq!(
            answer.json()["outputs"]["y"],
            json!([[2.0, 3.0, 4.0, 5.0]]),
            "{coding}"
        );
        let before = server.status_figure("VmRSS");
        let bomb = compressed(&vec![b' '; 10 << 20], gzip);
        let request = Request::json("/predict", bomb).header("Content-Encoding", coding);
        for _ in 0..20 {
            let refused = server.request(&request);
            assert_eq!(
                (refused.status, &refused.json()["code"]),
                (413, &json!("too_large")),
                "{coding}"
            );
        }
        assert!(
            server.status_figure("VmRSS") < before + (20 << 10),
            "{coding}"
        );
    }
}

#[test]
fn answers_carry_an_id_and_where_the_time_went() {
    let server = Server::fixture("addone", &[]);
    let body = json!({"inputs": [[1, 2, 3, 4]]}).to_string();
    let answer =
        server.request(&Request::json("/predict", body.clone()).header("X-Request-Id", "mine"));
    assert_eq!(answer.header("x-request-id"), Some("mine"));
    let timing = answer.header("server-timing").unwrap();
    for (part, name) in timing.split(", ").zip(["queue", "infer"]) {
        let duration = part
            .strip_prefix(&format!("{name};dur="))
            .unwrap_or_else(|| panic!("{timing}"));
        assert!(duration.parse::<f64>().unwrap() >= 0.0);
    }
    let made = |_| {
        server
            .request(&Request::json("/predict", body.clone()))
            .header("x-request-id")
            .unwrap()
            .to_owned()
    };
    let ids: std::collections::BTreeSet<String> = (0..10).map(made).collect();
    assert_eq!(ids.len(), 10);
}

#[test]
fn outputs_are_selected_in_the_body_or_in_the_uri() {
    let server = Server::fixture("wide", &[]);
    let send = |path: &str, body: &str| server.request(&Request::json(path, body));
    let body = r#"{"inputs": [[1,1,1,1]], "outputs": ["b"]}"#;
    assert_eq!(
        send("/predict", body).json()["outputs"],
        json!({"b": [[2.0, 2.0, 2.0, 2.0]]})
    );
    assert_eq!(
        send("/predict?outputs=b", r#"{"instances": [[1,1,1,1]]}"#).json()["predictions"],
        json!([[2.0, 2.0, 2.0, 2.0]])
    );
    for (path, body) in [
        ("/predict?outputs=b", body),
        ("/predict?outputs=q", r#"{"inputs": [[1,1,1,1]]}"#),
        ("/predict?outputs=a,a", r#"{"inputs": [[1,1,1,1]]}"#),
        ("/predict?outputs=", r#"{"inputs": [[1,1,1,1]]}"#),
        ("/predict?shape=1", r#"{"inputs": [[1,1,1,1]]}"#),
    ] {
        assert_eq!(send(path, body).status, 400, "{path}");
    }
}

#[test]
fn platforms_find_their_own_names_for_the_routes() {
    let model = testing::fixture("addone");
    let environment = [
        ("AIP_HEALTH_ROUTE", "/v1/endpoints/1/health"),
        ("AIP_PREDICT_ROUTE", "/v1/endpoints/1:predict"),
        ("MODEL_PATH", &model),
    ];
    let server = Server::start_with(&[], &environment);
    let body = json!({"instances": [[1, 2, 3, 4]]}).to_string();
    for path in [
        "/predict",
        "/invocations",
        "/v1/models/addone:predict",
        "/v1/endpoints/1:predict",
    ] {
        let answer = server.request(&Request::json(path, body.clone()));
        assert_eq!(
            answer.json()["predictions"],
            json!([[2.0, 3.0, 4.0, 5.0]]),
            "{path}"
        );
    }
    for path in ["/ready", "/ping", "/v1/endpoints/1/health"] {
        assert_eq!(server.get(path).json()["ready"], json!(true), "{path}");
    }
}

#[test]
fn platforms_may_ask_for_routes_under_the_models_and_for_one_path_twice() {
    let model = testing::fixture("addone");
    let body = json!({"instances": [[1, 2, 3, 4]]}).to_string();
    let expected = json!([[2.0, 3.0, 4.0, 5.0]]);
    for (health, predict) in [
        ("/v1/models/addone", "/v1/models/addone:predict"),
        ("/v1/models/digits", "/v1/models/digits"),
        ("/vertex", "/vertex"),
    ] {
        let environment = [
            ("AIP_HEALTH_ROUTE", health),
            ("AIP_PREDICT_ROUTE", predict),
            ("MODEL_PATH", &model),
        ];
        let server = Server::start_with(&[], &environment);
        assert_eq!(server.get(health).json()["ready"], json!(true), "{health}");
        for path in [predict, "/predict", "/v1/models/addone:predict"] {
            let answer = server.request(&Request::json(path, body.clone()));
            assert_eq!(answer.json()["predictions"], expected, "{path}");
        }
    }
}

#[test]
fn a_platform_s_route_that_names_a_model_is_the_route_of_that_model() {
    let model = testing::fixture("addone");
    let environment = [
        ("AIP_PREDICT_ROUTE", "/v1/models/other:predict"),
        ("MODEL_PATH", &model),
    ];
    let server = Server::start_with(&[], &environment);
    let body = json!({"instances": [[1, 2, 3, 4]]}).to_string();
    let answer = server.request(&Request::json("/v1/models/other:predict", body));
    assert_eq!(answer.status, 404, "it is not the default model");
}

#[test]
fn requests_hold_no_more_memory_than_they_may_and_give_it_back() {
    let server = Server::fixture(
        "addone",
        &[
            "--max-inflight-bytes",
            "400KiB",
            "--max-batch-size",
            "10000",
        ],
    );
    let body = Request::raw("/predict", vec![0; 256 << 10]);
    for _ in 0..3 {
        let refused = server.request(&body);
        assert_eq!(
            (refused.status, &refused.json()["code"]),
            (429, &json!("overloaded"))
        );
        assert!(refused.header("retry-after").is_some());
    }
    for _ in 0..50 {
        assert_eq!(
            server
                .request(&Request::raw("/predict", vec![0; 32 << 10]))
                .status,
            200
        );
    }
}

/// Of whole numbers, the smallest one divided by -1 has no quotient that fits, at which processors of x86-64 end a program.
#[test]
fn a_division_that_overflows_gives_the_smallest_number_and_ends_nothing() {
    let server = Server::fixture("divide", &[]);
    let divide = |a: i64, b: i64, c: i32, d: i32| {
        let inputs = json!({"a": [7, a], "b": [2, b], "c": [7, c], "d": [2, d]});
        server.predict(&json!({ "inputs": inputs }))
    };
    let answer = divide(i64::MIN, -1, i32::MIN, -1);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let outputs = &answer.json()["outputs"];
    assert_eq!(outputs["q"], json!([3, i64::MIN]));
    assert_eq!(outputs["m"], json!([1, 0]));
    assert_eq!(outputs["r"], json!([3, i32::MIN]));
    assert_eq!(outputs["n"], json!([1, 0]));
    assert_eq!(divide(1, 0, 1, 1).status, 422);
    assert_eq!(divide(8, -2, -9, 2).json()["outputs"]["q"], json!([3, -4]));
}
