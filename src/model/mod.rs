//! What a model is, seen from outside: its name, its signature, and where its file lies.
//!
//! Invariant: nothing here executes a model, and nothing here knows how a request travels.

pub mod default;
pub mod faults;
pub mod fingerprint;
pub mod flow;
pub mod impostor;
pub mod limits;
mod name;
pub mod onnx;
pub mod operators;
mod proto;
pub mod repository;
pub mod rows;
pub mod sidecar;
#[cfg(test)]
pub(crate) mod testing;
pub mod versions;
mod work;

pub use name::is_name;

use std::collections::BTreeMap;
use std::fmt;

use crate::tensor::DataType;

/// One dimension of a tensor in a model's signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dim {
    /// Always this size.
    Fixed(usize),
    /// Any size. Dimensions of one signature that share a symbol are meant to have the same size in one request; where
    /// they do not, it is the graph's operators that refuse, or broadcast.
    Dynamic(Option<String>),
}

impl Dim {
    /// A dynamic dimension that the graph calls `symbol`, if that says more than "unknown".
    ///
    /// A name that two dimensions share by accident must not make one of them. Converters write the same word for every
    /// dimension that they know nothing of, or count such dimensions up, differently on inputs and on outputs.
    #[must_use]
    pub fn dynamic(symbol: &str) -> Self {
        Self::Dynamic((!is_anonymous(symbol)).then(|| symbol.to_owned()))
    }
}

/// Whether `symbol` stands for "unknown" in what one of the usual converters writes.
fn is_anonymous(symbol: &str) -> bool {
    /// Nothing, or the placeholder of some language.
    const PLACEHOLDERS: [&str; 10] = [
        "", "?", "*", "-", "-1", "none", "null", "any", "unknown", "dynamic",
    ];
    /// `tf2onnx`, `Paddle2ONNX` and ONNX Runtime's own shape inference count the dimensions that they do not know.
    const COUNTED: [&str; 4] = [
        "unk__",
        "dynamicdimension",
        "p2o.dynamicdimension",
        "unknown_",
    ];
    let symbol = symbol.trim().to_ascii_lowercase();
    let is_counted = |prefix: &&str| {
        let rest = symbol.strip_prefix(*prefix);
        rest.is_some_and(|rest| rest.chars().all(|c| c.is_ascii_digit() || c == '.'))
    };
    PLACEHOLDERS.contains(&symbol.as_str()) || COUNTED.iter().any(is_counted)
}

impl fmt::Display for Dim {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(size) => write!(formatter, "{size}"),
            Self::Dynamic(Some(symbol)) => formatter.write_str(symbol),
            Self::Dynamic(None) => formatter.write_str("?"),
        }
    }
}

/// The name, datatype and dimensions of one input or output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// The name in the graph.
    pub name: String,
    /// The type of the elements.
    pub datatype: DataType,
    /// The dimensions, outermost first; `None` when the graph states no rank (outputs only).
    pub dims: Option<Vec<Dim>>,
    /// What each position of the last dimension means, from the sidecar; empty when not stated.
    pub labels: Vec<String>,
}

impl TensorSpec {
    /// The dimensions that are known; an unknown rank reads as none.
    #[must_use]
    pub fn dims(&self) -> &[Dim] {
        self.dims.as_deref().unwrap_or_default()
    }

    /// The dimensions as people write them, for example `[N,3,224,224]`.
    #[must_use]
    pub fn shape_text(&self) -> String {
        match &self.dims {
            None => "[...]".to_owned(),
            Some(dims) => {
                let dims: Vec<String> = dims.iter().map(ToString::to_string).collect();
                format!("[{}]", dims.join(","))
            }
        }
    }

    /// Whether the first dimension is dynamic, as a batch dimension is mostly declared to be.
    #[must_use]
    pub fn has_dynamic_first(&self) -> bool {
        self.dynamic_first().is_some()
    }

    /// The first dimension, if it is dynamic, as a batch dimension must be.
    fn dynamic_first(&self) -> Option<&Dim> {
        self.dims()
            .first()
            .filter(|dim| matches!(dim, Dim::Dynamic(_)))
    }
}

/// What clients must know of an input or output. How a dynamic dimension is called is not part of it.
fn interface(spec: &TensorSpec) -> (&str, DataType, Option<Vec<Option<usize>>>) {
    let size = |dim: &Dim| match dim {
        Dim::Fixed(size) => Some(*size),
        Dim::Dynamic(_) => None,
    };
    let dims = spec.dims.as_ref();
    let dims = dims.map(|dims| dims.iter().map(size).collect());
    (&spec.name, spec.datatype, dims)
}

impl fmt::Display for TensorSpec {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} {}{}",
            self.name,
            self.datatype,
            self.shape_text()
        )
    }
}

/// Whether the first dimension is a batch of independent rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Batchability {
    /// The first dimension of every input is the batch, and its rows were shown not to depend on each other (or the
    /// sidecar says so): rows of several requests can be merged, and those of one can be executed in parts.
    Rows,
    /// The first dimension is no batch, or its rows are not known to be independent, for this reason: requests are
    /// executed one by one and as they are.
    Never(String),
}

impl Batchability {
    /// Whether the first dimension is a batch of independent rows.
    #[must_use]
    pub fn has_rows(&self) -> bool {
        *self == Self::Rows
    }

    /// What the inputs of a signature say: whether the first dimension of each may be a batch. It is a candidate only; runs
    /// show whether it is one, and what the outputs make of it, whatever their dimensions are called.
    #[must_use]
    pub fn of(inputs: &[TensorSpec]) -> Self {
        for spec in inputs {
            let Some(first) = spec.dynamic_first() else {
                return Self::Never(format!("input {spec} has no dynamic first dimension"));
            };
            let Dim::Dynamic(Some(_)) = first else {
                continue;
            };
            if spec.dims().iter().skip(1).any(|dim| dim == first) {
                let reason = format!("input {spec} has another dimension of as many rows");
                return Self::Never(reason);
            }
        }
        if inputs.is_empty() {
            return Self::Never("the model has no inputs".to_owned());
        }
        Self::Rows
    }
}

/// Everything about a loaded model that its callers may ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelMetadata {
    /// The name it is served under.
    pub name: String,
    /// The version it is served as.
    pub version: String,
    /// What it does, in the words of its author; empty when not stated.
    pub description: String,
    /// Inputs in the order of the graph.
    pub inputs: Vec<TensorSpec>,
    /// Outputs in the order of the graph.
    pub outputs: Vec<TensorSpec>,
    /// Whether requests may share an execution.
    pub batchability: Batchability,
    /// SHA-256 of the `.onnx` file, in hexadecimal.
    pub sha256: String,
    /// The size of the `.onnx` file in bytes.
    pub file_size: u64,
    /// Operator-set versions by domain; the default domain is `ai.onnx`.
    pub opsets: BTreeMap<String, i64>,
    /// The tool that wrote the file; empty when not stated.
    pub producer: String,
    /// The author's own key-value pairs.
    pub properties: BTreeMap<String, String>,
}

impl ModelMetadata {
    /// In what `next` asks for or answers something else than this model, if it does.
    #[must_use]
    pub fn signature_change(&self, next: &Self) -> Option<String> {
        let interfaces = |metadata: &Self| {
            let all = metadata.inputs.iter().chain(&metadata.outputs);
            all.map(|spec| {
                let (name, datatype, dims) = interface(spec);
                (name.to_owned(), datatype, dims)
            })
            .collect::<Vec<_>>()
        };
        let same = self.inputs.len() == next.inputs.len() && interfaces(self) == interfaces(next);
        (!same).then(|| {
            format!(
                "the signature changed from {} to {}",
                self.signature_text(),
                next.signature_text()
            )
        })
    }

    /// The model and its version.
    #[must_use]
    pub fn id(&self) -> versions::ModelId {
        versions::ModelId::new(&self.name, &self.version)
    }

    /// Whether a request has a number of rows: whether its first dimension is a batch of independent rows. Of a model
    /// without, a request is one row, whatever its size.
    #[must_use]
    pub fn has_rows(&self) -> bool {
        self.batchability.has_rows()
    }

    /// The most rows of a request of which `limit` is the most; without rows there is no limit but its bytes.
    #[must_use]
    pub fn row_limit(&self, limit: usize) -> usize {
        if self.has_rows() { limit } else { usize::MAX }
    }

    /// Whether a request may choose a size besides its number of rows.
    #[must_use]
    pub fn has_open_sizes(&self) -> bool {
        let rows = usize::from(self.has_rows());
        let is_open = |dim: &Dim| matches!(dim, Dim::Dynamic(_));
        let mut inputs = self.inputs.iter();
        inputs.any(|spec| spec.dims().iter().skip(rows).any(is_open))
    }

    /// Whether the first axis of every input may be the batch, by the signature alone.
    #[must_use]
    pub fn has_batch_axis(&self) -> bool {
        !self.inputs.is_empty()
            && self
                .inputs
                .iter()
                .all(|spec| spec.dynamic_first().is_some())
    }

    /// Whether there are strings among the inputs and outputs, whose elements differ in size.
    #[must_use]
    pub fn has_strings(&self) -> bool {
        let mut specs = self.inputs.iter().chain(&self.outputs);
        specs.any(|spec| spec.datatype == DataType::Bytes)
    }

    /// Whether a request may choose the size of a dimension other than the batch.
    #[must_use]
    pub fn has_open_shapes(&self) -> bool {
        let first = usize::from(self.has_batch_axis());
        let is_open = |dim: &Dim| matches!(dim, Dim::Dynamic(_));
        let mut inputs = self.inputs.iter();
        inputs.any(|spec| spec.dims().iter().skip(first).any(is_open))
    }

    /// The signature as people write it, for example `image FP32[N,1,8,8] -> label INT64[N]`.
    #[must_use]
    pub fn signature_text(&self) -> String {
        let list = |specs: &[TensorSpec]| {
            specs
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(", ")
        };
        format!("{} -> {}", list(&self.inputs), list(&self.outputs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, dims: &[&str]) -> TensorSpec {
        let dims = dims
            .iter()
            .map(|dim| match dim.parse() {
                Ok(size) => Dim::Fixed(size),
                Err(_) => Dim::dynamic(dim),
            })
            .collect();
        TensorSpec {
            name: name.to_owned(),
            datatype: DataType::Fp32,
            dims: Some(dims),
            labels: Vec::new(),
        }
    }

    #[test]
    fn rows_may_be_tried_where_every_input_s_first_dimension_is_dynamic_whatever_its_name() {
        let candidate = |inputs: &[TensorSpec]| Batchability::of(inputs) == Batchability::Rows;
        assert!(candidate(&[spec("x", &["N", "4"])]));
        assert!(candidate(&[spec("x", &["", ""])]));
        assert!(candidate(&[spec("x", &["N", "4"]), spec("ids", &["M"])]));
        assert!(candidate(&[spec("x", &["?", "?"])]));
        assert!(!candidate(&[spec("x", &["2", "4"])]));
        assert!(!candidate(&[spec("x", &["N"]), spec("scale", &[])]));
        assert!(!candidate(&[spec("x", &["N", "N"])]));
        assert!(!candidate(&[]));
    }

    #[test]
    fn a_name_that_says_unknown_names_nothing() {
        for symbol in [
            "",
            "?",
            "*",
            " ",
            "-1",
            "None",
            "unk__12",
            "DynamicDimension.0",
            "p2o.DynamicDimension.3",
            "unknown",
            "unknown_7",
            "Any",
        ] {
            assert_eq!(Dim::dynamic(symbol), Dim::Dynamic(None), "{symbol}");
        }
        for symbol in [
            "N",
            "batch",
            "batch_size",
            "unk",
            "unk__x",
            "s0",
            "none_of_them",
            "T",
            "anything",
        ] {
            assert_eq!(
                Dim::dynamic(symbol),
                Dim::Dynamic(Some(symbol.to_owned())),
                "{symbol}"
            );
        }
    }

    #[test]
    fn a_request_has_rows_only_where_the_first_dimension_is_a_batch() {
        let metadata = |batchability| ModelMetadata {
            name: String::new(),
            version: String::new(),
            description: String::new(),
            inputs: vec![spec("x", &["N", "4"])],
            outputs: vec![spec("y", &["N"])],
            batchability,
            sha256: String::new(),
            file_size: 0,
            opsets: BTreeMap::new(),
            producer: String::new(),
            properties: BTreeMap::new(),
        };
        for (batchability, limit) in [
            (Batchability::Rows, 8),
            (Batchability::Never("neighbours".to_owned()), usize::MAX),
        ] {
            let metadata = metadata(batchability);
            assert_eq!(metadata.row_limit(8), limit, "{:?}", metadata.batchability);
            assert_eq!(metadata.has_open_sizes(), limit != 8);
        }
    }

    #[test]
    fn signatures_read_as_people_write_them() {
        assert_eq!(
            spec("image", &["N", "1", "8", ""]).to_string(),
            "image FP32[N,1,8,?]"
        );
    }
}
