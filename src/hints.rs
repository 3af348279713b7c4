//! What whoever starts the server at a terminal can do next: commands to copy, printed when it is ready.
//!
//! Invariant: each command works as it stands, on this machine, for the models that are served now; where keys are asked
//! for, after one was set.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::address;
use crate::curl;
use crate::models::registry::Registry;
use crate::models::served::ServedModel;
use crate::telemetry::logging::HINTS;
use crate::text_file;

/// Models that get a command of their own; of a large repository the first ones will do.
const MODELS: usize = 3;

/// The most samples that are looked at.
const MAX_SAMPLES: usize = 16;

/// The most bytes of a sample.
const MAX_SAMPLE: usize = 1 << 20;

/// Whether anybody sees commands: they are for a terminal.
pub(crate) fn are_shown() -> bool {
    tracing::enabled!(target: HINTS, tracing::Level::INFO)
}

/// Prints commands for a server that has just become ready at `address` with the models at `path`.
pub(crate) fn at_ready(address: SocketAddr, path: &Path, registry: &Registry, needs_key: bool) {
    let url = format!("http://{}", address::for_clients(address));
    let key = if needs_key {
        " -H \"Authorization: Bearer $API_KEY\""
    } else {
        ""
    };
    hint(&format!("curl {}", curl::url(&url, "/ready")));
    if needs_key {
        hint("API_KEY=...   # a key of --api-key-file (API_KEY_FILE), for the following commands");
    }
    let models = registry.models();
    for model in models
        .names()
        .filter_map(|name| models.get(name))
        .take(MODELS)
    {
        let name = &model.metadata.name;
        let described = curl::url(&url, &format!("/v2/models/{name}"));
        hint(&format!("curl {described}{key}"));
        if let Some(sample) = sample_for(path, model) {
            let predict = curl::url(&url, &format!("/v1/models/{name}:predict"));
            hint(&format!(
                "curl {predict}{key} -H 'Content-Type: application/json' --data @{}",
                sample.display()
            ));
        } else if let Some(example) = &model.example {
            hint(&curl::command(example, &url, name, key));
        }
    }
}

fn hint(command: &str) {
    tracing::info!(target: HINTS, "{command}");
}

/// A sample beside the model at `path` that `model` takes.
fn sample_for(path: &Path, model: &ServedModel) -> Option<PathBuf> {
    sample_beside(path, |inputs| {
        let mut wanted = model.metadata.inputs.iter();
        wanted.all(|input| inputs.contains_key(&input.name))
    })
}

/// The first file of the folder `samples` beside the model file at `path` whose inputs are what `fits` wants.
fn sample_beside(path: &Path, fits: impl Fn(&Map<String, Value>) -> bool) -> Option<PathBuf> {
    if path.is_dir() {
        return None;
    }
    let folder = path.parent()?.join("samples");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|file| file.extension().is_some_and(|ending| ending == "json"))
        .collect();
    files.sort();
    files.into_iter().take(MAX_SAMPLES).find(|file| {
        // A path that a shell would read otherwise is none to copy.
        let plain = |c: char| c.is_ascii_alphanumeric() || "/-_.".contains(c);
        let is_plain = file.to_str().is_some_and(|path| path.chars().all(plain));
        let body = text_file::read(file, MAX_SAMPLE).ok();
        let body = body.and_then(|text| serde_json::from_str::<Value>(&text).ok());
        let inputs = body
            .as_ref()
            .and_then(|body| body.get("inputs")?.as_object());
        is_plain && inputs.is_some_and(&fits)
    })
}
