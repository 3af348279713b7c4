//! The tensors of a JSON body while they are read: each array is held against the signature as it comes.
//!
//! Invariant: what is read lies in one flat buffer per input, and an array that is too long is refused at its first
//! element too many.

use std::borrow::Cow;

use smallvec::SmallVec;

use super::json::{Reader, quote};
use super::listed::listed;
use super::number::{FromNumber, Number, NumberError};
use super::short_number::ShortNumber;
use crate::inference::{InvalidRequest, too_many_rows};
use crate::model::{Dim, ModelMetadata, TensorSpec};
use crate::tensor::{
    DataType, Elements, Shape, Tensor, TensorData, element_count, for_each_plain_datatype,
};

/// The tensors being read, one for each input of the signature.
pub(super) struct Columns<'a> {
    metadata: &'a ModelMetadata,
    max_rows: usize,
    columns: SmallVec<[Column; 2]>,
}

/// One tensor being read.
struct Column {
    data: TensorData,
    /// The size of each dimension, where the signature or the first array at that depth has told it.
    dims: SmallVec<[Option<usize>; 6]>,
    seen: bool,
}

impl<'a> Columns<'a> {
    /// Empty tensors with room for `capacity` elements at most.
    pub(super) fn new(metadata: &'a ModelMetadata, max_rows: usize, capacity: usize) -> Self {
        let column = |spec: &TensorSpec| {
            let size = |dim: &Dim| match dim {
                Dim::Fixed(size) => Some(*size),
                Dim::Dynamic(_) => None,
            };
            let dims: SmallVec<[Option<usize>; 6]> = spec.dims().iter().map(size).collect();
            // Rows known to be small need not be given the room of all the numbers in the body.
            let row: Option<Shape> = dims.iter().skip(1).copied().collect();
            let row = row.and_then(|row| element_count(&row));
            let bound = row.and_then(|row| row.checked_mul(metadata.row_limit(max_rows)));
            let data = with_capacity(spec, bound.map_or(capacity, |bound| bound.min(capacity)));
            Column {
                data,
                dims,
                seen: false,
            }
        };
        Self {
            metadata,
            max_rows,
            columns: metadata.inputs.iter().map(column).collect(),
        }
    }

    /// A key that names an input not seen before; returns the input's position. `row` is the instance that it stands in.
    pub(super) fn read_key(
        &mut self,
        reader: &mut Reader<'_>,
        row: Option<usize>,
    ) -> Result<usize, InvalidRequest> {
        let key: Cow<'_, str> = reader.key()?;
        let inputs = &self.metadata.inputs;
        let Some(index) = inputs.iter().position(|spec| spec.name == *key) else {
            return Err(InvalidRequest(format!(
                "unknown input '{}'{}; the model has {}",
                quote(&key),
                place(row),
                listed(inputs.iter())
            )));
        };
        if self.mark(index) {
            return Err(InvalidRequest(format!(
                "duplicate input '{}'{}",
                quote(&key),
                place(row)
            )));
        }
        Ok(index)
    }

    /// Notes that the input was seen; returns whether it had been before.
    pub(super) fn mark(&mut self, index: usize) -> bool {
        self.columns
            .get_mut(index)
            .is_some_and(|column| std::mem::replace(&mut column.seen, true))
    }

    /// Begins a new row, in which every input is to be seen again.
    pub(super) fn unmark(&mut self) {
        self.columns
            .iter_mut()
            .for_each(|column| column.seen = false);
    }

    /// Refuses what lacks an input; `row` is the instance that it stands in.
    pub(super) fn check_complete(&self, row: Option<usize>) -> Result<(), InvalidRequest> {
        let inputs = &self.metadata.inputs;
        let mut all = inputs.iter().zip(&self.columns);
        match all.find(|(_, column)| !column.seen) {
            Some((spec, _)) => Err(InvalidRequest(format!(
                "missing input '{}'{}; the model needs {}",
                spec.name,
                place(row),
                listed(inputs.iter())
            ))),
            None => Ok(()),
        }
    }

    /// Reads a value for input `index`, whose outermost array stands at dimension `level`.
    pub(super) fn read_value(
        &mut self,
        reader: &mut Reader<'_>,
        index: usize,
        level: usize,
    ) -> Result<(), InvalidRequest> {
        let (Some(spec), Some(column)) =
            (self.metadata.inputs.get(index), self.columns.get_mut(index))
        else {
            return Err(InvalidRequest("unknown input".to_owned()));
        };
        let mut nested = Nested {
            reader,
            spec,
            max_rows: self.metadata.row_limit(self.max_rows),
        };
        read_into(&mut nested, &mut column.data, &mut column.dims, level)
    }

    /// The finished tensors; `rows` is the size of the first dimension where that was not an array of its own.
    pub(super) fn finish(
        self,
        rows: Option<usize>,
    ) -> Result<SmallVec<[Tensor; 2]>, InvalidRequest> {
        let finish = |(spec, mut column): (&TensorSpec, Column)| {
            if let (Some(rows), Some(first)) = (rows, column.dims.first_mut()) {
                *first = Some(rows);
            }
            // A dimension that no array has told stands below an empty one, so its size does not matter.
            let shape: Shape = column
                .dims
                .iter()
                .map(|size| size.unwrap_or_default())
                .collect();
            let text = format!("{:?}", shape.as_slice());
            Tensor::new(shape, column.data).ok_or_else(|| {
                InvalidRequest(format!(
                    "input '{}' expects shape {}, got {text}",
                    spec.name,
                    spec.shape_text()
                ))
            })
        };
        self.metadata
            .inputs
            .iter()
            .zip(self.columns)
            .map(finish)
            .collect()
    }
}

/// In which instance something is, for people.
fn place(row: Option<usize>) -> String {
    row.map_or_else(String::new, |row| format!(" in instance {row}"))
}

/// A reader inside the arrays of one input.
struct Nested<'r, 'a> {
    reader: &'r mut Reader<'a>,
    spec: &'r TensorSpec,
    max_rows: usize,
}

impl Nested<'_, '_> {
    /// Reads the value at depth `level`: an array of the next depth, or at the innermost depth one element.
    fn read<T: ReadElement>(
        &mut self,
        out: &mut Vec<T>,
        dims: &mut [Option<usize>],
        level: usize,
    ) -> Result<(), InvalidRequest> {
        let Some(expected) = dims.get(level).copied() else {
            out.push(T::read(self)?);
            return Ok(());
        };
        if self.reader.peek() != Some(b'[') {
            return Err(self.no_array(level));
        }
        self.reader.open(b'[')?;
        let most = expected.unwrap_or(if level == 0 {
            self.max_rows
        } else {
            usize::MAX
        });
        let innermost = level + 1 == dims.len();
        let mut count = 0;
        let mut more = !self.reader.close(b']');
        while more {
            if innermost {
                count += T::read_run(self, out, most - count);
            }
            if count == most {
                return Err(self.wrong_length(level, most, "more"));
            }
            if innermost {
                out.push(T::read(self)?);
            } else {
                self.read(out, dims, level + 1)?;
            }
            count += 1;
            more = self.reader.another(b']')?;
        }
        match expected {
            Some(expected) if expected != count => {
                return Err(self.wrong_length(level, expected, &count.to_string()));
            }
            Some(_) => {}
            None => {
                if let Some(size) = dims.get_mut(level) {
                    *size = Some(count);
                }
            }
        }
        Ok(())
    }

    /// Something else than the array that the shape asks for.
    #[cold]
    fn no_array(&mut self, level: usize) -> InvalidRequest {
        let hint = match (self.reader.peek(), level) {
            (Some(b'{'), _) => {
                "; tensors are nested arrays by input name here, not objects with shape and data"
            }
            // A row where rows are expected.
            (_, 1) if self.spec.has_dynamic_first() => {
                "; one row is an array in an array, as in [[...]]"
            }
            _ => "",
        };
        let what = format!(
            "input '{}' expects {}{}, so an array at depth {level}",
            self.spec.name,
            self.spec.datatype,
            self.spec.shape_text()
        );
        self.reader.unexpected(what, hint)
    }

    /// An array that is longer or shorter than the signature, or its sibling, says.
    fn wrong_length(&self, level: usize, expected: usize, got: &str) -> InvalidRequest {
        if level == 0 && expected == self.max_rows {
            let what = format!("input '{}' has more than {expected} rows", self.spec.name);
            return too_many_rows(&what, expected);
        }
        let fixed = matches!(self.spec.dims().get(level), Some(Dim::Fixed(_)));
        let why = if fixed {
            ""
        } else {
            " like the arrays before it"
        };
        let what = format!(
            "input '{}' expects {}{}, so {expected} elements in dimension {level}{why}; got {got}",
            self.spec.name,
            self.spec.datatype,
            self.spec.shape_text()
        );
        self.reader.mismatch(what)
    }

    fn wrong_element(&self, expected: &str) -> InvalidRequest {
        let hint = match self.reader.found().as_str() {
            "an array" => format!("; its shape is {}", self.spec.shape_text()),
            "a string" => "; write it without quotes".to_owned(),
            _ => String::new(),
        };
        let what = format!("input '{}' expects {expected}", self.spec.name);
        self.reader.unexpected(what, &hint)
    }

    #[inline]
    fn number<T: FromNumber>(&mut self) -> Result<T, InvalidRequest> {
        self.reader.peek();
        match Number::read(self.reader.rest())
            .and_then(|(number, length)| Ok((T::from_number(number)?, length)))
        {
            Ok((value, length)) => {
                self.reader.advance(length);
                Ok(value)
            }
            Err(error) => Err(self.wrong_number(error)),
        }
    }

    /// Reads numbers as long as each is followed by a comma, `most` at most. What is written otherwise, and what is wrong,
    /// is left where it stands.
    fn numbers<T: FromNumber>(&mut self, out: &mut Vec<T>, most: usize) -> usize {
        let mut rest = self.reader.rest();
        let before = rest.len();
        let mut count = 0;
        while count < most {
            // Between numbers most writers put nothing, or one space.
            let number = rest.strip_prefix(b" ").unwrap_or(rest);
            let short = ShortNumber::read(number)
                .and_then(|(number, length)| Some((T::from_short(number)?, length)))
                .filter(|(_, length)| number.get(*length) == Some(&b','));
            let (value, length) = if let Some(read) = short {
                read
            } else {
                let Ok((value, length)) = Number::read(number)
                    .and_then(|(number, length)| Ok((T::from_number(number)?, length)))
                else {
                    break;
                };
                if number.get(length) != Some(&b',') {
                    break;
                }
                (value, length)
            };
            out.push(value);
            count += 1;
            rest = number.get(length + 1..).unwrap_or_default();
        }
        self.reader.advance(before - rest.len());
        count
    }

    #[cold]
    fn wrong_number(&self, error: NumberError) -> InvalidRequest {
        let datatype = self.spec.datatype;
        match error {
            NumberError::Syntax => self.wrong_element(&format!("a number ({datatype})")),
            NumberError::NotAnInteger => self.reader.mismatch(format_args!("input '{}' expects integers ({datatype}), got a number with a fraction or an exponent", self.spec.name)),
            NumberError::Range => self.reader.mismatch(format_args!("input '{}' is {datatype}, and this number does not fit into it", self.spec.name)),
        }
    }

    fn truth(&mut self) -> Result<bool, InvalidRequest> {
        if self.reader.word("true") {
            Ok(true)
        } else if self.reader.word("false") {
            Ok(false)
        } else {
            Err(self.wrong_element("true or false (BOOL)"))
        }
    }

    fn string(&mut self) -> Result<String, InvalidRequest> {
        if self.reader.peek() != Some(b'"') {
            return Err(self.wrong_element("a string (BYTES)"));
        }
        let string = self.reader.string()?;
        if string.contains('\0') {
            return Err(self.reader.mismatch(format_args!(
                "input '{}' has a string with U+0000, which the model cannot be given",
                self.spec.name
            )));
        }
        Ok(string.into_owned())
    }
}

/// An element type that JSON can express.
trait ReadElement: Sized {
    /// Reads one element.
    fn read(nested: &mut Nested<'_, '_>) -> Result<Self, InvalidRequest>;

    /// Reads elements that are each followed by another one, `most` at most, as far as that can be done faster than one
    /// by one; returns how many those were.
    fn read_run(_: &mut Nested<'_, '_>, _: &mut Vec<Self>, _most: usize) -> usize {
        0
    }
}

impl ReadElement for bool {
    fn read(nested: &mut Nested<'_, '_>) -> Result<Self, InvalidRequest> {
        nested.truth()
    }
}

impl ReadElement for String {
    fn read(nested: &mut Nested<'_, '_>) -> Result<Self, InvalidRequest> {
        nested.string()
    }
}

macro_rules! by_datatype {
    ($(($variant:ident, $element:ty, $name:literal, $size:literal)),+) => {
        $(impl ReadElement for $element {
            #[inline]
            fn read(nested: &mut Nested<'_, '_>) -> Result<Self, InvalidRequest> {
                nested.number()
            }

            #[inline]
            fn read_run(nested: &mut Nested<'_, '_>, out: &mut Vec<Self>, most: usize) -> usize {
                nested.numbers(out, most)
            }
        })+

        /// An empty buffer with room for `capacity` elements of the datatype of `spec`.
        fn with_capacity(spec: &TensorSpec, capacity: usize) -> TensorData {
            match spec.datatype {
                DataType::Bool => TensorData::Bool(Vec::with_capacity(capacity)),
                $(DataType::$variant => TensorData::from(Vec::<$element>::with_capacity(capacity)),)+
                DataType::Bytes => TensorData::Bytes(Vec::with_capacity(capacity)),
            }
        }

        /// Reads a value into `data`, by its datatype.
        fn read_into(
            nested: &mut Nested<'_, '_>,
            data: &mut TensorData,
            dims: &mut [Option<usize>],
            level: usize,
        ) -> Result<(), InvalidRequest> {
            match data {
                TensorData::Bool(out) => nested.read(out, dims, level),
                TensorData::Bytes(out) => nested.read(out, dims, level),
                $(TensorData::$variant(Elements::Owned(out)) => nested.read(out, dims, level),)+
                // Buffers to be filled are always owned; a borrowed one would be a body that is already complete.
                $(TensorData::$variant(Elements::Borrowed(_)) => Err(InvalidRequest("the input was already given".to_owned())),)+
            }
        }
    };
}
for_each_plain_datatype!(by_datatype);
