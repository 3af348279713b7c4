//! The command line and the environment, read into what the process is to do.
//!
//! Invariant: variables become flags before clap sees them, so that one rule holds for both: the flag wins, an empty
//! variable is as if it were not there, and a message knows where a value came from.

use std::ffi::OsString;
use std::path::Path;

use clap::builder::Resettable;
use clap::error::ErrorKind;
use clap::{CommandFactory as _, FromArgMatches as _};
use clap_complete::Shell;

use super::complaint::{CommandLineFacts, Setting, SettingError, UsageError, given_flags};
use super::flags::{CommandLine, FetchFlags, InspectFlags, ServeFlags, Subcommands, TuneFlags};
use super::platform::Platform;
use super::{Start, check_path, check_threads, of_argument, otel};
use crate::fetch::{FetchConfig, Source};
use crate::healthcheck::Target;
use crate::telemetry::logging::LogConfig;

/// What the process is to do.
#[derive(Debug)]
pub enum Command {
    /// Serve.
    Serve(Box<Start>),
    /// Print what a model is.
    Inspect(Box<InspectFlags>),
    /// Measure which settings suit a model, and write them down.
    Tune(Box<TuneFlags>),
    /// Bring a model, and perhaps serve it then.
    Fetch(Box<FetchStart>),
    /// Ask a server how it is.
    Healthcheck(Target),
    /// Print the help that was asked for.
    Help(Help),
    /// Print this text.
    Print(Vec<u8>),
    /// Print which version this is.
    Version,
}

/// What `fetch` is to do.
#[derive(Debug)]
pub struct FetchStart {
    /// What to fetch, and where to.
    pub config: FetchConfig,
    /// What is logged, and how.
    pub log: LogConfig,
    /// The command line of the server that this process then becomes, without the program's name.
    pub then: Option<Vec<OsString>>,
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
        Self::read_all(&arguments, &environment)
    }

    fn read_all(
        arguments: &[OsString],
        environment: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<Self, UsageError> {
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
            _ => variables(command, arguments, environment),
        };
        let then = serve_after_fetch(name, arguments);
        if let Some(then) = &then {
            // What is wrong with the server's flags is told before anything is fetched.
            let program = arguments.first().cloned().unwrap_or_default();
            let line: Vec<OsString> = std::iter::once(program)
                .chain(then.iter().cloned())
                .collect();
            match Self::read_all(&line, environment)? {
                Self::Serve(_) => {}
                // Its help or its version was asked for.
                other => return Ok(other),
            }
        }
        let facts = CommandLineFacts {
            arguments,
            command,
            name,
            from_variables: &from_variables,
        };
        let joined = with_negative_values(command, arguments);
        match parse(&joined, &from_variables) {
            Ok(line) => {
                let command = Self::of(line, environment);
                let mut command = command.map_err(|error: SettingError| facts.refuse(&error))?;
                if let Self::Fetch(start) = &mut command {
                    start.then = then;
                }
                Ok(command)
            }
            Err(error) => match error.kind() {
                ErrorKind::DisplayVersion => Ok(Self::Version),
                ErrorKind::DisplayHelp => Ok(Self::Help(Help(help(arguments, error)))),
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
            Some(Subcommands::Inspect(flags)) => {
                check_argument(&flags.model)?;
                let execution = &flags.execution;
                check_threads(execution.instances, execution.intra_op_threads)?;
                Ok(Self::Inspect(flags))
            }
            Some(Subcommands::Tune(flags)) => {
                check_argument(&flags.model)?;
                check_threads(flags.instances, flags.intra_op_threads)?;
                Ok(Self::Tune(flags))
            }
            Some(Subcommands::Fetch(flags)) => {
                fetch(*flags, &platform).map(Box::new).map(Self::Fetch)
            }
            Some(Subcommands::Completions(flags)) => Ok(Self::Print(completions(flags.shell))),
            Some(Subcommands::Man(flags)) => manual(flags.command.as_deref()).map(Self::Print),
            Some(Subcommands::Healthcheck(flags)) => flags.target(&platform).map(Self::Healthcheck),
        }
    }
}

fn completions(shell: Shell) -> Vec<u8> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut CommandLine::command(), NAME, &mut text);
    text
}

/// The page of the manual about `name`, or about the program as a whole.
fn manual(name: Option<&str>) -> Result<Vec<u8>, SettingError> {
    let mut root = CommandLine::command();
    root.build();
    let page = match name {
        None => root,
        Some(name) => {
            let names = root.get_subcommands().map(clap::Command::get_name);
            let names: Vec<String> = names
                .filter(|it| *it != "help")
                .map(str::to_owned)
                .collect();
            let found = names.iter().any(|known| known == name);
            let found = found.then(|| root.find_subcommand(name)).flatten();
            let command = found.ok_or_else(|| SettingError {
                setting: Setting::Argument("COMMAND"),
                reason: format!(
                    "there is no command '{name}'; write one of {}",
                    names.join(", ")
                ),
            })?;
            command.clone()
        }
    };
    let mut text = Vec::new();
    // Memory takes all that is written.
    let _ = clap_mangen::Man::new(page).render(&mut text);
    Ok(text)
}

/// The program's name.
const NAME: &str = "model-serving";

/// Where a model lies that is to be fetched.
const MODEL_URI: &str = "MODEL_URI";

/// Where Vertex AI has copied a model to.
const STORAGE_URI: &str = "AIP_STORAGE_URI";

fn fetch(flags: FetchFlags, platform: &Platform<'_>) -> Result<FetchStart, SettingError> {
    let (uri, setting) = match flags.uri {
        Some(uri) => (uri, Setting::Argument("URI")),
        None => match platform.read(MODEL_URI)? {
            Some(uri) => (uri, Setting::Variable(MODEL_URI)),
            None => match platform.read(STORAGE_URI)? {
                Some(uri) => (uri, Setting::Variable(STORAGE_URI)),
                None => {
                    return Err(SettingError {
                        setting: Setting::Argument("URI"),
                        reason: format!(
                            "nothing says where the model lies; write it, for example gs://models/digits/best.onnx, or set {MODEL_URI}"
                        ),
                    });
                }
            },
        },
    };
    let source: Source = uri
        .parse()
        .map_err(|reason| SettingError { setting, reason })?;
    if source.is_without_tls() && flags.sha256.is_none() {
        return Err(SettingError {
            setting,
            reason: format!(
                "{source} is sent without TLS, so that anybody on the way could change it; use https, or say with --sha256 (MODEL_SHA256) what it must be"
            ),
        });
    }
    Ok(FetchStart {
        config: FetchConfig {
            source,
            folder: flags.to,
            digest: flags.sha256,
            timeout: flags.timeout.into(),
        },
        log: LogConfig {
            level: flags.log_level,
            format: flags.log_format,
        },
        then: None,
    })
}

/// The command line of the server that `fetch` is to become: whatever stands behind `--`, be it nothing.
fn serve_after_fetch(name: Option<&str>, arguments: &[OsString]) -> Option<Vec<OsString>> {
    let end = arguments.iter().position(|it| it == "--");
    let end = end.filter(|_| name == Some("fetch"))?;
    let serve = OsString::from("serve");
    let mut flags = arguments.iter().skip(end + 1).peekable();
    // Whoever writes the command out means the same.
    flags.next_if(|it| **it == serve);
    Some(
        std::iter::once(serve.clone())
            .chain(flags.cloned())
            .collect(),
    )
}

/// Refuses a model's path that can be none.
fn check_argument(model: &Path) -> Result<(), SettingError> {
    check_path(model).map_err(|reason| SettingError {
        setting: Setting::Argument("MODEL.onnx"),
        reason: of_argument(&reason),
    })
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
