//! From a file to a served model: read, check, warm up, start its instances.
//!
//! Invariant: what comes out of here answers requests at once. Nothing that is served already is touched.

mod report;
mod row_trial;
pub(crate) mod sessions;
mod trial;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::runtime::Handle;

use crate::batching::{BatchingConfig, Executor, Scheduler};
use crate::model::ModelMetadata;
use crate::model::default::{DefaultError, DefaultModel};
use crate::model::faults::Faults;
use crate::model::onnx::{OnnxFile, RawModel};
use crate::model::repository::{self, Found, ModelSource, RepositoryError};
use crate::models::served::ServedModel;
use crate::models::settings::{self, Fixed, Origin, Settings};
use crate::runtime::buckets::Buckets;
use crate::runtime::device_health::DeviceHealth;
use crate::runtime::library::Library;
use crate::runtime::providers::{CudaConfig, Device, ExecutionProvider};
use crate::runtime::session::{self, OpenedModel, OrtModel, RunMemory, SessionConfig};
use crate::runtime::tuning::{ModelSettings, TuningConstraints};
use crate::runtime::{LoadError, Model, example, warmup};
use crate::telemetry::logging::HINTS;
use crate::telemetry::metrics::{Merging, Metrics, ModelInfo};
use crate::telemetry::progress::{self, Progress};

pub use crate::model::limits;
pub use report::LoadReport;
pub(crate) use row_trial::RowTrial;
use sessions::Sessions;

/// The most rows of a request unless a flag or the environment says otherwise, or an execution may have more.
pub const DEFAULT_MAX_REQUEST_ROWS: usize = 16_384;

/// The memory of runs where nobody says otherwise, as of `--max-inflight-bytes`.
pub const DEFAULT_RUN_MEMORY: usize = 1 << 30;

/// What is served, and how it is executed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelsConfig {
    /// An `.onnx` file, or a repository folder.
    pub path: PathBuf,
    /// The name of a single-file model.
    pub name: Option<String>,
    /// The name of the model that answers requests which name none.
    pub default_model: Option<String>,
    /// ONNX Runtime's library; searched if not given.
    pub library: Option<PathBuf>,
    /// The device to execute on.
    pub device: Device,
    /// How CUDA is used, where it is.
    pub cuda: CudaConfig,
    /// What is not to be chosen.
    pub fixed: Fixed,
    /// How long the oldest request may wait for company; the sidecar's, or none, if not given.
    pub max_queue_delay: Option<Duration>,
    /// The most rows of one request; [`DEFAULT_MAX_REQUEST_ROWS`], or those of an execution, if not given.
    pub max_request_rows: Option<usize>,
    /// Rows that may wait.
    pub max_queue_size: usize,
    /// How long settings may be tried that the user has not fixed; not at all if not given.
    pub tuning_time: Option<Duration>,
}

/// How long a request to show at a terminal is looked for.
const EXAMPLE_TIME: Duration = Duration::from_millis(500);

/// Why models cannot be served. Each is one line with a cause and a fix.
#[derive(Debug, Error)]
pub enum LoadingError {
    /// No model was found.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// A model could not be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// No model can be the default one.
    #[error(transparent)]
    Default(#[from] DefaultError),
    /// Several models could not be loaded.
    #[error("{} models cannot be served: {}", .0.len(), Faults(.0))]
    Several(Vec<LoadingError>),
    /// That is a defect of this program, which the log tells in a line of its own.
    #[error("loading it panicked, which is a defect of this server; the line 'panic' says where")]
    Panicked,
    /// What was loaded may be half of the old files and half of the new ones.
    #[error("its files change again and again while they are loaded; start when they are complete")]
    Changed,
    /// The GPU is lost.
    #[error("the GPU is lost; restart the server")]
    DeviceLost,
    /// The operating system gave no thread.
    #[error("the operating system refused a thread for an instance: {0}")]
    Thread(std::io::Error),
}

impl LoadingError {
    /// Whether a setting is wrong for what lies there, and not what lies there.
    #[must_use]
    pub fn is_of_settings(&self) -> bool {
        match self {
            Self::Repository(error) => error.is_of_settings(),
            Self::Default(error) => matches!(error, DefaultError::Unknown { .. }),
            _ => false,
        }
    }
}

/// What the model that serves now hands on to the one that is loaded in its place.
#[derive(Debug, Clone)]
pub struct Predecessor {
    /// Where it is executed.
    device: Option<Device>,
    /// What was left open of its settings and what was chosen, if that was measured.
    tuned: Option<(TuningConstraints, ModelSettings)>,
}

impl Predecessor {
    /// What `served` hands on.
    #[must_use]
    pub fn of(served: &ServedModel) -> Self {
        Self {
            device: served.device.parse().ok(),
            tuned: served.tuned,
        }
    }
}

/// Makes served models out of files.
pub struct Loader {
    config: ModelsConfig,
    default_timeout: Duration,
    metrics: Arc<Metrics>,
    device: Arc<DeviceHealth>,
    library: Library,
    run_memory: RunMemory,
    /// The runtime that serves the connections.
    runtime: Handle,
}

/// Opens the model, which was read as `raw`, and raises the memory of runs until one row fits.
pub(crate) fn open_with_memory<'a>(
    library: &'a Library,
    source: &ModelSource,
    raw: RawModel,
    mut session: SessionConfig,
    threads: impl Fn(ExecutionProvider) -> usize,
) -> Result<(OpenedModel<'a>, OrtModel), LoadError> {
    let mut file = OnnxFile::check(raw)?;
    loop {
        let (opened, mut first) = session::open(library, source, file, session, &threads)?;
        if opened.provider.is_gpu() || warmup::fits(&mut first) {
            return Ok((opened, first));
        }
        let memory = session
            .run_memory
            .as_mut()
            .filter(|memory| memory.usual < memory.most);
        let Some(memory) = memory else {
            tracing::warn!(
                model = source.name,
                "one row takes more memory than runs may, so that requests for this model will be refused; raise --max-inflight-bytes (MAX_INFLIGHT_BYTES)"
            );
            return Ok((opened, first));
        };
        memory.usual = memory.usual.saturating_mul(2).min(memory.most);
        tracing::info!(
            model = source.name,
            bytes = memory.usual,
            "one row takes more memory than --max-inflight-bytes, so runs may take more"
        );
        drop(first);
        file = opened.into_file();
    }
}

impl Loader {
    /// Loads ONNX Runtime.
    ///
    /// # Errors
    /// When there is none, or it is too old.
    pub fn new(
        config: ModelsConfig,
        run_memory: RunMemory,
        default_timeout: Duration,
        metrics: Arc<Metrics>,
        device: Arc<DeviceHealth>,
        runtime: Handle,
    ) -> Result<Self, LoadingError> {
        // The path first: who mistyped it wants to hear that, whatever else is missing.
        let found = repository::look(&config.path, config.name.as_deref())?;
        if let Some(error) = found.emptiness(&config.path) {
            return Err(error.into());
        }
        if found.broken.is_empty() {
            DefaultModel::check(config.default_model.as_deref(), &found.sources)?;
        }
        let library = Library::load(config.library.as_deref()).map_err(LoadError::from)?;
        Ok(Self {
            config,
            default_timeout,
            metrics,
            device,
            library,
            run_memory,
            runtime,
        })
    }

    /// The models that there are now; one that is broken keeps no other from being found. If there is none, the error says
    /// so.
    ///
    /// # Errors
    /// When nothing can be looked at.
    pub fn look(&self) -> Result<(Found, Option<RepositoryError>), RepositoryError> {
        let found = repository::look(&self.config.path, self.config.name.as_deref())?;
        let emptiness = found.emptiness(&self.config.path);
        Ok((found, emptiness))
    }

    /// Where models are looked for.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.config.path
    }

    /// How what is served is called as a whole: the file or folder at its path.
    #[must_use]
    pub fn repository_name(&self) -> String {
        let name = self.config.path.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// The default model, as a server begins with it.
    #[must_use]
    pub fn default_model(&self) -> DefaultModel {
        DefaultModel::at_start(self.config.default_model.as_deref())
    }

    fn session(&self, device: Device, settings: &Settings) -> SessionConfig {
        SessionConfig {
            device,
            cuda: self.config.cuda,
            run_memory: Some(self.run_memory),
            most_sessions: settings.most_sessions(),
        }
    }

    /// Loads and warms the model at `source`, which was read as `raw`, and starts its instances, on as many of the CPUs as
    /// are the model's: onto the device that executes what serves `before` if that is a GPU, because what is replaced on a GPU
    /// must not come back on a CPU when the two do not fit beside each other.
    ///
    /// # Errors
    /// See [`LoadingError`].
    pub fn load(
        &self,
        source: &ModelSource,
        raw: RawModel,
        before: Option<Predecessor>,
        cpus: usize,
    ) -> Result<(ServedModel, LoadReport), LoadingError> {
        if self.device.is_lost() {
            return Err(LoadingError::DeviceLost);
        }
        let device = before.as_ref().and_then(|before| before.device);
        let on_gpu = device.filter(|device: &Device| device.is_gpu());
        let device = on_gpu.unwrap_or(self.config.device);
        let _reported_until_then = Progress::logged(&source.name);
        let loaded = self.try_load(source, raw, device, before, cpus);
        if let Err(LoadingError::Load(error)) = &loaded
            && let Some(reason) = error.loss()
        {
            self.device.lose(reason);
        }
        loaded
    }

    fn try_load(
        &self,
        source: &ModelSource,
        raw: RawModel,
        device: Device,
        before: Option<Predecessor>,
        cpus: usize,
    ) -> Result<(ServedModel, LoadReport), LoadingError> {
        let (config, library, metrics) = (&self.config, &self.library, &self.metrics);
        let wrong = |reason| LoadError::Sidecar {
            path: source.path.clone(),
            reason,
        };
        let sidecar = &source.sidecar;
        let max_queue_delay =
            settings::queue_delay(config.max_queue_delay, sidecar, self.default_timeout)
                .map_err(wrong)?;
        let settings = Settings::resolve(config.fixed, sidecar, cpus).map_err(wrong)?;
        let started = Instant::now();
        let session = self.session(device, &settings);
        let is_first = before.is_none();
        // What was measured once is kept, because a server that is in use cannot be measured; but only if measuring is
        // wanted at all.
        let tuned = before.and_then(|before| before.tuned);
        let tuned = tuned.filter(|_| config.tuning_time.is_some());
        let Prepared {
            opened,
            mut sessions,
            constraints,
            trial,
            merging,
            merging_reason,
            merge_rows,
        } = prepare(
            library,
            source,
            raw,
            session,
            (&settings, config.tuning_time),
            tuned,
        )?;
        let provider = opened.provider;
        let on_gpu = provider.is_gpu();
        if on_gpu {
            self.device.set_serving(provider);
        }
        let metadata = trial.metadata;
        let (max_batch_size, choice) = (constraints.max_batch_size, sessions.choice);
        let measured = !sessions.measurements.is_empty();
        let inherited = sessions.origin == Origin::Before;
        let executor = self.executor(&opened, &metadata, &mut sessions, &settings)?;
        let measured_settings = measured.then(|| sessions::summary(&sessions.measurements));
        // Only whoever sits at a terminal is shown it.
        let is_wanted = is_first && tracing::enabled!(target: HINTS, tracing::Level::INFO);
        let first = sessions.models.first_mut().filter(|_| is_wanted);
        let example = first.and_then(|model| example::find(model, EXAMPLE_TIME).ok());
        let batching = BatchingConfig {
            max_queue_delay,
            comparable_runs: opened.has_bounded_work()
                && !metadata.has_open_sizes()
                && !metadata.has_strings(),
            // Rows that nobody asked for are computed only where repeated shapes are worth more, and where they were
            // shown not to touch the others.
            buckets: (on_gpu && merging.is_on()).then(|| Buckets::up_to(merge_rows)),
            ..self.batching(max_batch_size, merge_rows)
        };
        let device = provider.device().to_string();
        let info = ModelInfo {
            model_name: metadata.name.clone(),
            version: metadata.version.clone(),
            sha256: metadata.sha256.clone(),
            device: device.clone(),
            execution_provider: provider.name(),
            onnxruntime: library.version().to_owned(),
            merging,
        };
        let boxed = |model| Box::new(model) as Box<dyn Model>;
        let scheduler = Scheduler::start(
            &metadata,
            sessions.models.into_iter().map(boxed).collect(),
            &executor,
            batching,
            &self.device,
            metrics.batching(&metadata.name, &metadata.version),
        )
        .map_err(LoadingError::Thread)?;
        let report = LoadReport {
            instances: choice.instance_group.instances,
            intra_op_threads: choice.instance_group.intra_op_threads,
            executor: executor.name(),
            max_batch_size: metadata.has_rows().then_some(max_batch_size),
            merge_rows,
            rows_tried: trial.tried,
            measured: measured_settings,
            took: started.elapsed(),
        };
        let model = ServedModel {
            metrics: metrics.prediction(&metadata.name),
            merging_reason,
            metadata,
            operators: opened.operators(),
            example,
            declared: opened.metadata,
            scheduler,
            device,
            execution_provider: provider.name(),
            fallback: opened.fallback,
            assignment: opened.assignment,
            info,
            tuned: (measured || inherited).then_some((constraints, choice)),
        };
        Ok((model, report))
    }

    /// How requests are merged and wait, as far as the settings say it.
    fn batching(&self, max_batch_size: usize, merge_rows: usize) -> BatchingConfig {
        let config = &self.config;
        let max_request_rows = config.max_request_rows;
        BatchingConfig {
            max_request_rows: max_request_rows
                .unwrap_or(DEFAULT_MAX_REQUEST_ROWS.max(max_batch_size)),
            max_batch_size,
            merge_rows,
            max_queue_delay: Duration::ZERO,
            max_queue_size: config.max_queue_size,
            default_timeout: self.default_timeout,
            buckets: None,
            comparable_runs: false,
            memory: self.run_memory.usual,
        }
    }

    /// Where the instances of `sessions` are to execute.
    fn executor(
        &self,
        opened: &OpenedModel<'_>,
        metadata: &ModelMetadata,
        sessions: &mut Sessions,
        settings: &Settings,
    ) -> Result<Executor, LoadError> {
        let config = &self.config;
        // Whoever fixes instances gets threads, and so does who wants no measurements.
        if settings.has_instances() || config.tuning_time.is_none() {
            return Ok(Executor::Threads);
        }
        let short_rows =
            sessions::short_rows(opened, metadata, sessions, settings.max_batch_size())?;
        Ok(
            short_rows.map_or(Executor::Threads, |short_rows| Executor::Runtime {
                runtime: self.runtime.clone(),
                short_rows,
            }),
        )
    }
}

/// A model that could be served now: its sessions, and what may be done with them.
pub(crate) struct Prepared<'a> {
    /// The model.
    pub(crate) opened: OpenedModel<'a>,
    /// One session per instance.
    pub(crate) sessions: Sessions,
    /// What was left open of its settings.
    pub(crate) constraints: TuningConstraints,
    /// What trying its rows has shown.
    pub(crate) trial: RowTrial,
    /// Whether requests are merged.
    pub(crate) merging: Merging,
    /// Why they are not, or what is not known of it.
    pub(crate) merging_reason: Option<String>,
    /// The most rows of an execution that requests share; 1 if they are not merged.
    pub(crate) merge_rows: usize,
}

/// Tries whether rows of `opened`, of which `first` is a session, may share executions.
///
/// # Errors
/// When the device or the runtime fails.
pub(crate) fn try_rows(
    opened: &OpenedModel<'_>,
    first: &mut OrtModel,
    settings: &Settings,
    tf32: bool,
    source: &ModelSource,
) -> Result<RowTrial, LoadError> {
    trial::try_rows(opened, first, settings.max_batch_size(), tf32, source)
}

/// Makes the sessions of the model at `source`, tries whether its rows may share executions, chooses the settings that
/// neither the user nor `replaced` says, and runs what will occur. Whoever says what would be served asks here, too.
///
/// # Errors
/// See [`LoadError`].
pub(crate) fn prepare<'a>(
    library: &'a Library,
    source: &ModelSource,
    raw: RawModel,
    session: SessionConfig,
    (settings, tuning_time): (&Settings, Option<Duration>),
    replaced: Option<(TuningConstraints, ModelSettings)>,
) -> Result<Prepared<'a>, LoadError> {
    let threads = |provider: ExecutionProvider| settings.first_threads(provider);
    progress::stage("reading and opening the model");
    let (opened, mut first) = open_with_memory(library, source, raw, session, threads)?;
    progress::stage("trying whether rows may share executions");
    let trial = try_rows(&opened, &mut first, settings, session.cuda.tf32, source)?;
    let (provider, on_gpu) = (opened.provider, opened.provider.is_gpu());
    let constraints = settings.constraints(provider, Some(trial.limits()));
    let known = settings.known(provider, &constraints, replaced, opened.sha256());
    progress::stage("measuring settings");
    let mut sessions = sessions::make(&opened, first, &constraints, known, tuning_time)?;
    let given = settings.has_batch_size();
    let (merging, merging_reason) = trial::merging(&trial, &constraints, &sessions, given);
    progress::stage("warming up");
    for model in &mut sessions.models {
        model.divide_by(&trial.plan);
        if !sessions.warm {
            trial::warm_up(model, sessions.choice.merge_rows, on_gpu, &source.path)?;
        }
    }
    opened.settle();
    let merge_rows = if merging.is_on() {
        sessions.choice.merge_rows
    } else {
        1
    };
    Ok(Prepared {
        opened,
        sessions,
        constraints,
        trial,
        merging,
        merging_reason,
        merge_rows,
    })
}
