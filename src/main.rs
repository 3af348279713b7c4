//! The `model-serving` binary: read the command line, start telemetry, build, run until a signal.

use std::num::NonZeroUsize;
use std::process::ExitCode;

use model_serving::config::{
    Command, DEFAULT_PORT, HealthcheckFlags, InspectFlags, ServeFlags, TuneFlags,
};
use model_serving::inspect::InspectConfig;
use model_serving::loading::Fixed;
use model_serving::progress::Progress;
use model_serving::server::{self, StartError};
use model_serving::signals::Signals;
use model_serving::telemetry::logging;
use model_serving::telemetry::traces::{self, Tracer};
use model_serving::{healthcheck, inspect, process, tune};

#[expect(
    unsafe_code,
    reason = "the environment is set before there are threads"
)]
fn main() -> ExitCode {
    // SAFETY: nothing has started a thread yet.
    unsafe { process::prepare() };
    let command = match Command::read(std::env::args_os()) {
        Ok(command) => command,
        Err(error) => error.exit(),
    };
    let result = match command {
        Command::Serve(flags) => serve(*flags),
        Command::Inspect(flags) => print_model(*flags),
        Command::Tune(flags) => tune_model(&flags),
        Command::Healthcheck(flags) => check_health(flags),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            complain(&message);
            ExitCode::FAILURE
        }
    }
}

fn serve(flags: ServeFlags) -> Result<(), String> {
    let log = flags.log_config();
    let config = flags
        .into_config(|name| std::env::var(name).ok())
        .unwrap_or_else(|error| error.exit());
    let _flushed_at_the_end = logging::start(log);
    let (tracer, _sent_at_the_end) = match &config.collector {
        Some(endpoint) => {
            let (tracer, flush) = traces::start(endpoint)?;
            (tracer, Some(flush))
        }
        None => (Tracer::default(), None),
    };
    // Large bodies are decoded on threads of their own; more of those than CPUs would only take turns.
    let cpus = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("http")
        .max_blocking_threads(cpus * 2)
        .build();
    let runtime =
        runtime.map_err(|error| format!("the operating system refused threads: {error}"))?;
    let result: Result<(), StartError> = runtime.block_on(async {
        let signals = Signals::install().map_err(|source| StartError::System {
            what: "a signal handler",
            source,
        })?;
        let listener = server::bind(&config).await?;
        server::run(config, listener, signals, tracer).await
    });
    // Whatever still runs then runs for nobody.
    runtime.shutdown_background();
    result.map_err(|error| error.to_string())
}

fn print_model(flags: InspectFlags) -> Result<(), String> {
    let execution = flags.execution;
    let config = InspectConfig {
        path: flags.model,
        name: flags.model_name,
        fixed: execution.fixed(),
        cuda: execution.cuda(),
        library: execution.onnxruntime,
        device: execution.device,
        tuning_time: execution.tuning_time.0,
        max_inflight_bytes: execution.max_inflight_bytes.bytes(),
        json: flags.json,
    };
    let progress = Progress::start();
    let text = inspect::describe(&config, &|stage| progress.stage(stage))
        .map_err(|error| error.to_string())?;
    print(&text)
}

fn tune_model(flags: &TuneFlags) -> Result<(), String> {
    let settings = tune::TuneConfig {
        path: &flags.model,
        library: flags.onnxruntime.as_deref(),
        time: flags.time.into(),
        fixed: Fixed {
            instances: flags.instances,
            intra_op_threads: flags.intra_op_threads,
            max_batch_size: None,
        },
        write: !flags.dry_run,
    };
    let progress = Progress::start();
    tune::tune(&settings, &|stage| progress.stage(stage), print)
}

fn print(text: &str) -> Result<(), String> {
    std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes())
        .map_err(|error| error.to_string())
}

fn check_health(flags: HealthcheckFlags) -> Result<(), String> {
    let url = flags.url.unwrap_or_else(|| {
        format!(
            "http://127.0.0.1:{}/health",
            flags.port.unwrap_or(DEFAULT_PORT)
        )
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    runtime.block_on(healthcheck::check(&url))
}

#[expect(
    clippy::print_stderr,
    reason = "a failed start is told on standard error, in one line"
)]
fn complain(message: &str) {
    eprintln!("model-serving: {message}");
}
