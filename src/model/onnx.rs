//! The few fields of an ONNX file that we read ourselves, before ONNX Runtime sees it.
//!
//! Invariant: a file that passes [`OnnxFile::check`] refers to no data outside its own folder. Models drive native
//! code and may name other files to be read into memory; a model that could name `/etc/passwd` would publish it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::io::Read as _;
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::flow::{Flow, Known};
use super::impostor::{self, Impostor};
use super::operators::Operators;
use super::proto::{AttributeProto, GraphProto, ModelProto, NodeProto};
use super::rows::{self, Rows};
use super::work;

/// The largest file that Protocol Buffers, and so ONNX, allows.
const MAX_BYTES: u64 = 2 << 30;

/// Why a model file was refused.
#[derive(Debug, Error)]
pub enum OnnxFileError {
    /// The file could not be read.
    #[error("cannot read model {path}: {source}; check the path and its permissions", path = .path.display())]
    Read {
        /// The model's path.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file is not an ONNX model.
    #[error("{path} is not an ONNX model ({reason}); export the model again, or check that the copy is complete", path = .path.display())]
    NotOnnx {
        /// The model's path.
        path: PathBuf,
        /// What was missing.
        reason: String,
    },
    /// The file is a known kind of file, and no ONNX model.
    #[error("{path} is not an ONNX model: it is {}; {}", .found.what, .found.fix, path = .path.display())]
    Impostor {
        /// The model's path.
        path: PathBuf,
        /// What it is.
        found: Impostor,
    },
    /// The model names data outside its own folder.
    #[error("{path} refers to external data '{location}', which {reason}; keep external data as plain files in the model's folder", path = .path.display())]
    ExternalData {
        /// The model's path.
        path: PathBuf,
        /// The location that the model names.
        location: String,
        /// Why it is refused.
        reason: String,
    },
}

/// An ONNX file in memory, checked.
#[derive(Debug)]
pub struct OnnxFile {
    /// Where it was read from.
    pub path: PathBuf,
    /// The very bytes that were checked and hashed, and that ONNX Runtime will load.
    pub bytes: Vec<u8>,
    /// The folder in which external data may lie.
    pub folder: PathBuf,
    /// SHA-256 of the bytes, in hexadecimal.
    pub sha256: String,
    /// The version of the format.
    pub ir_version: i64,
    /// Operator-set versions by domain.
    pub opsets: BTreeMap<String, i64>,
    /// The tool that wrote the file.
    pub producer: String,
    /// The author's description.
    pub description: String,
    /// The author's own key-value pairs.
    pub properties: BTreeMap<String, String>,
    /// Names of the inputs and outputs that state no shape at all.
    pub unranked: BTreeSet<String>,
    /// Bytes of the external data that the model names.
    pub external_bytes: u64,
    /// Whether the work of a run follows from the shapes of its inputs, whatever their values.
    pub bounded_work: bool,
    /// What each output follows from, by name.
    pub flows: BTreeMap<String, Flow>,
    /// Whether each output keeps the rows of a batch apart, by name.
    pub rows: BTreeMap<String, Rows>,
    /// The operators of its graph, by which faults and refusals are told.
    pub operators: Operators,
}

/// A model's file in memory, before it is checked; read once for each load, however often it is needed.
#[derive(Debug)]
pub struct RawModel {
    path: PathBuf,
    /// The bytes, or why there are none.
    bytes: Result<Bytes, OnnxFileError>,
}

impl RawModel {
    /// Reads the file at `path`. What is wrong with it is told by [`OnnxFile::check`].
    #[must_use]
    pub fn read(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            bytes: read_bytes(path),
        }
    }

    /// The files that the model names for its weights, whether they are there or not; none if it is no model.
    #[must_use]
    pub fn external_data(&self) -> Vec<PathBuf> {
        let bytes = self.bytes.as_ref().ok();
        let model = bytes.and_then(|bytes| ModelProto::read(bytes.clone()));
        let locations = model.map(|model| model.external_locations());
        let folder = self.path.parent().unwrap_or(Path::new(""));
        let locations = locations.into_iter().flatten();
        locations.map(|name| folder.join(name)).collect()
    }
}

/// The bytes of the model at `path`.
fn read_bytes(path: &Path) -> Result<Bytes, OnnxFileError> {
    let read_error = |source| OnnxFileError::Read {
        path: path.to_owned(),
        source,
    };
    let not_onnx = |reason: &str| OnnxFileError::NotOnnx {
        path: path.to_owned(),
        reason: reason.to_owned(),
    };
    // Looked at first: reading a pipe may never end, and a huge file that is no model is not worth its memory.
    let metadata = fs::metadata(path).map_err(read_error)?;
    if !metadata.is_file() {
        return Err(not_onnx("it is not a file"));
    }
    if metadata.len() > MAX_BYTES {
        let head = head(path).map_err(read_error)?;
        let reason = "no ONNX file is larger than 2 GiB; weights beyond that are external data";
        return Err(what_else(path, &head).unwrap_or_else(|| not_onnx(reason)));
    }
    Ok(Bytes::from(fs::read(path).map_err(read_error)?))
}

impl OnnxFile {
    /// Checks a model that was read.
    ///
    /// # Errors
    /// When the file could not be read, is not ONNX, or refers to data outside its folder.
    pub fn check(model: RawModel) -> Result<Self, OnnxFileError> {
        let RawModel { path, bytes } = model;
        let path = path.as_path();
        let read_error = |source| OnnxFileError::Read {
            path: path.to_owned(),
            source,
        };
        let not_onnx = |reason: &str| OnnxFileError::NotOnnx {
            path: path.to_owned(),
            reason: reason.to_owned(),
        };
        // Shared with the messages that are read from them, which end with this function.
        let bytes = bytes?;
        let parent = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let folder = parent.canonicalize().map_err(read_error)?;

        if bytes.is_empty() {
            return Err(not_onnx("it is empty"));
        }
        let no_model = |reason| what_else(path, &bytes).unwrap_or_else(|| not_onnx(reason));
        let model = ModelProto::read(bytes.clone()).ok_or_else(|| no_model("it does not parse"))?;
        let Some(graph) = &model.graph else {
            return Err(no_model("it holds no graph"));
        };
        if model.opset_import.is_empty() {
            return Err(no_model("it states no operator set"));
        }

        let locations = model.external_locations();
        let mut external_bytes = 0;
        for location in locations {
            external_bytes += fs::metadata(folder.join(&location)).map_or(0, |file| file.len());
            check_location(&folder, &location).map_err(|reason| OnnxFileError::ExternalData {
                path: path.to_owned(),
                location,
                reason,
            })?;
        }

        let unranked = graph
            .input
            .iter()
            .chain(&graph.output)
            .filter(|value| value.shape().is_none());
        let unranked = unranked.map(|value| value.name.clone()).collect();
        // A function of the file's own may have the name of any operator.
        let is_plain = !graph.calls(&model.functions);
        let (flows, rows) = if is_plain {
            follow(graph, &model)
        } else {
            (BTreeMap::new(), BTreeMap::new())
        };
        let operators = Operators::of(graph);
        let bounded_work = is_plain && has_bounded_work(graph);
        let producer = [
            model.producer_name.as_str(),
            model.producer_version.as_str(),
        ]
        .join(" ")
        .trim()
        .to_owned();
        let opsets = model.opset_import.iter();
        let opsets = opsets.map(|opset| (default_domain(opset.domain.clone()), opset.version));
        let opsets = opsets.collect();
        let properties = model.metadata_props.iter();
        let properties = properties.map(|entry| (entry.key.clone(), entry.value.clone()));
        let properties = properties.collect();
        let description = model.doc_string.clone();
        let ir_version = model.ir_version;
        // Nothing shares the bytes any more, so that they are not copied.
        drop(model);
        Ok(Self {
            path: path.to_owned(),
            sha256: hexadecimal(&Sha256::digest(&bytes)),
            bytes: bytes.into(),
            folder,
            ir_version,
            opsets,
            producer,
            description,
            properties,
            unranked,
            external_bytes,
            bounded_work,
            flows,
            rows,
            operators,
        })
    }
}

/// The start of a file that is too large to be read.
fn head(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::new();
    fs::File::open(path)?.take(4096).read_to_end(&mut head)?;
    Ok(head)
}

/// What the file at `path` is, if it is known to be something else than a model.
fn what_else(path: &Path, bytes: &[u8]) -> Option<OnnxFileError> {
    let found = impostor::identify(path, bytes)?;
    Some(OnnxFileError::Impostor {
        path: path.to_owned(),
        found,
    })
}

fn weights(graph: &GraphProto) -> impl Iterator<Item = &str> {
    graph.initializer.iter().map(|tensor| tensor.name.as_str())
}

fn has_bounded_work(graph: &GraphProto) -> bool {
    work::is_bounded(weights(graph), graph.node.iter().map(node))
}

/// What each output of `graph` follows from, and whether it keeps rows apart, by name.
fn follow(
    graph: &GraphProto,
    model: &ModelProto,
) -> (BTreeMap<String, Flow>, BTreeMap<String, Rows>) {
    let known = known(graph);
    let outputs = || graph.output.iter().map(|value| &value.name);
    let flows = outputs().map(|name| (name.clone(), known.flow(name)));
    let rows = rows::of_outputs(graph, &model.opset_import, &known);
    (flows.collect(), outputs().cloned().zip(rows).collect())
}

/// What follows from sizes in `graph`.
pub(super) fn known(graph: &GraphProto) -> Known<'_> {
    let inputs = graph.input.iter().map(|value| value.name.as_str());
    Known::of(weights(graph), inputs, graph.node.iter().map(node))
}

fn node(node: &NodeProto) -> work::Node<'_> {
    let is_graph =
        |attribute: &AttributeProto| attribute.g.is_some() || !attribute.graphs.is_empty();
    work::Node {
        domain: &node.domain,
        operator: &node.op_type,
        inputs: &node.input,
        outputs: &node.output,
        has_subgraph: node.attribute.iter().any(is_graph),
    }
}

/// The empty domain is the standard's own.
fn default_domain(domain: String) -> String {
    if domain.is_empty() {
        "ai.onnx".to_owned()
    } else {
        domain
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing into a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Checks that `location` is a plain file inside `folder`, whatever links lie on the way.
fn check_location(folder: &Path, location: &str) -> Result<(), String> {
    let relative = Path::new(location);
    // `a/../b` may stay inside and still differ for whoever resolves it next, so no parent component is accepted.
    let plain = relative
        .components()
        .all(|component| matches!(component, Component::Normal(_) | Component::CurDir));
    if location.is_empty() || !plain {
        return Err("leaves the model's folder".to_owned());
    }
    let resolved = folder
        .join(relative)
        .canonicalize()
        .map_err(|error| format!("cannot be read ({})", error.kind()))?;
    if !resolved.starts_with(folder) {
        return Err("leaves the model's folder through a link".to_owned());
    }
    let metadata = resolved
        .metadata()
        .map_err(|error| format!("cannot be read ({})", error.kind()))?;
    if !metadata.is_file() {
        return Err("is not a plain file".to_owned());
    }
    // A hard link is the one way to bring in a file from elsewhere that no path check can see.
    #[cfg(unix)]
    if std::os::unix::fs::MetadataExt::nlink(&metadata) > 1 {
        return Err("is a hard link".to_owned());
    }
    Ok(())
}
