//! Output memory of ONNX Runtime, seen as plain tensors without a copy.
//!
//! Invariant: what an output refers to lives, unchanged, as long as the last request that holds rows of it. ONNX Runtime
//! gives a graph input that is also a graph output back as the very memory that it was lent; such an output is copied.

use std::ops::Range;
use std::sync::Arc;

use ort::session::SessionOutputs;
use ort::value::{DynValue, TensorElementType, ValueType};
use smallvec::SmallVec;

use super::ModelOutput;
use super::{BatchOutput, RuntimeError};
use crate::tensor::{
    DataType, Shape, TensorBuffer, TensorData, TensorView, for_each_plain_datatype,
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

/// The addresses of memory that is given to a run, and freed or written again once the run is over.
#[derive(Debug, Default)]
pub(super) struct Lent(SmallVec<[Range<usize>; 4]>);

impl Lent {
    /// Takes note of what `view` refers to. Strings are copied both ways and never matter.
    pub(super) fn note(&mut self, view: TensorView<'_>) {
        self.0.extend(addresses(view));
    }

    /// Whether any of it is what `view` refers to.
    fn overlaps(&self, view: TensorView<'_>) -> bool {
        addresses(view).is_some_and(|output| {
            let overlap = |lent: &Range<usize>| lent.start < output.end && output.start < lent.end;
            self.0.iter().any(overlap)
        })
    }
}

impl<'a> FromIterator<TensorView<'a>> for Lent {
    fn from_iter<I: IntoIterator<Item = TensorView<'a>>>(views: I) -> Self {
        Self(views.into_iter().filter_map(addresses).collect())
    }
}

/// Where the elements lie; `None` if there are none.
fn addresses(view: TensorView<'_>) -> Option<Range<usize>> {
    let bytes = view.as_bytes().filter(|bytes| !bytes.is_empty())?;
    let start = bytes.as_ptr().addr();
    Some(start..start + bytes.len())
}

/// Wraps the outputs of a run, in the order of the signature. Those that lie in `lent` memory are copied.
pub(super) fn wrap_all(
    outputs: SessionOutputs<'_>,
    lent: &Lent,
) -> Result<BatchOutput, RuntimeError> {
    let outputs = outputs.into_iter();
    outputs
        .map(|(name, value)| wrap(name, value, lent))
        .collect()
}

/// Wraps the output `name` of a run.
fn wrap(name: &str, value: DynValue, lent: &Lent) -> Result<ModelOutput, RuntimeError> {
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
        let buffer = OrtBuffer { value, datatype };
        if lent.overlaps(buffer.view()) {
            let mut own = TensorData::empty(datatype);
            if !own.append(buffer.view()) {
                return Err(broken("could not be copied"));
            }
            Arc::new(own)
        } else {
            Arc::new(buffer)
        }
    };
    ModelOutput::new(shape, buffer).ok_or_else(|| broken("does not hold what its shape says"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_lent_is_told_from_memory_that_is_not() {
        let (lent, own) = (vec![1.0_f32; 8], vec![1.0_f32; 8]);
        let view = |elements| TensorView::Fp32(elements);
        let known: Lent = [view(&lent[2..6])].into_iter().collect();
        for (part, expected) in [
            (&lent[..], true),
            (&lent[2..6], true),
            (&lent[5..6], true),
            (&lent[..3], true),
            (&lent[..2], false),
            (&lent[6..], false),
            (&lent[3..3], false),
            (&own[..], false),
        ] {
            assert_eq!(known.overlaps(view(part)), expected, "{part:?}");
        }
        assert!(!Lent::default().overlaps(view(&lent)));
    }
}
