//! model-serving: a small server for ONNX models.
//!
//! Read the modules in this order to follow one prediction. [`config`] and [`server`] put everything together. A
//! request arrives on a connection of [`net`], and at a route of [`http`], whose handler turns bytes into a valid
//! [`inference::InferenceRequest`]. The handler looks its model up in the [`models::registry`] and submits the request to the
//! model's [`batching::Scheduler`]. An idle instance thread takes it, with others, out of the queue and executes them
//! in ONNX Runtime ([`runtime`]). The outputs travel back the same way, as views of the memory that ONNX Runtime
//! wrote.
//!
//! Imports run downwards only, in the order of the drawing in ARCHITECTURE.md; a test reads them and keeps it so.

// The process.
pub mod admin;
pub mod config;
pub mod container;
pub mod curl;
pub mod fetch;
pub mod healthcheck;
mod hints;
pub mod inspect;
pub mod process;
pub mod server;
pub mod service_manager;
pub mod shutdown;
pub mod signals;
pub mod tune;
pub mod watchdog;

// The edge.
pub mod http;

// One prediction, whatever the protocol.
pub mod service;

// Connections, whatever is served on them.
pub mod net;

// Codecs.
pub mod wire;

// One life of a model: found, loaded, published, retired.
pub mod models;

// Queues and waiting.
pub mod batching;

// What is asked and answered.
pub mod inference;

// Devices.
pub mod gpu;
pub mod runtime;

// What a model is.
pub mod model;

// Plain data, and leaves that everybody may use.
pub mod address;
pub mod chance;
pub mod telemetry;
pub mod tensor;
#[cfg(feature = "testkit")]
mod testkit;
pub mod text_file;
pub mod units;
pub mod version;
