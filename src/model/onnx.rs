//! The few fields of an ONNX file that we read ourselves, before ONNX Runtime sees it.
//!
//! Invariant: a file that passes [`OnnxFile::read`] refers to no data outside its own folder. Models drive native
//! code and may name other files to be read into memory; a model that could name `/etc/passwd` would publish it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Component, Path, PathBuf};

use prost::Message;
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::flow::{self, Flow};
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
}

impl OnnxFile {
    /// Reads and checks the model at `path`.
    ///
    /// # Errors
    /// When the file cannot be read, is not ONNX, or refers to data outside its folder.
    pub fn read(path: &Path) -> Result<Self, OnnxFileError> {
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
            return Err(not_onnx("no ONNX file is larger than 2 GiB"));
        }
        let bytes = fs::read(path).map_err(read_error)?;
        let parent = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let folder = parent.canonicalize().map_err(read_error)?;

        if bytes.is_empty() {
            return Err(not_onnx("it is empty"));
        }
        let model =
            ModelProto::decode(bytes.as_slice()).map_err(|_| not_onnx("it does not parse"))?;
        let Some(graph) = &model.graph else {
            return Err(not_onnx("it holds no graph"));
        };
        if model.opset_import.is_empty() {
            return Err(not_onnx("it states no operator set"));
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
            .filter(|value| !value.has_shape());
        let unranked = unranked.map(|value| value.name.clone()).collect();
        // A function of the file's own may have the name of any operator.
        let flows = if model.functions.is_empty() {
            graph.flows()
        } else {
            BTreeMap::new()
        };
        let bounded_work = model.functions.is_empty() && graph.has_bounded_work();
        let producer = [
            model.producer_name.as_str(),
            model.producer_version.as_str(),
        ]
        .join(" ")
        .trim()
        .to_owned();
        Ok(Self {
            path: path.to_owned(),
            sha256: hexadecimal(&Sha256::digest(&bytes)),
            bytes,
            folder,
            opsets: model
                .opset_import
                .into_iter()
                .map(|opset| (default_domain(opset.domain), opset.version))
                .collect(),
            producer,
            description: model.doc_string,
            properties: model
                .metadata_props
                .into_iter()
                .map(|entry| (entry.key, entry.value))
                .collect(),
            unranked,
            external_bytes,
            bounded_work,
            flows,
        })
    }
}

/// The files that the model at `path` names for its weights, whether they are there or not; none if it is no model.
#[must_use]
pub fn external_data(path: &Path) -> Vec<PathBuf> {
    let is_small_file = |metadata: &fs::Metadata| metadata.is_file() && metadata.len() <= MAX_BYTES;
    let readable = fs::metadata(path).is_ok_and(|metadata| is_small_file(&metadata));
    let bytes = readable.then(|| fs::read(path).ok()).flatten();
    let model = bytes.and_then(|bytes| ModelProto::decode(bytes.as_slice()).ok());
    let locations = model.map(|model| model.external_locations());
    let folder = path.parent().unwrap_or(Path::new(""));
    let locations = locations.into_iter().flatten();
    locations.map(|name| folder.join(name)).collect()
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

// The messages below name only the fields we read (onnx.proto3 of ONNX IR version 10); the decoder skips all others
// without copying them, so weights cost nothing here.

#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(string, tag = "2")]
    producer_name: String,
    #[prost(string, tag = "3")]
    producer_version: String,
    #[prost(string, tag = "6")]
    doc_string: String,
    #[prost(message, optional, tag = "7")]
    graph: Option<GraphProto>,
    #[prost(message, repeated, tag = "8")]
    opset_import: Vec<OperatorSetIdProto>,
    #[prost(message, repeated, tag = "14")]
    metadata_props: Vec<StringStringEntryProto>,
    #[prost(message, repeated, tag = "25")]
    functions: Vec<FunctionProto>,
}

#[derive(Clone, PartialEq, Message)]
struct OperatorSetIdProto {
    #[prost(string, tag = "1")]
    domain: String,
    #[prost(int64, tag = "2")]
    version: i64,
}

#[derive(Clone, PartialEq, Message)]
struct StringStringEntryProto {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
struct FunctionProto {
    #[prost(message, repeated, tag = "7")]
    node: Vec<NodeProto>,
}

#[derive(Clone, PartialEq, Message)]
struct GraphProto {
    #[prost(message, repeated, tag = "1")]
    node: Vec<NodeProto>,
    #[prost(message, repeated, tag = "5")]
    initializer: Vec<TensorProto>,
    #[prost(message, repeated, tag = "11")]
    input: Vec<ValueInfoProto>,
    #[prost(message, repeated, tag = "12")]
    output: Vec<ValueInfoProto>,
    #[prost(message, repeated, tag = "15")]
    sparse_initializer: Vec<SparseTensorProto>,
}

#[derive(Clone, PartialEq, Message)]
struct NodeProto {
    #[prost(string, repeated, tag = "1")]
    input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    output: Vec<String>,
    #[prost(string, tag = "4")]
    op_type: String,
    #[prost(string, tag = "7")]
    domain: String,
    #[prost(message, repeated, tag = "5")]
    attribute: Vec<AttributeProto>,
}

#[derive(Clone, PartialEq, Message)]
struct AttributeProto {
    #[prost(message, optional, tag = "5")]
    t: Option<TensorProto>,
    #[prost(message, optional, tag = "6")]
    g: Option<GraphProto>,
    #[prost(message, repeated, tag = "10")]
    tensors: Vec<TensorProto>,
    #[prost(message, repeated, tag = "11")]
    graphs: Vec<GraphProto>,
    #[prost(message, optional, tag = "22")]
    sparse_tensor: Option<SparseTensorProto>,
    #[prost(message, repeated, tag = "23")]
    sparse_tensors: Vec<SparseTensorProto>,
}

#[derive(Clone, PartialEq, Message)]
struct TensorProto {
    #[prost(string, tag = "8")]
    name: String,
    #[prost(message, repeated, tag = "13")]
    external_data: Vec<StringStringEntryProto>,
}

#[derive(Clone, PartialEq, Message)]
struct SparseTensorProto {
    #[prost(message, optional, tag = "1")]
    values: Option<TensorProto>,
    #[prost(message, optional, tag = "2")]
    indices: Option<TensorProto>,
}

#[derive(Clone, PartialEq, Message)]
struct ValueInfoProto {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    r#type: Option<TypeProto>,
}

#[derive(Clone, PartialEq, Message)]
struct TypeProto {
    #[prost(message, optional, tag = "1")]
    tensor_type: Option<TensorTypeProto>,
}

#[derive(Clone, PartialEq, Message)]
struct TensorTypeProto {
    #[prost(message, optional, tag = "2")]
    shape: Option<TensorShapeProto>,
}

#[derive(Clone, PartialEq, Message)]
struct TensorShapeProto {}

impl ValueInfoProto {
    fn has_shape(&self) -> bool {
        self.r#type
            .as_ref()
            .and_then(|ty| ty.tensor_type.as_ref())
            .is_some_and(|tensor| tensor.shape.is_some())
    }
}

impl ModelProto {
    /// Every external location that the model names.
    fn external_locations(&self) -> BTreeSet<String> {
        let mut locations = BTreeSet::new();
        if let Some(graph) = &self.graph {
            graph.collect_external(&mut locations);
        }
        let functions = self.functions.iter();
        functions
            .flat_map(|function| &function.node)
            .for_each(|node| node.collect_external(&mut locations));
        locations
    }
}

impl GraphProto {
    /// Adds every external location named by this graph or one nested in it.
    fn collect_external(&self, locations: &mut BTreeSet<String>) {
        self.initializer
            .iter()
            .for_each(|tensor| tensor.collect_external(locations));
        self.sparse_initializer
            .iter()
            .for_each(|sparse| sparse.collect_external(locations));
        self.node
            .iter()
            .for_each(|node| node.collect_external(locations));
    }
}

impl GraphProto {
    fn has_bounded_work(&self) -> bool {
        let constants = self.initializer.iter().map(|tensor| tensor.name.as_str());
        work::is_bounded(constants, self.node.iter().map(NodeProto::as_node))
    }

    fn flows(&self) -> BTreeMap<String, Flow> {
        let outputs = || self.output.iter().map(|value| value.name.as_str());
        let flows = flow::of_outputs(
            self.initializer.iter().map(|tensor| tensor.name.as_str()),
            self.input.iter().map(|value| value.name.as_str()),
            self.node.iter().map(NodeProto::as_node),
            outputs(),
        );
        outputs().map(str::to_owned).zip(flows).collect()
    }
}

impl NodeProto {
    fn as_node(&self) -> work::Node<'_> {
        let is_graph =
            |attribute: &AttributeProto| attribute.g.is_some() || !attribute.graphs.is_empty();
        work::Node {
            domain: &self.domain,
            operator: &self.op_type,
            inputs: &self.input,
            outputs: &self.output,
            has_subgraph: self.attribute.iter().any(is_graph),
        }
    }

    fn collect_external(&self, locations: &mut BTreeSet<String>) {
        for attribute in &self.attribute {
            attribute
                .t
                .iter()
                .chain(&attribute.tensors)
                .for_each(|tensor| tensor.collect_external(locations));
            attribute
                .g
                .iter()
                .chain(&attribute.graphs)
                .for_each(|graph| graph.collect_external(locations));
            let sparse = attribute
                .sparse_tensor
                .iter()
                .chain(&attribute.sparse_tensors);
            sparse.for_each(|tensor| tensor.collect_external(locations));
        }
    }
}

impl SparseTensorProto {
    fn collect_external(&self, locations: &mut BTreeSet<String>) {
        self.values
            .iter()
            .chain(&self.indices)
            .for_each(|tensor| tensor.collect_external(locations));
    }
}

impl TensorProto {
    /// A tensor that names a location is checked whether or not it is also marked as external: one field may lie.
    fn collect_external(&self, locations: &mut BTreeSet<String>) {
        let entries = self
            .external_data
            .iter()
            .filter(|entry| entry.key == "location");
        locations.extend(entries.map(|entry| entry.value.clone()));
    }
}
