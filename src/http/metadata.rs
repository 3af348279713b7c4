//! `GET /v2/models/{model}`, also `/versions/{version}`: what a model is, as the Open Inference Protocol says it.
//!
//! Invariant: what stands here is what requests are held against.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::Serialize;

use super::app::App;
use super::error::ApiError;
use super::health::json;
use super::predict::not_utf8;
use crate::model::{Dim, TensorSpec};
use crate::models::served::ServedModel;

#[derive(Serialize)]
struct Metadata<'a> {
    name: &'a str,
    /// Those that are served.
    versions: Vec<&'a str>,
    platform: &'static str,
    inputs: Vec<TensorMetadata<'a>>,
    outputs: Vec<TensorMetadata<'a>>,
    /// What the protocol leaves to servers: the device and why it is that one, and how requests are merged.
    properties: BTreeMap<&'static str, String>,
}

#[derive(Serialize)]
struct TensorMetadata<'a> {
    name: &'a str,
    datatype: &'static str,
    /// A dimension that a request may choose is -1.
    shape: Vec<i64>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    labels: &'a [String],
}

impl<'a> TensorMetadata<'a> {
    fn of(spec: &'a TensorSpec) -> Self {
        let size = |dim: &Dim| match dim {
            Dim::Fixed(size) => i64::try_from(*size).unwrap_or(i64::MAX),
            Dim::Dynamic(_) => -1,
        };
        Self {
            name: &spec.name,
            datatype: spec.datatype.name(),
            shape: spec.dims().iter().map(size).collect(),
            labels: &spec.labels,
        }
    }
}

/// The metadata of the model's highest version, or 404.
pub(super) async fn metadata(
    State(app): State<Arc<App>>,
    name: Result<Path<String>, PathRejection>,
) -> Response {
    let Ok(Path(name)) = name else {
        return not_utf8().into_response();
    };
    answer(&app, &name, None)
}

/// The metadata of one version of the model, or 404.
pub(super) async fn version_metadata(
    State(app): State<Arc<App>>,
    path: Result<Path<(String, String)>, PathRejection>,
) -> Response {
    let Ok(Path((name, version))) = path else {
        return not_utf8().into_response();
    };
    answer(&app, &name, Some(&version))
}

fn answer(app: &App, name: &str, version: Option<&str>) -> Response {
    match app.service.resolve(Some(name), version) {
        Ok(model) => {
            let models = app.registry.models();
            let versions = models.versions(name).collect();
            json(StatusCode::OK, &describe(&model, versions))
        }
        Err(error) => ApiError::from(error).into_response(),
    }
}

fn describe<'a>(model: &'a ServedModel, versions: Vec<&'a str>) -> Metadata<'a> {
    let metadata = &model.metadata;
    let mut properties = BTreeMap::from([
        ("device", model.device.clone()),
        ("execution_provider", model.execution_provider.to_owned()),
        (
            "merge_rows",
            model.scheduler.config().merge_rows.to_string(),
        ),
        ("sha256", metadata.sha256.clone()),
    ]);
    let nodes = model.assignment.counts().into_iter();
    let nodes: Vec<String> = nodes
        .map(|(provider, nodes)| format!("{provider} {nodes}"))
        .collect();
    properties.insert("nodes", nodes.join(", "));
    if !metadata.description.is_empty() {
        properties.insert("description", metadata.description.clone());
    }
    if let Some(reason) = &model.fallback {
        properties.insert("device_reason", reason.clone());
    }
    let rows = [
        ("max_batch_size", model.max_batch_size()),
        ("max_request_rows", model.max_request_rows()),
    ];
    for (name, rows) in rows {
        properties.extend(rows.map(|rows| (name, rows.to_string())));
    }
    let reasons = [
        ("not_batched_because", model.not_batched_because()),
        ("unmeasured", model.unmeasured()),
    ];
    for (name, reason) in reasons {
        properties.extend(reason.map(|reason| (name, reason.to_owned())));
    }
    Metadata {
        name: &metadata.name,
        versions,
        platform: "onnxruntime_onnx",
        inputs: metadata.inputs.iter().map(TensorMetadata::of).collect(),
        outputs: metadata.outputs.iter().map(TensorMetadata::of).collect(),
        properties,
    }
}
