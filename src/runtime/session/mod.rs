//! Opening a model: a checked file, loaded into ONNX Runtime sessions on the device that can be had.
//!
//! Invariant: what is loaded are the very bytes that were checked and hashed, not whatever lies at the path by then.

mod ort_model;
mod run_memory;
mod signature;
mod threads;

use std::path::Path;
use std::sync::Arc;

use ort::session::Session;
use ort::session::builder::GraphOptimizationLevel;

pub use ort_model::OrtModel;
pub use run_memory::RunMemory;

use super::arena::{self, Arena};
use super::assignment::{self, Assignment};
use super::library::{Library, one_line};
use super::providers::{CudaConfig, Device, ExecutionProvider, Options};
use super::{LoadError, load_fault};
use crate::model::flow::Flow;
use crate::model::onnx::{OnnxFile, RawModel};
use crate::model::operators::Operators;
use crate::model::repository::ModelSource;
use crate::model::rows::Rows;
use crate::model::{ModelMetadata, TensorSpec};
#[cfg(feature = "testkit")]
use crate::testkit::Faults;
use signature::read_metadata;

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
pub struct InstanceGroup {
    /// Sessions.
    pub instances: usize,
    /// Threads that one run may use, the calling one included.
    pub intra_op_threads: usize,
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
    pub instance_group: InstanceGroup,
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

/// Loads the model at `source`, which was read as `file`, into one session, of as many threads as `threads` says for the provider that can be had.
/// Further ones can be made of what is returned beside it.
///
/// # Errors
/// See [`LoadError`].
pub fn open<'a>(
    library: &'a Library,
    source: &ModelSource,
    file: OnnxFile,
    config: SessionConfig,
    threads: impl Fn(ExecutionProvider) -> usize,
) -> Result<(OpenedModel<'a>, OrtModel), LoadError> {
    let weights = weights(&file).saturating_mul(config.most_sessions.max(1));
    let arena = library
        .arenas
        .make(
            config.run_memory.map(|memory| memory.usual),
            weights
                .saturating_mul(ROOM_FOR_WEIGHTS)
                .saturating_add(ROOM),
        )
        .map_err(|error| refused(library, &file, &error))?;
    let mut fallback = ExecutionProvider::passed_over(config.device).map(str::to_owned);
    for provider in ExecutionProvider::candidates(config.device) {
        let pretended = pretended(provider);
        let threads = threads(provider);
        let created = create_session(library, &file, provider, config, threads);
        let attempt = created.and_then(|session| {
            let assignment = check_assignment(library, &session, &file, provider, config.device)?;
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
                .map_err(|error| refused(library, &file, &error))?;
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
        .map_err(|error| refused(self.library, &self.file, &error))
    }

    /// The model's file, to open it anew.
    #[must_use]
    pub fn into_file(self) -> OnnxFile {
        self.file
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

    /// The operators of the graph.
    #[must_use]
    pub fn operators(&self) -> Operators {
        self.file.operators.clone()
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

    /// Whether each output keeps the rows of a batch apart by the graph, in the order of the signature.
    #[must_use]
    pub fn rows(&self) -> Vec<Rows> {
        let rows = |spec: &TensorSpec| self.file.rows.get(&spec.name).cloned();
        let outputs = self.metadata.outputs.iter();
        outputs
            .map(|spec| rows(spec).unwrap_or(Rows::Unknown))
            .collect()
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

/// Loads the model at `source` into as many sessions as `instance_group` says for the provider that can be had.
///
/// # Errors
/// See [`LoadError`].
pub fn load(
    library: &Library,
    source: &ModelSource,
    config: SessionConfig,
    instance_group: impl Fn(ExecutionProvider) -> InstanceGroup,
) -> Result<LoadedModel, LoadError> {
    let threads = |provider| instance_group(provider).intra_op_threads;
    let file = OnnxFile::check(RawModel::read(&source.path))?;
    let (opened, first) = open(library, source, file, config, threads)?;
    let instance_group = instance_group(opened.registered);
    let more =
        (1..instance_group.instances).map(|_| opened.session(instance_group.intra_op_threads));
    let more = more.collect::<Result<Vec<_>, _>>()?;
    Ok(LoadedModel {
        models: std::iter::once(first).chain(more).collect(),
        metadata: opened.metadata,
        provider: opened.provider,
        instance_group,
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
    (pretended(provider).is_gpu() && cuda.pinned).then_some(provider)
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
    cuda.and_then(ExecutionProvider::gpu).unwrap_or(provider)
}

/// The nodes that each provider executes, if the one that was asked for executes any.
///
/// A few on the CPU are normal: ONNX Runtime computes shapes there on purpose. All of them are the accident that
/// everybody has once.
fn check_assignment(
    library: &Library,
    session: &Session,
    file: &OnnxFile,
    provider: ExecutionProvider,
    device: Device,
) -> Result<Assignment, LoadError> {
    let assignment = Assignment::of(session).map_err(|error| refused(library, file, &error))?;
    let cpu = ExecutionProvider::CPU.name();
    let on_cpu = assignment.nodes(cpu);
    if assignment.nodes(provider.name()) == 0 && on_cpu > 0 {
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

fn refused(library: &Library, file: &OnnxFile, error: &ort::Error) -> LoadError {
    let text = error.to_string();
    let path = file.path.display();
    tracing::debug!(%path, onnxruntime = text, "ONNX Runtime refused a model");
    LoadError::Refused {
        path: file.path.clone(),
        reason: load_fault::explain(&text, file, library.version()),
    }
}

fn create_session(
    library: &Library,
    file: &OnnxFile,
    provider: ExecutionProvider,
    config: SessionConfig,
    threads: usize,
) -> Result<Session, LoadError> {
    // The thread that asks for a run is one of them.
    let more = threads.saturating_sub(1);
    threads::check(more).map_err(|source| LoadError::Threads {
        path: file.path.clone(),
        threads: more,
        source,
    })?;
    let unavailable = |error: &ort::Error| {
        let complaint = one_line(&error.to_string());
        if provider.is_lost(&error.to_string()) {
            return LoadError::DeviceLost {
                device: provider.device(),
                reason: complaint,
            };
        }
        let explanation = provider.explain(&complaint, &library.folder);
        LoadError::Device {
            device: config.device,
            reason: explanation.cause,
            fix: explanation.fix,
        }
    };
    let cuda = config.cuda;
    let registration = provider.registration(Options { cuda, threads });
    // What goes wrong without any is about the model.
    let registers_nothing = registration.is_empty();
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
        if !provider.is_gpu() {
            builder = builder.with_config_entry(arena::CONFIG_ENTRY, "1")?;
        }
        Ok(builder.with_execution_providers(registration)?)
    };
    let mut builder = configure().map_err(|error: ort::Error| {
        if registers_nothing {
            refused(library, file, &error)
        } else {
            unavailable(&error)
        }
    })?;
    builder.commit_from_memory(&file.bytes).map_err(|error| {
        // The model's own faults are told as such, whatever device was asked for.
        if provider.is_concerned(&error.to_string()) {
            unavailable(&error)
        } else {
            refused(library, file, &error)
        }
    })
}
