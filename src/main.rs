//! The `model-serving` binary: read the command line, start telemetry, build, run until a signal.

use std::fmt::Display;
use std::io::ErrorKind;
use std::num::NonZeroUsize;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::ExitCode;

use model_serving::config::{
    Command, FetchStart, InspectFlags, Start, TuneFlags, UsageError, of_argument,
};
use model_serving::healthcheck::Target;
use model_serving::inspect::InspectConfig;
use model_serving::models::loading::LoadingError;
use model_serving::models::settings::Fixed;
use model_serving::runtime::library::Library;
use model_serving::server::{self, StartError};
use model_serving::signals::{Signals, Stop};
use model_serving::telemetry::logging;
use model_serving::telemetry::traces::{self, Tracer};
use model_serving::{fetch, healthcheck, inspect, process, tune, version};

/// The exit code of a command line or an environment that is not taken.
const WRONG_USAGE: u8 = 2;

/// The exit code of everything else that goes wrong.
const FAILED: u8 = 1;

#[expect(
    unsafe_code,
    reason = "the environment is set before there are threads"
)]
fn main() -> ExitCode {
    // SAFETY: nothing has started a thread yet.
    unsafe { process::prepare() };
    let command = Command::read(std::env::args_os(), |name| std::env::var_os(name));
    let result = command
        .map_err(|error| Failure::of_usage(&error))
        .and_then(execute);
    let code = match result {
        Ok(()) => 0,
        Err(failure) => {
            complain(&failure);
            failure.code
        }
    };
    process::leave_loads_behind(code);
    ExitCode::from(code)
}

fn execute(command: Command) -> Result<(), Failure> {
    match command {
        Command::Serve(start) => serve(*start),
        Command::Inspect(flags) => print_model(*flags),
        Command::Tune(flags) => tune_model(&flags),
        Command::Fetch(start) => fetch_model(*start),
        Command::Healthcheck(target) => Ok(check_health(&target)?),
        Command::Help(help) => match help.print() {
            // Whoever closes the pipe has read enough.
            Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.to_string().into()),
            _ => Ok(()),
        },
        Command::Print(text) => match std::io::Write::write_all(&mut std::io::stdout(), &text) {
            // Whoever closes the pipe has read enough.
            Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.to_string().into()),
            _ => Ok(()),
        },
        Command::Version => Ok(print_version()?),
    }
}

/// Why the process ends otherwise than it should.
struct Failure {
    /// One line.
    message: String,
    /// How the command is used, as a second line.
    usage: Option<String>,
    /// The exit code.
    code: u8,
}

impl Failure {
    fn of_usage(error: &UsageError) -> Self {
        Self {
            message: error.message().to_owned(),
            usage: error.usage().map(str::to_owned),
            code: WRONG_USAGE,
        }
    }

    /// What is wrong is a setting, or else what it was to be used on.
    fn new(error: &impl Display, of_settings: bool) -> Self {
        Self {
            message: error.to_string(),
            usage: None,
            code: if of_settings { WRONG_USAGE } else { FAILED },
        }
    }
}

impl From<String> for Failure {
    fn from(message: String) -> Self {
        Self::new(&message, false)
    }
}

fn serve(start: Start) -> Result<(), Failure> {
    let Start {
        config,
        log,
        warnings,
    } = start;
    // A signal that comes before there are handlers is heeded when there are: to the first process of a container it would
    // mean nothing, and another one would end as if it had crashed.
    process::hold_signals();
    let _flushed_at_the_end = logging::start(log);
    tracing::info!(
        version = version::VERSION,
        build = version::PROFILE,
        revision = version::revision(),
        onnxruntime = Library::version_of_file(config.models.library.as_deref()),
        "starting"
    );
    for warning in warnings {
        tracing::warn!(reason = warning, "a variable of the platform needs a look");
    }
    // Told before anybody can connect; whether the file is of use is found out when it is loaded.
    if let Some(library) = &config.models.library {
        Library::check(library).map_err(|error| error.to_string())?;
    }
    let (tracer, _sent_at_the_end) = match config.traces.as_ref().map(traces::start) {
        Some(Ok((tracer, flush))) => (tracer, Some(flush)),
        Some(Err(reason)) => {
            tracing::warn!(reason, "no traces are sent");
            (Tracer::default(), None)
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
        process::take_signals();
        let listeners = server::bind(&config).await?;
        server::run(config, listeners, signals, tracer).await
    });
    // Whatever still runs then runs for nobody.
    runtime.shutdown_background();
    result.map_err(|error| Failure::new(&error, error.is_of_settings()))
}

fn print_model(flags: InspectFlags) -> Result<(), Failure> {
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
    let failure = |error: LoadingError| {
        let message = of_argument(&error.to_string());
        Failure::new(&message, error.is_of_settings())
    };
    let described = inspect::describe(&config).map_err(failure)?;
    print(&described.text).map_err(|error| error.to_string())?;
    // Whoever looks at models before they are served has to hear of those that will not be.
    described.fault.map_or(Ok(()), |fault| Err(failure(fault)))
}

fn tune_model(flags: &TuneFlags) -> Result<(), Failure> {
    let settings = tune::TuneConfig {
        path: &flags.model,
        name: flags.model_name.as_deref(),
        library: flags.onnxruntime.as_deref(),
        time: flags.time.into(),
        fixed: Fixed {
            instances: flags.instances,
            intra_op_threads: flags.intra_op_threads,
            max_batch_size: None,
        },
        write: !flags.dry_run,
    };
    tune::tune(&settings, print).map_err(|error| {
        let message = of_argument(&error.to_string());
        Failure::new(&message, error.is_of_settings())
    })
}

fn fetch_model(start: FetchStart) -> Result<(), Failure> {
    let FetchStart { config, log, then } = start;
    // Only this thread takes signals, so that it can also stop to take them.
    process::hold_signals();
    let flushed_at_the_end = logging::start(log);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_start(process::hold_signals)
        .build()
        .map_err(|error| format!("the operating system refused an event loop: {error}"))?;
    let result: Result<(), Failure> = runtime.block_on(async {
        // The first process of a container is ended by no signal that it does not take.
        let mut signals = Signals::install().map_err(|error| error.to_string())?;
        process::take_signals();
        let result = tokio::select! {
            biased;
            stop = signals.stop.next() => return Err(stopped(stop).into()),
            result = fetch::fetch(&config) => result,
        };
        result.map_err(|error| Failure::new(&error, error.is_of_settings()))?;
        // From now on they wait for the server. One that has come already ends this.
        process::hold_signals();
        tokio::select! {
            biased;
            stop = signals.stop.next() => Err(stopped(stop).into()),
            () = std::future::ready(()) => Ok(()),
        }
    });
    // A look-up of a name may still be under way, for nobody.
    runtime.shutdown_background();
    drop(flushed_at_the_end);
    result?;
    match then {
        None => Ok(()),
        Some(arguments) => {
            let program = std::env::current_exe().map_err(|error| error.to_string())?;
            // The same process, so that whoever started and watches it notices nothing.
            let error = std::process::Command::new(program).args(arguments).exec();
            Err(format!("the server could not be started: {error}").into())
        }
    }
}

fn stopped(stop: Stop) -> String {
    let name = stop.name();
    format!(
        "{name} came before all was done; what has arrived is kept, and the next fetch goes on from there"
    )
}

fn print(text: &str) -> std::io::Result<()> {
    std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes())
}

fn print_version() -> Result<(), String> {
    let named = std::env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty());
    let library = match Library::load(named.as_deref().map(Path::new)) {
        Ok(library) => format!("ONNX Runtime {}", library.version()),
        Err(error) => format!("no ONNX Runtime: {error}"),
    };
    print(&format!("{}\n{library}\n", version::line())).map_err(|error| error.to_string())
}

fn check_health(target: &Target) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    runtime.block_on(healthcheck::check(target))
}

#[expect(
    clippy::print_stderr,
    reason = "a failed start is told on standard error, in one line"
)]
fn complain(failure: &Failure) {
    eprintln!("model-serving: {}", printable(&failure.message));
    if let Some(usage) = &failure.usage {
        eprintln!("{usage}");
    }
}

/// Paths and values may hold anything, also what would begin another line, steer the terminal, or turn the direction in
/// which it writes.
fn printable(message: &str) -> String {
    let turns = |character| matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let breaks = |character| matches!(character, '\u{2028}' | '\u{2029}');
    let mut text = String::with_capacity(message.len());
    for character in message.chars() {
        if character.is_control() || turns(character) || breaks(character) {
            text.extend(character.escape_default());
        } else {
            text.push(character);
        }
    }
    text
}
