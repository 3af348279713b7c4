//! The memory of a GPU's runs on the host's side: pinned, so that the GPU copies it by itself, and kept from run to run.
//!
//! Invariant: the outputs of a run are never written by a later one; requests hold them for as long as they need. An
//! output that lies in the memory of an input is told to whoever takes the outputs, and copied there.

use std::collections::VecDeque;

use ort::memory::{Allocator, MemoryInfo};
use ort::session::{IoBinding, RunOptions, Session, SessionOutputs};
use ort::value::{DynTensor, TensorElementType};
use smallvec::SmallVec;

use super::output::Lent;
use super::providers::ExecutionProvider;
use super::{BatchInput, InputView};
use crate::model::ModelMetadata;
use crate::tensor::{DataType, Shape, TensorView, for_each_plain_datatype};

/// How many different shapes of inputs are kept; the one used longest ago goes. Where batches are padded, these are all
/// the sizes up to 32,768 rows.
const KEPT: usize = 16;

/// The bytes of inputs that are kept, unless the last alone has more: where the first dimension is no batch, a shape is as
/// large as a client likes.
const KEPT_BYTES: usize = 256 << 20;

/// One session's binding.
pub(super) struct Binding {
    binding: IoBinding,
    memory: MemoryInfo<'static>,
    allocator: Allocator,
    kept: VecDeque<Inputs>,
}

/// Input tensors of these shapes.
struct Inputs {
    shapes: SmallVec<[Shape; 4]>,
    tensors: Vec<DynTensor>,
    bytes: usize,
}

/// How many of the oldest are let go, of inputs that have so many bytes each, the oldest first.
fn surplus(bytes: &[usize]) -> usize {
    let mut left = bytes;
    while let [_, rest @ ..] = left
        && !rest.is_empty()
        && (left.len() > KEPT || left.iter().sum::<usize>() > KEPT_BYTES)
    {
        left = rest;
    }
    bytes.len() - left.len()
}

impl Binding {
    /// A binding for `session`, whose inputs and outputs lie in memory from which `provider` copies best.
    ///
    /// # Errors
    /// When the provider has no such memory.
    pub(super) fn new(session: &Session, provider: ExecutionProvider) -> Result<Self, ort::Error> {
        let memory = provider.host_memory()?;
        Ok(Self {
            binding: session.create_binding()?,
            allocator: Allocator::new(session, memory.clone())?,
            memory,
            kept: VecDeque::new(),
        })
    }

    /// Whether `metadata`'s inputs and outputs can lie in such memory. Strings cannot; and where a request may choose
    /// sizes, what is kept for them would be as large as clients want.
    pub(super) fn suits(metadata: &ModelMetadata) -> bool {
        !metadata.has_open_shapes() && !metadata.has_strings()
    }

    /// Runs `session` and gives its outputs to `take`.
    ///
    /// # Errors
    /// What ONNX Runtime said.
    pub(super) fn run<T>(
        &mut self,
        session: &mut Session,
        metadata: &ModelMetadata,
        input: &BatchInput<'_>,
        options: &RunOptions,
        take: impl FnOnce(SessionOutputs<'_>, &Lent) -> T,
    ) -> Result<T, ort::Error> {
        let lent = self.bind_inputs(metadata, input)?;
        for spec in &metadata.outputs {
            // Bound anew each time, and so allocated anew: the last run's outputs may still be read.
            self.binding
                .bind_output_to_device(spec.name.as_str(), &self.memory)?;
        }
        let outputs = session.run_binding_with_options(&self.binding, options)?;
        self.binding.synchronize_outputs()?;
        let taken = take(outputs, &lent);
        self.binding.clear_outputs();
        Ok(taken)
    }

    /// Copies `input` into the tensors kept for its shapes, and binds them. Says where they lie.
    fn bind_inputs(
        &mut self,
        metadata: &ModelMetadata,
        input: &BatchInput<'_>,
    ) -> Result<Lent, ort::Error> {
        let same = |kept: &Inputs| kept.shapes.iter().eq(input.iter().map(|view| &view.shape));
        let inputs = match self.kept.iter().position(same) {
            Some(position) => self.kept.remove(position),
            None => None,
        };
        let mut inputs = match inputs {
            Some(inputs) => inputs,
            None => self.allocate(input)?,
        };
        let mut lent = Lent::default();
        for ((spec, tensor), view) in metadata.inputs.iter().zip(&mut inputs.tensors).zip(input) {
            fill(tensor, &view.elements, &mut lent)?;
            self.binding.bind_input(spec.name.as_str(), &*tensor)?;
        }
        self.kept.push_back(inputs);
        let bytes: SmallVec<[usize; KEPT + 1]> =
            self.kept.iter().map(|inputs| inputs.bytes).collect();
        self.kept.drain(..surplus(&bytes));
        Ok(lent)
    }

    fn allocate(&self, input: &BatchInput<'_>) -> Result<Inputs, ort::Error> {
        let tensor = |view: &InputView<'_>| {
            let element = element_of(view.elements.datatype());
            DynTensor::new(&self.allocator, element, view.shape.as_slice())
        };
        Ok(Inputs {
            shapes: input.iter().map(|view| view.shape.clone()).collect(),
            tensors: input.iter().map(tensor).collect::<Result<_, _>>()?,
            bytes: input.iter().map(|view| view.elements.byte_len()).sum(),
        })
    }
}

macro_rules! plain {
    ($(($variant:ident, $element:ty, $name:literal, $size:literal)),+) => {
        /// Copies `elements` into `tensor`, which has as many of the same datatype, and notes where that lies.
        fn fill(tensor: &mut DynTensor, elements: &TensorView<'_>, lent: &mut Lent) -> Result<(), ort::Error> {
            match elements {
                TensorView::Bool(elements) => {
                    let bound = tensor.try_extract_tensor_mut::<bool>()?.1;
                    copy(bound, elements)?;
                    lent.note(TensorView::Bool(bound));
                }
                $(TensorView::$variant(elements) => {
                    let bound = tensor.try_extract_tensor_mut::<$element>()?.1;
                    copy(bound, elements)?;
                    lent.note(TensorView::$variant(bound));
                })+
                TensorView::Bytes(_) => return Err(ort::Error::new("strings cannot be bound")),
            }
            Ok(())
        }
    };
}
for_each_plain_datatype!(plain);

fn copy<T: Copy>(into: &mut [T], from: &[T]) -> Result<(), ort::Error> {
    if into.len() != from.len() {
        return Err(ort::Error::new("a bound input has another size"));
    }
    into.copy_from_slice(from);
    Ok(())
}

/// ONNX Runtime's name of a datatype.
fn element_of(datatype: DataType) -> TensorElementType {
    match datatype {
        DataType::Bool => TensorElementType::Bool,
        DataType::Uint8 => TensorElementType::Uint8,
        DataType::Uint16 => TensorElementType::Uint16,
        DataType::Uint32 => TensorElementType::Uint32,
        DataType::Uint64 => TensorElementType::Uint64,
        DataType::Int8 => TensorElementType::Int8,
        DataType::Int16 => TensorElementType::Int16,
        DataType::Int32 => TensorElementType::Int32,
        DataType::Int64 => TensorElementType::Int64,
        DataType::Fp16 => TensorElementType::Float16,
        DataType::Bf16 => TensorElementType::Bfloat16,
        DataType::Fp32 => TensorElementType::Float32,
        DataType::Fp64 => TensorElementType::Float64,
        DataType::Bytes => TensorElementType::String,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_inputs_are_kept_than_their_number_and_their_bytes_allow() {
        assert_eq!(surplus(&[]), 0);
        assert_eq!(surplus(&[1; KEPT]), 0);
        assert_eq!(surplus(&[1; KEPT + 1]), 1);
        let half = KEPT_BYTES / 2;
        assert_eq!(surplus(&[half, half]), 0);
        assert_eq!(surplus(&[half, half, 1]), 1);
        assert_eq!(surplus(&[1, half, half, half]), 2);
        // What was used last stays, however large it is.
        assert_eq!(surplus(&[1, KEPT_BYTES + 1]), 1);
        assert_eq!(surplus(&[KEPT_BYTES + 1]), 0);
    }
}
