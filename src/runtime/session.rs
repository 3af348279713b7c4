//! One ONNX Runtime session: loading a checked file, reading its signature, and running a batch.
//!
//! Invariant: what is loaded are the very bytes that were checked and hashed, not whatever lies at the path by then.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ort::error::ErrorCode;
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{RunOptions, Session, SessionInputValue};
use ort::value::{Outlet, Tensor, TensorRef, ValueType};
use smallvec::SmallVec;

use super::library::{Library, one_line};
use super::provider::{Device, ExecutionProvider};
use super::{
    BatchInput, BatchOutput, InputView, Interrupt, LoadError, Model, RuntimeError, output,
};
use crate::model::onnx::OnnxFile;
use crate::model::repository::ModelSource;
use crate::model::sidecar::Sidecar;
use crate::model::{Batchability, Dim, ModelMetadata, TensorSpec};
use crate::tensor::{TensorView, for_each_plain_datatype};

/// How sessions are created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionConfig {
    /// The device to execute on.
    pub device: Device,
    /// Threads that one run may use, the calling one included.
    pub intra_op_threads: usize,
}

/// A model in one ONNX Runtime session.
pub struct OrtModel {
    session: Session,
    metadata: Arc<ModelMetadata>,
    interrupt: Arc<RunInterrupt>,
}

/// What was loaded: the instances' models, and what executes them.
pub struct LoadedModel {
    /// One model per instance.
    pub models: Vec<OrtModel>,
    /// What the model is.
    pub metadata: Arc<ModelMetadata>,
    /// The provider that all of them use.
    pub provider: ExecutionProvider,
    /// Why not the preferred one, when `auto` fell back.
    pub fallback: Option<String>,
    /// Files beside the model's own that hold its weights.
    pub external_data: Vec<PathBuf>,
}

/// Loads the model at `source` into `instances` sessions.
///
/// # Errors
/// See [`LoadError`].
pub fn load(
    library: &Library,
    source: &ModelSource,
    config: SessionConfig,
    instances: usize,
) -> Result<LoadedModel, LoadError> {
    let file = OnnxFile::read(&source.path)?;
    let mut fallback = None;
    for provider in ExecutionProvider::candidates(config.device) {
        match create_session(library, &file, provider, config.intra_op_threads) {
            Ok(first) => {
                let metadata = Arc::new(read_metadata(&first, &file, source)?);
                let mut models = vec![OrtModel::new(first, Arc::clone(&metadata))?];
                // One after another: concurrent creation of CUDA sessions on one GPU fails.
                while models.len() < instances {
                    let session = create_session(library, &file, provider, config.intra_op_threads)
                        .map_err(|error| refused(&file, provider, config.device, &error))?;
                    models.push(OrtModel::new(session, Arc::clone(&metadata))?);
                }
                return Ok(LoadedModel {
                    models,
                    metadata,
                    provider,
                    fallback,
                    external_data: file.external_data,
                });
            }
            Err(error) if config.device == Device::Auto && provider != ExecutionProvider::Cpu => {
                fallback = Some(one_line(&error.to_string()));
            }
            Err(error) => return Err(refused(&file, provider, config.device, &error)),
        }
    }
    Err(LoadError::Device {
        device: config.device,
        reason: "no execution provider offers it".to_owned(),
    })
}

fn refused(
    file: &OnnxFile,
    provider: ExecutionProvider,
    device: Device,
    error: &ort::Error,
) -> LoadError {
    let reason = one_line(&error.to_string());
    match provider {
        ExecutionProvider::Cpu => LoadError::Refused {
            path: file.path.clone(),
            reason,
        },
        ExecutionProvider::Cuda(_) => LoadError::Device { device, reason },
    }
}

fn create_session(
    library: &Library,
    file: &OnnxFile,
    provider: ExecutionProvider,
    intra_op_threads: usize,
) -> Result<Session, ort::Error> {
    let mut builder = Session::builder(&library.environment)?
        .with_optimization_level(GraphOptimizationLevel::All)?
        .with_intra_threads(intra_op_threads)?
        .with_inter_threads(1)?
        // Spinning threads burn the CPU that the HTTP threads need, and the quota that a container is billed for.
        .with_intra_op_spinning(false)?
        .with_inter_op_spinning(false)?
        .with_execution_providers(provider.registration())?
        .with_config_entry(
            "session.model_external_initializers_file_folder_path",
            file.folder.to_string_lossy(),
        )?;
    builder.commit_from_memory(&file.bytes)
}

/// Reads the signature out of the session, and adds what the file and its sidecar say.
fn read_metadata(
    session: &Session,
    file: &OnnxFile,
    source: &ModelSource,
) -> Result<ModelMetadata, LoadError> {
    let signature = |kind: &str, outlets: &[Outlet]| -> Result<Vec<TensorSpec>, LoadError> {
        let spec = |outlet| {
            read_spec(outlet, file).map_err(|reason| LoadError::Signature {
                path: file.path.clone(),
                reason: format!("{kind} '{}' {reason}", outlet.name()),
            })
        };
        outlets.iter().map(spec).collect()
    };
    let inputs = signature("input", session.inputs())?;
    let mut outputs = signature("output", session.outputs())?;
    if let Some(unranked) = inputs.iter().find(|spec| spec.dims.is_none()) {
        let reason = format!(
            "input '{}' states no shape; export the model with the shapes of its inputs",
            unranked.name
        );
        return Err(LoadError::Signature {
            path: file.path.clone(),
            reason,
        });
    }
    apply_labels(&mut outputs, &source.sidecar).map_err(|reason| LoadError::Sidecar {
        path: file.path.clone(),
        reason,
    })?;
    Ok(ModelMetadata {
        name: source.name.clone(),
        version: source.version.clone(),
        description: source
            .sidecar
            .description
            .clone()
            .unwrap_or_else(|| file.description.clone()),
        batchability: Batchability::of(&inputs, &outputs),
        inputs,
        outputs,
        sha256: file.sha256.clone(),
        file_size: file.bytes.len() as u64,
        opsets: file.opsets.clone(),
        producer: file.producer.clone(),
        properties: file.properties.clone(),
    })
}

fn read_spec(outlet: &Outlet, file: &OnnxFile) -> Result<TensorSpec, String> {
    let ValueType::Tensor {
        ty,
        shape,
        dimension_symbols,
    } = outlet.dtype()
    else {
        return Err("is not a tensor; sequences and maps cannot be served (for scikit-learn models, export with zipmap off)".to_owned());
    };
    let datatype = output::datatype_of(*ty)
        .ok_or_else(|| format!("has the datatype {ty}, which cannot be served"))?;
    let symbols = dimension_symbols
        .iter()
        .map(String::as_str)
        .chain(std::iter::repeat(""));
    let dims: Vec<Dim> = shape
        .iter()
        .zip(symbols)
        .map(|(size, symbol)| read_dim(*size, symbol))
        .collect();
    // ONNX Runtime reports a missing shape like a scalar's; only the file can tell them apart.
    let unranked = dims.is_empty() && file.unranked.contains(outlet.name());
    Ok(TensorSpec {
        name: outlet.name().to_owned(),
        datatype,
        dims: (!unranked).then_some(dims),
        labels: Vec::new(),
    })
}

fn read_dim(size: i64, symbol: &str) -> Dim {
    match usize::try_from(size) {
        Ok(size) => Dim::Fixed(size),
        // Converters invent a new `unk__N` for every unknown dimension, which says nothing about equality.
        Err(_) if symbol.is_empty() || symbol.starts_with("unk__") => Dim::Dynamic(None),
        Err(_) => Dim::Dynamic(Some(symbol.to_owned())),
    }
}

fn apply_labels(outputs: &mut [TensorSpec], sidecar: &Sidecar) -> Result<(), String> {
    for (name, settings) in &sidecar.outputs {
        let known: Vec<&str> = outputs.iter().map(|spec| spec.name.as_str()).collect();
        let unknown = format!(
            "[outputs.{name}] is not an output; the model has {}",
            known.join(", ")
        );
        let spec = outputs
            .iter_mut()
            .find(|spec| spec.name == *name)
            .ok_or(unknown)?;
        if let Some(Dim::Fixed(size)) = spec.dims().last()
            && !settings.labels.is_empty()
            && settings.labels.len() != *size
        {
            return Err(format!(
                "[outputs.{name}] has {} labels for a last dimension of {size}",
                settings.labels.len()
            ));
        }
        spec.labels.clone_from(&settings.labels);
    }
    Ok(())
}

/// Ends a run through ONNX Runtime's run options, and remembers that it was asked to.
struct RunInterrupt {
    options: RunOptions,
    asked: AtomicBool,
}

impl Interrupt for RunInterrupt {
    fn interrupt(&self) {
        self.asked.store(true, Ordering::Relaxed);
        if let Err(error) = self.options.terminate() {
            tracing::warn!(error = %error, "a run that nobody waits for could not be interrupted");
        }
    }
}

impl OrtModel {
    fn new(session: Session, metadata: Arc<ModelMetadata>) -> Result<Self, LoadError> {
        let options = RunOptions::new().map_err(|error| LoadError::Device {
            device: Device::Auto,
            reason: one_line(&error.to_string()),
        })?;
        Ok(Self {
            session,
            metadata,
            interrupt: Arc::new(RunInterrupt {
                options,
                asked: AtomicBool::new(false),
            }),
        })
    }
}

impl Model for OrtModel {
    fn metadata(&self) -> &Arc<ModelMetadata> {
        &self.metadata
    }

    fn run(&mut self, input: BatchInput<'_>) -> Result<BatchOutput, RuntimeError> {
        // A late interrupt of the previous run must not end this one.
        if self.interrupt.asked.swap(false, Ordering::Relaxed) {
            self.interrupt
                .options
                .unterminate()
                .map_err(|error| RuntimeError::Broken(error.to_string()))?;
        }
        let values: Result<SmallVec<[SessionInputValue<'_>; 4]>, ort::Error> =
            input.iter().map(to_value).collect();
        let values = values.map_err(|error| RuntimeError::Refused(error.to_string()))?;
        let outputs = self
            .session
            .run_with_options(values.as_slice(), &self.interrupt.options)
            .map_err(|error| classify(&error, self.interrupt.asked.load(Ordering::Relaxed)))?;
        outputs
            .into_iter()
            .map(|(name, value)| output::wrap(name, value))
            .collect()
    }

    fn interrupt(&self) -> Arc<dyn Interrupt> {
        Arc::clone(&self.interrupt) as Arc<dyn Interrupt>
    }
}

/// Sorts a failed run by whose fault it is.
///
/// On the CPU, an operator that fails on checked names, datatypes and shapes has met values that it cannot compute,
/// an index out of range or a size that does not fit into memory; those are the request's. What is left is ours.
fn classify(error: &ort::Error, interrupted: bool) -> RuntimeError {
    let text = one_line(&error.to_string());
    if interrupted {
        return RuntimeError::Interrupted;
    }
    match error.code() {
        ErrorCode::GenericFailure
        | ErrorCode::InvalidArgument
        | ErrorCode::NotImplemented
        | ErrorCode::RuntimeException => RuntimeError::Refused(text),
        _ => RuntimeError::Broken(text),
    }
}

macro_rules! value_of {
    ($(($variant:ident, $element:ty, $name:literal, $size:literal)),+) => {
        /// Lends `input` to ONNX Runtime; only strings are copied, because it keeps those in a form of its own.
        fn to_value<'a>(input: &'a InputView<'a>) -> Result<SessionInputValue<'a>, ort::Error> {
            let shape = input.shape.as_slice();
            Ok(match input.elements {
                TensorView::Bool(elements) => TensorRef::from_array_view((shape, elements))?.into(),
                $(TensorView::$variant(elements) => TensorRef::from_array_view((shape, elements))?.into(),)+
                TensorView::Bytes(strings) => Tensor::from_string_array((shape, strings))?.into(),
            })
        }
    };
}
for_each_plain_datatype!(value_of);
