//! Inputs that look like what users send and are the same in every run.

use model_serving::model::{Dim, ModelMetadata};

/// The sizes of one row of the model's first input.
pub(crate) fn row_shape(metadata: &ModelMetadata) -> Vec<usize> {
    let dims = metadata.inputs[0].dims()[1..].iter();
    dims.map(|dim| match dim {
        Dim::Fixed(size) => *size,
        Dim::Dynamic(_) => 1,
    })
    .collect()
}

/// Values from 0 to 1 with all the digits that a float has.
pub(crate) fn values(count: usize) -> Vec<f32> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // The upper 24 bits are the ones that look random, and as many as a float holds exactly.
        let [first, second, third, _] = state.to_be_bytes().map(f32::from);
        (first * 65_536.0 + second * 256.0 + third) / 16_777_216.0
    };
    (0..count).map(|_| next()).collect()
}
