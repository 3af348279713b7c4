//! What the benches of the pieces share: signatures, requests, and numbers that look like measured ones.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::expect_used,
    reason = "each bench uses its own part of this module, and stops at the first thing that is wrong"
)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use model_serving::batching::ScheduleError;
use model_serving::batching::queue::Pending;
use model_serving::inference::{InferenceRequest, InferenceResponse, Reservation};
use model_serving::model::{Batchability, Dim, ModelMetadata, TensorSpec};
use model_serving::tensor::{DataType, Shape, Tensor, TensorData};
use smallvec::smallvec;
use tokio::sync::oneshot;

/// Values of an image: three channels of 224 by 224.
pub const IMAGE: &[usize] = &[3, 224, 224];

/// The receiving end of a request's answer.
pub type Answer = oneshot::Receiver<Result<InferenceResponse, ScheduleError>>;

/// A model with one input `x` and one output `y` of these rows.
pub fn metadata(datatype: DataType, input_row: &[usize], output_row: &[usize]) -> ModelMetadata {
    let spec = |name: &str, datatype, row: &[usize]| {
        let rows = Dim::Dynamic(Some("N".to_owned()));
        let dims = row.iter().map(|size| Dim::Fixed(*size));
        TensorSpec {
            name: name.to_owned(),
            datatype,
            dims: Some(std::iter::once(rows).chain(dims).collect()),
            labels: Vec::new(),
        }
    };
    let inputs = vec![spec("x", datatype, input_row)];
    let outputs = vec![spec("y", DataType::Fp32, output_row)];
    ModelMetadata {
        name: "bench".to_owned(),
        version: "1".to_owned(),
        description: String::new(),
        batchability: Batchability::of(&inputs),
        inputs,
        outputs,
        sha256: String::new(),
        file_size: 0,
        opsets: BTreeMap::new(),
        producer: String::new(),
        properties: BTreeMap::new(),
    }
}

/// `count` numbers between 0 and 1 with the digits that a measurement or a softmax has; always the same ones.
pub fn numbers(count: usize) -> Vec<f32> {
    let mut state = 0x2545_f491_u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        // 24 bits are what a float holds.
        f32::from_bits(0x3f80_0000 | (state >> 9)) - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// A deadline that no bench meets.
pub fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

/// A waiting request of the one row `data`.
pub fn pending(metadata: &ModelMetadata, data: TensorData) -> (Pending, Answer) {
    let shape = Shape::from_slice(&[1, data.view().len()]);
    let tensor = Tensor::new(shape, data).expect("one row of that width");
    let request = InferenceRequest::new(
        metadata,
        smallvec![tensor],
        1,
        deadline(),
        Reservation::none(),
    )
    .expect("the request fits its signature");
    let (respond, answer) = oneshot::channel();
    let pending = Pending {
        request,
        respond,
        enqueued_at: Instant::now(),
    };
    (pending, answer)
}
