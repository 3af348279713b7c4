//! The least that a program needs before it can predict: ONNX Runtime's library, and one session.
//!
//! It uses `ort` directly, because whatever the server's own code adds is what is measured against this.

use std::path::Path;
use std::time::Instant;

use ort::session::Session;
use ort::session::builder::GraphOptimizationLevel;
use serde_json::json;

/// Creates a session of `model`, says so, and exits without tidying up.
pub(crate) fn create(model: &Path, library: &Path, threads: usize) {
    let started = Instant::now();
    let library = library.canonicalize().unwrap();
    let create = || -> Result<Session, ort::Error> {
        let environment = ort::init_from(library)
            .unwrap()
            .with_telemetry(false)
            .build()?;
        Session::builder(&environment)?
            .with_optimization_level(GraphOptimizationLevel::All)?
            .with_intra_threads(threads)?
            .with_inter_threads(1)?
            .with_intra_op_spinning(false)?
            .with_inter_op_spinning(false)?
            .commit_from_memory(&std::fs::read(model).unwrap())
    };
    let _session = create().unwrap();
    let seconds = started.elapsed().as_secs_f64();
    println!("{}", json!({ "seconds_in_process": seconds }));
    std::process::exit(0);
}
