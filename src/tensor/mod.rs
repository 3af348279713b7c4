//! Tensors: a shape over flat elements, for inputs and for outputs. No policy lives here.
//!
//! Invariant: a [`Tensor`] has exactly as many elements as its shape says, in row-major order, and shows no others of the
//! buffer that it is a part of.

mod elements;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use ndarray::ArrayViewD;
use smallvec::SmallVec;

pub(crate) use elements::for_each_plain_datatype;
pub use elements::{AlignedBytes, DataType, Element, Elements, TensorData, TensorView};

/// The sizes of a tensor's dimensions, outermost first. Six dimensions fit without an allocation.
pub type Shape = SmallVec<[usize; 6]>;

/// The number of elements of `shape`, or `None` when that overflows.
#[must_use]
pub fn element_count(shape: &[usize]) -> Option<usize> {
    // A zero anywhere makes the tensor empty, but a product that overflows on the way is still a hostile shape.
    shape
        .iter()
        .try_fold(1_usize, |product, dim| product.checked_mul(*dim))
}

/// Memory that holds the elements of a tensor, wherever it was allocated.
pub trait TensorBuffer: Send + Sync {
    /// The elements, row-major.
    fn view(&self) -> TensorView<'_>;
}

impl TensorBuffer for TensorData {
    fn view(&self) -> TensorView<'_> {
        Self::view(self)
    }
}

/// A tensor. One that shares its memory is cheap to clone: an output can be an input, and each request of an execution
/// has its rows of it, without a copy.
#[derive(Clone)]
pub struct Tensor {
    shape: Shape,
    memory: Memory,
}

/// Where the elements lie.
#[derive(Clone)]
enum Memory {
    /// In a buffer of the tensor's own, all of it.
    Own(TensorData),
    /// In one that others may have as well, as far as the range goes.
    Shared(Arc<dyn TensorBuffer>, Range<usize>),
}

impl Tensor {
    /// A tensor of `shape` over `data`; `None` when the number of elements differs from what the shape says.
    #[must_use]
    pub fn new(shape: Shape, data: TensorData) -> Option<Self> {
        let fits = element_count(&shape) == Some(data.view().len());
        fits.then_some(Self {
            shape,
            memory: Memory::Own(data),
        })
    }

    /// A tensor of `shape` over all of `buffer`; `None` when the number of elements differs from what the shape says.
    #[must_use]
    pub fn shared(shape: Shape, buffer: Arc<dyn TensorBuffer>) -> Option<Self> {
        let elements = 0..buffer.view().len();
        let fits = element_count(&shape) == Some(elements.end);
        fits.then_some(Self {
            shape,
            memory: Memory::Shared(buffer, elements),
        })
    }

    /// The `rows` along the first dimension, of the same memory where that is shared; `None` if the tensor does not have
    /// them.
    #[must_use]
    pub fn rows(&self, rows: Range<usize>) -> Option<Self> {
        let (all, row) = self.shape.split_first()?;
        if rows.start > rows.end || rows.end > *all {
            return None;
        }
        let row_len = element_count(row)?;
        let part = rows.start.checked_mul(row_len)?..rows.end.checked_mul(row_len)?;
        let mut shape = Shape::from_slice(&[rows.len()]);
        shape.extend_from_slice(row);
        let memory = match &self.memory {
            Memory::Own(data) => Memory::Own(copied(data.view().slice(part)?)?),
            Memory::Shared(buffer, elements) => {
                let part = elements.start + part.start..elements.start + part.end;
                Memory::Shared(Arc::clone(buffer), part)
            }
        };
        Some(Self { shape, memory })
    }

    /// The sizes of the dimensions.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements, row-major, and never anything else of the memory: what does not fit is nothing.
    #[must_use]
    pub fn view(&self) -> TensorView<'_> {
        match &self.memory {
            Memory::Own(data) => data.view(),
            Memory::Shared(buffer, elements) => buffer.view().slice_or_empty(elements.clone()),
        }
    }

    /// The bytes that are kept as long as this tensor is: those of all of its memory.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        match &self.memory {
            Memory::Own(data) => data.view().byte_len(),
            Memory::Shared(buffer, _) => buffer.view().byte_len(),
        }
    }

    /// Whether it is all of its memory.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        match &self.memory {
            Memory::Own(_) => true,
            Memory::Shared(buffer, elements) => elements.len() == buffer.view().len(),
        }
    }

    /// The same tensor in memory of its own, which keeps nothing of what it was a part of; as it is if it is all of it.
    #[must_use]
    pub fn detached(self) -> Self {
        if self.is_whole() {
            return self;
        }
        match copied(self.view()) {
            Some(data) => Self {
                shape: self.shape,
                memory: Memory::Own(data),
            },
            None => self,
        }
    }

    /// The tensor as an array; `None` when the elements are of another type.
    #[must_use]
    pub fn array<T: Element>(&self) -> Option<ArrayViewD<'_, T>> {
        self.view().as_array(self.shape())
    }
}

/// The elements of `view` in a buffer of their own.
fn copied(view: TensorView<'_>) -> Option<TensorData> {
    let mut data = TensorData::empty(view.datatype());
    data.append(view).then_some(data)
}

impl fmt::Debug for Tensor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Tensor")
            .field("shape", &self.shape)
            .field("elements", &self.view())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn element_count_refuses_overflow_even_beside_a_zero() {
        assert_eq!(element_count(&[]), Some(1));
        assert_eq!(element_count(&[2, 3]), Some(6));
        assert_eq!(element_count(&[0, 7]), Some(0));
        assert_eq!(element_count(&[usize::MAX, 2, 0]), None);
    }

    #[test]
    fn a_tensor_must_hold_what_its_shape_says() {
        let data = || TensorData::from(vec![1.0_f32, 2.0, 3.0]);
        assert!(Tensor::new(Shape::from_slice(&[3]), data()).is_some());
        assert!(Tensor::new(Shape::from_slice(&[2, 2]), data()).is_none());
        assert!(Tensor::new(Shape::from_slice(&[usize::MAX, usize::MAX]), data()).is_none());
    }

    #[test]
    fn rows_that_a_tensor_does_not_have_are_nobody_s_rows() {
        let output = |shape: &[usize], values: Vec<f32>| {
            let data = Arc::new(TensorData::from(values));
            Tensor::shared(Shape::from_slice(shape), data).unwrap()
        };
        let three = output(&[3, 2], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let part = three.rows(1..3).unwrap();
        assert_eq!(part.shape(), [2, 2]);
        assert_eq!(part.view(), TensorView::Fp32(&[3.0, 4.0, 5.0, 6.0]));
        let none = three.rows(2..2).unwrap();
        assert_eq!((none.shape(), none.view().len()), (&[0, 2][..], 0));
        #[expect(clippy::reversed_empty_ranges, reason = "such a range is refused")]
        for rows in [0..4, 3..4, 2..1, 5..5, usize::MAX - 1..usize::MAX] {
            assert!(three.rows(rows).is_none());
        }
        assert!(output(&[], vec![1.0]).rows(0..1).is_none());
    }

    #[test]
    fn an_output_becomes_an_input_without_a_copy() {
        let data: Arc<dyn TensorBuffer> = Arc::new(TensorData::from(vec![1.0_f32; 8]));
        let output = Tensor::shared(Shape::from_slice(&[4, 2]), Arc::clone(&data)).unwrap();
        let input = output.rows(1..3).unwrap().rows(1..2).unwrap();
        let at = |tensor: &Tensor| tensor.view().as_bytes().unwrap().as_ptr().addr();
        assert_eq!(at(&input), at(&output) + 2 * 2 * size_of::<f32>());
        assert_eq!((input.shape(), input.held_bytes()), (&[1, 2][..], 32));
        assert!(!input.is_whole());
        let own = input.clone().detached();
        assert_eq!((own.held_bytes(), own.view()), (8, input.view()));
    }

    #[test]
    fn rows_of_a_tensor_with_memory_of_its_own_are_copied() {
        let data = TensorData::from(vec![1_i64, 2, 3, 4]);
        let tensor = Tensor::new(Shape::from_slice(&[2, 2]), data).unwrap();
        let row = tensor.rows(1..2).unwrap();
        assert_eq!(row.view(), TensorView::Int64(&[3, 4]));
        assert!(row.is_whole() && tensor.rows(1..3).is_none());
    }
}
