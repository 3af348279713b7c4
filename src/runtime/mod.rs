//! Execution: the only place that knows ONNX Runtime.
//!
//! Invariant: no type of `ort` leaves this module; the layers above see [`Model`], tensors and [`RuntimeError`].

mod arena;
pub mod assignment;
pub mod batch_check;
mod binding;
pub mod buckets;
pub mod device_health;
pub mod division;
mod dummy_inputs;
pub mod example;
pub mod library;
mod load_fault;
pub mod load_in_progress;
mod model_output;
mod output;
pub mod providers;
pub mod session;
pub mod tuning;
pub mod warmup;

use std::sync::Arc;

use smallvec::SmallVec;
use thiserror::Error;

use crate::model::ModelMetadata;
use crate::tensor::{Shape, TensorView};
pub use model_output::{Division, ModelOutput};

/// One input of an execution, borrowed from a request or from the gathered batch.
#[derive(Debug, Clone)]
pub struct InputView<'a> {
    /// The sizes of the dimensions, the batch included.
    pub shape: Shape,
    /// The elements, row-major; as many as the shape says.
    pub elements: TensorView<'a>,
}

/// The inputs of one execution, in the order of the model's signature.
pub type BatchInput<'a> = SmallVec<[InputView<'a>; 4]>;

/// The outputs of one execution, in the order of the model's signature.
pub type BatchOutput = Vec<ModelOutput>;

/// A loaded model that one thread executes.
///
/// Each instance owns one: ONNX Runtime's sessions are not safe to run from several threads at once, which `&mut`
/// says without a lock.
pub trait Model: Send {
    /// What the model is.
    fn metadata(&self) -> &Arc<ModelMetadata>;

    /// Executes `input` and returns every output of the signature.
    ///
    /// # Errors
    /// See [`RuntimeError`]; the model can be run again after any of them but [`RuntimeError::DeviceLost`].
    fn run(&mut self, input: BatchInput<'_>) -> Result<BatchOutput, RuntimeError>;

    /// A handle by which another thread can end a run that nobody waits for any more.
    fn interrupt(&self) -> Arc<dyn Interrupt>;
}

/// Ends a run from another thread.
pub trait Interrupt: Send + Sync {
    /// Asks the run in progress to stop soon. It then fails with [`RuntimeError::Interrupted`].
    fn interrupt(&self);
}

/// Why an execution failed. The texts are for the log; clients never see what a library said.
#[derive(Debug, Clone, Error)]
pub enum RuntimeError {
    /// The model refused the values: the request is well-formed, but an operator cannot compute it.
    #[error("the model refused the input: {0}")]
    Refused(String),
    /// The run was ended because nobody waited for it any more.
    #[error("the run was interrupted")]
    Interrupted,
    /// The GPU is lost to this process; only a restart may help.
    #[error("the GPU is lost: {0}")]
    DeviceLost(String),
    /// There is not enough free memory for runs, on the GPU or on the host, now.
    #[error("the memory for runs does not suffice: {0}")]
    OutOfMemory(String),
    /// The run would take more memory than runs may take at all.
    #[error("the run would take more memory than runs may: {0}")]
    TooLarge(String),
    /// The runtime itself failed.
    #[error("the runtime failed: {0}")]
    Broken(String),
}

impl LoadError {
    /// Why the GPU is lost, if this is what the load has shown.
    #[must_use]
    pub fn loss(&self) -> Option<&str> {
        match self {
            Self::DeviceLost { reason, .. }
            | Self::BatchCheck {
                source: RuntimeError::DeviceLost(reason),
                ..
            }
            | Self::WarmUp {
                source: RuntimeError::DeviceLost(reason),
                ..
            } => Some(reason),
            _ => None,
        }
    }
}

/// Why a model could not be loaded. Each is one line with a cause and a fix.
#[derive(Debug, Error)]
pub enum LoadError {
    /// ONNX Runtime's shared library is missing or does not fit.
    #[error(transparent)]
    Library(#[from] library::LibraryError),
    /// The file was refused before ONNX Runtime saw it.
    #[error(transparent)]
    File(#[from] crate::model::onnx::OnnxFileError),
    /// The requested device cannot be had.
    #[error("device {device} cannot be used: {reason}; {fix}, or set --device (DEVICE) to cpu")]
    Device {
        /// The device that was asked for.
        device: providers::Device,
        /// What is missing.
        reason: String,
        /// What to do about it.
        fix: String,
    },
    /// The GPU was lost while something was loaded onto it.
    #[error(
        "device {device} is lost: {reason}; restart the server, and the host if that does not help"
    )]
    DeviceLost {
        /// The device.
        device: providers::Device,
        /// What ONNX Runtime said.
        reason: String,
    },
    /// ONNX Runtime refused the model.
    #[error("ONNX Runtime cannot load {path}: {reason}", path = .path.display())]
    Refused {
        /// The model's path.
        path: std::path::PathBuf,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// The operating system does not give its threads.
    #[error(
        "{path} needs {threads} more threads for a session, and the operating system refuses them: {source}; lower --intra-op-threads (INTRA_OP_THREADS) or --instances (INSTANCES), in its sidecar too, or raise the limit (ulimit -u, or the container's limit of processes)", path = .path.display()
    )]
    Threads {
        /// The model's path.
        path: std::path::PathBuf,
        /// How many the session needs.
        threads: usize,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The signature holds something that cannot be served.
    #[error("{path} cannot be served: {reason}", path = .path.display())]
    Signature {
        /// The model's path.
        path: std::path::PathBuf,
        /// Which input or output, and why.
        reason: String,
    },
    /// The sidecar says something that the model or a setting contradicts.
    #[error("the sidecar of {path} does not fit: {reason}", path = .path.display())]
    Sidecar {
        /// The model's path.
        path: std::path::PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// The runs that try whether rows depend on each other failed.
    #[error("{path} could not be tried: {source}", path = .path.display())]
    BatchCheck {
        /// The model's path.
        path: std::path::PathBuf,
        /// Why.
        source: RuntimeError,
    },
    /// The first runs failed.
    #[error("warm-up of {path} failed at {rows} row(s): {source}", path = .path.display())]
    WarmUp {
        /// The model's path.
        path: std::path::PathBuf,
        /// The rows of the run that failed.
        rows: usize,
        /// Why.
        source: RuntimeError,
    },
}
