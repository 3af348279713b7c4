//! The composition root: bind, load, serve, drain. The only file that knows everyone.
//!
//! Invariant: the port is bound before anything slow begins, so `/health` answers from the first moment and `/ready`
//! says why not yet.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::batching::{BatchingConfig, MemoryBudget, Scheduler};
use crate::gpu;
use crate::http::accept::{self, ListenerConfig};
use crate::http::drain::Drain;
use crate::http::{self, App, HttpConfig};
use crate::model::ModelMetadata;
use crate::model::repository::{self, ModelSource, RepositoryError};
use crate::registry::{Registry, ServedModel};
use crate::runtime::library::Library;
use crate::runtime::provider::{Device, ExecutionProvider};
use crate::runtime::session::{self, SessionConfig};
use crate::runtime::{LoadError, Model, RuntimeError, warmup};
use crate::shutdown::{self, DrainConfig, Stop, StopSignals};
use crate::telemetry::collector::Endpoint;
use crate::telemetry::metrics::{Metrics, ModelInfo};
use crate::telemetry::traces::Tracer;

/// How often instances are looked at for runs that nobody waits for.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// Rows per execution unless a flag, the environment or the sidecar says otherwise.
pub const DEFAULT_MAX_BATCH_SIZE: usize = 32;

/// Everything that the layers need to know, each in its own struct.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The address to listen on.
    pub host: String,
    /// The port to listen on; 0 lets the system choose.
    pub port: u16,
    /// What is served, and how it is executed.
    pub models: ModelsConfig,
    /// The bounds of requests and answers.
    pub http: HttpConfig,
    /// The bounds of connections.
    pub listener: ListenerConfig,
    /// Bytes that requests may hold at once.
    pub max_inflight_bytes: usize,
    /// How the server stops.
    pub drain: DrainConfig,
    /// Where spans are sent; nowhere if not given.
    pub collector: Option<Endpoint>,
}

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

/// Why the server did not start. Each is one line with a cause and a fix.
#[derive(Debug, Error)]
pub enum StartError {
    /// The port could not be bound.
    #[error(
        "cannot listen on {address}: {source}; stop what uses the port, or set --host (HOST) and --port (PORT)"
    )]
    Bind {
        /// The address that was asked for.
        address: String,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// No model was found.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// A model could not be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The operating system gave no thread, signal or the like.
    #[error("the operating system refused {what}: {source}")]
    System {
        /// What was asked of it.
        what: &'static str,
        /// What it said.
        source: std::io::Error,
    },
    /// The metrics could not be registered, which is a defect.
    #[error("the metrics could not be registered: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// Binds the listener.
///
/// # Errors
/// When the address is not ours, or somebody else has the port.
pub async fn bind(config: &Config) -> Result<TcpListener, StartError> {
    let address = format!("{}:{}", config.host, config.port);
    let bound = TcpListener::bind((config.host.as_str(), config.port)).await;
    bound.map_err(|source| StartError::Bind { address, source })
}

/// Serves on `listener` until a signal comes, and drains.
///
/// # Errors
/// When the models cannot be served. A stop, forced or not, is no error.
pub async fn run(
    config: Config,
    listener: TcpListener,
    mut signals: StopSignals,
    tracer: Tracer,
) -> Result<(), StartError> {
    let started = Instant::now();
    let metrics = Arc::new(Metrics::new()?);
    crate::telemetry::count_panics(&metrics);
    let _sampler_until_the_end =
        gpu::start(Arc::clone(&metrics)).map_err(|source| StartError::System {
            what: "a thread",
            source,
        })?;
    let registry = Arc::new(Registry::default());
    let drain = Drain::default();
    let budget = MemoryBudget::new(config.max_inflight_bytes);
    let app = Arc::new(App::new(
        Arc::clone(&registry),
        Arc::clone(&metrics),
        budget,
        config.http.clone(),
        tracer,
    ));
    let address = listener.local_addr().ok();
    let serving = tokio::spawn(accept::serve(
        listener,
        http::router(app),
        config.listener,
        drain.clone(),
    ));
    tracing::info!(
        address = address.map(|address: SocketAddr| address.to_string()),
        "listening"
    );

    let (models, default_timeout, loading_metrics) = (
        config.models.clone(),
        config.http.request_timeout,
        Arc::clone(&metrics),
    );
    let (send, loaded) = oneshot::channel();
    let load = move || {
        // Nobody waits any more when a signal came first.
        let _ = send.send(load_models(&models, default_timeout, &loading_metrics));
    };
    let thread = thread::Builder::new().name("load".to_owned()).spawn(load);
    thread.map_err(|source| StartError::System {
        what: "a thread",
        source,
    })?;

    let stop = tokio::select! {
        models = loaded => match models {
            Ok(Ok(models)) => {
                registry.publish(models);
                tracing::info!(seconds = started.elapsed().as_secs_f64(), "ready");
                None
            }
            Ok(Err(error)) => return Err(error),
            Err(_) => return Err(StartError::System { what: "to load the models", source: std::io::Error::other("the loading thread ended early") }),
        },
        stop = signals.next() => Some(stop),
    };
    let checking = tokio::spawn({
        let registry = Arc::clone(&registry);
        async move {
            let mut interval = tokio::time::interval(CHECK_INTERVAL);
            loop {
                interval.tick().await;
                registry.check(Instant::now());
            }
        }
    });
    let stop: Stop = match stop {
        Some(stop) => stop,
        None => signals.next().await,
    };
    // A second Ctrl-C is meant; a second SIGTERM is often just sent to a process group and to us as well.
    let hurry = async { while signals.next().await != Stop::Interrupt {} };
    shutdown::drain(&registry, &drain, serving, config.drain, stop, hurry).await;
    checking.abort();
    Ok(())
}

/// Loads, warms and starts every model.
fn load_models(
    config: &ModelsConfig,
    default_timeout: Duration,
    metrics: &Arc<Metrics>,
) -> Result<Vec<ServedModel>, StartError> {
    let sources = repository::find(&config.path, config.name.as_deref())?;
    let library = Library::load(config.library.as_deref()).map_err(LoadError::from)?;
    sources
        .iter()
        .map(|source| load_model(config, source, &library, default_timeout, metrics))
        .collect()
}

fn load_model(
    config: &ModelsConfig,
    source: &ModelSource,
    library: &Library,
    default_timeout: Duration,
    metrics: &Arc<Metrics>,
) -> Result<ServedModel, StartError> {
    let started = Instant::now();
    let placement = Placement::choose(config);
    let session = SessionConfig {
        device: config.device,
        intra_op_threads: placement.intra_op_threads,
    };
    let mut loaded = session::load(library, source, session, placement.instances)?;
    let metadata = Arc::clone(&loaded.metadata);
    let sidecar = &source.sidecar.batching;
    let max_batch_size = config
        .max_batch_size
        .or(sidecar.max_batch_size)
        .map_or(DEFAULT_MAX_BATCH_SIZE, NonZeroUsize::get);
    for model in &mut loaded.models {
        warm_up(model, &metadata, max_batch_size, source)?;
    }
    let batching = BatchingConfig {
        max_batch_size,
        max_queue_delay: config
            .max_queue_delay
            .or(sidecar.max_queue_delay)
            .unwrap_or_default(),
        max_queue_size: config.max_queue_size,
        default_timeout,
    };
    let (device, provider) = (loaded.provider.device().to_string(), loaded.provider);
    metrics.set_model_info(ModelInfo {
        model_name: &metadata.name,
        version: &metadata.version,
        sha256: &metadata.sha256,
        device: &device,
        execution_provider: provider.name(),
        onnxruntime: library.version(),
    });
    let models = loaded
        .models
        .into_iter()
        .map(|model| Box::new(model) as Box<dyn Model>)
        .collect();
    let scheduler = Scheduler::start(
        &metadata,
        models,
        batching,
        metrics.batching(&metadata.name),
    )
    .map_err(|source| StartError::System {
        what: "a thread for an instance",
        source,
    })?;
    tracing::info!(
        model = metadata.name, version = metadata.version, signature = metadata.signature_text(),
        device, execution_provider = provider.name(), fallback = loaded.fallback, onnxruntime = library.version(),
        instances = placement.instances, intra_op_threads = placement.intra_op_threads, max_batch_size,
        batching = ?metadata.batchability, seconds = started.elapsed().as_secs_f64(),
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
    })
}

/// Runs the batch sizes that will occur.
fn warm_up(
    model: &mut dyn Model,
    metadata: &ModelMetadata,
    max_batch_size: usize,
    source: &ModelSource,
) -> Result<(), LoadError> {
    let sizes = if metadata.has_batch_axis() {
        warmup::batch_sizes(max_batch_size)
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

/// How many sessions execute a model, and with how many threads each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Placement {
    instances: usize,
    intra_op_threads: usize,
}

impl Placement {
    /// What the flags say, and otherwise what suits the CPUs that this process may use.
    fn choose(config: &ModelsConfig) -> Self {
        // The number that the container's CPU quota allows, not the number that the host has.
        let cpus = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let on_gpu = ExecutionProvider::candidates(config.device)
            .first()
            .is_some_and(|provider| *provider != ExecutionProvider::Cpu);
        Self::for_cpus(
            cpus,
            on_gpu,
            config.instances.map(NonZeroUsize::get),
            config.intra_op_threads.map(NonZeroUsize::get),
        )
    }

    /// On a CPU, two sessions keep one busy while the other hands out results; more only share the same cores.
    fn for_cpus(
        cpus: usize,
        on_gpu: bool,
        instances: Option<usize>,
        intra_op_threads: Option<usize>,
    ) -> Self {
        let instances = instances.unwrap_or(if on_gpu { 1 } else { cpus.min(2) });
        let intra_op_threads =
            intra_op_threads.unwrap_or(if on_gpu { 1 } else { (cpus / instances).max(1) });
        Self {
            instances,
            intra_op_threads,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_and_instances_never_exceed_the_cpus_unless_asked_to() {
        for cpus in 1..=64 {
            let placement = Placement::for_cpus(cpus, false, None, None);
            assert!(
                placement.instances * placement.intra_op_threads <= cpus,
                "{cpus}: {placement:?}"
            );
            assert!(placement.intra_op_threads >= 1);
        }
        let fixed = Placement::for_cpus(2, false, Some(4), Some(3));
        assert_eq!(
            fixed,
            Placement {
                instances: 4,
                intra_op_threads: 3
            }
        );
    }
}
