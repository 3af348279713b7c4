//! Output memory of ONNX Runtime, seen as plain tensors without a copy.
//!
//! Invariant: the ONNX Runtime value lives as long as the last request that holds rows of it.

use std::sync::Arc;

use ort::session::SessionOutputs;
use ort::value::{DynValue, TensorElementType, ValueType};

use super::{BatchOutput, RuntimeError};
use crate::tensor::{
    DataType, OutputTensor, Shape, TensorBuffer, TensorData, TensorView, for_each_plain_datatype,
};

/// Our datatype for one of ONNX Runtime's; `None` for those that no request could carry.
pub(super) fn datatype_of(element: TensorElementType) -> Option<DataType> {
    Some(match element {
        TensorElementType::Bool => DataType::Bool,
        TensorElementType::Uint8 => DataType::Uint8,
        TensorElementType::Uint16 => DataType::Uint16,
        TensorElementType::Uint32 => DataType::Uint32,
        TensorElementType::Uint64 => DataType::Uint64,
        TensorElementType::Int8 => DataType::Int8,
        TensorElementType::Int16 => DataType::Int16,
        TensorElementType::Int32 => DataType::Int32,
        TensorElementType::Int64 => DataType::Int64,
        TensorElementType::Float16 => DataType::Fp16,
        TensorElementType::Bfloat16 => DataType::Bf16,
        TensorElementType::Float32 => DataType::Fp32,
        TensorElementType::Float64 => DataType::Fp64,
        TensorElementType::String => DataType::Bytes,
        _ => return None,
    })
}

/// A tensor that ONNX Runtime allocated.
struct OrtBuffer {
    value: DynValue,
    datatype: DataType,
}

macro_rules! view_of {
    ($(($variant:ident, $element:ty, $name:literal, $size:literal)),+) => {
        impl TensorBuffer for OrtBuffer {
            fn view(&self) -> TensorView<'_> {
                // The datatype was read from the value itself, so extraction cannot fail; an empty view, which no
                // shape accepts, stands for what cannot happen.
                match self.datatype {
                    $(DataType::$variant => TensorView::$variant(
                        self.value.try_extract_tensor::<$element>().map_or(&[], |(_, elements)| elements),
                    ),)+
                    DataType::Bool | DataType::Bytes => TensorView::Bool(
                        self.value.try_extract_tensor::<bool>().map_or(&[], |(_, elements)| elements),
                    ),
                }
            }
        }
    };
}
for_each_plain_datatype!(view_of);

/// Wraps the outputs of a run, in the order of the signature.
pub(super) fn wrap_all(outputs: SessionOutputs<'_>) -> Result<BatchOutput, RuntimeError> {
    let outputs = outputs.into_iter();
    outputs.map(|(name, value)| wrap(name, value)).collect()
}

/// Wraps the output `name` of a run.
fn wrap(name: &str, value: DynValue) -> Result<OutputTensor, RuntimeError> {
    let broken = |what: &str| RuntimeError::Broken(format!("output {name} {what}"));
    let ValueType::Tensor { ty, shape, .. } = value.dtype() else {
        return Err(broken("is not a tensor"));
    };
    let datatype =
        datatype_of(*ty).ok_or_else(|| broken("has a datatype that cannot be served"))?;
    let shape: Option<Shape> = shape.iter().map(|dim| usize::try_from(*dim).ok()).collect();
    let shape = shape.ok_or_else(|| broken("has a negative dimension"))?;
    let buffer: Arc<dyn TensorBuffer> = if datatype == DataType::Bytes {
        // Strings lie scattered in ONNX Runtime's memory and have to be copied; they may be any bytes at all.
        let strings = value
            .try_extract_strings()
            .map_err(|error| RuntimeError::Refused(error.to_string()))?;
        Arc::new(TensorData::from(strings.1))
    } else {
        Arc::new(OrtBuffer { value, datatype })
    };
    OutputTensor::new(shape, buffer).ok_or_else(|| broken("does not hold what its shape says"))
}
