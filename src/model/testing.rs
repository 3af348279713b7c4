//! Signatures for the tests of every layer.

use std::collections::BTreeMap;

use super::{Batchability, Dim, ModelMetadata, TensorSpec};
use crate::tensor::DataType;

/// Metadata of a model with FP32 tensors of these names and dimensions (a number, a symbol, or nothing).
pub(crate) fn metadata(inputs: &[(&str, &[&str])], outputs: &[(&str, &[&str])]) -> ModelMetadata {
    let specs = |tensors: &[(&str, &[&str])]| -> Vec<TensorSpec> {
        let dim = |dim: &&str| match dim.parse() {
            Ok(size) => Dim::Fixed(size),
            Err(_) => Dim::Dynamic((!dim.is_empty()).then(|| (*dim).to_owned())),
        };
        let spec = |(name, dims): &(&str, &[&str])| TensorSpec {
            name: (*name).to_owned(),
            datatype: DataType::Fp32,
            dims: Some(dims.iter().map(dim).collect()),
            labels: Vec::new(),
        };
        tensors.iter().map(spec).collect()
    };
    let (inputs, outputs) = (specs(inputs), specs(outputs));
    ModelMetadata {
        name: "fake".to_owned(),
        version: "1".to_owned(),
        description: String::new(),
        batchability: Batchability::of(&inputs),
        inputs,
        outputs,
        sha256: String::new(),
        file_size: 0,
        opsets: BTreeMap::new(),
        producer: String::new(),
        properties: BTreeMap::new(),
    }
}
