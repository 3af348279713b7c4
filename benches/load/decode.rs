//! How fast JSON text becomes a tensor, on one thread.

use std::fmt::Display;
use std::time::{Duration, Instant};

use bytes::Bytes;
use model_serving::inference::Reservation;
use model_serving::model::ModelMetadata;
use model_serving::wire::{self, BodyFormat, DecodeLimits};
use serde_json::json;

use crate::{as_f64, dummy_inputs, median};

/// Decodes one row of the model's input, written in several ways, each for `time`.
pub(crate) fn measure(metadata: &ModelMetadata, time: Duration) {
    let shape: Vec<usize> = std::iter::once(1)
        .chain(dummy_inputs::row_shape(metadata))
        .collect();
    let values = dummy_inputs::values(shape.iter().product());
    let floats = values.iter();
    // Python's lists hold 64-bit floats, so a client that never thought about it sends their digits.
    let doubles = values.iter().map(|value| f64::from(*value));
    let whole = values.iter().map(|value| (value * 255.0).round());
    for (numbers, text) in [
        ("floats", request(&shape, floats)),
        ("floats with 64-bit digits", request(&shape, doubles)),
        ("integers from 0 to 255", request(&shape, whole)),
    ] {
        let body = Bytes::from(text);
        let bytes = body.len();
        let limits = DecodeLimits {
            max_rows: 32,
            max_json_depth: 32,
        };
        let (started, mut durations) = (Instant::now(), Vec::new());
        while durations.is_empty() || started.elapsed() < time {
            let began = Instant::now();
            // The body is shared, not copied, and so decoded from where it lies.
            let decoded = wire::decode(
                body.clone(),
                BodyFormat::Json,
                None,
                metadata,
                limits,
                &mut Reservation::none(),
            );
            durations.push(began.elapsed().as_secs_f64());
            assert!(std::hint::black_box(decoded).is_ok());
        }
        let rate = as_f64(bytes) / median(&mut durations) / 1e6;
        let line = json!({"numbers": numbers, "bytes": bytes, "megabytes_per_second": rate});
        println!("{line}");
    }
}

/// A request in columns.
fn request(shape: &[usize], values: impl Iterator<Item = impl Display>) -> String {
    let mut text = r#"{"inputs": "#.to_owned();
    let mut values = values.map(|value| value.to_string());
    array(&mut text, shape, &mut values);
    text.push('}');
    text
}

fn array(text: &mut String, shape: &[usize], values: &mut impl Iterator<Item = String>) {
    let Some((size, inner)) = shape.split_first() else {
        text.push_str(&values.next().unwrap());
        return;
    };
    text.push('[');
    for position in 0..*size {
        if position > 0 {
            text.push_str(", ");
        }
        array(text, inner, values);
    }
    text.push(']');
}
