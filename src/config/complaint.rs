//! What is said about a command line or an environment that is not taken.
//!
//! Invariant: one line that names the flag and its variable, where the value came from, what is wrong with it, what is
//! expected, and an example; a second line shows the usage where the shape of the command line is wrong.

use std::any::TypeId;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use clap::CommandFactory as _;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::flags::CommandLine;

/// Why a command line or an environment is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageError {
    message: String,
    usage: Option<String>,
}

impl UsageError {
    /// What is wrong, in one line.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// How the command is used, where the shape of the command line is wrong.
    #[must_use]
    pub fn usage(&self) -> Option<&str> {
        self.usage.as_deref()
    }
}

impl fmt::Display for UsageError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)?;
        match &self.usage {
            Some(usage) => write!(formatter, "\n{usage}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for UsageError {}

/// Which setting is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Setting {
    /// The flag of this name, or its variable.
    Flag(&'static str),
    /// A variable that is no flag.
    Variable(&'static str),
    /// The argument of this name.
    Argument(&'static str),
}

/// A setting that is ill-formed, or contradicts another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SettingError {
    pub(super) setting: Setting,
    /// What is wrong, what is expected, and an example.
    pub(super) reason: String,
}

/// What messages need to know of the command line.
pub(super) struct CommandLineFacts<'a> {
    /// All of it, as it was given.
    pub(super) arguments: &'a [OsString],
    /// The command that it asks for, with its flags and their variables.
    pub(super) command: &'a clap::Command,
    /// That command's name; nothing if the command line names none.
    pub(super) name: Option<&'a str>,
    /// The flags whose values come from their variables.
    pub(super) from_variables: &'a [(String, OsString)],
}

impl CommandLineFacts<'_> {
    /// The sentence for a setting that is wrong by itself.
    pub(super) fn refuse(&self, error: &SettingError) -> UsageError {
        let origin = match error.setting {
            Setting::Flag(flag) => self.origin(flag),
            Setting::Variable(variable) => format!("the variable {variable}"),
            Setting::Argument(argument) => format!("the argument {argument}"),
        };
        UsageError {
            message: format!("{origin}: {}", error.reason),
            usage: None,
        }
    }

    /// The sentence for what clap found.
    pub(super) fn explain(&self, error: &clap::Error) -> UsageError {
        use ErrorKind as Kind;
        let line = |message: String| UsageError {
            message,
            usage: None,
        };
        let with_usage = |message: String| UsageError {
            message,
            usage: Some(self.usage()),
        };
        let argument = text(error, ContextKind::InvalidArg);
        let flag = argument.as_deref().and_then(flag_of);
        let value = text(error, ContextKind::InvalidValue);
        match (error.kind(), flag) {
            (Kind::ValueValidation | Kind::InvalidValue, _)
                if value.as_deref().is_none_or(|value| value.trim().is_empty()) =>
            {
                line(self.no_value(argument.as_deref().unwrap_or_default()))
            }
            (Kind::ValueValidation | Kind::InvalidValue, flag) => {
                let argument = argument.as_deref().unwrap_or_default();
                let origin = match flag {
                    Some(flag) => self.origin(flag),
                    None => format!("the argument {}", bare(argument)),
                };
                line(format!("{origin}: {}", reason(error, value)))
            }
            (Kind::UnknownArgument, Some(flag)) => with_usage(self.unknown_flag(error, flag)),
            (Kind::UnknownArgument, None) => {
                with_usage(self.superfluous(&argument.unwrap_or_default()))
            }
            (Kind::InvalidSubcommand, _) => {
                let name = text(error, ContextKind::InvalidSubcommand).unwrap_or_default();
                with_usage(self.unknown_command(error, &name))
            }
            (Kind::MissingRequiredArgument, _) => {
                let missing = argument.unwrap_or_default();
                with_usage(format!(
                    "{} needs {}, which is missing",
                    self.name.unwrap_or("serve"),
                    bare(&missing)
                ))
            }
            (Kind::ArgumentConflict, _) => match text(error, ContextKind::InvalidSubcommand) {
                Some(command) if self.arguments.get(1).is_some_and(|first| first == "--") => {
                    with_usage(format!("'--' before the command {command}; leave it out"))
                }
                Some(command) => with_usage(format!(
                    "flags come after the command: model-serving {command} [OPTIONS]"
                )),
                None => line(format!(
                    "{} is given more than once; give it once",
                    flag.map_or_else(|| argument.clone().unwrap_or_default(), |f| self.origin(f))
                )),
            },
            (Kind::TooManyValues, Some(flag)) => line(format!(
                "{} takes no value, but got '{}'; write --{flag} alone",
                self.origin(flag),
                value.unwrap_or_default()
            )),
            (Kind::InvalidUtf8, _) => line(self.not_utf8()),
            // No argument here can be wrong in another way; should clap find one, its own words will do.
            _ => {
                let text = error.to_string();
                let first = text.lines().next().unwrap_or_default();
                with_usage(first.trim_start_matches("error: ").to_owned())
            }
        }
    }

    /// A flag with its variable, and which of the two the value came from.
    fn origin(&self, flag: &str) -> String {
        let from_variable = self.from_variables.iter().any(|(name, _)| name == flag);
        match self.variable(flag) {
            Some(variable) if from_variable => format!("the variable {variable} (flag --{flag})"),
            Some(variable) => format!("the flag --{flag} (variable {variable})"),
            None => format!("the flag --{flag}"),
        }
    }

    fn argument(&self, flag: &str) -> Option<&clap::Arg> {
        let mut arguments = self.command.get_arguments();
        arguments.find(|argument| argument.get_long() == Some(flag))
    }

    fn variable(&self, flag: &str) -> Option<&str> {
        self.argument(flag)?.get_env()?.to_str()
    }

    fn no_value(&self, argument: &str) -> String {
        let Some(flag) = flag_of(argument) else {
            let mut arguments = self.command.get_positionals();
            let is_optional = arguments.any(|it| !it.is_required_set());
            let or = if is_optional { ", or leave it out" } else { "" };
            return format!("the argument {} is empty; give one{or}", bare(argument));
        };
        let example = self.argument(flag).map(example).unwrap_or_default();
        format!(
            "{} needs a value that is not empty, for example --{flag} {example}",
            self.origin(flag)
        )
    }

    fn unknown_flag(&self, error: &clap::Error, flag: &str) -> String {
        let shown = text(error, ContextKind::InvalidArg).unwrap_or_default();
        let shown = shown.split(['=', ' ']).next().unwrap_or_default();
        let told = match self.name {
            Some(name) => format!("{name} has no flag {shown}"),
            None => format!("there is no flag {shown}"),
        };
        let near = text(error, ContextKind::SuggestedArg)
            .as_deref()
            .and_then(flag_of)
            .map(str::to_owned)
            .or_else(|| self.similar(flag));
        match near {
            Some(near) => match self.variable(&near) {
                Some(variable) => format!("{told}; did you mean --{near} (variable {variable})?"),
                None => format!("{told}; did you mean --{near}?"),
            },
            None => told,
        }
    }

    fn unknown_command(&self, error: &clap::Error, name: &str) -> String {
        let near = text(error, ContextKind::SuggestedSubcommand);
        match near.or_else(|| self.similar_command(name)) {
            Some(near) => format!("there is no command '{name}'; did you mean {near}?"),
            None => format!("there is no command '{name}'; {}", as_a_flag(name)),
        }
    }

    /// The command that is meant by `name` in other letters; clap looks for it in small ones, and not behind `help`.
    fn similar_command(&self, name: &str) -> Option<String> {
        let small = name.to_ascii_lowercase();
        if self.command.find_subcommand(&small).is_some() {
            return Some(small);
        }
        let line = [self.command.get_name(), &small];
        let error = self.command.clone().try_get_matches_from(line).err()?;
        text(&error, ContextKind::SuggestedSubcommand)
    }

    /// The flag that is meant by the name of its variable, or by other signs between its words.
    fn similar(&self, flag: &str) -> Option<String> {
        let plain = |text: &str| text.to_ascii_lowercase().replace(['_', '-'], "");
        let arguments = self.command.get_arguments();
        let mut same = arguments.filter(|argument| {
            let names = [
                argument.get_long(),
                argument.get_env().and_then(|name| name.to_str()),
            ];
            names
                .iter()
                .flatten()
                .any(|name| plain(name) == plain(flag))
        });
        same.next()?.get_long().map(str::to_owned)
    }

    fn superfluous(&self, argument: &str) -> String {
        if matches!(self.name, None | Some("serve")) {
            return format!("unexpected '{argument}'; {}", as_a_flag(argument));
        }
        let name = self.name.unwrap_or_default();
        format!("'{argument}' is one argument too many; {name} takes one beside its flags")
    }

    fn not_utf8(&self) -> String {
        let is_path = |flag: &str| {
            self.argument(flag).is_some_and(|argument| {
                argument.get_value_parser().type_id() == TypeId::of::<PathBuf>()
            })
        };
        let wrong = |flag: &str, value: &OsString| value.to_str().is_none() && !is_path(flag);
        let shown = |flag: &str, value: &OsString| {
            let text = value.to_string_lossy();
            format!("{}: '{text}' is not UTF-8 text", self.origin(flag))
        };
        for (flag, value) in given_flags(self.arguments) {
            if wrong(&flag, &value) {
                return shown(&flag, &value);
            }
        }
        let mut variables = self.from_variables.iter();
        match variables.find(|(flag, value)| wrong(flag, value)) {
            Some((flag, value)) => shown(flag, value),
            None => "an argument is not UTF-8 text".to_owned(),
        }
    }

    fn usage(&self) -> String {
        let usage = self.command.clone().render_usage().to_string();
        let usage = usage.trim_start_matches("Usage: ");
        let usage = usage.lines().next().unwrap_or_default();
        let command = self.name.map(|name| format!(" {name}")).unwrap_or_default();
        format!("usage: {usage} (more: model-serving{command} --help)")
    }
}

/// The flags of a command line with their values, as far as they have some.
pub(super) fn given_flags(arguments: &[OsString]) -> Vec<(String, OsString)> {
    use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
    let mut given = Vec::new();
    let mut arguments = arguments.iter().take_while(|it| *it != "--").peekable();
    while let Some(argument) = arguments.next() {
        let Some(rest) = argument.as_bytes().strip_prefix(b"--") else {
            continue;
        };
        let end = rest.iter().position(|byte| *byte == b'=');
        let (name, value) = rest.split_at(end.unwrap_or(rest.len()));
        let value = match value.split_first() {
            Some((_equals, value)) => OsString::from_vec(value.to_vec()),
            None => arguments
                .peek()
                .map(|next| (*next).clone())
                .unwrap_or_default(),
        };
        given.push((String::from_utf8_lossy(name).into_owned(), value));
    }
    given
}

/// `URL`, of `[URL]` or `<URL>`; `--to DIR`, of `--to <DIR>`.
fn bare(argument: &str) -> String {
    argument.replace(['<', '>', '[', ']'], "")
}

/// `port`, of `--port <PORT>`.
fn flag_of(argument: &str) -> Option<&str> {
    let name = argument.strip_prefix('-')?.trim_start_matches('-');
    name.split([' ', '='])
        .next()
        .filter(|name| !name.is_empty())
}

fn text(error: &clap::Error, kind: ContextKind) -> Option<String> {
    match error.get(kind)? {
        ContextValue::String(text) => Some(text.clone()),
        ContextValue::Strings(texts) => texts.first().cloned(),
        _ => None,
    }
}

/// What a parser said of a value.
fn reason(error: &clap::Error, value: Option<String>) -> String {
    match std::error::Error::source(error) {
        Some(source) => source.to_string(),
        None => format!("'{}' is not one of its values", value.unwrap_or_default()),
    }
}

/// What whoever gives a bare word probably wants.
fn as_a_flag(argument: &str) -> String {
    let is_path = argument.contains(['/', '.']) || Path::new(argument).exists();
    if is_path {
        format!("a model to serve is given as --model {argument} (variable MODEL_PATH)")
    } else {
        let root = CommandLine::command();
        let names: Vec<&str> = root
            .get_subcommands()
            .map(clap::Command::get_name)
            .collect();
        format!("the commands are {} and help", names.join(", "))
    }
}

/// A value that the flag takes.
fn example(argument: &clap::Arg) -> String {
    if let Some(default) = argument.get_default_values().first() {
        return default.to_string_lossy().into_owned();
    }
    let name = argument.get_value_names().and_then(|names| names.first());
    match name.map(AsRef::as_ref) {
        Some("PORT") => "8000",
        Some("NAME") => "digits",
        Some("ROWS") => "32",
        Some("COUNT") => "4",
        Some("SIZE") => "1GiB",
        Some("DURATION") => "250ms",
        Some("URL") => "http://localhost:4318",
        _ => "PATH",
    }
    .to_owned()
}
