//! `model-serving inspect`: what a model is, before it is served.
//!
//! Invariant: what is printed is found by the very code that serves.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::container;
use crate::curl;
use crate::model::faults;
use crate::model::onnx::RawModel;
use crate::model::repository;
use crate::model::{Dim, ModelMetadata, TensorSpec};
use crate::models::cpus;
use crate::models::loading::{self, LoadingError, Prepared};
use crate::models::settings::{Fixed, Settings};
use crate::runtime::LoadError;
use crate::runtime::example::{self, Example, NoExample};
use crate::runtime::library::Library;
use crate::runtime::providers::{CudaConfig, Device};
use crate::runtime::session::{RunMemory, SessionConfig};
use crate::telemetry::progress::{self, Progress};

/// How long a request to try may be looked for.
const EXAMPLE_TIME: Duration = Duration::from_secs(10);

/// Where the server is by default.
const ADDRESS: &str = "localhost:8000";

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
    /// Whether it is described for programs, as one JSON object.
    pub json: bool,
}

/// What was found out of a model, or of the models of a repository.
#[derive(Debug)]
pub struct Description {
    /// What is to be printed.
    pub text: String,
    /// Why some of the models could not be served, if so. They keep the others from nothing.
    pub fault: Option<LoadingError>,
}

/// Describes the model, or the models of a repository, as they would be served. Says on standard error what takes long.
///
/// # Errors
/// When there is none, or none could be served.
pub fn describe(config: &InspectConfig) -> Result<Description, LoadingError> {
    let mut found = repository::look(&config.path, config.name.as_deref())?;
    if let Some(error) = found.emptiness(&config.path) {
        return Err(error.into());
    }
    let broken = found.broken.drain(..);
    let mut faults: Vec<LoadingError> = broken.map(|broken| broken.fault.into()).collect();
    let mut described = 0;
    let library = Library::load(config.library.as_deref()).map_err(LoadError::from)?;
    let mut text = String::new();
    let mut models = Vec::new();
    let cpus = cpus::share(cpus::available(), found.sources.len());
    for source in &found.sources {
        let _progress = Progress::told(&source.name);
        let settings = match Settings::resolve(config.fixed, &source.sidecar, cpus) {
            Ok(settings) => settings,
            Err(reason) => {
                let path = source.path.clone();
                faults.push(LoadError::Sidecar { path, reason }.into());
                continue;
            }
        };
        let session = SessionConfig {
            device: config.device,
            cuda: config.cuda,
            run_memory: Some(RunMemory::within(
                container::memory(),
                config.max_inflight_bytes,
            )),
            most_sessions: settings.most_sessions(),
        };
        let settings = (&settings, config.tuning_time);
        let raw = RawModel::read(&source.path);
        let prepared = loading::prepare(&library, source, raw, session, settings, None);
        let mut prepared = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                faults.push(error.into());
                continue;
            }
        };
        described += 1;
        progress::stage("looking for a request to try");
        let model = prepared.sessions.models.first_mut();
        let example = model.map_or(Err(NoExample::Refused), |model| {
            example::find(model, EXAMPLE_TIME)
        });
        if config.json {
            models.push(model_as_json(
                &prepared,
                &source.path,
                example.as_ref().ok(),
            ));
        } else {
            // Writing into a string cannot fail.
            let _ = describe_model(&mut text, &prepared, &source.path, &example);
        }
    }
    let failed: Vec<String> = faults.iter().map(ToString::to_string).collect();
    let fault = match faults::refuse(faults, LoadingError::Several) {
        Err(fault) if described == 0 => return Err(fault),
        refused => refused.err(),
    };
    let skipped = found.skipped.named();
    if config.json {
        let skipped: Vec<Value> = skipped
            .iter()
            .map(|skipped| json!({"path": skipped.path, "reason": skipped.reason}))
            .collect();
        let all = json!({
            "onnxruntime": library.version(),
            "models": models,
            "failed": failed,
            "skipped": skipped,
            "skipped_more": found.skipped.more(),
        });
        text = format!("{all:#}\n");
    } else {
        for skipped in skipped {
            let _ = writeln!(text, "skipped    {skipped}");
        }
    }
    Ok(Description { text, fault })
}

/// The same as of [`describe_model`], for programs.
fn model_as_json(prepared: &Prepared<'_>, path: &Path, example: Option<&Example>) -> Value {
    let metadata: &ModelMetadata = &prepared.trial.metadata;
    let specs = |specs: &[TensorSpec]| -> Vec<Value> {
        let spec = |spec: &TensorSpec| {
            let dims = spec.dims.as_ref().map(|dims| {
                let dim = |dim: &Dim| match dim {
                    Dim::Fixed(size) => json!(size),
                    Dim::Dynamic(symbol) => json!(symbol.as_deref().unwrap_or("?")),
                };
                dims.iter().map(dim).collect::<Vec<Value>>()
            });
            json!({
                "name": spec.name,
                "datatype": spec.datatype.name(),
                "shape": dims,
                "labels": spec.labels,
            })
        };
        specs.iter().map(spec).collect()
    };
    let opened = &prepared.opened;
    let request = example.map(|example| {
        json!({
            "curl": curl::command(example, ADDRESS, &metadata.name, ""),
            "shapes": example
                .inputs
                .iter()
                .map(|input| (input.name.clone(), json!(input.shape)))
                .collect::<serde_json::Map<_, _>>(),
        })
    });
    json!({
        "name": metadata.name,
        "version": metadata.version,
        "description": metadata.description,
        "file": path.display().to_string(),
        "bytes": metadata.file_size,
        "sha256": metadata.sha256,
        "opsets": metadata.opsets,
        "producer": metadata.producer,
        "inputs": specs(&metadata.inputs),
        "outputs": specs(&metadata.outputs),
        "device": opened.provider.device().to_string(),
        "device_reason": opened.fallback,
        "batching": {
            "merged": prepared.merging.is_on(),
            "merge_rows": prepared.merge_rows,
            "reason": prepared.merging.reason(),
            "text": prepared.merging_reason,
            "rests_on": prepared.trial.tried,
        },
        "properties": metadata.properties,
        "request": request,
    })
}

fn describe_model(
    text: &mut String,
    prepared: &Prepared<'_>,
    path: &Path,
    example: &Result<Example, NoExample>,
) -> std::fmt::Result {
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
    match example {
        Ok(example) => {
            let curl = curl::command(example, ADDRESS, &metadata.name, "");
            writeln!(text, "try        {curl}\n")
        }
        Err(NoExample::Refused) => writeln!(
            text,
            "try        no request was found that the model takes: it refuses zeros, halves and ones in every size that was tried; send real values\n"
        ),
        Err(NoExample::NotFinite) => writeln!(
            text,
            "try        no request was found whose answer JSON can express: zeros, halves and ones give NaN or infinity; send real values\n"
        ),
        Err(NoExample::NoTime) => writeln!(
            text,
            "try        no request was found in the {} s that there were for it; send real values\n",
            EXAMPLE_TIME.as_secs()
        ),
    }
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
