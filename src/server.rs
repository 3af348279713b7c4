//! The composition root: bind, load, serve, drain. The only file that knows everyone.
//!
//! Invariant: the port is bound before anything slow begins, so `/health` answers from the first moment and `/ready`
//! says why not yet.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::net::TcpListener;

use crate::address::Host;
use crate::admin::Admin;
use crate::container;
use crate::gpu;
use crate::hints;
use crate::http::{self, App, HttpConfig};
use crate::inference::MemoryBudget;
use crate::models::lifecycle::{FirstLook, Lifecycle, LifecycleConfig};
use crate::models::loading::{Loader, LoadingError, ModelsConfig};
use crate::models::registry::Registry;
use crate::net::accept;
use crate::net::config::{ListenerConfig, Port};
use crate::net::drain::Drain;
use crate::net::listening::{self, BindError};
use crate::process;
use crate::runtime::device_health::DeviceHealth;
use crate::runtime::load_in_progress::LoadInProgress;
use crate::runtime::session::RunMemory;
use crate::service::Service;
use crate::service_manager;
use crate::shutdown::{self, DrainConfig};
use crate::signals::{Signals, Stop};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::panics;
use crate::telemetry::traces::{Tracer, TracesConfig};
use crate::watchdog::Watchdog;

/// Everything that the layers need to know, each in its own struct.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The address to listen on.
    pub host: Host,
    /// The port to listen on; 0 lets the system choose.
    pub port: u16,
    /// A second port for probes and metrics; 0 lets the system choose.
    pub admin_port: Option<u16>,
    /// What is served, and how it is executed.
    pub models: ModelsConfig,
    /// The bounds of requests and answers.
    pub http: HttpConfig,
    /// The bounds of connections.
    pub listener: ListenerConfig,
    /// Bytes that requests may hold at once.
    pub max_inflight_bytes: usize,
    /// How often model files are looked at for changes; never if not given.
    pub watch_model: Option<Duration>,
    /// The model that the hosting platform sends predictions to by its name, if it does.
    pub expected_model: Option<String>,
    /// How the server stops.
    pub drain: DrainConfig,
    /// Where spans are sent; nowhere if not given.
    pub traces: Option<TracesConfig>,
}

/// Why the server did not start. Each is one line with a cause and a fix.
#[derive(Debug, Error)]
pub enum StartError {
    /// The port could not be bound.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The models cannot be served.
    #[error(transparent)]
    Loading(#[from] LoadingError),
    /// The operating system gave no thread, signal or the like.
    #[error("the operating system refused {what}: {source}")]
    System {
        /// What was asked of it.
        what: &'static str,
        /// What it said.
        source: std::io::Error,
    },
    /// Loading the models panicked, which is a defect.
    #[error(
        "loading the models panicked, which is a defect of this server; the line 'panic' of the log says where: please report it"
    )]
    Panicked,
    /// The accept loop panicked, which is a defect.
    #[error(
        "no connection is accepted any more, which is a defect of this server; the line 'panic' of the log says where: please report it"
    )]
    NotAccepting,
    /// The metrics could not be registered, which is a defect.
    #[error("the metrics could not be registered: {0}")]
    Metrics(#[from] prometheus::Error),
}

impl StartError {
    /// Whether a setting is wrong for what lies at the model's path.
    #[must_use]
    pub fn is_of_settings(&self) -> bool {
        matches!(self, Self::Loading(error) if error.is_of_settings())
    }
}

/// What the server listens on.
pub struct Listeners {
    main: TcpListener,
    admin: Option<(std::net::TcpListener, SocketAddr)>,
}

impl Listeners {
    /// The address of the main port.
    ///
    /// # Errors
    /// When the operating system does not say.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.main.local_addr()
    }
}

/// Binds the listeners.
///
/// # Errors
/// When the address is not ours, or somebody else has a port.
pub async fn bind(config: &Config) -> Result<Listeners, StartError> {
    let main = listening::bind(&config.host, config.port, "--port (PORT)").await?;
    let admin = match config.admin_port {
        Some(port) => {
            let bound = listening::bind(&config.host, port, "--admin-port (ADMIN_PORT)").await?;
            Some(for_another_runtime(bound).map_err(no_listener)?)
        }
        None => None,
    };
    Ok(Listeners { main, admin })
}

/// A listener that another runtime can take, and its address.
fn for_another_runtime(
    listener: TcpListener,
) -> std::io::Result<(std::net::TcpListener, SocketAddr)> {
    let address = listener.local_addr()?;
    Ok((listener.into_std()?, address))
}

/// Serves on `listeners` until a signal comes, and drains.
///
/// # Errors
/// When the models cannot be served, or no connection is accepted any more. A stop, forced or not, is no error.
pub async fn run(
    config: Config,
    listeners: Listeners,
    mut signals: Signals,
    tracer: Tracer,
) -> Result<(), StartError> {
    let started = Instant::now();
    let metrics = Arc::new(Metrics::new()?);
    panics::count(&metrics);
    let device = Arc::new(DeviceHealth::default());
    let _sampler_until_the_end =
        gpu::start(Arc::clone(&metrics), Arc::clone(&device)).map_err(no_thread)?;
    let registry = Arc::new(Registry::new(Arc::clone(&device)));
    let drain = Drain::default();
    let run_memory = RunMemory::within(container::memory(), config.max_inflight_bytes);
    if run_memory.usual < config.max_inflight_bytes {
        tracing::warn!(
            asked = config.max_inflight_bytes,
            bytes = run_memory.usual,
            "--max-inflight-bytes (MAX_INFLIGHT_BYTES) is lowered to a quarter of the memory that there is"
        );
    }
    let service = Arc::new(Service::new(
        Arc::clone(&registry),
        MemoryBudget::new(run_memory.usual),
        config.http.request_timeout,
    ));
    let app = Arc::new(App::new(
        Arc::clone(&registry),
        Arc::clone(&metrics),
        service,
        config.http.clone(),
        tracer,
        drain.clone(),
    ));
    let address = listeners.local_addr().ok();
    let admin_address = listeners.admin.as_ref().map(|(_, address)| *address);
    let (listening, admin) = with_room(config.listener, listeners.admin);
    let admin = admin.map(|(listener, bounds)| {
        Admin::start(
            listener,
            http::admin_site(&app),
            bounds,
            Arc::clone(&metrics),
        )
    });
    let admin = admin.transpose().map_err(no_thread)?;
    let mut serving = tokio::spawn(accept::serve(
        listeners.main,
        http::site(app),
        listening,
        drain.clone(),
        Arc::clone(&metrics),
    ));
    tracing::info!(
        address = address.map(|address| address.to_string()),
        admin_address = admin_address.map(|address| address.to_string()),
        "listening"
    );

    let runtime = tokio::runtime::Handle::current();
    let watchdog = Watchdog::start(Arc::clone(&registry), &runtime).map_err(no_thread)?;
    let (lifecycle, first_look) =
        start_models(&config, run_memory, &registry, &metrics, &device).map_err(no_thread)?;
    let (stop, lifecycle) = tokio::select! {
        // Whoever stops waiting leaves the thread to the end of the process.
        stop = signals.stop.next() => (stop, None),
        _ = &mut serving => return Err(StartError::NotAccepting),
        ended = first_look => {
            // Without a result it has panicked.
            ended.map_err(|_| StartError::Panicked)??;
            tell_ready(&config, &registry, started);
            service_manager::ready();
            if let Some(address) = address.filter(|_| hints::are_shown()) {
                let (path, registry) = (config.models.path.clone(), Arc::clone(&registry));
                let needs_key = config.http.api_keys.is_some();
                // Samples are looked for on the disk.
                tokio::task::spawn_blocking(move || {
                    hints::at_ready(address, &path, &registry, needs_key);
                });
            }
            let stop = loop {
                tokio::select! {
                    stop = signals.stop.next() => break stop,
                    _ = &mut serving => return Err(StartError::NotAccepting),
                    () = signals.reload.next() => lifecycle.reload(),
                }
            };
            (stop, Some(lifecycle))
        }
    };
    service_manager::stopping();
    let end = Instant::now() + config.drain.delay + config.drain.timeout;
    // A second Ctrl-C is meant; a second SIGTERM is often just sent to a process group and to us as well.
    let hurry = async { while signals.stop.next().await != Stop::Interrupt {} };
    shutdown::drain(&registry, &drain, serving, config.drain, stop, hurry).await;
    tokio::task::block_in_place(|| drop(watchdog));
    if let Some(lifecycle) = lifecycle {
        // Loads count themselves. A thread that is still busy with models must not be cut off either.
        let has_ended = tokio::task::block_in_place(|| lifecycle.join(end));
        if !has_ended {
            std::mem::forget(LoadInProgress::begin());
        }
    }
    if let Some(admin) = admin {
        tokio::task::block_in_place(|| admin.stop());
    }
    Ok(())
}

/// The bounds of connections, lowered to what the process's table of open files has room for, and the listener of the
/// admin port with its own.
fn with_room<L>(
    asked: ListenerConfig,
    admin: Option<(L, SocketAddr)>,
) -> (ListenerConfig, Option<(L, ListenerConfig)>) {
    let admin = admin.map(|(listener, _)| {
        let bounds = ListenerConfig {
            port: Port::Admin,
            max_connections: crate::admin::MAX_CONNECTIONS,
            reserve: crate::admin::RESERVE,
            ..asked
        };
        (listener, bounds)
    });
    let Some(open_files) = process::raise_open_files() else {
        return (asked, admin);
    };
    let others = admin.as_ref().map_or(0, |(_, bounds)| bounds.descriptors());
    let fitting = asked.fitting(open_files, others);
    if fitting != asked {
        tracing::warn!(
            asked = asked.max_connections,
            max_connections = fitting.max_connections,
            open_files,
            "--max-connections (MAX_CONNECTIONS) is lowered to what the limit of open files allows; raise that (ulimit -n)"
        );
    }
    (fitting, admin)
}

/// Starts what loads the models and lets them go.
fn start_models(
    config: &Config,
    run_memory: RunMemory,
    registry: &Arc<Registry>,
    metrics: &Arc<Metrics>,
    device: &Arc<DeviceHealth>,
) -> std::io::Result<(Lifecycle, FirstLook)> {
    let (models, timeout) = (config.models.clone(), config.http.request_timeout);
    let runtime = tokio::runtime::Handle::current();
    let loader = {
        let (metrics, device) = (Arc::clone(metrics), Arc::clone(device));
        move || Loader::new(models, run_memory, timeout, metrics, device, runtime)
    };
    let lifecycle = LifecycleConfig {
        registry: Arc::clone(registry),
        metrics: Arc::clone(metrics),
        watch: config.watch_model,
        // From a request's head to its body, and from there to its answer.
        grace: config.http.body_timeout + config.http.request_timeout,
    };
    Lifecycle::start(lifecycle, loader, LoadInProgress::begin())
}

/// Tells that the models serve, or those of them that can.
fn tell_ready(config: &Config, registry: &Registry, started: Instant) {
    if let Some(name) = &config.expected_model
        && registry.get(name).is_none()
    {
        tracing::warn!(
            model = name,
            "AIP_PREDICT_ROUTE names a model that is not served, so that its predictions get 404; set it to the route of a model, or to another path"
        );
    }
    let seconds = started.elapsed().as_secs_f64();
    if registry.is_incomplete() {
        tracing::warn!(
            seconds,
            "not ready, because models that are required cannot be served; the others answer, and this ends when those are mended or removed, or their sidecars say 'required = false'"
        );
    } else {
        tracing::info!(seconds, "ready");
    }
}

fn no_listener(source: std::io::Error) -> StartError {
    StartError::System {
        what: "a listener",
        source,
    }
}

fn no_thread(source: std::io::Error) -> StartError {
    StartError::System {
        what: "a thread",
        source,
    }
}
