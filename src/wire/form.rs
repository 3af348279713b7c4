//! What an answer is to look like: which outputs, in which form, and why it cannot.

use smallvec::SmallVec;

use super::json::quote;
use super::listed::listed;
use crate::inference::InvalidRequest;
use crate::model::ModelMetadata;
use crate::tensor::Tensor;

/// Positions of the outputs that the client asked for, in its order.
pub type Selection = SmallVec<[usize; 4]>;

/// How a request is written, and so its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// One array per tensor (`inputs`, `outputs`).
    Columns,
    /// One value or object for each of so many rows (`instances`, `predictions`).
    Rows(usize),
}

/// Why an answer cannot be written as asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EncodeError {
    /// It holds NaN or infinity, and JSON was asked for.
    NotFinite {
        /// The output that holds it.
        output: String,
    },
    /// It is larger than an answer may be.
    TooLarge {
        /// The limit in bytes.
        max_bytes: usize,
    },
    /// Rows were asked for, and an output has none, or not one for each row of the request.
    NotRows {
        /// The output.
        output: String,
    },
    /// One raw tensor was asked for, and several outputs are selected.
    SeveralOutputs,
}

/// Adds the output `name` to `selection`.
///
/// # Errors
/// When the model has no such output, or it was selected before.
pub fn select(
    selection: &mut Selection,
    name: &str,
    metadata: &ModelMetadata,
) -> Result<(), InvalidRequest> {
    let Some(index) = metadata.outputs.iter().position(|spec| spec.name == name) else {
        let names = metadata.outputs.iter().map(|spec| spec.name.as_str());
        return Err(InvalidRequest(format!(
            "unknown output '{}'; the model has {}",
            quote(name),
            listed(names)
        )));
    };
    if selection.contains(&index) {
        return Err(InvalidRequest(format!("duplicate output '{name}'")));
    }
    selection.push(index);
    Ok(())
}

/// One output of an answer, with its name.
pub(super) struct Selected<'a> {
    pub(super) name: &'a str,
    pub(super) rows: &'a Tensor,
}
