//! A request that a model takes: found by running it.
//!
//! Invariant: what is given out was executed by the model, and its answer can be written as JSON.

use std::time::{Duration, Instant};

use super::ModelOutput;
use super::dummy_inputs::{self, Size};
use super::{Model, RuntimeError};
use crate::tensor::{DataType, TensorData, TensorView, for_each_plain_datatype};

/// Sizes of open dimensions that are tried, besides the batch.
const SIZES: [usize; 16] = [
    1, 2, 3, 4, 8, 16, 32, 48, 64, 128, 224, 256, 320, 512, 576, 640,
];

/// Sizes of the batch that are tried.
const ROWS: [usize; 2] = [1, 2];

/// Bytes of the largest input that is tried.
const LARGEST: usize = 16 << 20;

/// What all elements of an input are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value {
    /// 0, false, or an empty string.
    Zero,
    /// 0.5; 1, true or "a" where there are no fractions.
    Half,
    /// 1, true or "1".
    One,
}

const VALUES: [Value; 3] = [Value::Zero, Value::Half, Value::One];

impl Value {
    fn whole(self) -> u8 {
        u8::from(self != Self::Zero)
    }

    fn fraction(self) -> f32 {
        match self {
            Self::Zero => 0.0,
            Self::Half => 0.5,
            Self::One => 1.0,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Zero => "",
            Self::Half => "a",
            Self::One => "1",
        }
    }

    /// The value in JSON, as an element of `datatype`.
    #[must_use]
    pub fn json(self, datatype: DataType) -> String {
        match datatype {
            DataType::Bool => (self != Self::Zero).to_string(),
            DataType::Bytes => format!("\"{}\"", self.text()),
            DataType::Fp16 | DataType::Bf16 | DataType::Fp32 | DataType::Fp64 => {
                self.fraction().to_string()
            }
            _ => self.whole().to_string(),
        }
    }
}

/// One input of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExampleInput {
    /// The name in the graph.
    pub name: String,
    /// The type of the elements.
    pub datatype: DataType,
    /// The sizes of the dimensions, the batch included.
    pub shape: Vec<usize>,
    /// What all elements are.
    pub value: Value,
}

/// A request that the model takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// In the order of the signature.
    pub inputs: Vec<ExampleInput>,
}

/// Why no request was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoExample {
    /// The model refused all that was made up for it.
    Refused,
    /// It took some, and answered with NaN or infinity, which JSON cannot express.
    NotFinite,
    /// There was no time to try all.
    NoTime,
}

/// Looks for a request that `model` takes, for about `time` or one run, whichever is longer.
///
/// # Errors
/// When none was found.
pub fn find(model: &mut dyn Model, time: Duration) -> Result<Example, NoExample> {
    let mut reason = NoExample::Refused;
    let end = Instant::now() + time;
    let metadata = std::sync::Arc::clone(model.metadata());
    let rows = if metadata.has_batch_axis() {
        &ROWS[..]
    } else {
        &[1]
    };
    let sizes = if metadata.has_open_shapes() || !metadata.has_batch_axis() {
        &SIZES[..]
    } else {
        &[1]
    };
    for open in sizes {
        for rows in rows {
            let size = Size {
                rows: *rows,
                open: *open,
                largest: LARGEST,
            };
            for value in VALUES {
                let began = Instant::now();
                let fill = |_, datatype, elements| filled(datatype, value, elements);
                match dummy_inputs::run(model, size, fill) {
                    Ok(Some(outputs)) if outputs.iter().all(is_finite) => {
                        let shapes = dummy_inputs::shapes(&metadata, size);
                        let inputs = metadata.inputs.iter().zip(shapes);
                        let inputs = inputs.map(|(spec, shape)| ExampleInput {
                            name: spec.name.clone(),
                            datatype: spec.datatype,
                            shape: shape.to_vec(),
                            value,
                        });
                        return Ok(Example {
                            inputs: inputs.collect(),
                        });
                    }
                    Ok(Some(_)) => reason = NoExample::NotFinite,
                    Ok(None) | Err(RuntimeError::Refused(_) | RuntimeError::OutOfMemory(_)) => {}
                    Err(_) => return Err(reason),
                }
                if !is_time_for_another(
                    began.elapsed(),
                    end.saturating_duration_since(Instant::now()),
                ) {
                    return Err(NoExample::NoTime);
                }
            }
        }
    }
    Err(reason)
}

/// Whether another run is tried, when the last one took so long and so much time is `left`. Sizes grow, and a run is not
/// stopped once it has begun, so that the next one has to have room to spare.
fn is_time_for_another(last: Duration, left: Duration) -> bool {
    !left.is_zero() && last <= left / 2
}

/// Whether JSON can express all elements.
fn is_finite(output: &ModelOutput) -> bool {
    match output.view() {
        TensorView::Fp16(elements) => elements.iter().all(|element| element.is_finite()),
        TensorView::Bf16(elements) => elements.iter().all(|element| element.is_finite()),
        TensorView::Fp32(elements) => elements.iter().all(|element| element.is_finite()),
        TensorView::Fp64(elements) => elements.iter().all(|element| element.is_finite()),
        _ => true,
    }
}

/// An element as a value makes it.
trait Filled {
    fn filled(value: Value) -> Self;
}

macro_rules! filled_wholes {
    ($($element:ty),+) => {
        $(impl Filled for $element {
            fn filled(value: Value) -> Self {
                Self::from(value.whole())
            }
        })+
    };
}
filled_wholes!(u8, u16, u32, u64, i16, i32, i64);

impl Filled for i8 {
    fn filled(value: Value) -> Self {
        Self::from(value != Value::Zero)
    }
}

macro_rules! filled_fractions {
    ($($element:ty: $from:ident),+) => {
        $(impl Filled for $element {
            fn filled(value: Value) -> Self {
                Self::$from(value.fraction())
            }
        })+
    };
}
filled_fractions!(half::f16: from_f32, half::bf16: from_f32, f32: from, f64: from);

macro_rules! filled_elements {
    ($(($variant:ident, $element:ty, $name:literal, $size:literal)),+) => {
        fn filled(datatype: DataType, value: Value, elements: usize) -> TensorData {
            match datatype {
                DataType::Bool => vec![value != Value::Zero; elements].into(),
                $(DataType::$variant => vec![<$element>::filled(value); elements].into(),)+
                DataType::Bytes => vec![value.text().to_owned(); elements].into(),
            }
        }
    };
}
for_each_plain_datatype!(filled_elements);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_run_is_begun_that_may_well_not_end_in_time() {
        let seconds = Duration::from_secs;
        for (last, left, another) in [
            (0, 5, true),
            (2, 5, true),
            (3, 5, false),
            (60, 5, false),
            (0, 0, false),
        ] {
            let is_time = is_time_for_another(seconds(last), seconds(left));
            assert_eq!(is_time, another, "{last} s of {left} s");
        }
    }
}
