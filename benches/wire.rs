//! Bodies in and answers out, without a server: what decoding and encoding cost by form, size and datatype.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a benchmark stops at the first thing that is wrong"
)]

mod support;

use std::fmt::Display;
use std::hint::black_box;
use std::sync::Arc;

use bytes::Bytes;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use model_serving::inference::Reservation;
use model_serving::model::ModelMetadata;
use model_serving::tensor::{DataType, Shape, Tensor, TensorData};
use model_serving::wire::{BodyFormat, DecodeLimits, Form, decode, encode_json, encode_raw};
use support::{IMAGE, metadata, numbers};

const LIMITS: DecodeLimits = DecodeLimits {
    max_rows: 32,
    max_json_depth: 64,
};

/// More than any answer here.
const MAX_BYTES: usize = 1 << 30;

/// `values` as a JSON request of rows of `row`.
fn json(values: &[impl Display], row: &[usize]) -> Bytes {
    fn nest(text: &mut String, values: &[impl Display], row: &[usize]) {
        let [first, inner @ ..] = row else {
            text.push_str(&values.first().expect("one value").to_string());
            return;
        };
        text.push('[');
        for (index, part) in values.chunks(values.len() / first).enumerate() {
            if index > 0 {
                text.push_str(", ");
            }
            nest(text, part, inner);
        }
        text.push(']');
    }
    let rows = values.len() / row.iter().product::<usize>();
    let mut text = "{\"inputs\": ".to_owned();
    nest(&mut text, values, &[&[rows], row].concat());
    text.push('}');
    text.into()
}

fn raw(values: &[f32]) -> Bytes {
    let bytes: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    bytes.into()
}

fn bench_decode(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    body: &Bytes,
    format: BodyFormat,
    metadata: &ModelMetadata,
) {
    let decode = |body: Bytes| {
        let mut memory = Reservation::none();
        decode(body, format, None, metadata, LIMITS, &mut memory).expect("a valid body")
    };
    group.throughput(Throughput::Bytes(body.len() as u64));
    group.bench_function(name, |bencher| {
        bencher.iter(|| decode(black_box(body.clone())));
    });
}

fn decoding(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    let tiny = metadata(DataType::Fp32, &[4], &[4]);
    let row = [0.25, 1.5, -3.75, 4.0];
    let mut decode = |name: &str, body: &Bytes, format, metadata: &ModelMetadata| {
        bench_decode(&mut group, name, body, format, metadata);
    };
    decode("json/1x4", &json(&row, &[4]), BodyFormat::Json, &tiny);
    decode("raw/1x4", &raw(&row), BodyFormat::Raw, &tiny);
    decode(
        "json/32x4",
        &json(&numbers(128), &[4]),
        BodyFormat::Json,
        &tiny,
    );
    decode("raw/32x4", &raw(&numbers(128)), BodyFormat::Raw, &tiny);

    let image = metadata(DataType::Fp32, IMAGE, &[3]);
    let floats = numbers(IMAGE.iter().product());
    let pixels: Vec<f32> = floats.iter().map(|value| (value * 255.0).round()).collect();
    decode(
        "json/image/floats",
        &json(&floats, IMAGE),
        BodyFormat::Json,
        &image,
    );
    decode(
        "json/image/integers",
        &json(&pixels, IMAGE),
        BodyFormat::Json,
        &image,
    );
    decode("raw/image", &raw(&floats), BodyFormat::Raw, &image);

    let tokens = metadata(DataType::Int64, &[128], &[4]);
    let ids: Vec<String> = numbers(32 * 128)
        .iter()
        .map(|value| format!("{:.0}", value * 30_000.0))
        .collect();
    decode(
        "json/32x128/int64",
        &json(&ids, &[128]),
        BodyFormat::Json,
        &tokens,
    );

    let words = metadata(DataType::Bytes, &[4], &[4]);
    let texts: Vec<String> = (0..128)
        .map(|index| format!("\"the quick brown fox no. {index} jumps over the lazy dog\""))
        .collect();
    decode(
        "json/32x4/strings",
        &json(&texts, &[4]),
        BodyFormat::Json,
        &words,
    );
    let escaped: Vec<String> = (0..128)
        .map(|index| format!("\"the \\u201cquick\\u201d brown fox no. {index}\\njumps over it\""))
        .collect();
    decode(
        "json/32x4/escapes",
        &json(&escaped, &[4]),
        BodyFormat::Json,
        &words,
    );
    group.finish();
}

/// An answer of `rows` rows of `width` numbers.
fn outputs(rows: usize, width: usize) -> Vec<Tensor> {
    let data = Arc::new(TensorData::from(numbers(rows * width)));
    let output = Tensor::shared(Shape::from_slice(&[rows, width]), data).unwrap();
    vec![output]
}

fn encoding(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode");
    for (rows, width) in [(1, 4), (1, 10), (32, 1000)] {
        let metadata = metadata(DataType::Fp32, &[4], &[width]);
        let outputs = outputs(rows, width);
        let json = || {
            let outputs = black_box(&outputs);
            encode_json(outputs, &metadata, None, Form::Columns, MAX_BYTES).unwrap()
        };
        let in_rows = || {
            let outputs = black_box(&outputs);
            encode_json(outputs, &metadata, None, Form::Rows(rows), MAX_BYTES).unwrap()
        };
        let raw = || encode_raw(black_box(&outputs), &metadata, None, MAX_BYTES).unwrap();
        group.throughput(Throughput::Bytes(json().len() as u64));
        group.bench_function(format!("json/{rows}x{width}"), |bencher| bencher.iter(json));
        group.throughput(Throughput::Bytes(in_rows().len() as u64));
        group.bench_function(format!("json/{rows}x{width}/rows"), |bencher| {
            bencher.iter(in_rows);
        });
        group.throughput(Throughput::Bytes(raw().body.len() as u64));
        group.bench_function(format!("raw/{rows}x{width}"), |bencher| bencher.iter(raw));
    }
    group.finish();
}

criterion_group!(benches, decoding, encoding);
criterion_main!(benches);
