//! Flags and environment variables, and what they mean for each layer.
//!
//! Invariant: an unknown or ill-formed setting ends the start with exit code 2. Nothing below imports this module;
//! each layer owns its own configuration, and this one only fills it in.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use clap::error::ErrorKind;

use crate::http::HttpConfig;
use crate::http::accept::ListenerConfig;
use crate::http::api_keys::ApiKeys;
use crate::http::connection::ConnectionConfig;
use crate::runtime::provider::Device;
use crate::server::{Config, ModelsConfig};
use crate::shutdown::DrainConfig;
use crate::telemetry::collector::OptionalEndpoint;
use crate::telemetry::logging::{LogConfig, LogFormat, LogLevel};
use crate::units::{ByteSize, DurationText};

/// The port if neither a flag nor the environment names one.
pub const DEFAULT_PORT: u16 = 8000;

const COMMANDS: &str = "\
Commands:
  model-serving [serve] [flags]          serve (the default)
  model-serving inspect MODEL.onnx       print signature, operator sets, batching and a request to try
  model-serving healthcheck [URL]        exit 0 if the server answers 200, else 1 (for HEALTHCHECK; no curl needed)

Every flag is also an environment variable; the flag wins. Durations and sizes carry a unit: 250ms, 64MiB.
Exit codes: 0 clean stop, 2 wrong usage or configuration, 1 anything else.";

/// Serves ONNX models over HTTP with dynamic batching.
#[derive(Debug, Clone, Parser)]
#[command(name = "model-serving", version, about, after_help = COMMANDS, max_term_width = 100)]
pub struct ServeFlags {
    /// The model: an .onnx file, or a repository folder NAME/VERSION/model.onnx. Change it to serve your own.
    #[arg(
        long,
        env = "MODEL_PATH",
        value_name = "PATH",
        default_value = "models/best.onnx"
    )]
    pub model: PathBuf,

    /// The name of a single-file model in URLs and metrics; else its sidecar's name, else the file's stem. Set it when
    /// dashboards need a stable name.
    #[arg(long, env = "MODEL_NAME", value_name = "NAME")]
    pub model_name: Option<String>,

    /// The address to listen on. Set 127.0.0.1 to be reachable from this machine only.
    #[arg(long, env = "HOST", value_name = "ADDRESS", default_value = "0.0.0.0")]
    pub host: String,

    /// The HTTP/1.1 port; 8000 unless the platform names one (PORT on Cloud Run, AIP HTTP port on Vertex AI). 0 lets the
    /// system choose; the log line "listening" tells.
    #[arg(long, env = "PORT", value_name = "PORT")]
    pub port: Option<u16>,

    /// The device: auto, cpu, cuda or cuda:N. cuda that cannot be had fails the start; auto says which it took and why.
    #[arg(long, env = "DEVICE", value_name = "DEVICE", default_value = "auto")]
    pub device: Device,

    /// Path of libonnxruntime.so (1.24 or newer); searched beside the executable, in .onnxruntime/ and in the system's
    /// library folders if not given.
    #[arg(long, env = "ORT_DYLIB_PATH", value_name = "PATH")]
    pub onnxruntime: Option<PathBuf>,

    /// Sessions per model, each with a thread that executes batches; chosen from the CPUs this container may use if not
    /// given. Set 1 for a large model that has the machine to itself.
    #[arg(long, env = "INSTANCES", value_name = "COUNT")]
    pub instances: Option<NonZeroUsize>,

    /// Threads per session; chosen from the CPUs this container may use, never the host's, if not given. Raise it for
    /// lower latency of large models, lower it for more throughput of small ones.
    #[arg(long, env = "INTRA_OP_THREADS", value_name = "COUNT")]
    pub intra_op_threads: Option<NonZeroUsize>,

    /// Rows per execution, 32 unless the sidecar says otherwise; also the most rows of one request. 1 turns batching
    /// off. Lower it when a batch costs as much per row as a single row does.
    #[arg(long, env = "MAX_BATCH_SIZE", value_name = "ROWS")]
    pub max_batch_size: Option<NonZeroUsize>,

    /// How long the oldest request may wait for company, 0ms unless the sidecar says otherwise. Under load batches form
    /// without it; raise it only if larger batches are worth that latency.
    #[arg(long, env = "MAX_QUEUE_DELAY", value_name = "DURATION")]
    pub max_queue_delay: Option<DurationText>,

    /// Rows that may wait; more are refused with 429. Lower it to refuse sooner instead of answering late.
    #[arg(
        long,
        env = "MAX_QUEUE_SIZE",
        value_name = "ROWS",
        default_value = "1024"
    )]
    pub max_queue_size: NonZeroUsize,

    /// Bytes of request bodies and tensors held at once; more are refused with 429. Set it below the container's memory.
    #[arg(
        long,
        env = "MAX_INFLIGHT_BYTES",
        value_name = "SIZE",
        default_value = "1GiB"
    )]
    pub max_inflight_bytes: ByteSize,

    /// The deadline of a request, unless it brings a shorter one in X-Request-Timeout-Ms.
    #[arg(
        long,
        env = "REQUEST_TIMEOUT",
        value_name = "DURATION",
        default_value = "30s"
    )]
    pub request_timeout: DurationText,

    /// The largest body, also after decompression. Raise it for large images sent as JSON.
    #[arg(
        long,
        env = "MAX_BODY_SIZE",
        value_name = "SIZE",
        default_value = "64MiB"
    )]
    pub max_body_size: ByteSize,

    /// The largest answer.
    #[arg(
        long,
        env = "MAX_OUTPUT_SIZE",
        value_name = "SIZE",
        default_value = "256MiB"
    )]
    pub max_output_size: ByteSize,

    /// All headers of a request together.
    #[arg(
        long,
        env = "MAX_HEADER_SIZE",
        value_name = "SIZE",
        default_value = "32KiB"
    )]
    pub max_header_size: ByteSize,

    /// The number of headers of a request.
    #[arg(long, env = "MAX_HEADERS", value_name = "COUNT", default_value = "100")]
    pub max_headers: NonZeroUsize,

    /// The path and query of a request.
    #[arg(
        long,
        env = "MAX_URI_SIZE",
        value_name = "SIZE",
        default_value = "8KiB"
    )]
    pub max_uri_size: ByteSize,

    /// Nested arrays and objects in JSON. Raise it for tensors of very high rank.
    #[arg(
        long,
        env = "MAX_JSON_DEPTH",
        value_name = "LEVELS",
        default_value = "32"
    )]
    pub max_json_depth: NonZeroUsize,

    /// Connections at once; further ones wait to be accepted. Keep it below the limit of file descriptors.
    #[arg(
        long,
        env = "MAX_CONNECTIONS",
        value_name = "COUNT",
        default_value = "4096"
    )]
    pub max_connections: NonZeroUsize,

    /// From a new connection to its first byte.
    #[arg(
        long,
        env = "FIRST_BYTE_TIMEOUT",
        value_name = "DURATION",
        default_value = "10s"
    )]
    pub first_byte_timeout: DurationText,

    /// From the first byte of a request's head to its end.
    #[arg(
        long,
        env = "HEADER_TIMEOUT",
        value_name = "DURATION",
        default_value = "10s"
    )]
    pub header_timeout: DurationText,

    /// From a request's head to the end of its body. Raise it for large bodies over slow links.
    #[arg(
        long,
        env = "BODY_TIMEOUT",
        value_name = "DURATION",
        default_value = "30s"
    )]
    pub body_timeout: DurationText,

    /// How long a client may take no bytes of its answer.
    #[arg(
        long,
        env = "WRITE_TIMEOUT",
        value_name = "DURATION",
        default_value = "30s"
    )]
    pub write_timeout: DurationText,

    /// How long a connection is kept between requests. Set it above the keep-alive of the load balancer in front.
    #[arg(
        long,
        env = "KEEP_ALIVE_TIMEOUT",
        value_name = "DURATION",
        default_value = "75s"
    )]
    pub keep_alive_timeout: DurationText,

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

    /// A file of API keys, one a line: every route but /health, /ready, /ping and /metrics then asks for one of them, as
    /// Authorization: Bearer KEY. Lines that begin with # are comments. Read when the server starts. Set it where the
    /// network in front is not trusted, together with TLS there.
    #[arg(long, env = "API_KEY_FILE", value_name = "PATH")]
    pub api_key_file: Option<PathBuf>,

    /// off, error, warn, info, debug or trace. info has one line per request, debug also probes and scrapes.
    #[arg(long, env = "LOG_LEVEL", value_name = "LEVEL", default_value = "info")]
    pub log_level: LogLevel,

    /// json for log collectors, text for people.
    #[arg(
        long,
        env = "LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "json"
    )]
    pub log_format: LogFormat,

    /// Where spans are sent: the base URL of an OTLP collector that takes OTLP over HTTP, without TLS
    /// (`http://localhost:4318`); off if not given. Set it when requests cross several services and you want to see where
    /// their time goes.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<OptionalEndpoint>,
}

/// Prints what a model is, and a request to try.
#[derive(Debug, Clone, PartialEq, Eq, Parser)]
#[command(name = "model-serving inspect", version)]
pub struct InspectFlags {
    /// The .onnx file, or a repository folder.
    #[arg(value_name = "MODEL.onnx")]
    pub model: PathBuf,

    /// Path of libonnxruntime.so; searched if not given.
    #[arg(long, env = "ORT_DYLIB_PATH", value_name = "PATH")]
    pub onnxruntime: Option<PathBuf>,
}

/// Exits 0 if a server answers 200, else 1.
#[derive(Debug, Clone, PartialEq, Eq, Parser)]
#[command(name = "model-serving healthcheck", version)]
pub struct HealthcheckFlags {
    /// What to ask; /health on this machine at PORT if not given.
    #[arg(value_name = "URL")]
    pub url: Option<String>,

    /// The server's port.
    #[arg(long, env = "PORT", value_name = "PORT")]
    pub port: Option<u16>,
}

/// What the process is to do.
#[derive(Debug)]
pub enum Command {
    /// Serve.
    Serve(Box<ServeFlags>),
    /// Print what a model is.
    Inspect(InspectFlags),
    /// Ask a server how it is.
    Healthcheck(HealthcheckFlags),
}

impl Command {
    /// Reads the command line, the program's name first, and the environment.
    ///
    /// # Errors
    /// When they are not well-formed, and to print help or version.
    pub fn read(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut arguments: Vec<OsString> = arguments.into_iter().collect();
        let command = arguments
            .get(1)
            .and_then(|argument| argument.to_str())
            .unwrap_or_default()
            .to_owned();
        if matches!(command.as_str(), "serve" | "inspect" | "healthcheck") {
            arguments.remove(1);
        }
        match command.as_str() {
            "inspect" => InspectFlags::try_parse_from(arguments).map(Self::Inspect),
            "healthcheck" => HealthcheckFlags::try_parse_from(arguments).map(Self::Healthcheck),
            _ => ServeFlags::try_parse_from(arguments).map(|flags| Self::Serve(Box::new(flags))),
        }
    }
}

impl ServeFlags {
    /// How to log.
    #[must_use]
    pub fn log_config(&self) -> LogConfig {
        LogConfig {
            level: self.log_level,
            format: self.log_format,
        }
    }

    /// The layers' configurations. `environment` looks up the variables of hosting platforms.
    ///
    /// # Errors
    /// When a platform's variable is ill-formed, or settings contradict each other.
    pub fn into_config(
        self,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Config, clap::Error> {
        let platform = |name: &str| environment(name).filter(|value| !value.is_empty());
        let wrong =
            |message: String| clap::Error::raw(ErrorKind::ValueValidation, format!("{message}\n"));
        let platform_port = platform("AIP_HTTP_PORT")
            .map(|text| {
                text.parse::<u16>()
                    .map_err(|_| wrong(format!("AIP_HTTP_PORT '{text}' is not a port")))
            })
            .transpose()?;
        let platform_route = |name: &str| match platform(name) {
            None => Ok(Vec::new()),
            Some(route) if is_plain_route(&route) => Ok(vec![route]),
            Some(route) => Err(wrong(format!(
                "{name} '{route}' is not a plain route such as /v1/predict"
            ))),
        };
        let api_keys = self.api_key_file.as_deref().map(ApiKeys::read).transpose();
        let api_keys = api_keys
            .map_err(|error| wrong(format!("{error}; set --api-key-file (API_KEY_FILE)")))?;
        let max_header_size = self.max_header_size.bytes();
        let max_uri_size = self.max_uri_size.bytes();
        let connection = ConnectionConfig {
            first_byte_timeout: positive("--first-byte-timeout", self.first_byte_timeout)?,
            header_timeout: positive("--header-timeout", self.header_timeout)?,
            write_timeout: positive("--write-timeout", self.write_timeout)?,
            keep_alive_timeout: positive("--keep-alive-timeout", self.keep_alive_timeout)?,
            // Twice the limits are read, so that what exceeds them is answered as an error that says so.
            max_head_bytes: max_header_size
                .saturating_add(max_uri_size)
                .saturating_mul(2),
            max_headers: self.max_headers.get().saturating_mul(2),
        };
        Ok(Config {
            host: self.host,
            port: self.port.or(platform_port).unwrap_or(DEFAULT_PORT),
            models: ModelsConfig {
                path: self.model,
                name: self.model_name,
                library: self.onnxruntime,
                device: self.device,
                instances: self.instances,
                intra_op_threads: self.intra_op_threads,
                max_batch_size: self.max_batch_size,
                max_queue_delay: self.max_queue_delay.map(Into::into),
                max_queue_size: self.max_queue_size.get(),
            },
            http: HttpConfig {
                request_timeout: positive("--request-timeout", self.request_timeout)?,
                body_timeout: positive("--body-timeout", self.body_timeout)?,
                max_body_size: self.max_body_size.bytes(),
                max_output_size: self.max_output_size.bytes(),
                max_header_size,
                max_headers: self.max_headers.get(),
                max_uri_size,
                max_json_depth: self.max_json_depth.get(),
                health_routes: platform_route("AIP_HEALTH_ROUTE")?,
                predict_routes: platform_route("AIP_PREDICT_ROUTE")?,
                api_keys,
            },
            listener: ListenerConfig {
                max_connections: self.max_connections.get(),
                connection,
            },
            max_inflight_bytes: self.max_inflight_bytes.bytes(),
            drain: DrainConfig {
                delay: self.drain_delay.into(),
                timeout: self.drain_timeout.into(),
            },
            collector: self.otlp_endpoint.and_then(|endpoint| endpoint.0),
        })
    }
}

/// A deadline of nothing would refuse everybody.
fn positive(flag: &str, text: DurationText) -> Result<Duration, clap::Error> {
    let duration = Duration::from(text);
    if duration.is_zero() {
        let message = format!("{flag} must be longer than {text}\n");
        return Err(clap::Error::raw(ErrorKind::ValueValidation, message));
    }
    Ok(duration)
}

/// Whether `route` is a path without the characters that mean something to a router or a URL.
fn is_plain_route(route: &str) -> bool {
    let plain = |character: char| {
        character.is_ascii_alphanumeric() || matches!(character, '/' | '-' | '_' | '.' | ':' | '~')
    };
    route.len() > 1 && route.starts_with('/') && route.chars().all(plain) && !route.contains("/:")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Config, clap::Error> {
        let arguments = ["model-serving"]
            .iter()
            .chain(arguments)
            .map(OsString::from);
        match Command::read(arguments)? {
            Command::Serve(flags) => flags.into_config(|name| {
                environment
                    .iter()
                    .find(|(key, _)| *key == name)
                    .map(|(_, value)| (*value).to_owned())
            }),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory;
        ServeFlags::command().debug_assert();
        InspectFlags::command().debug_assert();
        HealthcheckFlags::command().debug_assert();
    }

    #[test]
    fn serve_is_the_default_command() {
        assert_eq!(
            config(&["serve", "--port", "1"], &[]).unwrap(),
            config(&["--port", "1"], &[]).unwrap()
        );
    }

    #[test]
    fn wrong_settings_are_usage_errors() {
        for arguments in [
            &["--request-timeout", "30"][..],
            &["--request-timeout", "0s"],
            &["--max-body-size", "64"],
            &["--max-batch-size", "0"],
            &["--device", "gpu"],
            &["--log-level", "loud"],
            &["--port", "65536"],
            &["--no-such-flag"],
            &["stop"],
        ] {
            let error = config(arguments, &[]).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{arguments:?}");
        }
    }

    #[test]
    fn platforms_name_their_port_and_routes() {
        let vertex = [
            ("AIP_HTTP_PORT", "8080"),
            ("AIP_HEALTH_ROUTE", "/v1/ready"),
            ("AIP_PREDICT_ROUTE", "/predict"),
        ];
        let chosen = config(&[], &vertex).unwrap();
        assert_eq!(
            (chosen.port, chosen.http.health_routes),
            (8080, vec!["/v1/ready".to_owned()])
        );
        assert_eq!(config(&["--port", "9"], &vertex).unwrap().port, 9);
        for route in ["predict", "/{x}", "/a b", "/", "/a/:b", "/*x"] {
            assert!(
                config(&[], &[("AIP_PREDICT_ROUTE", route)]).is_err(),
                "{route}"
            );
        }
        assert!(config(&[], &[("AIP_HTTP_PORT", "x")]).is_err());
    }
}
