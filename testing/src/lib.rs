//! What tests and benches of model-serving share: a server in a process of its own, a client that sends exactly what it
//! is told, and waiting for events.
//!
//! Invariant: nothing here reaches into the server. It is started by flags, read by its log and its routes, and stopped by
//! signals, so that this crate depends on nothing of it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::missing_panics_doc,
    clippy::must_use_candidate,
    reason = "a test stops at the first thing that is wrong, and says by what it stops"
)]

mod client;
pub mod faults;
pub mod models;
pub mod nvml;
mod random;
mod server;
mod waiting;

use std::io::Write;
use std::path::{Path, PathBuf};

pub use client::{Client, Request, Response};
pub use random::Random;
pub use server::{Log, Server, program, sample};
pub use waiting::{PATIENCE, eventually, eventually_is, pause};

/// A file of the repository.
pub fn repository(path: &str) -> PathBuf {
    let testing = Path::new(env!("CARGO_MANIFEST_DIR"));
    testing.parent().expect("it is a folder of it").join(path)
}

/// A fixture model, for example `addone`.
pub fn fixture(name: &str) -> String {
    repository(&format!("tests/fixtures/{name}.onnx"))
        .display()
        .to_string()
}

/// The bytes of weights of the fixture `heavy`, which are not among the fixtures.
pub const HEAVY_WEIGHTS: u64 = 4 * 4200 * 4200;

/// The fixture `heavy` with its weights, all zero, in `folder`.
pub fn heavy(folder: &Path) -> String {
    let model = folder.join("heavy.onnx");
    std::fs::copy(fixture("heavy"), &model).unwrap();
    let weights = std::fs::File::create(folder.join("heavy.weights")).unwrap();
    weights.set_len(HEAVY_WEIGHTS).unwrap();
    model.display().to_string()
}

/// Says what a test could not check here, past what the test runner keeps to itself while tests pass.
pub fn skipped(what: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "\nSKIPPED: {what}");
}
