//! Flags and environment variables, and what they mean for each layer.
//!
//! The flags themselves stand in `flags`, the kinds of their values in `values`, the variables that are no flags in
//! `platform` and `otel`, and what is said about all of them in `complaint`. This module turns them into the layers' configurations.
//!
//! Invariant: one rule for flags and variables. An unknown or ill-formed setting ends the start with exit code 2, an
//! empty variable is as if it were not there. Nothing below imports this module; each layer owns its own configuration,
//! and this one only fills it in.

mod complaint;
mod flags;
mod otel;
mod platform;
mod values;

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::time::Duration;

use clap::builder::Resettable;
use clap::error::ErrorKind;
use clap::{CommandFactory as _, FromArgMatches as _};

use crate::healthcheck::Target;
use crate::http::HttpConfig;
use crate::http::accept::{ListenerConfig, Port};
use crate::http::api_keys::ApiKeys;
use crate::http::connection::ConnectionConfig;
use crate::loading::ModelsConfig;
use crate::model::repository::{self, RepositoryError};
use crate::server::Config;
use crate::shutdown::DrainConfig;
use crate::telemetry::logging::LogConfig;

pub use complaint::UsageError;
use complaint::{CommandLineFacts, Setting, SettingError, given_flags};
use flags::{CommandLine, Subcommands};
pub use flags::{ExecutionFlags, HealthcheckFlags, InspectFlags, ServeFlags, TuneFlags};
use platform::Platform;

/// The port if neither a flag nor the environment names one.
pub const DEFAULT_PORT: u16 = 8000;

/// Places for connections beyond `--max-connections`: so many that a crowd which fills them is slower than a probe that
/// sends its head, and few beside any limit of descriptors.
const RESERVE: usize = 256;

/// An admin port that messages suggest.
const OTHER_PORT: u16 = 8002;

/// What the process is to do.
#[derive(Debug)]
pub enum Command {
    /// Serve.
    Serve(Box<Start>),
    /// Print what a model is.
    Inspect(Box<InspectFlags>),
    /// Measure which settings suit a model, and write them down.
    Tune(Box<TuneFlags>),
    /// Ask a server how it is.
    Healthcheck(Target),
    /// Print the help that was asked for.
    Help(Help),
    /// Print which version this is.
    Version,
}

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

/// A page of help.
#[derive(Debug)]
pub struct Help(clap::Error);

impl Help {
    /// Prints it on standard output, in colour at a terminal.
    ///
    /// # Errors
    /// When nobody reads it to the end.
    pub fn print(&self) -> std::io::Result<()> {
        self.0.print()
    }
}

impl Command {
    /// Reads the command line, the program's name first, and the environment.
    ///
    /// # Errors
    /// When they are not well-formed.
    pub fn read(
        arguments: impl IntoIterator<Item = OsString>,
        environment: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, UsageError> {
        let arguments: Vec<OsString> = arguments.into_iter().collect();
        let mut root = CommandLine::command();
        root.build();
        let name = arguments.get(1).and_then(|argument| argument.to_str());
        let named = name.and_then(|name| Some((name, root.find_subcommand(name)?)));
        let (name, command) = match named {
            Some((name, command)) if name != "help" => (Some(name), command),
            _ => (None, &root),
        };
        let from_variables = match named {
            Some(("help", _)) => Vec::new(),
            _ => variables(command, &arguments, &environment),
        };
        let facts = CommandLineFacts {
            arguments: &arguments,
            command,
            name,
            from_variables: &from_variables,
        };
        let joined = with_negative_values(command, &arguments);
        match parse(&joined, &from_variables) {
            Ok(line) => {
                Self::of(line, &environment).map_err(|error: SettingError| facts.refuse(&error))
            }
            Err(error) => match error.kind() {
                ErrorKind::DisplayVersion => Ok(Self::Version),
                ErrorKind::DisplayHelp => Ok(Self::Help(Help(help(&arguments, error)))),
                _ => Err(facts.explain(&error)),
            },
        }
    }

    fn of(
        line: CommandLine,
        environment: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<Self, SettingError> {
        let platform = Platform(environment);
        let serve = |flags: ServeFlags| flags.start(&platform).map(Box::new).map(Self::Serve);
        match line.command {
            None => serve(line.serve),
            Some(Subcommands::Serve(flags)) => serve(*flags),
            Some(Subcommands::Inspect(flags)) => Ok(Self::Inspect(flags)),
            Some(Subcommands::Tune(flags)) => Ok(Self::Tune(flags)),
            Some(Subcommands::Healthcheck(flags)) => flags.target(&platform).map(Self::Healthcheck),
        }
    }
}

/// The flags of `command` that are not given, but whose variables are, with their values. What is empty is not given.
fn variables(
    command: &clap::Command,
    arguments: &[OsString],
    environment: &dyn Fn(&str) -> Option<OsString>,
) -> Vec<(String, OsString)> {
    let given = given_flags(arguments);
    let mut found = Vec::new();
    for argument in command.get_arguments() {
        let (Some(flag), Some(variable)) = (argument.get_long(), argument.get_env()) else {
            continue;
        };
        let Some(variable) = variable
            .to_str()
            .filter(|name| *name != otel::OTLP_ENDPOINT)
        else {
            continue;
        };
        if given.iter().any(|(name, _)| name == flag) {
            continue;
        }
        if let Some(value) = environment(variable).filter(|value| !value.is_empty()) {
            found.push((flag.to_owned(), value));
        }
    }
    found
}

/// The arguments, in which a flag and a negative number behind it are one: to clap, `-1ms` would be another flag.
fn with_negative_values(command: &clap::Command, arguments: &[OsString]) -> Vec<OsString> {
    let takes_value = |argument: &OsString| {
        let name = argument.to_str().and_then(|text| text.strip_prefix("--"));
        let mut flags = command.get_arguments();
        name.is_some_and(|name| {
            flags.any(|flag| flag.get_long() == Some(name) && flag.get_action().takes_values())
        })
    };
    let is_negative =
        |argument: &OsString| matches!(argument.as_encoded_bytes(), [b'-', b'0'..=b'9' | b'.', ..]);
    let mut joined: Vec<OsString> = Vec::with_capacity(arguments.len());
    for (index, argument) in arguments.iter().enumerate() {
        let at_end = joined.iter().any(|it| it == "--");
        match joined.last_mut() {
            Some(flag) if index > 1 && !at_end && is_negative(argument) && takes_value(flag) => {
                flag.push("=");
                flag.push(argument);
            }
            _ => joined.push(argument.clone()),
        }
    }
    joined
}

/// Has clap read the command line and, behind its flags, those that stand for variables. It does not look at the
/// environment itself: to it, an empty variable is an empty value, and no message of its says where a value came from.
fn parse(
    arguments: &[OsString],
    from_variables: &[(String, OsString)],
) -> Result<CommandLine, clap::Error> {
    let without = |command: clap::Command| {
        command.mut_args(|argument| argument.env(Resettable::<clap::builder::OsStr>::Reset))
    };
    let mut command = without(CommandLine::command());
    let names: Vec<String> = command
        .get_subcommands()
        .map(|subcommand| subcommand.get_name().to_owned())
        .collect();
    for name in names {
        command = command.mut_subcommand(name, without);
    }
    let end = arguments.iter().position(|argument| argument == "--");
    let (flags, rest) = arguments.split_at(end.unwrap_or(arguments.len()));
    let mut line = flags.to_vec();
    for (flag, value) in from_variables {
        let mut argument = OsString::from(format!("--{flag}="));
        argument.push(value);
        line.push(argument);
    }
    line.extend_from_slice(rest);
    let mut matches = command.try_get_matches_from(line)?;
    CommandLine::from_arg_matches_mut(&mut matches)
}

/// The same help, with the variables.
fn help(arguments: &[OsString], without_variables: clap::Error) -> clap::Error {
    match CommandLine::command().try_get_matches_from(arguments) {
        Err(error) if error.kind() == ErrorKind::DisplayHelp => error,
        _ => without_variables,
    }
}

impl HealthcheckFlags {
    /// What is asked: the URL, or where a server with the same settings listens.
    fn target(self, platform: &Platform<'_>) -> Result<Target, SettingError> {
        let platform_port = platform.port()?;
        if let Some(url) = self.url {
            return Ok(url);
        }
        let (setting, port) = match (self.admin_port, self.port, platform_port) {
            (Some(port), ..) => (Setting::Flag("admin-port"), port),
            (None, Some(port), _) => (Setting::Flag("port"), port),
            (None, None, Some(port)) => (Setting::Variable(platform::PORT), port),
            (None, None, None) => (Setting::Flag("port"), DEFAULT_PORT),
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
        let platform_port = platform.port()?;
        let routes = platform.routes()?;
        let (traces, trace_warnings) = otel::traces(platform, self.otlp_endpoint.clone());
        let mut warnings = routes.warnings;
        warnings.extend(trace_warnings);
        let api_keys = self.api_key_file.as_deref().map(ApiKeys::read).transpose();
        let api_keys = api_keys.map_err(|error| SettingError {
            setting: Setting::Flag("api-key-file"),
            reason: error.to_string(),
        })?;
        self.check_model()?;
        self.check_together()?;
        let max_header_size = self.max_header_size.bytes();
        let max_uri_size = self.max_uri_size.bytes();
        let connection = ConnectionConfig {
            first_byte_timeout: self.first_byte_timeout.into(),
            header_timeout: self.header_timeout.into(),
            write_timeout: self.write_timeout.into(),
            keep_alive_timeout: self.keep_alive_timeout.into(),
            // Twice the limits are read, so that what exceeds them is answered as an error that says so.
            max_head_bytes: max_header_size
                .saturating_add(max_uri_size)
                .saturating_mul(2),
            max_headers: self.max_headers.get().saturating_mul(2),
            max_body_bytes: self.max_body_size.bytes(),
        };
        let port = self.port.or(platform_port).unwrap_or(DEFAULT_PORT);
        if port != 0 && self.admin_port == Some(port) {
            return Err(SettingError {
                setting: Setting::Flag("admin-port"),
                reason: format!(
                    "'{port}' is the port of predictions, too (--port, variable PORT); write another one, for example {OTHER_PORT}"
                ),
            });
        }
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
    /// An address of the network is no path at all, and not one at which something may lie later.
    fn check_model(&self) -> Result<(), SettingError> {
        let is_address = self.model.to_str().is_some_and(|it| it.contains("://"));
        if is_address
            && let Err(error @ RepositoryError::Address { .. }) =
                repository::find(&self.model, None)
        {
            return Err(SettingError {
                setting: Setting::Flag("model"),
                reason: error.to_string(),
            });
        }
        Ok(())
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

/// What nobody chose may exceed what is held at once: a small machine needs no second setting then.
const DEFAULT_BODY: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn read(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Command, String> {
        let arguments = ["model-serving"]
            .iter()
            .chain(arguments)
            .map(OsString::from);
        let variable = |name: &str| {
            let mut variables = environment.iter();
            let found = variables.find(|(key, _)| *key == name);
            found.map(|(_, value)| OsString::from(value))
        };
        Command::read(arguments, variable).map_err(|error| error.to_string())
    }

    fn config(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Config, String> {
        match read(arguments, environment)? {
            Command::Serve(start) => Ok(start.config),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_well_formed() {
        CommandLine::command().debug_assert();
        ServeFlags::command().debug_assert();
        let default = config(&[], &[]).unwrap();
        assert_eq!(default.http.max_body_size, DEFAULT_BODY);
    }

    #[test]
    fn serve_is_the_default_command() {
        assert_eq!(
            config(&["serve", "--port", "1"], &[]).unwrap(),
            config(&["--port", "1"], &[]).unwrap()
        );
        let port = [("PORT", "1")];
        assert_eq!(config(&["serve"], &port), config(&[], &port));
    }

    /// Every flag of every command with its variable, and a value that it takes beside its default.
    #[test]
    fn an_empty_variable_is_as_if_it_were_not_there() {
        let mut root = CommandLine::command();
        root.build();
        let mut seen = 0;
        for (command, arguments) in [
            (root.clone(), &[][..]),
            (root.find_subcommand("serve").unwrap().clone(), &["serve"]),
            (
                root.find_subcommand("inspect").unwrap().clone(),
                &["inspect", "m.onnx"],
            ),
            (
                root.find_subcommand("tune").unwrap().clone(),
                &["tune", "m.onnx"],
            ),
            (
                root.find_subcommand("healthcheck").unwrap().clone(),
                &["healthcheck"],
            ),
        ] {
            let plain = format!("{:?}", read(arguments, &[]).unwrap());
            for argument in command.get_arguments() {
                let (Some(flag), Some(variable)) = (argument.get_long(), argument.get_env()) else {
                    continue;
                };
                let variable = variable.to_str().unwrap();
                let empty = read(arguments, &[(variable, "")]);
                assert_eq!(format!("{:?}", empty.unwrap()), plain, "{variable}");
                let flag = format!("--{flag}=");
                let line: Vec<&str> = arguments.iter().copied().chain([flag.as_str()]).collect();
                let error = read(&line, &[]).unwrap_err();
                assert!(error.contains("needs a value that is not empty"), "{error}");
                assert!(error.contains(variable), "{error}");
                seen += 1;
            }
        }
        assert!(seen > 70, "{seen}");
        for variable in ["AIP_HTTP_PORT", "AIP_HEALTH_ROUTE", "AIP_PREDICT_ROUTE"] {
            assert_eq!(config(&[], &[(variable, "")]), config(&[], &[]));
        }
    }

    #[test]
    fn the_flag_wins_over_its_variable_even_if_that_is_wrong() {
        let wrong = [("PORT", "x"), ("LOG_LEVEL", "loud")];
        for arguments in [
            &["--port", "9", "--log-level", "warn"][..],
            &["--port=9", "--log-level=warn"],
            &["serve", "--port=9", "--log-level", "warn"],
        ] {
            assert_eq!(config(arguments, &wrong).unwrap().port, 9);
        }
        assert!(config(&["--port", "9"], &wrong).is_err());
    }

    #[test]
    fn words_and_units_ignore_case() {
        let environment = [
            ("DEVICE", "CPU"),
            ("LOG_LEVEL", "INFO"),
            ("LOG_FORMAT", "JSON"),
            ("TF32", "Off"),
            ("TUNING_TIME", "OFF"),
            ("WATCH_MODEL", "Off"),
            ("MAX_BODY_SIZE", "64mib"),
            ("REQUEST_TIMEOUT", "30S"),
        ];
        let plain = config(&["--device=cpu", "--tuning-time=off"], &[]).unwrap();
        assert_eq!(config(&[], &environment).unwrap(), plain);
    }

    #[test]
    fn a_message_says_where_the_value_came_from() {
        assert_eq!(
            read(&["--port", "x"], &[("PORT", "1")]).unwrap_err(),
            "the flag --port (variable PORT): 'x' is not a port; write a number from 0 to 65535, for example 8000"
        );
        assert_eq!(
            read(&["inspect", "m.onnx"], &[("DEVICE", "gpu")]).unwrap_err(),
            "the variable DEVICE (flag --device): 'gpu' is not a device; write auto, cpu, cuda or cuda:N, for example cuda:0"
        );
        let unpaired = [
            OsString::from("model-serving"),
            OsString::from("--device"),
            std::os::unix::ffi::OsStringExt::from_vec(b"c\xffu".to_vec()),
        ];
        let error = Command::read(unpaired, |_| None).unwrap_err().to_string();
        assert_eq!(
            error,
            "the flag --device (variable DEVICE): 'c\u{fffd}u' is not UTF-8 text"
        );
    }

    #[test]
    fn help_and_version_are_had_whatever_the_environment_says() {
        let wrong = [("PORT", "x"), ("AIP_HTTP_PORT", "y")];
        for arguments in [
            &["--help"][..],
            &["-h"],
            &["help"],
            &["help", "inspect"],
            &["inspect", "--help"],
            &["serve", "-h"],
        ] {
            let command = read(arguments, &wrong).unwrap();
            assert!(matches!(command, Command::Help(_)), "{arguments:?}");
        }
        for arguments in [&["--version"][..], &["-V"], &["inspect", "-V"]] {
            let command = read(arguments, &wrong).unwrap();
            assert!(matches!(command, Command::Version), "{arguments:?}");
        }
    }

    #[test]
    fn a_health_check_asks_where_the_server_listens() {
        for (arguments, environment, url) in [
            (&[][..], &[][..], "http://127.0.0.1:8000/health"),
            (&[], &[("PORT", "9")], "http://127.0.0.1:9/health"),
            (
                &[],
                &[("AIP_HTTP_PORT", "8080")],
                "http://127.0.0.1:8080/health",
            ),
            (
                &[],
                &[("AIP_HTTP_PORT", "8080"), ("PORT", "9")],
                "http://127.0.0.1:9/health",
            ),
            (
                &[],
                &[("HOST", "::"), ("PORT", "9"), ("ADMIN_PORT", "10")],
                "http://[::1]:10/health",
            ),
            (&["--host", "10.0.0.7"], &[], "http://10.0.0.7:8000/health"),
            (
                &["--admin-port", "11"],
                &[("ADMIN_PORT", "10")],
                "http://127.0.0.1:11/health",
            ),
            (&["http://h/x"], &[("PORT", "9")], "http://h/x"),
        ] {
            let arguments: Vec<&str> = ["healthcheck"].iter().chain(arguments).copied().collect();
            match read(&arguments, environment).unwrap() {
                Command::Healthcheck(target) => assert_eq!(target.to_string(), url),
                other => panic!("{other:?}"),
            }
        }
        assert!(read(&["healthcheck"], &[("PORT", "0")]).is_err());
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
