//! Flat elements: every datatype that a tensor can have, buffers of them, and views into those.
//!
//! Invariant: elements of one datatype are never seen as those of another.

use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use ndarray::ArrayViewD;

use super::element_count;

/// Raw tensor bodies are little-endian and are reinterpreted in place, which is only right on such a machine.
const _: () = assert!(
    cfg!(target_endian = "little"),
    "model-serving supports little-endian machines only"
);

/// The elements of every datatype that a tensor can hold: one place that names them all.
///
/// `$callback!` receives `(Variant, element type, protocol name, bytes per element)` for each fixed-size datatype.
macro_rules! for_each_plain_datatype {
    ($callback:ident) => {
        $callback! {
            (Uint8, u8, "UINT8", 1),
            (Uint16, u16, "UINT16", 2),
            (Uint32, u32, "UINT32", 4),
            (Uint64, u64, "UINT64", 8),
            (Int8, i8, "INT8", 1),
            (Int16, i16, "INT16", 2),
            (Int32, i32, "INT32", 4),
            (Int64, i64, "INT64", 8),
            (Fp16, half::f16, "FP16", 2),
            (Bf16, half::bf16, "BF16", 2),
            (Fp32, f32, "FP32", 4),
            (Fp64, f64, "FP64", 8)
        }
    };
}
pub(crate) use for_each_plain_datatype;

macro_rules! define_tensor_types {
    ($(($variant:ident, $element:ty, $name:literal, $size:literal)),+) => {
        /// The type of a tensor's elements, named as in the Open Inference Protocol.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum DataType {
            /// Truth values.
            Bool,
            $(#[doc = concat!("`", stringify!($element), "`, ", stringify!($size), " byte(s) each.")]
            $variant,)+
            /// Strings (ONNX `string`); on the wire each is a length and UTF-8 bytes.
            Bytes,
        }

        impl DataType {
            /// The name in the Open Inference Protocol, for example `FP32`.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    Self::Bool => "BOOL",
                    $(Self::$variant => $name,)+
                    Self::Bytes => "BYTES",
                }
            }

            /// Bytes per element on the wire and in memory; `None` for strings, which vary.
            #[must_use]
            pub fn size(self) -> Option<usize> {
                match self {
                    Self::Bool => Some(1),
                    $(Self::$variant => Some($size),)+
                    Self::Bytes => None,
                }
            }
        }

        /// The flat elements of one tensor, owned or borrowed from the request's body.
        #[derive(Debug, Clone)]
        pub enum TensorData {
            /// Truth values.
            Bool(Vec<bool>),
            $(#[doc = concat!("Elements of datatype ", $name, ".")]
            $variant(Elements<$element>),)+
            /// Strings.
            Bytes(Vec<String>),
        }

        /// A borrowed slice of one tensor's elements.
        #[derive(Debug, Clone, Copy, PartialEq)]
        pub enum TensorView<'a> {
            /// Truth values.
            Bool(&'a [bool]),
            $(#[doc = concat!("Elements of datatype ", $name, ".")]
            $variant(&'a [$element]),)+
            /// Strings.
            Bytes(&'a [String]),
        }

        impl TensorData {
            /// An empty buffer for elements of `datatype`.
            #[must_use]
            pub fn empty(datatype: DataType) -> Self {
                match datatype {
                    DataType::Bool => Self::Bool(Vec::new()),
                    $(DataType::$variant => Self::$variant(Elements::Owned(Vec::new())),)+
                    DataType::Bytes => Self::Bytes(Vec::new()),
                }
            }

            /// `len` zeros (`false`, empty strings) of `datatype`.
            #[must_use]
            pub fn zeros(datatype: DataType, len: usize) -> Self {
                match datatype {
                    DataType::Bool => Self::Bool(vec![false; len]),
                    $(DataType::$variant => Self::$variant(Elements::Owned(vec![<$element>::default(); len])),)+
                    DataType::Bytes => Self::Bytes(vec![String::new(); len]),
                }
            }

            /// The elements as a slice.
            #[must_use]
            pub fn view(&self) -> TensorView<'_> {
                match self {
                    Self::Bool(elements) => TensorView::Bool(elements),
                    $(Self::$variant(elements) => TensorView::$variant(elements.as_slice()),)+
                    Self::Bytes(elements) => TensorView::Bytes(elements),
                }
            }

            /// Forgets the elements and keeps the allocation for the next batch.
            pub fn clear(&mut self) {
                match self {
                    Self::Bool(elements) => elements.clear(),
                    $(Self::$variant(elements) => match elements.owned_mut() {
                        Some(owned) => owned.clear(),
                        None => *elements = Elements::Owned(Vec::new()),
                    },)+
                    Self::Bytes(elements) => elements.clear(),
                }
            }

            /// Makes `padded` rows out of `rows` by repeating the last one.
            pub fn pad(&mut self, rows: usize, padded: usize) {
                match self {
                    Self::Bool(elements) => repeat_last(elements, rows, padded),
                    $(Self::$variant(elements) => if let Some(owned) = elements.owned_mut() {
                        repeat_last(owned, rows, padded);
                    },)+
                    Self::Bytes(elements) => repeat_last(elements, rows, padded),
                }
            }

            /// Appends the elements of `view`.
            ///
            /// Returns `false`, and appends nothing, when the datatypes differ or this buffer is borrowed.
            #[must_use]
            pub fn append(&mut self, view: TensorView<'_>) -> bool {
                match (self, view) {
                    (Self::Bool(elements), TensorView::Bool(more)) => elements.extend_from_slice(more),
                    $((Self::$variant(elements), TensorView::$variant(more)) => match elements.owned_mut() {
                        Some(owned) => owned.extend_from_slice(more),
                        None => return false,
                    },)+
                    (Self::Bytes(elements), TensorView::Bytes(more)) => elements.extend_from_slice(more),
                    _ => return false,
                }
                true
            }
        }

        $(impl From<Vec<$element>> for TensorData {
            fn from(elements: Vec<$element>) -> Self {
                Self::$variant(Elements::Owned(elements))
            }
        })+

        impl<'a> TensorView<'a> {
            /// The datatype of the elements.
            #[must_use]
            pub fn datatype(&self) -> DataType {
                match self {
                    Self::Bool(_) => DataType::Bool,
                    $(Self::$variant(_) => DataType::$variant,)+
                    Self::Bytes(_) => DataType::Bytes,
                }
            }

            /// The number of elements.
            #[must_use]
            pub fn len(&self) -> usize {
                match self {
                    Self::Bool(elements) => elements.len(),
                    $(Self::$variant(elements) => elements.len(),)+
                    Self::Bytes(elements) => elements.len(),
                }
            }

            /// The elements in `range`, or `None` when it reaches beyond the end.
            #[must_use]
            pub fn slice(&self, range: Range<usize>) -> Option<TensorView<'a>> {
                Some(match self {
                    Self::Bool(elements) => Self::Bool(elements.get(range)?),
                    $(Self::$variant(elements) => Self::$variant(elements.get(range)?),)+
                    Self::Bytes(elements) => Self::Bytes(elements.get(range)?),
                })
            }

            /// The elements in `range`, or none when it reaches beyond the end.
            #[must_use]
            pub fn slice_or_empty(&self, range: Range<usize>) -> TensorView<'a> {
                match self {
                    Self::Bool(elements) => Self::Bool(elements.get(range).unwrap_or_default()),
                    $(Self::$variant(elements) => Self::$variant(elements.get(range).unwrap_or_default()),)+
                    Self::Bytes(elements) => Self::Bytes(elements.get(range).unwrap_or_default()),
                }
            }

            /// The elements as little-endian bytes; `None` for strings, whose wire form is not a copy of memory.
            #[must_use]
            pub fn as_bytes(&self) -> Option<&'a [u8]> {
                match self {
                    Self::Bool(elements) => Some(bytemuck::cast_slice(elements)),
                    $(Self::$variant(elements) => Some(bytemuck::cast_slice(elements)),)+
                    Self::Bytes(_) => None,
                }
            }
        }
    };
}
for_each_plain_datatype!(define_tensor_types);

/// Makes `padded` rows out of `rows` by repeating the last one.
fn repeat_last<T: Clone>(elements: &mut Vec<T>, rows: usize, padded: usize) {
    let row = elements.len().checked_div(rows).unwrap_or_default();
    for _ in rows..padded {
        elements.extend_from_within(elements.len() - row..);
    }
}

/// A Rust type that stands for the elements of one datatype.
pub trait Element: Sized {
    /// The elements of `view`, if they are of this type.
    fn elements(view: TensorView<'_>) -> Option<&[Self]>;
}

macro_rules! implement_element {
    ($(($variant:ident, $element:ty, $name:literal, $size:literal)),+) => {
        $(impl Element for $element {
            fn elements(view: TensorView<'_>) -> Option<&[Self]> {
                match view {
                    TensorView::$variant(elements) => Some(elements),
                    _ => None,
                }
            }
        })+
    };
}
for_each_plain_datatype!(implement_element);
implement_element!((Bool, bool, "BOOL", 1), (Bytes, String, "BYTES", 0));

impl fmt::Display for DataType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl From<Vec<bool>> for TensorData {
    fn from(elements: Vec<bool>) -> Self {
        Self::Bool(elements)
    }
}

impl From<Vec<String>> for TensorData {
    fn from(elements: Vec<String>) -> Self {
        Self::Bytes(elements)
    }
}

impl<'a> TensorView<'a> {
    /// The elements as an array of `shape`; `None` when they are of another type or number.
    #[must_use]
    pub fn as_array<T: Element>(&self, shape: &[usize]) -> Option<ArrayViewD<'a, T>> {
        // An array may be smaller than its slice, but a tensor has exactly the elements of its shape.
        let whole = element_count(shape) == Some(self.len());
        ArrayViewD::from_shape(shape, T::elements(*self).filter(|_| whole)?).ok()
    }

    /// Whether there are no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The memory that the elements occupy, in bytes.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        match self {
            Self::Bytes(strings) => strings
                .iter()
                .map(|string| string.len() + size_of::<String>())
                .sum(),
            plain => plain.as_bytes().map_or(0, <[u8]>::len),
        }
    }
}

/// Elements that are either owned or a well-aligned part of the request's body.
#[derive(Debug, Clone)]
pub enum Elements<T> {
    /// Elements in a vector of their own.
    Owned(Vec<T>),
    /// Elements that lie in a body which was received raw. Built by [`Elements::from_bytes`] only.
    Borrowed(AlignedBytes),
}

/// Bytes whose start and length suit the element type they were checked for.
#[derive(Debug, Clone)]
pub struct AlignedBytes(Bytes);

impl<T: bytemuck::Pod> Elements<T> {
    /// Takes little-endian `bytes` as elements: without a copy where they are aligned for `T`, with one otherwise.
    ///
    /// Returns `None` when the length is not a whole number of elements.
    #[must_use]
    pub fn from_bytes(bytes: Bytes) -> Option<Self> {
        if !bytes.len().is_multiple_of(size_of::<T>()) {
            return None;
        }
        match bytemuck::try_cast_slice::<u8, T>(&bytes) {
            Ok(_) => Some(Self::Borrowed(AlignedBytes(bytes))),
            Err(_) => Some(Self::Owned(bytemuck::allocation::pod_collect_to_vec(
                &bytes,
            ))),
        }
    }

    /// The elements as a slice.
    #[must_use]
    pub fn as_slice(&self) -> &[T] {
        match self {
            Self::Owned(elements) => elements,
            // The cast was tried when the bytes were taken, and `Bytes` never moves what it refers to.
            Self::Borrowed(bytes) => bytemuck::try_cast_slice(&bytes.0).unwrap_or_default(),
        }
    }

    /// The owned vector, to be filled again; `None` for borrowed elements, which cannot grow.
    fn owned_mut(&mut self) -> Option<&mut Vec<T>> {
        match self {
            Self::Owned(elements) => Some(elements),
            Self::Borrowed(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_bytes_are_borrowed_when_aligned_and_copied_when_not() {
        let floats = [1.5_f32, -2.0, 0.25, 8.0];
        // A vector of bytes may start anywhere, so look for an aligned and for an odd start inside a longer one.
        let mut padded = vec![0_u8; 8];
        padded.extend_from_slice(bytemuck::cast_slice(&floats));
        padded.extend_from_slice(&[0; 8]);
        let misalignment = padded.as_ptr().align_offset(4);
        for shift in 0..4 {
            let mut bytes = vec![0_u8; misalignment + shift];
            bytes.extend_from_slice(bytemuck::cast_slice(&floats));
            let body = Bytes::from(bytes).slice(misalignment + shift..);
            let aligned = body.as_ptr().align_offset(4) == 0;
            let elements = Elements::<f32>::from_bytes(body).unwrap();
            assert_eq!(matches!(elements, Elements::Borrowed(_)), aligned);
            assert_eq!(elements.as_slice(), floats);
        }
        assert!(Elements::<f32>::from_bytes(Bytes::from_static(&[0; 7])).is_none());
    }

    #[test]
    fn elements_are_seen_as_an_array_of_their_type_and_shape() {
        let data = TensorData::from(vec![1_i64, 2, 3, 4, 5, 6]);
        let array = data.view().as_array::<i64>(&[2, 3]).unwrap();
        assert_eq!(array[[1, 0]], 4);
        assert!(data.view().as_array::<i64>(&[2, 2]).is_none());
        assert!(data.view().as_array::<f32>(&[2, 3]).is_none());
    }

    #[test]
    fn buffers_are_reused_and_refuse_another_datatype() {
        let mut data = TensorData::empty(DataType::Int64);
        assert!(data.append(TensorView::Int64(&[1, 2])));
        assert!(!data.append(TensorView::Int32(&[3])));
        assert_eq!(data.view(), TensorView::Int64(&[1, 2]));
        data.clear();
        assert!(data.view().is_empty());
    }
}
