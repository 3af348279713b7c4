//! What sizes a request may have: as many rows as it is allowed, in parts where that is right, and any size that the
//! model takes where the first dimension is no batch.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test stops at the first thing that is wrong"
)]

use std::fs;

use prometheus_parse::Value as Sample;
use serde_json::{Value, json};
use testing::{Request, Response, Server, fixture};

/// How often a histogram was observed, and the sum of what was.
fn observed(server: &Server, name: &str) -> (f64, f64) {
    let text = server.get("/metrics").text();
    let value = |suffix: &str| -> f64 {
        let prefix = format!("{name}_{suffix}{{");
        let line = text.lines().find(|line| line.starts_with(&prefix)).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    (value("count"), value("sum"))
}

/// The largest edge at or below which something was observed in the histogram `name`.
fn largest_observed(server: &Server, name: &str) -> f64 {
    let scrape = server.metrics();
    let sample = scrape.samples.iter().find(|sample| sample.metric == name);
    let Sample::Histogram(buckets) = &sample.unwrap().value else {
        panic!("{name} is no histogram")
    };
    let all = buckets.last().unwrap().count;
    let full = buckets.iter().find(|bucket| bucket.count >= all);
    full.unwrap().less_than
}

fn answer(response: &Response) -> Value {
    assert_eq!(response.status, 200, "{}", response.text());
    response.json()["outputs"].clone()
}

/// `count` rows of four, all different.
fn rows(count: u16) -> Vec<[f32; 4]> {
    (0..count)
        .map(|row| [0.0, 0.25, 0.5, 0.75].map(|part| f32::from(row) + part))
        .collect()
}

fn plus_one(rows: &[[f32; 4]]) -> Value {
    json!(
        rows.iter()
            .map(|row| row.map(|value| value + 1.0))
            .collect::<Vec<_>>()
    )
}

#[test]
fn a_dimension_without_a_name_of_its_own_may_have_any_size() {
    let server = Server::fixture("unnamed", &[]);
    let x: Value = json!([
        [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]],
        [[0, 0, 0, 0], [1, 1, 1, 1], [2, 2, 2, 2]]
    ]);
    let y = answer(&server.predict(&json!({"inputs": x})));
    assert_eq!(
        y["y"][0][0],
        json!([1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0])
    );
    assert_eq!(
        y["y"][1][2],
        json!([2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0])
    );
    let raw = Request::raw("/predict", vec![0; 24 * 4]).header("X-Tensor-Shape", "2,3,4");
    assert_eq!(server.request(&raw).status, 200);
}

#[test]
fn inputs_that_share_a_name_of_a_dimension_are_computed_as_far_as_the_model_computes_them() {
    let server = Server::fixture("same_name", &[]);
    let add = |a: Value, b: Value| server.predict(&json!({"inputs": {"a": a, "b": b}}));
    let a = json!([[1, 2], [3, 4]]);
    for (b, y) in [
        (
            json!([[10, 20], [30, 40]]),
            json!([[11.0, 22.0], [33.0, 44.0]]),
        ),
        (json!([[10, 20]]), json!([[11.0, 22.0], [13.0, 24.0]])),
        (json!([[10], [30]]), json!([[11.0, 12.0], [33.0, 34.0]])),
    ] {
        assert_eq!(answer(&add(a.clone(), b))["y"], y);
    }
    for (b, told) in [
        (
            json!([[1, 2], [1, 2], [1, 2]]),
            "input 'b' has 3 for dimension N, but input 'a' has 2",
        ),
        (
            json!([[1, 2, 3], [1, 2, 3]]),
            "input 'b' has 3 for dimension L, but input 'a' has 2",
        ),
    ] {
        let refused = add(a.clone(), b);
        let error = refused.json();
        assert_eq!(
            (refused.status, &error["code"]),
            (400, &json!("invalid_request"))
        );
        assert!(
            error["error"].as_str().unwrap().starts_with(told),
            "{error}"
        );
    }
}

#[test]
fn a_request_that_broadcasts_meets_nobody_else_s_rows() {
    let server = Server::fixture(
        "same_name",
        &["--max-queue-delay", "1ms", "--max-batch-size", "32"],
    );
    std::thread::scope(|scope| {
        for client in 0..8_u8 {
            let server = &server;
            scope.spawn(move || {
                let mut connection = server.connect();
                for number in 0..40_u8 {
                    let (one, two) = (f32::from(client), f32::from(number));
                    let b = if client % 2 == 0 {
                        json!([[10, 20]])
                    } else {
                        json!([[10, 20], [10, 20]])
                    };
                    let body =
                        json!({"inputs": {"a": [[one, two], [two, one]], "b": b}}).to_string();
                    let response = connection.send(&Request::json("/predict", body)).unwrap();
                    let expected = json!([[one + 10.0, two + 20.0], [two + 10.0, one + 20.0]]);
                    assert_eq!(answer(&response)["y"], expected);
                }
            });
        }
    });
}

#[test]
fn inputs_whose_first_dimensions_have_nothing_to_do_with_each_other_are_taken() {
    let server = Server::fixture("lookup", &[]);
    let table = json!([[1, 2], [3, 4], [5, 6]]);
    let pick = |idx: Value| server.predict(&json!({"inputs": {"table": table, "idx": idx}}));
    for (idx, picked) in [
        (json!([2]), json!([[5.0, 6.0]])),
        (
            json!([0, 1, 2, 1, 0]),
            json!([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [3.0, 4.0], [1.0, 2.0]]),
        ),
        (json!([]), json!([])),
    ] {
        assert_eq!(answer(&pick(idx))["picked"], picked);
    }
    assert_eq!(
        answer(&pick(json!(vec![1; 500])))["picked"][499],
        json!([3.0, 4.0])
    );
    assert_eq!(pick(json!([3])).status, 422);
    assert_eq!(observed(&server, "ml_batch_size"), (5.0, 5.0));
}

#[test]
fn a_first_dimension_that_is_no_batch_has_no_limit_and_is_not_counted() {
    let server = Server::fixture("cumsum", &[]);
    for length in [33_u16, 20_000] {
        let x = vec![1; usize::from(length)];
        let y = answer(&server.predict(&json!({"inputs": x})));
        assert_eq!(y["y"].as_array().unwrap().len(), usize::from(length));
        assert_eq!(y["y"][usize::from(length) - 1], json!(f32::from(length)));
        let bytes = bytemuck::cast_slice(&vec![1.0_f32; usize::from(length)]).to_vec();
        assert_eq!(server.request(&Request::raw("/predict", bytes)).status, 200);
    }
    // Nothing has a running sum, too; but a list of instances is a list of rows.
    let nothing = server.predict(&json!({"inputs": []}));
    assert_eq!(answer(&nothing)["y"], json!([]));
    assert_eq!(server.predict(&json!({"instances": []})).status, 400);
    assert_eq!(observed(&server, "ml_batch_size"), (5.0, 5.0));
    assert_eq!(observed(&server, "ml_executed_batch_size"), (5.0, 5.0));
}

#[test]
fn time_steps_are_no_rows() {
    let server = Server::fixture("recurrent", &[]);
    let inputs = json!({"x": vec![[[1, 2]]; 40], "h0": [[[0.5, 0]]]});
    let outputs = answer(&server.predict(&json!({"inputs": inputs})));
    assert_eq!(outputs["h1"], json!([[[40.5, 80.0]]]));
    assert_eq!(observed(&server, "ml_batch_size"), (1.0, 1.0));
    assert_eq!(observed(&server, "ml_executed_batch_size"), (1.0, 1.0));
}

#[test]
fn rows_that_depend_on_each_other_are_executed_together_however_many_they_are() {
    let server = Server::fixture("neighbours", &["--max-batch-size", "4"]);
    let outputs = answer(&server.predict(&json!({"inputs": rows(101)})));
    // The mean of 0, 1, … 100 is 50.
    assert_eq!(outputs["y"][0], json!([-50.0, -50.0, -50.0, -50.0]));
    assert_eq!(outputs["y"][100], json!([50.0, 50.0, 50.0, 50.0]));
    assert_eq!(observed(&server, "ml_executed_batch_size"), (1.0, 1.0));
}

#[test]
fn more_rows_than_share_an_execution_are_answered_in_every_form() {
    let server = Server::fixture("addone", &["--max-batch-size", "32"]);
    let given = rows(100);
    let columns = server.predict(&json!({"inputs": given}));
    assert_eq!(answer(&columns)["y"], plus_one(&given));
    let instances = server.predict(&json!({"instances": given}));
    assert_eq!(instances.json()["predictions"], plus_one(&given));
    let bytes = bytemuck::cast_slice::<[f32; 4], u8>(&given).to_vec();
    let raw = Request::raw("/predict", bytes).header("Accept", "application/octet-stream");
    let raw = server.request(&raw.header("X-Tensor-Shape", "100,4"));
    let expected: Vec<f32> = given
        .as_flattened()
        .iter()
        .map(|value| value + 1.0)
        .collect();
    assert_eq!(raw.body, bytemuck::cast_slice::<f32, u8>(&expected));
    assert_eq!(raw.header("x-tensor-shape"), Some("100,4"));
    assert_eq!(observed(&server, "ml_batch_size"), (3.0, 300.0));
    // Each was executed as 32, 32, 32 and 4 rows.
    assert_eq!(observed(&server, "ml_executed_batch_size"), (12.0, 300.0));
    assert!(largest_observed(&server, "ml_executed_batch_size") <= 32.0);
}

#[test]
fn rows_are_counted_and_parted_also_where_merging_does_not_pay() {
    for (name, observed_rows, executions) in [("addone", 100.0, 4.0), ("neighbours", 1.0, 1.0)] {
        let sha256 = {
            let server = Server::fixture(name, &[]);
            let model = server.get(&format!("/v2/models/{name}")).json();
            model["properties"]["sha256"].as_str().unwrap().to_owned()
        };
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("m.onnx");
        fs::copy(fixture(name), &model).unwrap();
        let cpus = std::thread::available_parallelism().unwrap();
        let settings = format!(
            "[tuning]\nsha256 = \"{sha256}\"\ncpus = {cpus}\ninstances = 1\nintra_op_threads = 1\nmerge_rows = 1\n"
        );
        fs::write(folder.path().join("m.toml"), settings).unwrap();
        let server = Server::start(&["--model", model.to_str().unwrap()]);
        let ready = server.get("/ready").json()["models"][0].clone();
        let reason = ready["not_batched_because"].as_str().unwrap();
        let merging_does_not_pay = reason.starts_with("a row costs as much in a batch");
        assert_eq!(merging_does_not_pay, name == "addone", "{reason}");
        answer(&server.predict(&json!({"inputs": rows(100)})));
        assert_eq!(observed(&server, "ml_batch_size"), (1.0, observed_rows));
        let executed = observed(&server, "ml_executed_batch_size");
        assert_eq!(executed, (executions, observed_rows), "{name}");
    }
}

#[test]
fn a_request_may_have_so_many_rows_and_no_more() {
    let server = Server::fixture(
        "dyn",
        &["--max-request-rows", "40", "--max-batch-size", "8"],
    );
    let columns = |count: usize| server.predict(&json!({"inputs": vec![[1, 2]; count]}));
    let instances = |count: usize| server.predict(&json!({"instances": vec![[1, 2]; count]}));
    let raw = |count: usize| {
        let body = Request::raw("/predict?outputs=y", vec![0; count * 8]);
        server.request(&body.header("X-Tensor-Shape", &format!("{count},2")))
    };
    for (count, status) in [
        (1, 200),
        (8, 200),
        (9, 200),
        (40, 200),
        (41, 400),
        (400, 400),
        (0, 400),
    ] {
        for response in [columns(count), instances(count), raw(count)] {
            assert_eq!(response.status, status, "{count}: {}", response.text());
            if count > 40 {
                let error = response.json()["error"].as_str().unwrap().to_owned();
                assert!(error.contains("40 rows"), "{error}");
                assert!(
                    error.contains("--max-request-rows (MAX_REQUEST_ROWS)"),
                    "{error}"
                );
            }
        }
    }
    let sizes = |server: &Server| {
        let model = server.get("/ready").json()["models"][0].clone();
        (
            model["max_batch_size"].clone(),
            model["max_request_rows"].clone(),
        )
    };
    assert_eq!(sizes(&server), (json!(8), json!(40)));
    // A request may fill an execution, unless it is said that it may not.
    let wide = Server::fixture("vector", &["--max-batch-size", "20000"]);
    assert_eq!(sizes(&wide), (json!(20_000), json!(20_000)));
}

#[test]
fn by_default_a_request_may_have_16384_rows() {
    let server = Server::fixture("vector", &[]);
    let columns =
        |count: usize| server.predict(&json!({"inputs": vec![1; count], "outputs": ["y"]}));
    let largest = answer(&columns(16_384));
    let all = largest["y"].as_array().unwrap();
    assert_eq!(all.len(), 16_384);
    assert!(all.iter().all(|value| *value == json!(2.0)));
    assert_eq!(columns(16_385).status, 400);
    // The queue is for 1024 rows, and takes what comes when it is empty.
    assert_eq!(columns(2_000).status, 200);
}

#[test]
fn rows_of_every_datatype_are_the_same_in_parts() {
    for (name, size) in [
        ("bool", 1),
        ("uint8", 1),
        ("uint16", 2),
        ("uint32", 4),
        ("uint64", 8),
        ("int8", 1),
        ("int16", 2),
        ("int32", 4),
        ("int64", 8),
        ("float16", 2),
        ("bfloat16", 2),
        ("float32", 4),
        ("float64", 8),
    ] {
        let server = Server::fixture(&format!("identity_{name}"), &["--max-batch-size", "7"]);
        let most = if name == "bool" { 2 } else { 251 };
        let bytes: Vec<u8> = (0..100 * 3 * size)
            .map(|index: usize| u8::try_from((index * 7 + index / 300) % most).unwrap())
            .collect();
        let body = Request::raw("/predict", bytes.clone());
        let answer = server.request(&body.header("Accept", "application/octet-stream"));
        assert_eq!(answer.status, 200, "{name}");
        assert!(answer.body == bytes, "{name}");
        assert_eq!(answer.header("x-tensor-shape"), Some("100,3"));
        assert_eq!(
            observed(&server, "ml_executed_batch_size"),
            (15.0, 100.0),
            "{name}"
        );
    }
    let server = Server::fixture("identity_string", &["--max-batch-size", "7"]);
    let texts: Vec<[String; 3]> = (0..100)
        .map(|row| [format!("{row}"), "zwölf".repeat(row % 4), String::new()])
        .collect();
    let outputs = answer(&server.predict(&json!({"inputs": texts})));
    assert_eq!(outputs["y"], json!(texts));
    assert_eq!(observed(&server, "ml_executed_batch_size"), (15.0, 100.0));
}

#[test]
fn outputs_that_cannot_be_put_together_are_those_of_one_execution() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("big.onnx");
    fs::copy(fixture("big"), &model).unwrap();
    // The width of its output is the largest value of all rows: the parts differ in it.
    fs::write(
        folder.path().join("big.toml"),
        "[batching]\ncheck = false\n",
    )
    .unwrap();
    let server = Server::start(&["--model", model.to_str().unwrap(), "--max-batch-size", "8"]);
    let given: Vec<[u16; 1]> = (1..=20).map(|row| [row]).collect();
    let outputs = answer(&server.predict(&json!({"inputs": given})));
    assert_eq!(outputs["y"], json!(vec![vec![1.0; 20]; 20]));
}

#[test]
fn the_deadline_ends_a_request_in_the_middle_of_its_parts() {
    let server = Server::fixture("loop", &["--instances", "1", "--max-batch-size", "4"]);
    let mut iterations = vec![1; 40];
    iterations[20] = 2_000_000_000;
    let long = Request::json("/predict", json!({"inputs": iterations}).to_string())
        .header("X-Request-Timeout-Ms", "200");
    let late = server.request(&long);
    assert_eq!(
        (late.status, &late.json()["code"]),
        (504, &json!("deadline_exceeded"))
    );
    // The only instance would be busy for many minutes if the part had not been interrupted.
    let next = server.predict(&json!({"inputs": [3]}));
    assert_eq!(answer(&next)["count"], json!([3]));
    let (_, rows) = observed(&server, "ml_executed_batch_size");
    assert!(
        rows <= 21.0,
        "at most the five parts before it, and the next request: {rows}"
    );
}

#[test]
fn a_start_takes_no_more_memory_because_large_executions_are_allowed() {
    for flags in [&[][..], &["--instances", "1"], &["--tuning-time", "off"]] {
        let peak = |rows: &str| {
            let rows = ["--max-batch-size", rows];
            let server = Server::start(&[&rows[..], flags].concat());
            server.status_figure("VmHWM")
        };
        let (small, large) = (peak("32"), peak("16384"));
        assert!(
            large < small + (16 << 10),
            "{flags:?}: {small} kB, and {large} kB"
        );
    }
}
