//! The bundled model on its held-out data: the server says what ONNX Runtime says, alone and under many clients.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test stops at the first thing that is wrong"
)]

use std::sync::atomic::{AtomicUsize, Ordering};

use model_serving::model::repository;
use model_serving::runtime::library::Library;
use model_serving::runtime::providers::Device;
use model_serving::runtime::session::{self, InstanceGroup, OrtModel, SessionConfig};
use model_serving::runtime::{InputView, Model};
use model_serving::tensor::{Shape, TensorView};
use serde_json::Value;
use testing::{Random, Request, Response, Server};

const PIXELS: usize = 64;
const DIGITS: usize = 10;

/// The held-out rows: true digits and pixels.
fn held_out() -> Vec<(i64, Vec<f32>)> {
    let text = std::fs::read_to_string(testing::repository("models/samples/held-out.csv")).unwrap();
    let rows: Vec<(i64, Vec<f32>)> = text
        .lines()
        .skip(1)
        .map(|line| {
            let (label, pixels) = line.split_once(',').unwrap();
            (
                label.parse().unwrap(),
                pixels
                    .split(',')
                    .map(|pixel| pixel.parse().unwrap())
                    .collect(),
            )
        })
        .collect();
    assert_eq!(rows.len(), 360);
    rows
}

/// ONNX Runtime in this very process, without a server around it.
fn in_process() -> OrtModel {
    let source = repository::find(&testing::repository("models/best.onnx"), None)
        .unwrap()
        .remove(0);
    let library =
        Library::load(Some(&testing::repository(".onnxruntime/libonnxruntime.so"))).unwrap();
    let config = SessionConfig {
        device: Device::CPU,
        cuda: model_serving::runtime::providers::CudaConfig::default(),
        run_memory: None,
        most_sessions: 1,
    };
    let one = |_| InstanceGroup {
        instances: 1,
        intra_op_threads: 1,
    };
    session::load(&library, &source, config, one)
        .unwrap()
        .models
        .remove(0)
}

/// Probabilities and labels of `pixels`, which are whole images.
fn run(model: &mut OrtModel, pixels: &[f32]) -> (Vec<f32>, Vec<i64>) {
    let shape = Shape::from_slice(&[pixels.len() / PIXELS, 1, 8, 8]);
    let input = InputView {
        shape,
        elements: TensorView::Fp32(pixels),
    };
    let outputs = model.run([input].into_iter().collect()).unwrap();
    let probabilities = outputs[0]
        .view()
        .as_array::<f32>(outputs[0].shape())
        .unwrap();
    let labels = outputs[1]
        .view()
        .as_array::<i64>(outputs[1].shape())
        .unwrap();
    (
        probabilities.iter().copied().collect(),
        labels.iter().copied().collect(),
    )
}

/// A request for `pixels` as JSON columns, JSON rows, or a raw tensor.
fn request(pixels: &[f32], form: u64) -> Request {
    let image = |image: &[f32]| {
        let rows: Vec<Value> = image
            .chunks(8)
            .map(|row| Value::from(row.to_vec()))
            .collect();
        Value::from(vec![Value::from(rows)])
    };
    let images: Vec<Value> = pixels.chunks(PIXELS).map(image).collect();
    match form {
        0 => Request::json(
            "/predict",
            serde_json::json!({"inputs": {"image": images}}).to_string(),
        ),
        1 => Request::json(
            "/predict",
            serde_json::json!({"instances": images}).to_string(),
        ),
        _ => Request::raw(
            "/predict",
            pixels
                .iter()
                .flat_map(|pixel| pixel.to_le_bytes())
                .collect::<Vec<u8>>(),
        ),
    }
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "the text was printed from f32 values"
)]
fn floats(value: &Value) -> Vec<f32> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|number| number.as_f64().unwrap() as f32)
        .collect()
}

/// Probabilities and labels of an answer in the form of `form`.
fn read(answer: &Response, form: u64) -> (Vec<f32>, Vec<i64>) {
    assert_eq!(answer.status, 200, "{}", answer.text());
    let value = answer.json();
    if form == 1 {
        let rows = value["predictions"].as_array().unwrap();
        let probabilities = rows
            .iter()
            .flat_map(|row| floats(&row["probabilities"]))
            .collect();
        return (
            probabilities,
            rows.iter()
                .map(|row| row["label"].as_i64().unwrap())
                .collect(),
        );
    }
    let outputs = &value["outputs"];
    let probabilities = outputs["probabilities"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(floats)
        .collect();
    let labels = outputs["label"]
        .as_array()
        .unwrap()
        .iter()
        .map(|label| label.as_i64().unwrap())
        .collect();
    (probabilities, labels)
}

/// Whether two answers are the same within 1e-5.
fn same(left: &(Vec<f32>, Vec<i64>), right: &(Vec<f32>, Vec<i64>)) -> bool {
    left.1 == right.1
        && left.0.len() == right.0.len()
        && left
            .0
            .iter()
            .zip(&right.0)
            .all(|(left, right)| (left - right).abs() <= 1e-5)
}

#[test]
fn the_ready_made_bodies_are_recognised() {
    let server = Server::start(&[]);
    for digit in 0..DIGITS {
        let body = std::fs::read(testing::repository(&format!(
            "models/samples/digit-{digit}.json"
        )))
        .unwrap();
        let answer = server.request(&Request::json("/predict", body));
        assert_eq!(
            answer.json()["outputs"]["label"],
            serde_json::json!([digit])
        );
    }
    let raw = std::fs::read(testing::repository("models/samples/digit-7.f32")).unwrap();
    assert_eq!(
        server.request(&Request::raw("/predict", raw)).json()["outputs"]["label"],
        serde_json::json!([7])
    );
}

#[test]
fn every_held_out_sample_is_answered_as_onnx_runtime_answers_it() {
    let server = Server::start(&[]);
    let mut model = in_process();
    let mut client = server.connect();
    let mut right = 0;
    for (number, (label, pixels)) in held_out().iter().enumerate() {
        let form = number as u64 % 3;
        let answer = read(&client.send(&request(pixels, form)).unwrap(), form);
        assert!(same(&answer, &run(&mut model, pixels)), "row {number}");
        right += usize::from(answer.1 == [*label]);
    }
    assert!(right * 100 >= 360 * 98, "{right} of 360");
}

#[test]
fn answers_reach_the_clients_that_asked_under_64_clients_with_batches_of_1_to_32_rows() {
    const CLIENTS: u64 = 64;
    const REQUESTS: usize = 20_000;
    let server = Server::start(&[]);
    let samples = held_out();
    let (mismatches, sent) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (server, samples, mismatches, sent) = (&server, &samples, &mismatches, &sent);
            scope.spawn(move || {
                let mut random = Random::new(client + 1);
                let mut connection = server.connect();
                let mut asked = Vec::new();
                while sent.fetch_add(1, Ordering::Relaxed) < REQUESTS {
                    // A little noise makes every image, and so every answer, one of its own. Small batches are the
                    // usual ones; every size from 1 to 32 comes up.
                    let rows = if random.below(4) == 0 {
                        1 + random.below(32)
                    } else {
                        1 + random.below(3)
                    };
                    let mut pixels = Vec::new();
                    for _ in 0..rows {
                        let sample = &samples
                            [usize::try_from(random.below(samples.len() as u64)).unwrap()]
                        .1;
                        pixels.extend(sample.iter().map(|pixel| pixel + random.float()));
                    }
                    let form = random.below(8).min(2);
                    let answer = read(&connection.send(&request(&pixels, form)).unwrap(), form);
                    asked.push((pixels, answer));
                }
                // The comparison comes afterwards, so that it does not slow down the load.
                let mut model = in_process();
                let wrong = asked
                    .iter()
                    .filter(|(pixels, answer)| !same(answer, &run(&mut model, pixels)))
                    .count();
                mismatches.fetch_add(wrong, Ordering::Relaxed);
            });
        }
    });
    assert_eq!(mismatches.load(Ordering::Relaxed), 0);
    let scrape = server.metrics();
    let successes = testing::sample(&scrape, "ml_predictions_total", &[("status", "success")]);
    assert_eq!(successes, Some(20_000.0));
}
