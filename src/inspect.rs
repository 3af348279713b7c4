//! `model-serving inspect`: what a model is, before it is served.
//!
//! Invariant: what is printed is found by the very code that serves.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::container;
use crate::loading::{self, Fixed, LoadingError, Prepared, sessions};
use crate::model::repository;
use crate::model::{Dim, ModelMetadata, TensorSpec};
use crate::runtime::LoadError;
use crate::runtime::library::Library;
use crate::runtime::provider::{CudaConfig, Device};
use crate::runtime::session::{RunMemory, SessionConfig};
use crate::tensor::{DataType, element_count};

/// Example bodies are printed for inputs of at most this many elements; larger ones are shown as raw tensors.
const MAX_EXAMPLE: usize = 64;

/// What is to be described, and with which of the settings that change what is found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InspectConfig {
    /// An `.onnx` file, or a repository folder.
    pub path: PathBuf,
    /// The name of a single-file model.
    pub name: Option<String>,
    /// ONNX Runtime's library; searched if not given.
    pub library: Option<PathBuf>,
    /// The device to execute on.
    pub device: Device,
    /// How CUDA is used, where it is.
    pub cuda: CudaConfig,
    /// What is not to be chosen.
    pub fixed: Fixed,
    /// How long settings may be tried that the user has not fixed; not at all if not given.
    pub tuning_time: Option<Duration>,
    /// Bytes that requests, and as much again that runs on the CPU, may hold at once.
    pub max_inflight_bytes: usize,
}

/// Describes the model, or the models of a repository, as they would be served.
///
/// # Errors
/// When there is none, or it could not be served.
pub fn describe(config: &InspectConfig) -> Result<String, LoadingError> {
    let sources = repository::find(&config.path, config.name.as_deref())?;
    let library = Library::load(config.library.as_deref()).map_err(LoadError::from)?;
    let mut text = String::new();
    for source in sources {
        let session = SessionConfig {
            device: config.device,
            cuda: config.cuda,
            run_memory: Some(RunMemory::within(
                container::memory(),
                config.max_inflight_bytes,
            )),
            most_sessions: sessions::most_sessions(config.fixed),
        };
        let settings = (config.fixed, config.tuning_time);
        let prepared = loading::prepare(&library, &source, session, settings, None)?;
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
    let opened = &prepared.opened;
    write!(text, "device     {}", opened.provider.device())?;
    match &opened.fallback {
        Some(reason) => writeln!(text, ": {reason}")?,
        None => writeln!(text)?,
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
            prepared.merge_rows
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
    let tried = &prepared.trial.tried;
    if merging.reason() == "limit" {
        writeln!(text, "rests on   the setting, whatever was tried: {tried}")
    } else {
        writeln!(text, "rests on   {tried}")
    }
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
        .map(|spec| element_count(&sizes(spec)).unwrap_or(usize::MAX))
        .fold(0, usize::saturating_add);
    if let ([spec], true) = (metadata.inputs.as_slice(), elements > MAX_EXAMPLE) {
        let bytes = elements.saturating_mul(spec.datatype.size().unwrap_or(4));
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
