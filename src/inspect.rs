//! `model-serving inspect`: what a model is, before it is served.
//!
//! Invariant: what is printed is read by the very code that serves.

use std::fmt::Write;
use std::num::NonZeroUsize;
use std::path::Path;

use crate::container;
use crate::loading::{self, DEFAULT_MAX_BATCH_SIZE, DEFAULT_RUN_MEMORY, LoadingError, RunMemory};
use crate::model::repository;
use crate::model::{Dim, ModelMetadata, TensorSpec};
use crate::runtime::LoadError;
use crate::runtime::library::Library;
use crate::runtime::provider::{CudaConfig, Device};
use crate::runtime::session::{self, Placement, SessionConfig};
use crate::tensor::DataType;

/// Example bodies are printed for inputs of at most this many elements; larger ones are shown as raw tensors.
const MAX_EXAMPLE: usize = 64;

/// Describes the model, or the models of a repository, at `path`.
///
/// # Errors
/// When there is none, or it could not be served.
pub fn describe(path: &Path, library: Option<&Path>) -> Result<String, LoadingError> {
    let sources = repository::find(path, None)?;
    let memory = RunMemory::within(container::memory(), DEFAULT_RUN_MEMORY);
    let library = Library::load(library, Some(memory.usual)).map_err(LoadError::from)?;
    let mut text = String::new();
    for source in sources {
        let config = SessionConfig {
            device: Device::Cpu,
            cuda: CudaConfig::default(),
        };
        let mut loaded = session::load(&library, &source, config, |_| Placement {
            instances: 1,
            intra_op_threads: 1,
        })?;
        let batching = &source.sidecar.batching;
        let max_batch_size = batching
            .max_batch_size
            .map_or(DEFAULT_MAX_BATCH_SIZE, NonZeroUsize::get);
        for model in &mut loaded.models {
            let (metadata, _) =
                loading::check_batching(model, max_batch_size, max_batch_size, false, &source)?;
            // Writing into a string cannot fail.
            let _ = describe_model(&mut text, &metadata, &source.path);
        }
    }
    Ok(text)
}

fn describe_model(text: &mut String, metadata: &ModelMetadata, path: &Path) -> std::fmt::Result {
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
    match metadata.batchability.reason() {
        None => writeln!(
            text,
            "batching   rows of several requests share an execution"
        )?,
        Some(reason) => writeln!(text, "batching   none: {reason}")?,
    }
    for (key, value) in &metadata.properties {
        writeln!(text, "property   {key}: {}", value.replace('\n', " "))?;
    }
    writeln!(text, "try        {}\n", example(metadata))
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
