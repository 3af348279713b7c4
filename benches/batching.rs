//! Queue, policy, gathering and scattering, without a server and without a model.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a benchmark stops at the first thing that is wrong"
)]

mod support;

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use model_serving::batching::batch::{Batch, InputBuffers};
use model_serving::batching::policy::{BatchPolicy, Waiting};
use model_serving::batching::queue::{Pending, QueueConfig, RequestQueue};
use model_serving::model::ModelMetadata;
use model_serving::runtime::ModelOutput;
use model_serving::tensor::{DataType, Elements, Shape, TensorData};
use support::{Answer, IMAGE, deadline, metadata, numbers, pending};

/// The largest execution in these benches.
const MAX_BATCH_SIZE: usize = 32;

const POLICY: BatchPolicy = BatchPolicy {
    merge_rows: MAX_BATCH_SIZE,
    max_queue_delay: Duration::ZERO,
    merge: true,
};

/// A row of the tiny model, and one that is an image.
fn widths() -> [usize; 2] {
    [4, IMAGE.iter().product()]
}

fn policy(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("policy");
    let (now, deadline) = (Instant::now(), deadline());
    for count in [1, 32, 1024] {
        // What waits either joins the batch until it is full, or is looked at and left.
        for (name, merges_with_oldest) in [("same shape", true), ("other shapes", false)] {
            let waiting = vec![
                Waiting {
                    rows: 1,
                    enqueued_at: now,
                    deadline,
                    merges_with_oldest,
                };
                count
            ];
            group.bench_function(format!("{name}/{count}"), |bencher| {
                bencher.iter(|| {
                    let waiting = black_box(&waiting).iter().copied();
                    POLICY.next(waiting, now, false, |_| Duration::from_millis(1))
                });
            });
        }
    }
    group.finish();
}

/// So many waiting requests of one row each, with their clients.
fn requests(
    metadata: &ModelMetadata,
    count: usize,
    row: impl Fn() -> TensorData,
) -> (Vec<Pending>, Vec<Answer>) {
    (0..count).map(|_| pending(metadata, row())).unzip()
}

fn queue(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("queue");
    let metadata = metadata(DataType::Fp32, &[4], &[4]);
    for count in [1, 8, MAX_BATCH_SIZE] {
        let queue = RequestQueue::new(QueueConfig {
            policy: POLICY,
            max_rows: 1024,
            part_rows: None,
            instances: 1,
            buckets: None,
            comparable: true,
        });
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(format!("push and next batch/{count}"), |bencher| {
            bencher.iter_batched(
                || requests(&metadata, count, || numbers(4).into()),
                |(requests, clients)| {
                    for request in requests {
                        queue.push(request).expect("there is room");
                    }
                    (queue.next_batch(0).expect("a batch"), clients)
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

fn gather(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("gather");
    for width in widths() {
        let metadata = metadata(DataType::Fp32, &[width], &[width]);
        for count in [1, 8, 32] {
            let (requests, _clients) = requests(&metadata, count, || numbers(width).into());
            let batch = Batch::new(requests);
            let mut buffers = InputBuffers::new(&metadata);
            group.throughput(Throughput::Bytes((count * width * size_of::<f32>()) as u64));
            group.bench_function(format!("{count}x{width}"), |bencher| {
                bencher.iter(|| {
                    let input = black_box(&batch).gather(&mut buffers, count).unwrap();
                    black_box(input.as_slice());
                });
            });
        }
    }
    group.finish();
}

fn scatter(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("scatter");
    for width in widths() {
        let metadata = metadata(DataType::Fp32, &[width], &[width]);
        // Scattering never looks at the inputs, so all requests may share theirs.
        let row = Bytes::from_owner(bytemuck::allocation::pod_collect_to_vec::<f32, u8>(
            &numbers(width),
        ));
        for count in [1, 8, 32] {
            let data = Arc::new(TensorData::from(numbers(count * width)));
            let output = ModelOutput::new(Shape::from_slice(&[count, width]), data).unwrap();
            let outputs = [output];
            group.throughput(Throughput::Elements(count as u64));
            group.bench_function(format!("{count}x{width}"), |bencher| {
                bencher.iter_batched(
                    || {
                        let shared =
                            || TensorData::Fp32(Elements::from_bytes(row.clone()).expect("floats"));
                        let (requests, clients) = requests(&metadata, count, shared);
                        (Batch::new(requests), clients)
                    },
                    |(batch, clients)| {
                        let parts: Vec<_> = batch.scatter(black_box(&outputs), count).collect();
                        (parts, clients)
                    },
                    BatchSize::SmallInput,
                );
            });
        }
    }
    group.finish();
}

criterion_group!(benches, policy, queue, gather, scatter);
criterion_main!(benches);
