//! `model-serving inspect`: what a model is, before it is served.
//!
//! Invariant: what is printed is found by the very code that serves.

use std::fmt::Write;
use std::path::Path;

use crate::container;
use crate::loading::{
    self, DEFAULT_RUN_MEMORY, DEFAULT_TUNING_TIME, Fixed, LoadingError, Prepared, sessions,
};
use crate::model::repository;
use crate::model::{Dim, ModelMetadata, TensorSpec};
use crate::runtime::LoadError;
use crate::runtime::library::Library;
use crate::runtime::provider::{CudaConfig, Device};
use crate::runtime::session::{RunMemory, SessionConfig};
use crate::tensor::DataType;

/// Example bodies are printed for inputs of at most this many elements; larger ones are shown as raw tensors.
const MAX_EXAMPLE: usize = 64;

/// Describes the model, or the models of a repository, at `path`.
///
/// # Errors
/// When there is none, or it could not be served.
pub fn describe(path: &Path, library: Option<&Path>) -> Result<String, LoadingError> {
    let sources = repository::find(path, None)?;
    let library = Library::load(library).map_err(LoadError::from)?;
    let mut text = String::new();
    for source in sources {
        let config = SessionConfig {
            device: Device::Cpu,
            cuda: CudaConfig::default(),
            run_memory: Some(RunMemory::within(container::memory(), DEFAULT_RUN_MEMORY)),
            most_sessions: sessions::most_sessions(Fixed::default()),
        };
        let settings = (Fixed::default(), Some(DEFAULT_TUNING_TIME));
        let prepared = loading::prepare(&library, &source, config, settings, None)?;
        // Writing into a string cannot fail.
        let _ = describe_model(&mut text, &prepared, &source.path);
    }
    Ok(text)
}

fn describe_model(text: &mut String, prepared: &Prepared<'_>, path: &Path) -> std::fmt::Result {
    let metadata: &ModelMetadata = &prepared.trial.metadata;
    writeln!(text, "{} version {}", metadata.name, metadata.version)?;
    if !metadata.description.is_empty() {
        writeln!(text, "  {}", metadata.description.replace('\n', " "))?;
    }
    writeln!(
        text,
        "file       {} ({} bytes)",
        path.display(),
        metadata.file_size
    )?;
    writeln!(text, "sha256     {}", metadata.sha256)?;
    let opsets: Vec<String> = metadata
        .opsets
        .iter()
        .map(|(domain, version)| format!("{domain} {version}"))
        .collect();
    writeln!(text, "opset      {}", opsets.join(", "))?;
    if !metadata.producer.is_empty() {
        writeln!(text, "producer   {}", metadata.producer)?;
    }
    for (kind, specs) in [("input", &metadata.inputs), ("output", &metadata.outputs)] {
        for spec in specs {
            write!(
                text,
                "{kind:<10} {} {} {}",
                spec.name,
                spec.datatype,
                spec.shape_text()
            )?;
            if !spec.labels.is_empty() {
                write!(text, "  labels: {}", spec.labels.join(", "))?;
            }
            writeln!(text)?;
        }
    }
    describe_batching(text, prepared)?;
    for (key, value) in &metadata.properties {
        writeln!(text, "property   {key}: {}", value.replace('\n', " "))?;
    }
    writeln!(text, "try        {}\n", example(metadata))
}

/// What `serve` would do, the kind of reason for it as the metrics name it, and what that rests on.
fn describe_batching(text: &mut String, prepared: &Prepared<'_>) -> std::fmt::Result {
    let merging = prepared.merging;
    if merging.is_on() {
        writeln!(
            text,
            "batching   rows of several requests share an execution, up to {}",
            prepared.sessions.choice.merge_rows
        )?;
    } else {
        let reason = prepared.merging_reason.as_deref().unwrap_or_default();
        writeln!(text, "batching   none: {reason}")?;
    }
    match (merging.reason(), &prepared.merging_reason) {
        ("", _) => {}
        (kind, Some(reason)) if merging.is_on() => writeln!(text, "reason     {kind}: {reason}")?,
        (kind, _) => writeln!(text, "reason     {kind}")?,
    }
    writeln!(text, "rests on   {}", prepared.trial.tried)
}

/// A request that works: JSON where it is short enough to read, else zeros as a raw tensor.
fn example(metadata: &ModelMetadata) -> String {
    let url = format!("localhost:8000/v1/models/{}:predict", metadata.name);
    let sizes = |spec: &TensorSpec| -> Vec<usize> {
        spec.dims()
            .iter()
            .map(|dim| if let Dim::Fixed(size) = dim { *size } else { 1 })
            .collect()
    };
    let elements: usize = metadata
        .inputs
        .iter()
        .map(|spec| sizes(spec).iter().product::<usize>())
        .sum();
    if let ([spec], true) = (metadata.inputs.as_slice(), elements > MAX_EXAMPLE) {
        let bytes = elements * spec.datatype.size().unwrap_or(4);
        let sizes: Vec<String> = sizes(spec).iter().map(ToString::to_string).collect();
        return format!(
            "head -c {bytes} /dev/zero | curl {url} -H 'Content-Type: application/octet-stream' -H 'X-Tensor-Shape: {}' --data-binary @-",
            sizes.join(",")
        );
    }
    let inputs: Vec<String> = metadata
        .inputs
        .iter()
        .map(|spec| format!("\"{}\": {}", spec.name, zeros(&sizes(spec), spec.datatype)))
        .collect();
    format!(
        "curl {url} -H 'Content-Type: application/json' -d '{{\"inputs\": {{{}}}}}'",
        inputs.join(", ")
    )
}

/// Nested arrays of zeros.
fn zeros(sizes: &[usize], datatype: DataType) -> String {
    match sizes {
        [] => match datatype {
            DataType::Bool => "false".to_owned(),
            DataType::Bytes => "\"\"".to_owned(),
            _ => "0".to_owned(),
        },
        [count, rest @ ..] => format!("[{}]", vec![zeros(rest, datatype); *count].join(",")),
    }
}
