//! Every flag with its environment variable, default, unit, and the reason to change it: what `--help` prints.
//!
//! Invariant: a value that does not parse never gets past this file.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use super::values::{self, OptionalTime, Switch};
use crate::address::Host;
use crate::fetch::Digest;
use crate::healthcheck::Target;
use crate::models::settings::Fixed;
use crate::runtime::providers::{CudaConfig, Device};
use crate::telemetry::collector::Endpoint;
use crate::telemetry::logging::{LogFormat, LogLevel};
use crate::units::{ByteSize, DurationText};

const NOTES: &str = "\
Every flag of serve is also an environment variable; the flag wins, and an empty variable is as if it were not set.
Durations and sizes carry a unit: 250ms, 64MiB. Upper and lower case are the same in words and units.
Exit codes: 0 clean stop, 2 wrong usage or configuration, 1 anything else.";

/// The command line as a whole. Without a command, its flags are those of `serve`.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "model-serving",
    version,
    about = "Serves ONNX models over HTTP with dynamic batching",
    after_help = NOTES,
    override_usage = "model-serving [serve] [OPTIONS]\n       model-serving COMMAND [OPTIONS] ...",
    max_term_width = 100,
    args_conflicts_with_subcommands = true,
    propagate_version = true
)]
pub(super) struct CommandLine {
    #[command(subcommand)]
    pub(super) command: Option<Subcommands>,

    #[command(flatten)]
    pub(super) serve: ServeFlags,
}

#[derive(Debug, Clone, Subcommand)]
pub(super) enum Subcommands {
    /// Serve models; what is done without a command, too.
    #[command(after_help = NOTES, override_usage = "model-serving [serve] [OPTIONS]")]
    Serve(Box<ServeFlags>),
    Inspect(Box<InspectFlags>),
    Tune(Box<TuneFlags>),
    Fetch(Box<FetchFlags>),
    Healthcheck(Box<HealthcheckFlags>),
    Completions(CompletionsFlags),
    Man(ManFlags),
}

/// Serves ONNX models over HTTP with dynamic batching.
#[derive(Debug, Clone, Parser)]
#[command(name = "model-serving")]
pub struct ServeFlags {
    /// The model: an .onnx file, or a repository folder NAME/VERSION/model.onnx. Change it to serve your own.
    #[arg(
        long,
        env = "MODEL_PATH",
        value_name = "PATH",
        default_value = "models/best.onnx",
        value_parser = values::path()
    )]
    pub model: PathBuf,

    /// The name of a single-file model in URLs and metrics; else its sidecar's name, else the file's stem. Set it when
    /// dashboards need a stable name.
    #[arg(long, env = "MODEL_NAME", value_name = "NAME", value_parser = values::model_name)]
    pub model_name: Option<String>,

    /// The model of a repository that answers requests which name none, as POST /predict; else the one whose sidecar says
    /// default = true, else the only one. Set it where several models are served and clients call /predict.
    #[arg(long, env = "DEFAULT_MODEL", value_name = "NAME", value_parser = values::model_name)]
    pub default_model: Option<String>,

    /// The address to listen on. Set 127.0.0.1 to be reachable from this machine only.
    #[arg(long, env = "HOST", value_name = "ADDRESS", default_value = "0.0.0.0")]
    pub host: Host,

    /// The HTTP/1.1 port; 8000 unless the platform names one (PORT on Cloud Run, AIP HTTP port on Vertex AI). 0 lets the
    /// system choose; the log line "listening" tells.
    #[arg(long, env = "PORT", value_name = "PORT", value_parser = values::port)]
    pub port: Option<u16>,

    /// A second port, for probes and metrics alone (/health, /ready, /ping, /metrics and the platform's health route), which
    /// answers whatever happens on the main one; off if not given. It asks for no API key. Set it where an orchestrator and
    /// Prometheus can reach a port of their own; 0 lets the system choose.
    #[arg(long, env = "ADMIN_PORT", value_name = "PORT", value_parser = values::port)]
    pub admin_port: Option<u16>,

    /// What executes the model, and how.
    #[command(flatten)]
    pub execution: ExecutionFlags,

    /// The most rows of one request, 16384 unless one execution may have more; further ones are refused with 400. What
    /// exceeds an execution is executed in parts where rows are independent, else as it is. A model without a batch axis
    /// has no such limit. Lower it to keep large requests off an interactive service.
    #[arg(long, env = "MAX_REQUEST_ROWS", value_name = "ROWS", value_parser = values::count)]
    pub max_request_rows: Option<NonZeroUsize>,

    /// How long the oldest request may wait for company, 0ms unless the sidecar says otherwise. Under load batches form
    /// without it; raise it only if larger batches are worth that latency.
    #[arg(long, env = "MAX_QUEUE_DELAY", value_name = "DURATION")]
    pub max_queue_delay: Option<DurationText>,

    /// Rows that may wait, of a request that is executed in parts those of one part; more are refused with 429. Lower it to
    /// refuse sooner instead of answering late.
    #[arg(
        long,
        env = "MAX_QUEUE_SIZE",
        value_name = "ROWS",
        default_value = "1024", value_parser = values::count)]
    pub max_queue_size: NonZeroUsize,

    /// The deadline of a request, unless it brings a shorter one in X-Request-Timeout-Ms.
    #[arg(
        long,
        env = "REQUEST_TIMEOUT",
        value_name = "DURATION",
        default_value = "30s", value_parser = values::positive_time)]
    pub request_timeout: DurationText,

    /// The largest body, also after decompression. Raise it for large images sent as JSON.
    #[arg(
        long,
        env = "MAX_BODY_SIZE",
        value_name = "SIZE",
        default_value = "64MiB", value_parser = values::positive_size)]
    pub max_body_size: ByteSize,

    /// The largest answer.
    #[arg(
        long,
        env = "MAX_OUTPUT_SIZE",
        value_name = "SIZE",
        default_value = "256MiB", value_parser = values::positive_size)]
    pub max_output_size: ByteSize,

    /// All headers of a request together.
    #[arg(
        long,
        env = "MAX_HEADER_SIZE",
        value_name = "SIZE",
        default_value = "32KiB", value_parser = values::positive_size)]
    pub max_header_size: ByteSize,

    /// The number of headers of a request.
    #[arg(long, env = "MAX_HEADERS", value_name = "COUNT", default_value = "100", value_parser = values::headers)]
    pub max_headers: NonZeroUsize,

    /// The path and query of a request.
    #[arg(
        long,
        env = "MAX_URI_SIZE",
        value_name = "SIZE",
        default_value = "8KiB", value_parser = values::uri_size)]
    pub max_uri_size: ByteSize,

    /// Nested arrays and objects in JSON. Raise it for tensors of very high rank.
    #[arg(
        long,
        env = "MAX_JSON_DEPTH",
        value_name = "LEVELS",
        default_value = "32", value_parser = values::json_depth)]
    pub max_json_depth: NonZeroUsize,

    /// Connections at once. When all are taken, the one that has waited longest for its client gives way to a new request,
    /// and probes and metrics are answered in any case. Lowered to what the limit of open files allows.
    #[arg(
        long,
        env = "MAX_CONNECTIONS",
        value_name = "COUNT",
        default_value = "4096", value_parser = values::count)]
    pub max_connections: NonZeroUsize,

    /// From a new connection to its first byte.
    #[arg(
        long,
        env = "FIRST_BYTE_TIMEOUT",
        value_name = "DURATION",
        default_value = "10s", value_parser = values::positive_time)]
    pub first_byte_timeout: DurationText,

    /// From the first byte of a request's head to its end.
    #[arg(
        long,
        env = "HEADER_TIMEOUT",
        value_name = "DURATION",
        default_value = "10s", value_parser = values::positive_time)]
    pub header_timeout: DurationText,

    /// From a request's head to the end of its body. Raise it for large bodies over slow links.
    #[arg(
        long,
        env = "BODY_TIMEOUT",
        value_name = "DURATION",
        default_value = "30s", value_parser = values::positive_time)]
    pub body_timeout: DurationText,

    /// How long a client may take no bytes of its answer, or fall behind 4 KiB a second while it is waited for.
    #[arg(
        long,
        env = "WRITE_TIMEOUT",
        value_name = "DURATION",
        default_value = "30s", value_parser = values::positive_time)]
    pub write_timeout: DurationText,

    /// How long a connection is kept between requests. Set it above the keep-alive of the load balancer in front.
    #[arg(
        long,
        env = "KEEP_ALIVE_TIMEOUT",
        value_name = "DURATION",
        default_value = "75s", value_parser = values::positive_time)]
    pub keep_alive_timeout: DurationText,

    /// How long a connection is used, give or take a tenth; the next answer then has Connection: close. off if not given.
    /// Set it where new replicas stand behind a balancer of connections, as a Service of Kubernetes is: clients that keep
    /// their connections never reach them otherwise.
    #[arg(
        long,
        env = "MAX_CONNECTION_AGE",
        value_name = "DURATION|off",
        default_value = "off"
    )]
    pub max_connection_age: OptionalTime,

    /// After SIGTERM, how long requests are still taken while /ready says 503. Kubernetes needs some 5s, unless a
    /// preStop hook waits; Cloud Run needs none.
    #[arg(
        long,
        env = "DRAIN_DELAY",
        value_name = "DURATION",
        default_value = "0s"
    )]
    pub drain_delay: DurationText,

    /// How long accepted requests may then take. Keep delay and timeout below the platform's grace period.
    #[arg(
        long,
        env = "DRAIN_TIMEOUT",
        value_name = "DURATION",
        default_value = "8s"
    )]
    pub drain_timeout: DurationText,

    /// How often the model's files are looked at, to load them again when they have changed; off, or a time such as 10s.
    /// SIGHUP loads them again in any case. Set it where new models arrive by themselves in a mounted folder or bucket.
    #[arg(
        long,
        env = "WATCH_MODEL",
        value_name = "INTERVAL",
        default_value = "off",
        value_parser = values::interval
    )]
    pub watch_model: OptionalTime,

    /// A file of API keys, one a line: every route but /health, /ready, /ping and /metrics then asks for one of them, as
    /// Authorization: Bearer KEY. Lines that begin with # are comments. Read when the server starts. Set it where the
    /// network in front is not trusted, together with TLS there.
    #[arg(long, env = "API_KEY_FILE", value_name = "PATH", value_parser = values::path())]
    pub api_key_file: Option<PathBuf>,

    /// off, error, warn, info, debug or trace. info has one line per request, debug also probes and scrapes.
    #[arg(long, env = "LOG_LEVEL", value_name = "LEVEL", default_value = "info")]
    pub log_level: LogLevel,

    /// json for log collectors, text for people; auto is text at a terminal (in colour, unless `NO_COLOR` is set), else json.
    #[arg(
        long,
        env = "LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "auto"
    )]
    pub log_format: LogFormat,

    /// Where spans are sent: the base URL of an OTLP collector that takes OTLP over HTTP, without TLS
    /// (`http://localhost:4318`); off if not given. Set it when requests cross several services and you want to see where
    /// their time goes.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<Endpoint>,
}

// Whatever changes what is found out about a model when it is loaded, so that all commands that say so take the same flags.
// (A doc comment here would become the description of these commands.)
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[expect(
    missing_docs,
    reason = "clap would print it as the description of the command"
)]
pub struct ExecutionFlags {
    /// The device: auto, cpu, cuda, cuda:N or openvino (the CPU, by OpenVINO). One that cannot be had fails the start; auto
    /// takes cuda or cpu, and says which and why.
    #[arg(long, env = "DEVICE", value_name = "DEVICE", default_value = "auto")]
    pub device: Device,

    /// Bytes of the GPU's memory that one session may take for its tensors; all there is if not given. Set it when
    /// several programs share the GPU.
    #[arg(long, env = "GPU_MEMORY_LIMIT", value_name = "SIZE", value_parser = values::positive_size)]
    pub gpu_memory_limit: Option<ByteSize>,

    /// on multiplies FP32 with TF32's 10 bits of precision on GPUs that can; faster, and less exact. Set it when the
    /// model was checked with it.
    #[arg(long, env = "TF32", value_name = "on|off", default_value = "off")]
    pub tf32: Switch,

    /// Path of libonnxruntime.so (1.24 or newer); searched beside the executable, in .onnxruntime/ and in the system's
    /// library folders if not given.
    #[arg(long, env = "ORT_DYLIB_PATH", value_name = "PATH", value_parser = values::path())]
    pub onnxruntime: Option<PathBuf>,

    /// Sessions per model, each with a thread that executes batches; chosen from the CPUs this container may use if not
    /// given. Set 1 for a large model that has the machine to itself.
    #[arg(long, env = "INSTANCES", value_name = "COUNT", value_parser = values::instances)]
    pub instances: Option<NonZeroUsize>,

    /// Threads per session; chosen from the CPUs this container may use, never the host's, if not given. Raise it for
    /// lower latency of large models, lower it for more throughput of small ones.
    #[arg(long, env = "INTRA_OP_THREADS", value_name = "COUNT", value_parser = values::threads)]
    pub intra_op_threads: Option<NonZeroUsize>,

    /// How long instances, threads and batch sizes that are not given may be tried while a model is loaded on the CPU, or
    /// off. Set off, or write the settings down with model-serving tune, where every start must be alike; off
    /// also makes threads of all instances.
    #[arg(
        long,
        env = "TUNING_TIME",
        value_name = "DURATION|off",
        default_value = "2s"
    )]
    pub tuning_time: OptionalTime,

    /// The most rows of an execution that requests share, and of a part of a larger request; 32 unless the sidecar says
    /// otherwise, with fewer rows shared where more do not pay. 1 turns batching off: each request is executed as it
    /// is. Set it to fix how many rows share an execution; whether they pay is not measured then.
    #[arg(long, env = "MAX_BATCH_SIZE", value_name = "ROWS", value_parser = values::rows)]
    pub max_batch_size: Option<NonZeroUsize>,

    /// Bytes that requests may hold at once: bodies, tensors, and answers until their last byte has left; more are refused
    /// with 429. The runs of each model on the CPU may hold as much again. Lowered to a quarter of the container's memory.
    /// Raise it for models whose runs take much.
    #[arg(
        long,
        env = "MAX_INFLIGHT_BYTES",
        value_name = "SIZE",
        default_value = "1GiB", value_parser = values::positive_size)]
    pub max_inflight_bytes: ByteSize,
}

/// Prints what a model is, how its requests would be merged with these settings, and a request to try.
#[derive(Debug, Clone, PartialEq, Eq, Parser)]
#[command(override_usage = "model-serving inspect [OPTIONS] MODEL.onnx")]
pub struct InspectFlags {
    /// The .onnx file, or a repository folder.
    #[arg(value_name = "MODEL.onnx", value_parser = values::path())]
    pub model: PathBuf,

    /// The name of a single-file model in URLs and metrics; else its sidecar's name, else the file's stem. Set it when
    /// dashboards need a stable name.
    #[arg(long, env = "MODEL_NAME", value_name = "NAME", value_parser = values::model_name)]
    pub model_name: Option<String>,

    /// Print one JSON object instead of text, for programs.
    #[arg(long)]
    pub json: bool,

    /// What would execute the model, and how.
    #[command(flatten)]
    pub execution: ExecutionFlags,
}

impl ExecutionFlags {
    /// What is not to be chosen.
    #[must_use]
    pub fn fixed(&self) -> Fixed {
        Fixed {
            instances: self.instances,
            intra_op_threads: self.intra_op_threads,
            max_batch_size: self.max_batch_size,
        }
    }

    /// How CUDA is used, where it is.
    #[must_use]
    pub fn cuda(&self) -> CudaConfig {
        CudaConfig {
            memory_limit: self.gpu_memory_limit.map(ByteSize::bytes),
            tf32: self.tf32.0,
            ..CudaConfig::default()
        }
    }
}

/// Measures which settings suit a model here, and writes them into its sidecar.
///
/// Prints the table of instances, threads and batch sizes on this machine's CPUs. Every later start on such a machine
/// takes the settings from the sidecar.
#[derive(Debug, Clone, PartialEq, Eq, Parser)]
#[command(override_usage = "model-serving tune [OPTIONS] MODEL.onnx")]
pub struct TuneFlags {
    /// The .onnx file, or a repository folder.
    #[arg(value_name = "MODEL.onnx", value_parser = values::path())]
    pub model: PathBuf,

    /// The name of a single-file model, for the table; else its sidecar's name, else the file's stem.
    #[arg(long, env = "MODEL_NAME", value_name = "NAME", value_parser = values::model_name)]
    pub model_name: Option<String>,

    /// Path of libonnxruntime.so; searched if not given.
    #[arg(long, env = "ORT_DYLIB_PATH", value_name = "PATH", value_parser = values::path())]
    pub onnxruntime: Option<PathBuf>,

    /// How long settings may be tried for each model. Raise it for a model whose runs take seconds.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = values::positive_time)]
    pub time: DurationText,

    /// Sessions, if they are not to be chosen.
    #[arg(long, value_name = "COUNT", value_parser = values::instances)]
    pub instances: Option<NonZeroUsize>,

    /// Threads per session, if they are not to be chosen.
    #[arg(long, value_name = "COUNT", value_parser = values::threads)]
    pub intra_op_threads: Option<NonZeroUsize>,

    /// Print the table and the settings, and write nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// Brings a model from a bucket, a web server or a hub into a folder, and checks it.
///
/// The server itself fetches nothing: this runs before it, as an init container, or as the same process if the flags of
/// serve follow behind --. What is there already, with the right digest, is not fetched again. Credentials come from the
/// environment, as the platform gives them.
#[derive(Debug, Clone, Parser)]
#[command(override_usage = "model-serving fetch [OPTIONS] --to <DIR> [URI] [-- SERVE FLAGS]")]
pub struct FetchFlags {
    /// Where the model lies: `gs://BUCKET/PATH`, `s3://BUCKET/PATH`, `az://CONTAINER/PATH`, `https://HOST/PATH` or
    /// `hf://OWNER/REPO[@REVISION]/PATH`. A path that ends in / is a folder with all that lies in it, but for hidden files.
    /// If not given, the variable; if that is not set either, `AIP_STORAGE_URI`, as Vertex AI sets it.
    #[arg(value_name = "URI", env = "MODEL_URI")]
    pub uri: Option<String>,

    /// The folder that it is brought into: a file under its own name, a folder's files under their paths in it.
    #[arg(long, env = "MODEL_DIR", value_name = "DIR", value_parser = values::path())]
    pub to: PathBuf,

    /// The SHA-256 that the file must have; of a folder, the SHA-256 of what sha256sum prints for its files in the order of
    /// their names. Set it, so that every replica serves the same model. Plain http is fetched from only with it.
    #[arg(long, env = "MODEL_SHA256", value_name = "HEX")]
    pub sha256: Option<Digest>,

    /// How long nothing new may come before it is given up; until then it is tried again.
    #[arg(long, env = "FETCH_TIMEOUT", value_name = "DURATION", default_value = "2m", value_parser = values::positive_time)]
    pub timeout: DurationText,

    /// off, error, warn, info, debug or trace.
    #[arg(long, env = "LOG_LEVEL", value_name = "LEVEL", default_value = "info")]
    pub log_level: LogLevel,

    /// json for log collectors, text for people; auto is text at a terminal, else json.
    #[arg(
        long,
        env = "LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "auto"
    )]
    pub log_format: LogFormat,

    // For the help and for clap's grammar; `command` reads them off the command line, to tell `--` with nothing behind it.
    /// Flags of serve: when the model is there, this process becomes the server.
    #[arg(last = true, value_name = "SERVE FLAGS")]
    pub serve: Vec<OsString>,
}

/// Prints what makes a shell complete commands and flags.
///
/// For bash: model-serving completions bash > ~/.local/share/bash-completion/completions/model-serving
#[derive(Debug, Clone, PartialEq, Eq, Parser)]
#[command(override_usage = "model-serving completions <SHELL>")]
pub(super) struct CompletionsFlags {
    /// bash, elvish, fish, powershell or zsh.
    #[arg(value_name = "SHELL", value_parser = values::shell)]
    pub(super) shell: Shell,
}

/// Prints a page of the manual, for man: model-serving man > model-serving.1
#[derive(Debug, Clone, PartialEq, Eq, Parser)]
#[command(override_usage = "model-serving man [COMMAND]")]
pub(super) struct ManFlags {
    /// The command that the page is about; model-serving as a whole if not given.
    #[arg(value_name = "COMMAND")]
    pub(super) command: Option<String>,
}

/// Asks a server how it is.
///
/// Exit codes: 0 if it answers 200, 1 if it does not, 2 for wrong usage. For HEALTHCHECK in containers, where there is no
/// curl.
#[derive(Debug, Clone, PartialEq, Eq, Parser)]
#[command(override_usage = "model-serving healthcheck [OPTIONS] [URL]")]
pub struct HealthcheckFlags {
    /// What to ask; if not given, /health where a server with the same settings listens: at the admin port if there is
    /// one, else at the port.
    #[arg(value_name = "URL")]
    pub url: Option<Target>,

    /// The server's host; an address that stands for every interface is asked at this machine's own.
    #[arg(long, env = "HOST", value_name = "ADDRESS", default_value = "0.0.0.0")]
    pub host: Host,

    /// The server's port, 8000 unless the platform names one.
    #[arg(long, env = "PORT", value_name = "PORT", value_parser = values::port)]
    pub port: Option<u16>,

    /// The server's port for health and metrics, if it has one.
    #[arg(long, env = "ADMIN_PORT", value_name = "PORT", value_parser = values::port)]
    pub admin_port: Option<u16>,
}
