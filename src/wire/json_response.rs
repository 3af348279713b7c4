//! `/predict` answers in JSON, printed straight from the outputs' memory.
//!
//! Invariant: a number that JSON cannot express is never changed into another; it is an error that says how to get it.

use half::{bf16, f16};

use super::form::{EncodeError, Form, Selected};
use crate::tensor::{TensorView, element_count, for_each_plain_datatype};

/// Elements that are printed between two looks at the size of the text.
const CHUNK: usize = 1024;

/// A JSON text being written.
struct Writer {
    text: Vec<u8>,
    max_bytes: usize,
}

/// Writes the answer in `form`.
pub(super) fn write(
    model_name: &str,
    model_version: &str,
    outputs: &[Selected<'_>],
    form: Form,
    max_bytes: usize,
) -> Result<Vec<u8>, EncodeError> {
    // Eleven characters are what a number takes on average; one reallocation too many does not matter.
    let elements: usize = outputs.iter().map(|output| output.rows.view().len()).sum();
    let capacity = elements
        .saturating_mul(11)
        .saturating_add(128)
        .min(max_bytes);
    let mut writer = Writer {
        text: Vec::with_capacity(capacity),
        max_bytes,
    };
    match form {
        Form::Columns => {
            writer.raw("{\"model_name\":");
            writer.string(model_name);
            writer.raw(",\"model_version\":");
            writer.string(model_version);
            writer.raw(",\"outputs\":{");
            for (index, output) in outputs.iter().enumerate() {
                writer.separator(index);
                writer.string(output.name);
                writer.raw(":");
                writer.array(output, output.rows.shape(), output.rows.view())?;
            }
            writer.raw("}}");
        }
        Form::Rows(rows) => write_rows(&mut writer, outputs, rows)?,
    }
    Ok(writer.text)
}

/// One value per row for a single output, one object per row for several.
fn write_rows(
    writer: &mut Writer,
    outputs: &[Selected<'_>],
    rows: usize,
) -> Result<(), EncodeError> {
    let shapes: Vec<_> = outputs.iter().map(|output| output.rows.shape()).collect();
    for (output, shape) in outputs.iter().zip(&shapes) {
        if shape.first() != Some(&rows) {
            return Err(EncodeError::NotRows {
                output: output.name.to_owned(),
            });
        }
    }
    writer.raw("{\"predictions\":[");
    for row in 0..rows {
        writer.separator(row);
        if outputs.len() != 1 {
            writer.raw("{");
        }
        for (index, (output, shape)) in outputs.iter().zip(&shapes).enumerate() {
            if outputs.len() != 1 {
                writer.separator(index);
                writer.string(output.name);
                writer.raw(":");
            }
            let row_shape = shape.get(1..).unwrap_or_default();
            let row_len = element_count(row_shape).unwrap_or(0);
            let view = output.rows.view().slice(row * row_len..(row + 1) * row_len);
            let view = view.ok_or_else(|| EncodeError::NotRows {
                output: output.name.to_owned(),
            })?;
            writer.array(output, row_shape, view)?;
        }
        if outputs.len() != 1 {
            writer.raw("}");
        }
    }
    writer.raw("]}");
    Ok(())
}

impl Writer {
    #[inline]
    fn raw(&mut self, text: &str) {
        self.text.extend_from_slice(text.as_bytes());
    }

    #[inline]
    fn separator(&mut self, index: usize) {
        if index > 0 {
            self.text.push(b',');
        }
    }

    fn string(&mut self, text: &str) {
        // Writing a string into memory cannot fail.
        let _ = serde_json::to_writer(&mut self.text, text);
    }

    /// Writes `view` as arrays nested by `shape`; a scalar is written bare.
    fn array(
        &mut self,
        output: &Selected<'_>,
        shape: &[usize],
        view: TensorView<'_>,
    ) -> Result<(), EncodeError> {
        let not_finite = || EncodeError::NotFinite {
            output: output.name.to_owned(),
        };
        write_by_datatype(self, shape, view).map_err(|failure| match failure {
            Failure::NotFinite => not_finite(),
            Failure::TooLarge => EncodeError::TooLarge {
                max_bytes: self.max_bytes,
            },
        })
    }

    fn nested<T: Element>(&mut self, shape: &[usize], elements: &[T]) -> Result<(), Failure> {
        match shape {
            [] => elements
                .iter()
                .try_for_each(|element| element.write(&mut self.text)),
            [_] => {
                self.text.push(b'[');
                for (index, chunk) in elements.chunks(CHUNK).enumerate() {
                    self.separator(index);
                    for (index, element) in chunk.iter().enumerate() {
                        self.separator(index);
                        element.write(&mut self.text)?;
                    }
                    self.check_size()?;
                }
                self.text.push(b']');
                Ok(())
            }
            [count, rest @ ..] => {
                self.text.push(b'[');
                // Beside a zero, a product that overflows is zero.
                let length = element_count(rest).unwrap_or(0);
                for index in 0..*count {
                    self.separator(index);
                    let part = elements
                        .get(index * length..(index + 1) * length)
                        .unwrap_or_default();
                    self.nested(rest, part)?;
                }
                self.text.push(b']');
                // Empty innermost arrays hold no elements, but there can be many of them.
                self.check_size()
            }
        }
    }

    fn check_size(&self) -> Result<(), Failure> {
        if self.text.len() > self.max_bytes {
            Err(Failure::TooLarge)
        } else {
            Ok(())
        }
    }
}

/// Why an output cannot be written.
enum Failure {
    NotFinite,
    TooLarge,
}

macro_rules! by_datatype {
    ($(($variant:ident, $element:ty, $name:literal, $size:literal)),+) => {
        fn write_by_datatype(writer: &mut Writer, shape: &[usize], view: TensorView<'_>) -> Result<(), Failure> {
            match view {
                TensorView::Bool(elements) => writer.nested(shape, elements),
                $(TensorView::$variant(elements) => writer.nested(shape, elements),)+
                TensorView::Bytes(elements) => writer.nested(shape, elements),
            }
        }
    };
}
for_each_plain_datatype!(by_datatype);

/// An element that JSON can express.
trait Element {
    fn write(&self, text: &mut Vec<u8>) -> Result<(), Failure>;
}

macro_rules! integers {
    ($($element:ty),+) => {
        $(impl Element for $element {
            #[inline]
            fn write(&self, text: &mut Vec<u8>) -> Result<(), Failure> {
                text.extend_from_slice(itoa::Buffer::new().format(*self).as_bytes());
                Ok(())
            }
        })+
    };
}
integers!(u8, u16, u32, u64, i8, i16, i32, i64);

macro_rules! floats {
    ($($element:ty),+) => {
        $(impl Element for $element {
            /// The shortest digits that read back as the same number.
            #[inline]
            fn write(&self, text: &mut Vec<u8>) -> Result<(), Failure> {
                if !self.is_finite() {
                    return Err(Failure::NotFinite);
                }
                text.extend_from_slice(zmij::Buffer::new().format_finite(*self).as_bytes());
                Ok(())
            }
        })+
    };
}
floats!(f32, f64);

impl Element for f16 {
    fn write(&self, text: &mut Vec<u8>) -> Result<(), Failure> {
        self.to_f32().write(text)
    }
}

impl Element for bf16 {
    fn write(&self, text: &mut Vec<u8>) -> Result<(), Failure> {
        self.to_f32().write(text)
    }
}

impl Element for bool {
    fn write(&self, text: &mut Vec<u8>) -> Result<(), Failure> {
        text.extend_from_slice(if *self { b"true" } else { b"false" });
        Ok(())
    }
}

impl Element for String {
    fn write(&self, text: &mut Vec<u8>) -> Result<(), Failure> {
        // Writing a string into memory cannot fail.
        let _ = serde_json::to_writer(text, self);
        Ok(())
    }
}
