//! `/predict` bodies in JSON, parsed straight into flat tensors.
//!
//! Two forms: columns, `{"inputs": {"x": [[...]]}}`, one array per input; and rows, `{"instances": [...]}`, one value
//! or object per row. Invariant: no nested vectors and no tree of values are ever built; every key stands once.

use smallvec::SmallVec;

use super::columns::Columns;
use super::form::{Form, Selection, select};
use super::json::{Reader, quote};
use super::listed::listed;
use crate::inference::{InvalidRequest, no_rows, too_many_rows};
use crate::model::{ModelMetadata, TensorSpec};
use crate::tensor::Tensor;

/// A parsed body.
#[derive(Debug)]
pub(super) struct JsonRequest {
    pub(super) inputs: SmallVec<[Tensor; 2]>,
    pub(super) selection: Option<Selection>,
    pub(super) form: Form,
}

/// The elements that `body` can hold at most: one more than its commas. Used to set memory aside beforehand.
pub(super) fn max_elements(body: &[u8]) -> usize {
    memchr::memchr_iter(b',', body).count() + 1
}

/// Parses `body` for the model that `metadata` describes.
pub(super) fn parse(
    body: &[u8],
    metadata: &ModelMetadata,
    max_rows: usize,
    max_depth: usize,
) -> Result<JsonRequest, InvalidRequest> {
    let mut reader = Reader::new(body, max_depth)?;
    let capacity = max_elements(body);
    let mut columns: Option<(Form, SmallVec<[Tensor; 2]>)> = None;
    let mut selection = None;
    if reader.peek() != Some(b'{') {
        let hint = format!("; send {}", example(metadata));
        if body.trim_ascii().is_empty() {
            let message = format!("invalid JSON: the body is empty{hint}");
            return Err(InvalidRequest(message));
        }
        return Err(reader.unexpected("expected an object", &hint));
    }
    reader.open(b'{')?;
    let mut more = !reader.close(b'}');
    while more {
        let key = reader.key()?;
        match (key.as_ref(), &columns) {
            ("inputs", None) => {
                columns = Some((
                    Form::Columns,
                    read_columns(&mut reader, metadata, max_rows, capacity)?,
                ));
            }
            ("instances", None) => {
                let (tensors, rows) = read_rows(&mut reader, metadata, max_rows, capacity)?;
                columns = Some((Form::Rows(rows), tensors));
            }
            ("inputs" | "instances", Some(_)) => {
                return Err(InvalidRequest(
                    "expected one of 'inputs' and 'instances', once; got a second".to_owned(),
                ));
            }
            ("outputs", _) if selection.is_none() => {
                selection = Some(read_selection(&mut reader, metadata)?);
            }
            ("outputs", _) => {
                return Err(InvalidRequest("duplicate key 'outputs'".to_owned()));
            }
            (other, _) => {
                let is_input = metadata.inputs.iter().any(|spec| spec.name == other);
                let message = if is_input {
                    format!(
                        "input '{}' is outside 'inputs'; expected {}",
                        quote(other),
                        example(metadata)
                    )
                } else {
                    format!(
                        "unknown key '{}'; expected 'inputs' or 'instances', and optionally 'outputs'",
                        quote(other)
                    )
                };
                return Err(InvalidRequest(message));
            }
        }
        more = reader.another(b'}')?;
    }
    reader.end()?;
    let Some((form, inputs)) = columns else {
        let message = format!("missing 'inputs'; expected {}", example(metadata));
        return Err(InvalidRequest(message));
    };
    Ok(JsonRequest {
        inputs,
        selection,
        form,
    })
}

/// The shortest body that would be right, for error messages.
fn example(metadata: &ModelMetadata) -> String {
    let input = |spec: &TensorSpec| {
        let (name, datatype, shape) = (&spec.name, spec.datatype, spec.shape_text());
        format!("\"{name}\": {datatype}{shape}")
    };
    format!(
        "{{\"inputs\": {{{}}}}}",
        listed(metadata.inputs.iter().map(input))
    )
}

/// The value of `inputs`: an object of arrays, or the one array of a model with one input.
fn read_columns(
    reader: &mut Reader<'_>,
    metadata: &ModelMetadata,
    max_rows: usize,
    capacity: usize,
) -> Result<SmallVec<[Tensor; 2]>, InvalidRequest> {
    let mut columns = Columns::new(metadata, max_rows, capacity);
    if let ([_], false) = (metadata.inputs.as_slice(), reader.peek() == Some(b'{')) {
        columns.read_value(reader, 0, 0)?;
        columns.mark(0);
    } else {
        if reader.peek() != Some(b'{') {
            let hint = match metadata.inputs.len() {
                0 => "; the model has no inputs, so that it is {}".to_owned(),
                inputs => format!(
                    "; the model has {inputs} inputs, each to be given by its name: {}",
                    listed(metadata.inputs.iter())
                ),
            };
            return Err(reader.unexpected("'inputs' is to be an object", &hint));
        }
        reader.open(b'{')?;
        let mut more = !reader.close(b'}');
        while more {
            let index = columns.read_key(reader, None)?;
            columns.read_value(reader, index, 0)?;
            more = reader.another(b'}')?;
        }
    }
    columns.check_complete(None)?;
    columns.finish(None)
}

/// The value of `instances`: an array with one value per row (one input), or one object per row.
fn read_rows(
    reader: &mut Reader<'_>,
    metadata: &ModelMetadata,
    max_rows: usize,
    capacity: usize,
) -> Result<(SmallVec<[Tensor; 2]>, usize), InvalidRequest> {
    if let Some(scalar) = metadata.inputs.iter().find(|spec| spec.dims().is_empty()) {
        let message = format!(
            "'instances' needs inputs with a first dimension to stack rows along, and '{}' is a scalar; send 'inputs'",
            scalar.name
        );
        return Err(InvalidRequest(message));
    }
    let mut columns = Columns::new(metadata, max_rows, capacity);
    if reader.peek() != Some(b'[') {
        let hint = "; it has one value, or one object of values by input, for each row";
        return Err(reader.unexpected("'instances' is to be an array", hint));
    }
    reader.open(b'[')?;
    let mut rows = 0;
    let mut more = !reader.close(b']');
    while more {
        if rows == metadata.row_limit(max_rows) {
            let what = format!("'instances' has more than {max_rows} rows");
            return Err(too_many_rows(&what, max_rows));
        }
        if reader.peek() == Some(b'{') {
            columns.unmark();
            reader.open(b'{')?;
            let mut members = !reader.close(b'}');
            while members {
                let index = columns.read_key(reader, Some(rows))?;
                columns.read_value(reader, index, 1)?;
                members = reader.another(b'}')?;
            }
            columns.check_complete(Some(rows))?;
        } else if metadata.inputs.len() == 1 {
            columns.read_value(reader, 0, 1)?;
        } else {
            let hint = format!(
                "; the model has {} inputs: {}",
                metadata.inputs.len(),
                listed(metadata.inputs.iter())
            );
            let what = format!("instance {rows} is to be an object with a value for each input");
            return Err(reader.unexpected(what, &hint));
        }
        rows += 1;
        more = reader.another(b']')?;
    }
    // Also of a model whose first dimension is no batch: this form is about rows.
    if rows == 0 {
        return Err(no_rows());
    }
    Ok((columns.finish(Some(rows))?, rows))
}

/// The value of `outputs`: names of the model's outputs, each at most once.
fn read_selection(
    reader: &mut Reader<'_>,
    metadata: &ModelMetadata,
) -> Result<Selection, InvalidRequest> {
    let mut selection = Selection::new();
    if reader.peek() != Some(b'[') {
        let names = metadata.outputs.iter().map(|spec| spec.name.as_str());
        let hint = format!("; the model has {}", listed(names));
        return Err(reader.unexpected("'outputs' is to be an array of names", &hint));
    }
    reader.open(b'[')?;
    let mut more = !reader.close(b']');
    while more {
        select(&mut selection, &reader.string()?, metadata)?;
        more = reader.another(b']')?;
    }
    if selection.is_empty() {
        return Err(InvalidRequest(
            "'outputs' is empty; name at least one output, or leave the key out".to_owned(),
        ));
    }
    Ok(selection)
}
