//! What a model is: the signature of its session, and what the file and the sidecar say of it.
//!
//! Invariant: an input or output that cannot be served, and a sidecar that contradicts the model, fail the load.

use ort::session::Session;
use ort::value::{Outlet, ValueType};

use crate::model::onnx::OnnxFile;
use crate::model::repository::ModelSource;
use crate::model::sidecar::Sidecar;
use crate::model::{Batchability, Dim, ModelMetadata, TensorSpec};
use crate::runtime::{LoadError, output};

/// Reads the signature out of the session, and adds what the file and its sidecar say.
pub(super) fn read_metadata(
    session: &Session,
    file: &OnnxFile,
    source: &ModelSource,
) -> Result<ModelMetadata, LoadError> {
    let signature = |kind: &str, outlets: &[Outlet]| -> Result<Vec<TensorSpec>, LoadError> {
        let spec = |outlet| {
            read_spec(outlet, file).map_err(|reason| LoadError::Signature {
                path: file.path.clone(),
                reason: format!("{kind} '{}' {reason}", outlet.name()),
            })
        };
        outlets.iter().map(spec).collect()
    };
    let inputs = signature("input", session.inputs())?;
    let mut outputs = signature("output", session.outputs())?;
    if let Some(unranked) = inputs.iter().find(|spec| spec.dims.is_none()) {
        let reason = format!(
            "input '{}' states no shape; export the model with the shapes of its inputs",
            unranked.name
        );
        return Err(LoadError::Signature {
            path: file.path.clone(),
            reason,
        });
    }
    apply_labels(&mut outputs, &source.sidecar).map_err(|reason| LoadError::Sidecar {
        path: file.path.clone(),
        reason,
    })?;
    Ok(ModelMetadata {
        name: source.name.clone(),
        version: source.version.clone(),
        description: source
            .sidecar
            .description
            .clone()
            .unwrap_or_else(|| file.description.clone()),
        batchability: Batchability::of(&inputs),
        inputs,
        outputs,
        sha256: file.sha256.clone(),
        file_size: file.bytes.len() as u64,
        opsets: file.opsets.clone(),
        producer: file.producer.clone(),
        properties: file.properties.clone(),
    })
}

fn read_spec(outlet: &Outlet, file: &OnnxFile) -> Result<TensorSpec, String> {
    let ValueType::Tensor {
        ty,
        shape,
        dimension_symbols,
    } = outlet.dtype()
    else {
        return Err("is not a tensor; sequences and maps cannot be served (for scikit-learn models, export with zipmap off)".to_owned());
    };
    let datatype = output::datatype_of(*ty)
        .ok_or_else(|| format!("has the datatype {ty}, which cannot be served"))?;
    let symbols = dimension_symbols
        .iter()
        .map(String::as_str)
        .chain(std::iter::repeat(""));
    let dims: Vec<Dim> = shape
        .iter()
        .zip(symbols)
        .map(|(size, symbol)| read_dim(*size, symbol))
        .collect();
    // ONNX Runtime reports a missing shape like a scalar's; only the file can tell them apart.
    let unranked = dims.is_empty() && file.unranked.contains(outlet.name());
    Ok(TensorSpec {
        name: outlet.name().to_owned(),
        datatype,
        dims: (!unranked).then_some(dims),
        labels: Vec::new(),
    })
}

fn read_dim(size: i64, symbol: &str) -> Dim {
    match usize::try_from(size) {
        Ok(size) => Dim::Fixed(size),
        Err(_) => Dim::dynamic(symbol),
    }
}

fn apply_labels(outputs: &mut [TensorSpec], sidecar: &Sidecar) -> Result<(), String> {
    for (name, settings) in &sidecar.outputs {
        let known: Vec<&str> = outputs.iter().map(|spec| spec.name.as_str()).collect();
        let unknown = format!(
            "[outputs.{name}] is not an output; the model has {}",
            known.join(", ")
        );
        let spec = outputs
            .iter_mut()
            .find(|spec| spec.name == *name)
            .ok_or(unknown)?;
        if let Some(Dim::Fixed(size)) = spec.dims().last()
            && !settings.labels.is_empty()
            && settings.labels.len() != *size
        {
            return Err(format!(
                "[outputs.{name}] has {} labels for a last dimension of {size}",
                settings.labels.len()
            ));
        }
        spec.labels.clone_from(&settings.labels);
    }
    Ok(())
}
