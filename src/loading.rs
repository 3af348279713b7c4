//! From a file to a served model: read, check, warm up, start its instances.
//!
//! Invariant: what comes out of here answers requests at once. Nothing that is served already is touched.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::batching::{BatchingConfig, Scheduler};
use crate::model::repository::{self, ModelSource, RepositoryError};
use crate::model::{Batchability, ModelMetadata};
use crate::registry::ServedModel;
use crate::runtime::buckets::Buckets;
use crate::runtime::device_health::DeviceHealth;
use crate::runtime::library::Library;
use crate::runtime::provider::{CudaConfig, Device, ExecutionProvider};
use crate::runtime::session::{self, LoadedModel, Placement, SessionConfig};
use crate::runtime::{LoadError, Model, RuntimeError, batch_check, warmup};
use crate::telemetry::metrics::{Merging, Metrics, ModelInfo};

/// Rows per execution unless a flag, the environment or the sidecar says otherwise.
pub const DEFAULT_MAX_BATCH_SIZE: usize = 32;

/// What is served, and how it is executed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelsConfig {
    /// An `.onnx` file, or a repository folder.
    pub path: PathBuf,
    /// The name of a single-file model.
    pub name: Option<String>,
    /// ONNX Runtime's library; searched if not given.
    pub library: Option<PathBuf>,
    /// The device to execute on.
    pub device: Device,
    /// How CUDA is used, where it is.
    pub cuda: CudaConfig,
    /// Sessions per model; chosen if not given.
    pub instances: Option<NonZeroUsize>,
    /// Threads per session; chosen if not given.
    pub intra_op_threads: Option<NonZeroUsize>,
    /// Rows per execution; the sidecar's, or the default, if not given.
    pub max_batch_size: Option<NonZeroUsize>,
    /// How long the oldest request may wait for company; the sidecar's, or none, if not given.
    pub max_queue_delay: Option<Duration>,
    /// Rows that may wait.
    pub max_queue_size: usize,
}

/// Why models cannot be served. Each is one line with a cause and a fix.
#[derive(Debug, Error)]
pub enum LoadingError {
    /// No model was found.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// A model could not be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The GPU is lost.
    #[error("the GPU is lost; restart the server")]
    DeviceLost,
    /// The operating system gave no thread.
    #[error("the operating system refused a thread for an instance: {0}")]
    Thread(std::io::Error),
}

/// Makes served models out of files.
pub struct Loader {
    config: ModelsConfig,
    default_timeout: Duration,
    metrics: Arc<Metrics>,
    device: Arc<DeviceHealth>,
    library: Library,
}

impl Loader {
    /// Loads ONNX Runtime.
    ///
    /// # Errors
    /// When there is none, or it is too old.
    pub fn new(
        config: ModelsConfig,
        default_timeout: Duration,
        metrics: Arc<Metrics>,
        device: Arc<DeviceHealth>,
    ) -> Result<Self, LoadingError> {
        // The path first: who mistyped it wants to hear that, whatever else is missing.
        repository::find(&config.path, config.name.as_deref())?;
        let library = Library::load(config.library.as_deref()).map_err(LoadError::from)?;
        Ok(Self {
            config,
            default_timeout,
            metrics,
            device,
            library,
        })
    }

    /// The models that there are now.
    ///
    /// # Errors
    /// See [`RepositoryError`].
    pub fn find(&self) -> Result<Vec<ModelSource>, RepositoryError> {
        repository::find(&self.config.path, self.config.name.as_deref())
    }

    /// Loads and warms the model at `source`, and starts its instances.
    ///
    /// # Errors
    /// See [`LoadingError`].
    pub fn load(&self, source: &ModelSource) -> Result<ServedModel, LoadingError> {
        self.load_onto(source, self.config.device)
    }

    /// The same, onto the device that executes `served` now if that is a GPU: what is replaced on a GPU must not come
    /// back on a CPU because the two did not fit beside each other.
    ///
    /// # Errors
    /// See [`LoadingError`].
    pub fn load_again(
        &self,
        source: &ModelSource,
        served: Option<&ServedModel>,
    ) -> Result<ServedModel, LoadingError> {
        let device = served.and_then(|served| served.device.parse().ok());
        let on_gpu = device.filter(|device| matches!(device, Device::Cuda(_)));
        self.load_onto(source, on_gpu.unwrap_or(self.config.device))
    }

    fn load_onto(&self, source: &ModelSource, device: Device) -> Result<ServedModel, LoadingError> {
        if self.device.is_lost() {
            return Err(LoadingError::DeviceLost);
        }
        let loaded = self.try_load(source, device);
        if let Err(LoadingError::Load(error)) = &loaded
            && let Some(reason) = error.loss()
        {
            self.device.lose(reason);
        }
        loaded
    }

    fn try_load(&self, source: &ModelSource, device: Device) -> Result<ServedModel, LoadingError> {
        let (config, library, metrics) = (&self.config, &self.library, &self.metrics);
        let started = Instant::now();
        let session = SessionConfig {
            device,
            cuda: config.cuda,
        };
        let mut loaded =
            session::load(library, source, session, |provider| place(config, provider))?;
        let sidecar = &source.sidecar.batching;
        let max_batch_size = config
            .max_batch_size
            .or(sidecar.max_batch_size)
            .map_or(DEFAULT_MAX_BATCH_SIZE, NonZeroUsize::get);
        let on_gpu = loaded.provider != ExecutionProvider::Cpu;
        if let Device::Cuda(index) = loaded.provider.device() {
            self.device.set_serving(index);
        }
        let (metadata, merging) = check_batching(&mut loaded, max_batch_size, config.cuda, source)?;
        // The check has run every size on the first session already.
        let checked = merging == Merging::On && source.sidecar.batching.check != Some(false);
        for model in loaded.models.iter_mut().skip(usize::from(checked)) {
            warm_up(model, &metadata, max_batch_size, source)?;
        }
        let batching = BatchingConfig {
            max_batch_size,
            max_queue_delay: config
                .max_queue_delay
                .or(sidecar.max_queue_delay)
                .unwrap_or_default(),
            max_queue_size: config.max_queue_size,
            default_timeout: self.default_timeout,
            // Rows that nobody asked for are computed only where repeated shapes are worth more, and where they were
            // shown not to touch the others.
            buckets: (on_gpu && merging == Merging::On).then(|| Buckets::up_to(max_batch_size)),
        };
        let (device, provider) = (loaded.provider.device().to_string(), loaded.provider);
        let info = ModelInfo {
            model_name: metadata.name.clone(),
            version: metadata.version.clone(),
            sha256: metadata.sha256.clone(),
            device: device.clone(),
            execution_provider: provider.name(),
            onnxruntime: library.version().to_owned(),
            merging,
        };
        let models = loaded
            .models
            .into_iter()
            .map(|model| Box::new(model) as Box<dyn Model>)
            .collect();
        let scheduler = Scheduler::start(
            &metadata,
            models,
            batching,
            &self.device,
            metrics.batching(&metadata.name),
        )
        .map_err(LoadingError::Thread)?;
        tracing::info!(
            model = metadata.name, version = metadata.version, signature = metadata.signature_text(),
            device, execution_provider = provider.name(), fallback = loaded.fallback, onnxruntime = library.version(),
            instances = loaded.placement.instances, intra_op_threads = loaded.placement.intra_op_threads, max_batch_size,
            batching = ?metadata.batchability, nodes = ?loaded.assignment.counts(), seconds = started.elapsed().as_secs_f64(),
            "model loaded"
        );
        let prediction = metrics.prediction(&metadata.name);
        let execution_provider = provider.name();
        Ok(ServedModel {
            metadata,
            scheduler,
            metrics: prediction,
            device,
            execution_provider,
            fallback: loaded.fallback,
            assignment: loaded.assignment,
            info,
        })
    }
}

/// Tries whether rows depend on each other, and describes the model as what came out.
///
/// # Errors
/// When the device or the runtime fails.
pub fn check_batching(
    loaded: &mut LoadedModel,
    max_batch_size: usize,
    cuda: CudaConfig,
    source: &ModelSource,
) -> Result<(Arc<ModelMetadata>, Merging), LoadError> {
    let metadata = Arc::clone(&loaded.metadata);
    if metadata.batchability != Batchability::Rows {
        return Ok((metadata, Merging::Off("signature")));
    }
    if max_batch_size == 1 {
        return Ok((metadata, Merging::Off("limit")));
    }
    let Some(model) = loaded.models.first_mut() else {
        return Ok((metadata, Merging::On));
    };
    if source.sidecar.batching.check == Some(false) {
        return Ok((metadata, Merging::On));
    }
    let sizes = Buckets::up_to(max_batch_size).sizes();
    let doubt = batch_check::check(model, &sizes, cuda.tf32).map_err(|source_error| {
        LoadError::BatchCheck {
            path: source.path.clone(),
            source: source_error,
        }
    })?;
    let Some(doubt) = doubt else {
        return Ok((metadata, Merging::On));
    };
    let reason = doubt.to_string();
    tracing::warn!(
        model = metadata.name,
        reason,
        "requests for this model are executed one by one; if its rows are independent all the same, say 'check = false' under [batching] in its sidecar"
    );
    let metadata = ModelMetadata {
        batchability: Batchability::Never(reason),
        ..ModelMetadata::clone(&metadata)
    };
    Ok((Arc::new(metadata), Merging::Off(doubt.kind())))
}

/// Runs the batch sizes that will occur.
fn warm_up(
    model: &mut dyn Model,
    metadata: &ModelMetadata,
    max_batch_size: usize,
    source: &ModelSource,
) -> Result<(), LoadError> {
    let sizes = if metadata.has_batch_axis() {
        Buckets::up_to(max_batch_size).sizes()
    } else {
        vec![1]
    };
    for rows in sizes {
        match warmup::run_once(model, rows) {
            Ok(()) => {}
            Err(RuntimeError::Refused(reason)) => {
                // Zeros are what we can make up, not what the model was made for; some models rightly refuse them.
                tracing::warn!(
                    model = metadata.name,
                    rows,
                    reason,
                    "the model refused zeros, so this size is not warmed up"
                );
            }
            Err(error) => {
                return Err(LoadError::WarmUp {
                    path: source.path.clone(),
                    rows,
                    source: error,
                });
            }
        }
    }
    Ok(())
}

/// How many sessions execute a model on `provider`: what the flags say, and otherwise what suits the CPUs that this
/// process may use.
fn place(config: &ModelsConfig, provider: ExecutionProvider) -> Placement {
    // The number that the container's CPU quota allows, not the number that the host has.
    let cpus = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    place_on(
        cpus,
        provider != ExecutionProvider::Cpu,
        config.instances.map(NonZeroUsize::get),
        config.intra_op_threads.map(NonZeroUsize::get),
    )
}

/// On a CPU, two sessions keep one busy while the other hands out results; more only share the same cores.
fn place_on(
    cpus: usize,
    on_gpu: bool,
    instances: Option<usize>,
    intra_op_threads: Option<usize>,
) -> Placement {
    let instances = instances.unwrap_or(if on_gpu { 1 } else { cpus.min(2) });
    let intra_op_threads =
        intra_op_threads.unwrap_or(if on_gpu { 1 } else { (cpus / instances).max(1) });
    Placement {
        instances,
        intra_op_threads,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_and_instances_never_exceed_the_cpus_unless_asked_to() {
        for cpus in 1..=64 {
            let placement = place_on(cpus, false, None, None);
            assert!(
                placement.instances * placement.intra_op_threads <= cpus,
                "{cpus}: {placement:?}"
            );
            assert!(placement.intra_op_threads >= 1);
        }
        let fixed = place_on(2, false, Some(4), Some(3));
        assert_eq!(
            fixed,
            Placement {
                instances: 4,
                intra_op_threads: 3
            }
        );
    }
}
