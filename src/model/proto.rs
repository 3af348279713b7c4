//! The fields of an ONNX file that we read ourselves, as Protocol Buffers messages (onnx.proto3 of ONNX IR version 10).
//!
//! Invariant: the decoder skips all other fields without copying them, and the raw bytes of a tensor stay where the file was
//! read to, so that weights cost nothing here as they are usually written. Whole numbers that are written one by one, and
//! the numbers of attributes, are copied for as long as the file is looked at.

use std::collections::BTreeSet;

use bytes::Bytes;
use prost::Message;

#[derive(Clone, PartialEq, Message)]
pub(super) struct ModelProto {
    #[prost(int64, tag = "1")]
    pub(super) ir_version: i64,
    #[prost(string, tag = "2")]
    pub(super) producer_name: String,
    #[prost(string, tag = "3")]
    pub(super) producer_version: String,
    #[prost(string, tag = "6")]
    pub(super) doc_string: String,
    #[prost(message, optional, tag = "7")]
    pub(super) graph: Option<GraphProto>,
    #[prost(message, repeated, tag = "8")]
    pub(super) opset_import: Vec<OperatorSetIdProto>,
    #[prost(message, repeated, tag = "14")]
    pub(super) metadata_props: Vec<StringStringEntryProto>,
    #[prost(message, repeated, tag = "25")]
    pub(super) functions: Vec<FunctionProto>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct OperatorSetIdProto {
    #[prost(string, tag = "1")]
    pub(super) domain: String,
    #[prost(int64, tag = "2")]
    pub(super) version: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct StringStringEntryProto {
    #[prost(string, tag = "1")]
    pub(super) key: String,
    #[prost(string, tag = "2")]
    pub(super) value: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct FunctionProto {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(message, repeated, tag = "7")]
    pub(super) node: Vec<NodeProto>,
    #[prost(string, tag = "10")]
    pub(super) domain: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct GraphProto {
    #[prost(message, repeated, tag = "1")]
    pub(super) node: Vec<NodeProto>,
    #[prost(message, repeated, tag = "5")]
    pub(super) initializer: Vec<TensorProto>,
    #[prost(message, repeated, tag = "11")]
    pub(super) input: Vec<ValueInfoProto>,
    #[prost(message, repeated, tag = "12")]
    pub(super) output: Vec<ValueInfoProto>,
    #[prost(message, repeated, tag = "15")]
    pub(super) sparse_initializer: Vec<SparseTensorProto>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct NodeProto {
    #[prost(string, repeated, tag = "1")]
    pub(super) input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub(super) output: Vec<String>,
    #[prost(string, tag = "3")]
    pub(super) name: String,
    #[prost(string, tag = "4")]
    pub(super) op_type: String,
    #[prost(message, repeated, tag = "5")]
    pub(super) attribute: Vec<AttributeProto>,
    #[prost(string, tag = "7")]
    pub(super) domain: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct AttributeProto {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(int64, tag = "3")]
    pub(super) i: i64,
    #[prost(bytes = "bytes", tag = "4")]
    pub(super) s: Bytes,
    #[prost(message, optional, tag = "5")]
    pub(super) t: Option<TensorProto>,
    #[prost(message, optional, tag = "6")]
    pub(super) g: Option<GraphProto>,
    #[prost(int64, repeated, tag = "8")]
    pub(super) ints: Vec<i64>,
    #[prost(message, repeated, tag = "10")]
    pub(super) tensors: Vec<TensorProto>,
    #[prost(message, repeated, tag = "11")]
    pub(super) graphs: Vec<GraphProto>,
    #[prost(message, optional, tag = "22")]
    pub(super) sparse_tensor: Option<SparseTensorProto>,
    #[prost(message, repeated, tag = "23")]
    pub(super) sparse_tensors: Vec<SparseTensorProto>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct TensorProto {
    #[prost(int64, repeated, tag = "1")]
    pub(super) dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    pub(super) data_type: i32,
    #[prost(int32, repeated, tag = "5")]
    pub(super) int32_data: Vec<i32>,
    #[prost(int64, repeated, tag = "7")]
    pub(super) int64_data: Vec<i64>,
    #[prost(string, tag = "8")]
    pub(super) name: String,
    #[prost(bytes = "bytes", tag = "9")]
    pub(super) raw_data: Bytes,
    #[prost(message, repeated, tag = "13")]
    pub(super) external_data: Vec<StringStringEntryProto>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct SparseTensorProto {
    #[prost(message, optional, tag = "1")]
    pub(super) values: Option<TensorProto>,
    #[prost(message, optional, tag = "2")]
    pub(super) indices: Option<TensorProto>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ValueInfoProto {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(message, optional, tag = "2")]
    pub(super) r#type: Option<TypeProto>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct TypeProto {
    #[prost(message, optional, tag = "1")]
    pub(super) tensor_type: Option<TensorTypeProto>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct TensorTypeProto {
    #[prost(message, optional, tag = "2")]
    pub(super) shape: Option<TensorShapeProto>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct TensorShapeProto {
    #[prost(message, repeated, tag = "1")]
    pub(super) dim: Vec<DimensionProto>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct DimensionProto {
    #[prost(int64, optional, tag = "1")]
    pub(super) dim_value: Option<i64>,
    #[prost(string, optional, tag = "2")]
    pub(super) dim_param: Option<String>,
}

impl ValueInfoProto {
    pub(super) fn shape(&self) -> Option<&TensorShapeProto> {
        self.r#type
            .as_ref()
            .and_then(|ty| ty.tensor_type.as_ref())
            .and_then(|tensor| tensor.shape.as_ref())
    }
}

impl ModelProto {
    /// The model that `bytes` hold, if they hold one.
    pub(super) fn read(bytes: Bytes) -> Option<Self> {
        Self::decode(bytes).ok()
    }

    /// Every external location that the model names.
    pub(super) fn external_locations(&self) -> BTreeSet<String> {
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
    /// Whether a node of this graph, or of one nested in it, is a call of one of `functions`.
    pub(super) fn calls(&self, functions: &[FunctionProto]) -> bool {
        let standard = |domain: &str| matches!(domain, "" | "ai.onnx");
        let name = |function: &FunctionProto, node: &NodeProto| {
            function.name == node.op_type
                && (function.domain == node.domain
                    || (standard(&function.domain) && standard(&node.domain)))
        };
        !functions.is_empty()
            && self.node.iter().any(|node| {
                let inner = |attribute: &AttributeProto| {
                    let mut graphs = attribute.g.iter().chain(&attribute.graphs);
                    graphs.any(|graph| graph.calls(functions))
                };
                functions.iter().any(|function| name(function, node))
                    || node.attribute.iter().any(inner)
            })
    }

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

impl NodeProto {
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
