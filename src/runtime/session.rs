//! One ONNX Runtime session: loading a checked file, reading its signature, and running a batch.
//!
//! Invariant: what is loaded are the very bytes that were checked and hashed, not whatever lies at the path by then.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ort::error::ErrorCode;
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{RunOptions, Session, SessionInputValue, SessionOutputs};
use ort::value::{Outlet, Tensor, TensorRef, ValueType};
use smallvec::SmallVec;

use super::arena::{self, Arena};
use super::assignment::{self, Assignment};
use super::binding::Binding;
use super::division::DivisionPlan;
use super::library::{Library, one_line};
use super::provider::{CudaConfig, Device, ExecutionProvider};
#[cfg(feature = "testkit")]
use super::testkit::Faults;
use super::{
    BatchInput, BatchOutput, InputView, Interrupt, LoadError, Model, RuntimeError, cuda, output,
};
use crate::model::flow::Flow;
use crate::model::onnx::OnnxFile;
use crate::model::repository::ModelSource;
use crate::model::sidecar::Sidecar;
use crate::model::{Batchability, Dim, ModelMetadata, TensorSpec};
use crate::tensor::{TensorView, for_each_plain_datatype};

/// The memory that runs on the CPU may hold at once, in bytes. Weights are not part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunMemory {
    /// What suffices for most models.
    pub usual: usize,
    /// What it may be raised to for a model of which one row takes more.
    pub most: usize,
}

impl RunMemory {
    /// `wanted` bytes, and in any case no more than a quarter of the `memory` that there is, because requests and answers
    /// may hold as much again; half of it for a model of which one row takes more.
    #[must_use]
    pub fn within(memory: Option<usize>, wanted: usize) -> Self {
        let part = |part: usize| memory.map_or(wanted, |memory| memory / part);
        Self {
            usual: wanted.min(part(4)),
            most: part(2),
        }
    }
}

/// Bytes of an arena for each byte of a model's files and each session: weights, and copies that kernels lay out anew.
const ROOM_FOR_WEIGHTS: usize = 4;

/// What sessions of small models take of an arena at most.
const ROOM: usize = 64 << 20;

/// How sessions are created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionConfig {
    /// The device to execute on.
    pub device: Device,
    /// How CUDA is used, where it is.
    pub cuda: CudaConfig,
    /// The memory of runs on the CPU; no bound if not given.
    pub run_memory: Option<RunMemory>,
    /// The most sessions of the model that there will be at once.
    pub most_sessions: usize,
}

/// How many sessions execute a model, and with how many threads each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// Sessions.
    pub instances: usize,
    /// Threads that one run may use, the calling one included.
    pub intra_op_threads: usize,
}

/// A model in one ONNX Runtime session.
pub struct OrtModel {
    session: Session,
    /// What is used where a GPU copies inputs and outputs.
    binding: Option<Binding>,
    metadata: Arc<ModelMetadata>,
    provider: ExecutionProvider,
    intra_op_threads: usize,
    interrupt: Arc<RunInterrupt>,
    /// Where runs on the CPU take their memory.
    arena: Arc<Arena>,
    plan: Arc<DivisionPlan>,
}

/// What was loaded: the instances' models, and what executes them.
pub struct LoadedModel {
    /// One model per instance.
    pub models: Vec<OrtModel>,
    /// What the model is.
    pub metadata: Arc<ModelMetadata>,
    /// The provider that all of them use.
    pub provider: ExecutionProvider,
    /// How many sessions there are, and their threads.
    pub placement: Placement,
    /// Why not the preferred one, when `auto` fell back.
    pub fallback: Option<String>,
    /// Which nodes of the graph each provider executes.
    pub assignment: Assignment,
}

/// A model that was read and checked, and of which one session exists; others can be made as they are needed.
pub struct OpenedModel<'a> {
    library: &'a Library,
    file: OnnxFile,
    config: SessionConfig,
    /// What executes the model, and what it is treated as; they differ only in tests of GPUs.
    registered: ExecutionProvider,
    /// The provider that sessions use.
    pub provider: ExecutionProvider,
    /// What the model is.
    pub metadata: Arc<ModelMetadata>,
    /// Why not the preferred provider, when `auto` fell back.
    pub fallback: Option<String>,
    /// Which nodes of the graph each provider executes.
    pub assignment: Assignment,
    /// Where all its sessions on the CPU take the memory of their runs.
    arena: Arc<Arena>,
}

/// Loads the model at `source` into one session, of as many threads as `threads` says for the provider that can be had.
/// Further ones can be made of what is returned beside it.
///
/// # Errors
/// See [`LoadError`].
pub fn open<'a>(
    library: &'a Library,
    source: &ModelSource,
    config: SessionConfig,
    threads: impl Fn(ExecutionProvider) -> usize,
) -> Result<(OpenedModel<'a>, OrtModel), LoadError> {
    let file = OnnxFile::read(&source.path)?;
    let weights = weights(&file).saturating_mul(config.most_sessions.max(1));
    let arena = library
        .arenas
        .make(
            config.run_memory.map(|memory| memory.usual),
            weights
                .saturating_mul(ROOM_FOR_WEIGHTS)
                .saturating_add(ROOM),
        )
        .map_err(|error| refused(&file, &error))?;
    let mut fallback = None;
    if config.device == Device::Auto && !ExecutionProvider::has_cuda() {
        fallback = Some(cuda::NOT_BUILT_IN.to_owned());
    }
    for provider in ExecutionProvider::candidates(config.device) {
        let pretended = pretended(provider);
        let threads = threads(provider);
        let created = create_session(library, &file, provider, config, threads);
        let attempt = created.and_then(|session| {
            let assignment = check_assignment(&session, &file, provider, config.device)?;
            Ok((session, assignment))
        });
        match attempt {
            Ok((session, assignment)) => {
                let metadata = Arc::new(read_metadata(&session, &file, source)?);
                let bound = bound_to(provider, config.cuda);
                let session_arena = Arc::clone(&arena);
                let first = OrtModel::new(
                    session,
                    threads,
                    Arc::clone(&metadata),
                    pretended,
                    bound,
                    session_arena,
                )
                .map_err(|error| refused(&file, &error))?;
                let opened = OpenedModel {
                    library,
                    file,
                    config,
                    registered: provider,
                    provider: pretended,
                    metadata,
                    fallback,
                    assignment,
                    arena,
                };
                return Ok((opened, first));
            }
            Err(LoadError::Device { reason, .. }) if config.device == Device::Auto => {
                fallback = Some(reason);
            }
            Err(error) => return Err(error),
        }
    }
    Err(LoadError::Device {
        device: config.device,
        reason: "no execution provider offers it".to_owned(),
        fix: "choose another".to_owned(),
    })
}

impl OpenedModel<'_> {
    /// One more session, of `threads` threads. To be called for one after another: concurrent creation of CUDA sessions
    /// on one GPU fails.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn session(&self, threads: usize) -> Result<OrtModel, LoadError> {
        let provider = self.registered;
        let session = create_session(self.library, &self.file, provider, self.config, threads)?;
        let bound = bound_to(provider, self.config.cuda);
        OrtModel::new(
            session,
            threads,
            Arc::clone(&self.metadata),
            self.provider,
            bound,
            Arc::clone(&self.arena),
        )
        .map_err(|error| refused(&self.file, &error))
    }

    /// SHA-256 of the model's file, in hexadecimal.
    #[must_use]
    pub fn sha256(&self) -> &str {
        &self.file.sha256
    }

    /// Whether the work of a run follows from the shapes of its inputs, and so is about what was measured.
    #[must_use]
    pub fn has_bounded_work(&self) -> bool {
        // What a string costs depends on its length.
        let sized = !self.metadata.has_open_shapes() && !self.metadata.has_strings();
        self.file.bounded_work && sized
    }

    /// What each output follows from by the graph, in the order of the signature.
    #[must_use]
    pub fn flows(&self) -> Vec<Flow> {
        let unknown = Flow {
            sized: false,
            constant: false,
        };
        let flow = |spec: &TensorSpec| self.file.flows.get(&spec.name).copied();
        let outputs = self.metadata.outputs.iter();
        outputs.map(|spec| flow(spec).unwrap_or(unknown)).collect()
    }

    /// Where the model was read from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// The bytes of the model's file and its external data: about what one more session takes.
    #[must_use]
    pub fn weights(&self) -> usize {
        weights(&self.file)
    }

    /// Takes note that all sessions are there and nothing runs: from now on, runs hold no more than was asked.
    pub fn settle(&self) {
        self.arena.settle();
    }
}

/// Loads the model at `source` into as many sessions as `placement` says for the provider that can be had.
///
/// # Errors
/// See [`LoadError`].
pub fn load(
    library: &Library,
    source: &ModelSource,
    config: SessionConfig,
    placement: impl Fn(ExecutionProvider) -> Placement,
) -> Result<LoadedModel, LoadError> {
    let threads = |provider| placement(provider).intra_op_threads;
    let (opened, first) = open(library, source, config, threads)?;
    let placement = placement(opened.registered);
    let more = (1..placement.instances).map(|_| opened.session(placement.intra_op_threads));
    let more = more.collect::<Result<Vec<_>, _>>()?;
    Ok(LoadedModel {
        models: std::iter::once(first).chain(more).collect(),
        metadata: opened.metadata,
        provider: opened.provider,
        placement,
        fallback: opened.fallback,
        assignment: opened.assignment,
    })
}

/// The bytes of a model's file and its external data.
fn weights(file: &OnnxFile) -> usize {
    usize::try_from(file.external_bytes)
        .unwrap_or(usize::MAX)
        .saturating_add(file.bytes.len())
}

/// The provider from whose memory inputs and outputs are copied, if that is to be pinned.
fn bound_to(provider: ExecutionProvider, cuda: CudaConfig) -> Option<ExecutionProvider> {
    (pretended(provider) != ExecutionProvider::Cpu && cuda.pinned).then_some(provider)
}

/// The provider as which `provider` is to be treated: itself.
#[cfg(not(feature = "testkit"))]
fn pretended(provider: ExecutionProvider) -> ExecutionProvider {
    provider
}

/// The provider as which `provider` is to be treated: itself, unless a test wants a GPU where there is none.
#[cfg(feature = "testkit")]
fn pretended(provider: ExecutionProvider) -> ExecutionProvider {
    let cuda = Faults::now().cuda;
    cuda.map_or(provider, ExecutionProvider::Cuda)
}

/// The nodes that each provider executes, if the one that was asked for executes any.
///
/// A few on the CPU are normal: ONNX Runtime computes shapes there on purpose. All of them are the accident that
/// everybody has once.
fn check_assignment(
    session: &Session,
    file: &OnnxFile,
    provider: ExecutionProvider,
    device: Device,
) -> Result<Assignment, LoadError> {
    let assignment = Assignment::of(session).map_err(|error| refused(file, &error))?;
    let cpu = ExecutionProvider::Cpu.name();
    let on_cpu = assignment.nodes(cpu);
    if provider != ExecutionProvider::Cpu && assignment.nodes(provider.name()) == 0 && on_cpu > 0 {
        return Err(LoadError::Device {
            device,
            reason: format!(
                "it has kernels for none of the {on_cpu} nodes of {} ({})",
                file.path.display(),
                assignment.operators(cpu)
            ),
            fix: "export the model with other operators or datatypes".to_owned(),
        });
    }
    Ok(assignment)
}

fn refused(file: &OnnxFile, error: &ort::Error) -> LoadError {
    LoadError::Refused {
        path: file.path.clone(),
        reason: one_line(&error.to_string()),
    }
}

fn create_session(
    library: &Library,
    file: &OnnxFile,
    provider: ExecutionProvider,
    config: SessionConfig,
    threads: usize,
) -> Result<Session, LoadError> {
    let unavailable = |error: &ort::Error| {
        let complaint = one_line(&error.to_string());
        match provider {
            ExecutionProvider::Cpu => refused(file, error),
            ExecutionProvider::Cuda(index) if cuda::is_lost(&error.to_string()) => {
                LoadError::DeviceLost {
                    device: Device::Cuda(index),
                    reason: complaint,
                }
            }
            ExecutionProvider::Cuda(index) => {
                let explanation = cuda::explain(&complaint, index);
                LoadError::Device {
                    device: config.device,
                    reason: explanation.cause,
                    fix: explanation.fix,
                }
            }
        }
    };
    let configure = || {
        let mut builder = Session::builder(&library.environment)?
            .with_optimization_level(GraphOptimizationLevel::All)?
            .with_intra_threads(threads)?
            .with_inter_threads(1)?
            // Spinning threads burn the CPU that the HTTP threads need, and the quota that a container is billed for.
            .with_intra_op_spinning(false)?
            .with_inter_op_spinning(false)?
            .with_config_entry(assignment::CONFIG_ENTRY, "1")?
            .with_config_entry(
                "session.model_external_initializers_file_folder_path",
                file.folder.to_string_lossy(),
            )?;
        if provider == ExecutionProvider::Cpu {
            builder = builder.with_config_entry(arena::CONFIG_ENTRY, "1")?;
        }
        Ok(builder.with_execution_providers(provider.registration(config.cuda))?)
    };
    let mut builder = configure().map_err(|error: ort::Error| unavailable(&error))?;
    builder.commit_from_memory(&file.bytes).map_err(|error| {
        // The model's own faults are told as such, whatever device was asked for.
        if provider != ExecutionProvider::Cpu && cuda::is_concerned(&error.to_string()) {
            unavailable(&error)
        } else {
            refused(file, &error)
        }
    })
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
        batchability: Batchability::of(&inputs),
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
        Err(_) => Dim::dynamic(symbol),
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
    fn new(
        session: Session,
        intra_op_threads: usize,
        metadata: Arc<ModelMetadata>,
        provider: ExecutionProvider,
        bound: Option<ExecutionProvider>,
        arena: Arc<Arena>,
    ) -> Result<Self, ort::Error> {
        let bound = bound.filter(|_| Binding::suits(&metadata));
        let binding = bound
            .map(|provider| Binding::new(&session, provider))
            .transpose()?;
        Ok(Self {
            session,
            binding,
            metadata,
            provider,
            intra_op_threads,
            interrupt: Arc::new(RunInterrupt {
                options: RunOptions::new()?,
                asked: AtomicBool::new(false),
            }),
            arena,
            plan: Arc::default(),
        })
    }
}

impl OrtModel {
    /// Threads that one run may use, the calling one included.
    #[must_use]
    pub fn intra_op_threads(&self) -> usize {
        self.intra_op_threads
    }

    /// Says how the outputs of runs from now on are to be handed out to requests that share them.
    pub fn divide_by(&mut self, plan: &Arc<DivisionPlan>) {
        self.plan = Arc::clone(plan);
    }
}

impl OrtModel {
    fn run_once(&mut self, input: &BatchInput<'_>) -> Result<BatchOutput, RuntimeError> {
        #[cfg(feature = "testkit")]
        if let Some(text) = Faults::now().run {
            let error = ort::Error::new(text);
            return Err(classify(&error, false, self.provider));
        }
        let (session, options) = (&mut self.session, &self.interrupt.options);
        let result = if let Some(binding) = &mut self.binding {
            binding.run(session, &self.metadata, input, options, output::wrap_all)
        } else {
            let lent = input.iter().map(|view| view.elements).collect();
            run_lent(session, input, options).map(|outputs| output::wrap_all(outputs, &lent))
        };
        let mut outputs = result.unwrap_or_else(|error| {
            let interrupted = self.interrupt.asked.load(Ordering::Relaxed);
            Err(classify(&error, interrupted, self.provider))
        })?;
        self.plan.apply(&mut outputs, input);
        Ok(outputs)
    }
}

/// Runs `session` on memory that is lent to it.
fn run_lent<'s>(
    session: &'s mut Session,
    input: &BatchInput<'_>,
    options: &'s RunOptions,
) -> Result<SessionOutputs<'s>, ort::Error> {
    let values: Result<SmallVec<[SessionInputValue<'_>; 4]>, ort::Error> =
        input.iter().map(to_value).collect();
    session.run_with_options(values?.as_slice(), options)
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
        let failed = match self.run_once(&input) {
            Err(RuntimeError::OutOfMemory(_)) if self.provider == ExecutionProvider::Cpu => {
                // The arena may hold enough, in pieces that do not suit.
                self.arena.shrink();
                let held = self.arena.held();
                (self.run_once(&input), held)
            }
            result => return result,
        };
        let alone = |held: Option<usize>| match (held, self.arena.limit()) {
            // Only this model's first runs can have taken it.
            (None, _) => true,
            (Some(held), Some(limit)) => held <= limit / 8,
            (Some(_), None) => false,
        };
        match failed {
            // Nobody else held much of it.
            (Err(RuntimeError::OutOfMemory(text)), held) if alone(held) => {
                Err(RuntimeError::TooLarge(text))
            }
            (result, _) => result,
        }
    }

    fn interrupt(&self) -> Arc<dyn Interrupt> {
        Arc::clone(&self.interrupt) as Arc<dyn Interrupt>
    }
}

/// Sorts a failed run by whose fault it is.
///
/// On the CPU, an operator that fails on checked names, datatypes and shapes has met values that it cannot compute, such
/// as an index out of range; those are the request's. Memory that does not suffice, and what a GPU says of itself, never
/// are.
fn classify(error: &ort::Error, interrupted: bool, provider: ExecutionProvider) -> RuntimeError {
    let whole = error.to_string();
    let text = one_line(&whole);
    let on_gpu = provider != ExecutionProvider::Cpu;
    // A GPU that is lost may well be what kept the run until it was interrupted.
    if on_gpu && cuda::is_lost(&whole) {
        return RuntimeError::DeviceLost(text);
    }
    if interrupted {
        return RuntimeError::Interrupted;
    }
    let is_exhausted = if on_gpu {
        cuda::is_out_of_memory
    } else {
        arena::is_exhausted
    };
    if is_exhausted(&whole) {
        return RuntimeError::OutOfMemory(text);
    }
    if on_gpu && cuda::is_concerned(&whole) {
        return RuntimeError::Broken(text);
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
