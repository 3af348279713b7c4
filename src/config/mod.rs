//! Flags and environment variables, and what they mean for each layer.
//!
//! `command` reads the command line and the environment. The flags themselves stand in `flags`, the kinds of their values
//! in `values`, the variables that are no flags in `platform` and `otel`, and what is said about all of them in
//! `complaint`. This module turns them into the layers' configurations.
//!
//! Invariant: one rule for flags and variables. An unknown or ill-formed setting ends the start with exit code 2, an
//! empty variable is as if it were not there. Nothing below imports this module; each layer owns its own configuration,
//! and this one only fills it in.

mod command;
mod complaint;
mod flags;
mod otel;
mod platform;
#[cfg(test)]
mod tests;
mod values;

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Duration;

use clap::CommandFactory as _;

use crate::healthcheck::Target;
use crate::http::HttpConfig;
use crate::http::api_keys::ApiKeys;
use crate::model::limits;
use crate::model::repository::{self, RepositoryError};
use crate::models::loading::ModelsConfig;
use crate::net::config::{ConnectionConfig, ListenerConfig, Port};
use crate::server::Config;
use crate::shutdown::DrainConfig;
use crate::telemetry::logging::LogConfig;

pub use command::{Command, FetchStart, Help};
pub use complaint::UsageError;
use complaint::{CommandLineFacts, Setting, SettingError};
pub use flags::{
    ExecutionFlags, FetchFlags, HealthcheckFlags, InspectFlags, ServeFlags, TuneFlags,
};
use platform::Platform;

/// The port if neither a flag nor the environment names one.
pub const DEFAULT_PORT: u16 = 8000;

/// Places for connections beyond `--max-connections`: so many that a crowd which fills them is slower than a probe that
/// sends its head, and few beside any limit of descriptors.
const RESERVE: usize = 256;

/// An admin port that messages suggest.
const OTHER_PORT: u16 = 8002;

/// What a server is started with.
#[derive(Debug, Clone, PartialEq)]
pub struct Start {
    /// The layers' configurations.
    pub config: Config,
    /// How to log.
    pub log: LogConfig,
    /// What of the platform's variables cannot be served: a sentence each, for the log.
    pub warnings: Vec<String>,
}

impl HealthcheckFlags {
    /// What is asked: the URL, or where a server with the same settings listens.
    fn target(self, platform: &Platform<'_>) -> Result<Target, SettingError> {
        if let Some(url) = self.url {
            return Ok(url);
        }
        let (setting, port) = match (self.admin_port, self.port) {
            (Some(port), _) => (Setting::Flag("admin-port"), port),
            (None, Some(port)) => (Setting::Flag("port"), port),
            (None, None) => match platform.port()? {
                Some(port) => (Setting::Variable(platform::PORT), port),
                None => (Setting::Flag("port"), DEFAULT_PORT),
            },
        };
        if port == 0 {
            return Err(SettingError {
                setting,
                reason: "with 0 the server chooses the port itself; give the URL, for example model-serving healthcheck http://127.0.0.1:8000/health".to_owned(),
            });
        }
        Ok(Target::health(&self.host, port))
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
        environment: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Config, UsageError> {
        let facts = CommandLineFacts {
            arguments: &[],
            command: &Self::command(),
            name: None,
            from_variables: &[],
        };
        let start = self.start(&Platform(&environment));
        start
            .map(|start| start.config)
            .map_err(|error| facts.refuse(&error))
    }

    fn start(self, platform: &Platform<'_>) -> Result<Start, SettingError> {
        let log = self.log_config();
        let mut warnings = Vec::new();
        let port = self.main_port(platform, &mut warnings)?;
        let routes = platform.routes(self.max_uri_size.bytes())?;
        let (traces, trace_warnings) = otel::traces(platform, self.otlp_endpoint.clone());
        warnings.extend(routes.warnings);
        warnings.extend(trace_warnings);
        let api_keys = self.api_key_file.as_deref().map(ApiKeys::read).transpose();
        let api_keys = api_keys.map_err(|error| SettingError {
            setting: Setting::Flag("api-key-file"),
            reason: error.to_string(),
        })?;
        check_path(&self.model).map_err(|reason| SettingError {
            setting: Setting::Flag("model"),
            reason,
        })?;
        self.check_together()?;
        check_threads(self.execution.instances, self.execution.intra_op_threads)?;
        let max_header_size = self.max_header_size.bytes();
        let max_uri_size = self.max_uri_size.bytes();
        let connection = ConnectionConfig {
            first_byte_timeout: self.first_byte_timeout.into(),
            header_timeout: self.header_timeout.into(),
            write_timeout: self.write_timeout.into(),
            keep_alive_timeout: self.keep_alive_timeout.into(),
            max_age: self.max_connection_age.0,
            // Twice the limits are read, so that what exceeds them is answered as an error that says so.
            max_head_bytes: max_header_size
                .saturating_add(max_uri_size)
                .saturating_mul(2),
            max_headers: self.max_headers.get().saturating_mul(2),
            max_body_bytes: self.max_body_size.bytes(),
        };
        let execution = self.execution;
        let config = Config {
            host: self.host,
            port,
            admin_port: self.admin_port,
            models: ModelsConfig {
                path: self.model,
                name: self.model_name,
                default_model: self.default_model,
                fixed: execution.fixed(),
                cuda: execution.cuda(),
                library: execution.onnxruntime,
                device: execution.device,
                max_queue_delay: self.max_queue_delay.map(Into::into),
                max_request_rows: self.max_request_rows.map(NonZeroUsize::get),
                max_queue_size: self.max_queue_size.get(),
                tuning_time: execution.tuning_time.0,
            },
            http: HttpConfig {
                request_timeout: self.request_timeout.into(),
                body_timeout: self.body_timeout.into(),
                max_body_size: self.max_body_size.bytes(),
                max_output_size: self.max_output_size.bytes(),
                max_header_size,
                max_headers: self.max_headers.get(),
                max_uri_size,
                max_json_depth: self.max_json_depth.get(),
                health_routes: routes.health.into_iter().collect(),
                predict_routes: routes.predict.into_iter().collect(),
                api_keys,
            },
            listener: ListenerConfig {
                port: Port::Main,
                max_connections: self.max_connections.get(),
                reserve: RESERVE,
                connection,
            },
            max_inflight_bytes: execution.max_inflight_bytes.bytes(),
            watch_model: self.watch_model.0,
            expected_model: routes.model,
            drain: DrainConfig {
                delay: self.drain_delay.into(),
                timeout: self.drain_timeout.into(),
            },
            traces,
        };
        Ok(Start {
            config,
            log,
            warnings,
        })
    }

    /// The port of predictions, which is not the admin port.
    fn main_port(
        &self,
        platform: &Platform<'_>,
        warnings: &mut Vec<String>,
    ) -> Result<u16, SettingError> {
        let by_platform = match platform.port() {
            // What names where to listen must be right, unless something else names it.
            Err(error) if self.port.is_some() => {
                let (name, reason) = (platform::PORT, error.reason);
                warnings.push(format!("{name}: {reason}; --port (PORT) is used"));
                None
            }
            port => port?,
        };
        let port = self.port.or(by_platform).unwrap_or(DEFAULT_PORT);
        if port == 0 || self.admin_port != Some(port) {
            return Ok(port);
        }
        let named_by = match (self.port, by_platform) {
            (Some(_), _) => "--port, variable PORT",
            (None, Some(_)) => "variable AIP_HTTP_PORT",
            (None, None) => "the default of --port, variable PORT",
        };
        Err(SettingError {
            setting: Setting::Flag("admin-port"),
            reason: format!(
                "'{port}' is the port of predictions, too ({named_by}); write another one, for example {OTHER_PORT}"
            ),
        })
    }

    /// Settings that are well-formed each, and make no sense together.
    fn check_together(&self) -> Result<(), SettingError> {
        let timeout = self.request_timeout;
        if let Some(delay) = self.max_queue_delay
            && Duration::from(delay) > Duration::ZERO
            && delay >= timeout
        {
            return Err(SettingError {
                setting: Setting::Flag("max-queue-delay"),
                reason: format!(
                    "'{delay}' is not below --request-timeout (variable REQUEST_TIMEOUT), which is {timeout}, so that a request could wait for company until nobody waits for it; write a shorter time, for example 5ms"
                ),
            });
        }
        let (body, inflight) = (self.max_body_size, self.execution.max_inflight_bytes);
        if body > inflight && body.bytes() != DEFAULT_BODY {
            return Err(SettingError {
                setting: Setting::Flag("max-body-size"),
                reason: format!(
                    "'{body}' is more than --max-inflight-bytes (variable MAX_INFLIGHT_BYTES), which is {inflight}, so that such a body could never be received; lower it, or raise the other one"
                ),
            });
        }
        Ok(())
    }
}

/// Refuses an address of the network, which is no path at all, and not one at which something may lie later.
fn check_path(model: &Path) -> Result<(), String> {
    let is_address = model.to_str().is_some_and(|it| it.contains("://"));
    match is_address.then(|| repository::find(model, None)) {
        Some(Err(error @ RepositoryError::Address { .. })) => Err(error.to_string()),
        _ => Ok(()),
    }
}

/// Refuses more threads than a model may have.
fn check_threads(
    instances: Option<NonZeroUsize>,
    threads: Option<NonZeroUsize>,
) -> Result<(), SettingError> {
    let reason = instances
        .zip(threads)
        .and_then(|(instances, threads)| limits::too_many_threads(instances, threads));
    match reason {
        None => Ok(()),
        Some(reason) => Err(SettingError {
            setting: Setting::Flag("instances"),
            reason: format!("with --intra-op-threads (INTRA_OP_THREADS), {reason}"),
        }),
    }
}

/// What is wrong with a model's path is told in the words of `serve`, to which it is a flag; other commands are given it as
/// their argument.
#[must_use]
pub fn of_argument(message: &str) -> String {
    message.replace("set --model (MODEL_PATH) to", "give the path of")
}

/// What nobody chose may exceed what is held at once: a small machine needs no second setting then.
const DEFAULT_BODY: usize = 64 << 20;
