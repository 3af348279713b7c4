//! Flags and environment variables, and what they mean for each layer.
//!
//! The flags themselves stand in `flags`; this module turns them into the layers' configurations.
//!
//! Invariant: an unknown or ill-formed setting ends the start with exit code 2. Nothing below imports this module;
//! each layer owns its own configuration, and this one only fills it in.

mod flags;

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::time::Duration;

use clap::Parser;
use clap::error::ErrorKind;

use crate::http::HttpConfig;
use crate::http::accept::{ListenerConfig, Port};
use crate::http::api_keys::ApiKeys;
use crate::http::connection::ConnectionConfig;
use crate::loading::ModelsConfig;
use crate::server::Config;
use crate::shutdown::DrainConfig;
use crate::telemetry::logging::LogConfig;

use crate::units::DurationText;
pub use flags::{ExecutionFlags, HealthcheckFlags, InspectFlags, ServeFlags, TuneFlags};

/// The port if neither a flag nor the environment names one.
pub const DEFAULT_PORT: u16 = 8000;

/// What the process is to do.
#[derive(Debug)]
pub enum Command {
    /// Serve.
    Serve(Box<ServeFlags>),
    /// Print what a model is.
    Inspect(Box<InspectFlags>),
    /// Measure which settings suit a model, and write them down.
    Tune(Box<TuneFlags>),
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
        if matches!(
            command.as_str(),
            "serve" | "inspect" | "tune" | "healthcheck"
        ) {
            arguments.remove(1);
        }
        match command.as_str() {
            "inspect" => {
                InspectFlags::try_parse_from(arguments).map(|flags| Self::Inspect(Box::new(flags)))
            }
            "tune" => TuneFlags::try_parse_from(arguments).map(|flags| Self::Tune(Box::new(flags))),
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
            max_body_bytes: self.max_body_size.bytes(),
        };
        let port = self.port.or(platform_port).unwrap_or(DEFAULT_PORT);
        if port != 0 && self.admin_port == Some(port) {
            return Err(wrong(format!(
                "--admin-port (ADMIN_PORT) {port} is the port of predictions, too; choose another one, or change --port (PORT)"
            )));
        }
        let execution = self.execution;
        Ok(Config {
            host: self.host,
            port,
            admin_port: self.admin_port,
            models: ModelsConfig {
                path: self.model,
                name: self.model_name,
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
                port: Port::Main,
                max_connections: self.max_connections.get(),
                connection,
            },
            max_inflight_bytes: execution.max_inflight_bytes.bytes(),
            watch_model: self.watch_model.0,
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
        TuneFlags::command().debug_assert();
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
            &["--max-request-rows", "0"],
            &["--device", "gpu"],
            &["--log-level", "loud"],
            &["--port", "65536"],
            &["--admin-port", "65536"],
            &["--admin-port", "8000"],
            &["--admin-port", "9", "--port", "9"],
            &["--watch-model", "0s"],
            &["--watch-model", "10"],
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
