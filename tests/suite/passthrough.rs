//! Outputs that ONNX Runtime gives back in memory that is not its own: nobody may ever see another client's bytes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test stops at the first thing that is wrong"
)]

use serde_json::{Map, Value, json};
use testing::{Request, Server};

const CLIENTS: u64 = 8;
const REQUESTS: u64 = 40;

/// Every datatype that the fixture takes, with how many different values of it JSON can carry exactly.
const DATATYPES: [(&str, u64); 14] = [
    ("bool", 2),
    ("uint8", 256),
    ("uint16", 65_536),
    ("uint32", 1 << 32),
    ("uint64", 1 << 53),
    ("int8", 128),
    ("int16", 32_768),
    ("int32", 1 << 31),
    ("int64", 1 << 53),
    ("float16", 2048),
    ("bfloat16", 256),
    ("float32", 1 << 24),
    ("float64", 1 << 40),
    ("string", 1 << 32),
];

/// The value at `place` of a request that nobody else sends.
fn value(datatype: &str, different: u64, request: u64, place: u64) -> Value {
    let number = (request * 7919 + place * 31 + 1).wrapping_mul(0x9e37_79b9) % different;
    match datatype {
        "bool" => json!(number == 1),
        "string" => json!(format!("request {request}, {number}")),
        "float16" | "bfloat16" | "float32" | "float64" => json!(number as f64),
        _ => json!(number),
    }
}

fn inputs(request: u64, rows: u64, width: u64) -> Map<String, Value> {
    let tensor = |(datatype, different): &(&str, u64)| {
        let row = |row: u64| -> Vec<Value> {
            (0..width)
                .map(|column| value(datatype, *different, request, row * width + column))
                .collect()
        };
        let rows: Vec<Vec<Value>> = (0..rows).map(row).collect();
        ((*datatype).to_owned(), json!(rows))
    };
    DATATYPES.iter().map(tensor).collect()
}

fn serves_everybody_their_own(flags: &[&str], most_rows: u64) -> Server {
    let server = Server::fixture("passthrough", flags);
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let server = &server;
            scope.spawn(move || {
                let mut connection = server.connect();
                for number in 0..REQUESTS {
                    let request = client * REQUESTS + number;
                    // Few widths, so that requests of different clients are merged; small and large ones, because
                    // allocators treat them differently.
                    let (rows, width) =
                        (1 + request % most_rows, [3, 3, 900][(number % 3) as usize]);
                    let sent = inputs(request, rows, width);
                    let body = json!({"inputs": sent}).to_string();
                    let answer = connection.send(&Request::json("/predict", body)).unwrap();
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    let outputs = &answer.json()["outputs"];
                    for (name, values) in &sent {
                        assert!(
                            outputs[name] == *values,
                            "request {request}: output '{name}' is not what was sent as '{name}'"
                        );
                    }
                    assert_eq!(outputs["y"], sent["float32"]);
                }
            });
        }
    });
    server
}

#[test]
fn inputs_that_are_outputs_come_back_to_their_sender_from_merged_executions() {
    let server =
        serves_everybody_their_own(&["--max-batch-size", "16", "--max-queue-delay", "2ms"], 3);
    let executions = server.metric("ml_executed_batch_size_count", &[]);
    assert!(
        executions.unwrap() < (CLIENTS * REQUESTS) as f64,
        "nothing was merged"
    );
}

#[test]
fn inputs_that_are_outputs_come_back_to_their_sender_without_batching() {
    serves_everybody_their_own(&["--max-batch-size", "1"], 1);
}

#[test]
fn large_inputs_that_are_outputs_come_back_raw_to_their_sender() {
    const WIDTH: usize = 500_000;
    let server = Server::fixture("passthrough_wide", &["--max-queue-delay", "5ms"]);
    std::thread::scope(|scope| {
        for client in 0..4_u16 {
            let server = &server;
            scope.spawn(move || {
                let mut connection = server.connect();
                for number in 0..5_u16 {
                    let own = f32::from(client * 100 + number);
                    let body: Vec<u8> = std::iter::repeat_n(own.to_le_bytes(), WIDTH)
                        .flatten()
                        .collect();
                    let request = Request::raw("/predict?outputs=x", body.clone())
                        .header("Accept", "application/octet-stream");
                    let answer = connection.send(&request).unwrap();
                    assert_eq!(answer.status, 200);
                    assert!(answer.body == body, "client {client} got other bytes");
                }
            });
        }
    });
}

#[test]
fn operators_that_change_nothing_answer_with_the_values_of_their_own_request() {
    let server = Server::fixture("noop", &["--max-queue-delay", "1ms"]);
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let server = &server;
            scope.spawn(move || {
                let mut connection = server.connect();
                for number in 0..REQUESTS {
                    let own = (client * REQUESTS + number) as f64;
                    let sent = json!([vec![own; 300], vec![-own; 300]]);
                    let body = json!({"inputs": sent}).to_string();
                    let answer = connection.send(&Request::json("/predict", body)).unwrap();
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    for (name, output) in answer.json()["outputs"].as_object().unwrap() {
                        let expected = if name == "default" {
                            &json!([5.0, 7.0])
                        } else {
                            &sent
                        };
                        assert_eq!(output, expected, "output '{name}'");
                    }
                }
            });
        }
    });
}
