//! The log: one line per event on standard output, as JSON or as text.
//!
//! Invariant: writing never blocks. A reader that stops costs lines, not requests.

use std::io::IsTerminal as _;
use std::str::FromStr;

use tracing::Level;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::json_log::JsonLog;
use super::log_writer;
pub use super::log_writer::LogGuard;
pub use super::text_log::HINTS;
use super::text_log::TextLog;

/// What is logged, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogConfig {
    /// The least important level that is logged; `None` logs nothing.
    pub level: LogLevel,
    /// How a line is written.
    pub format: LogFormat,
}

/// The least important level that is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLevel(LevelFilter);

impl FromStr for LogLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = ["off", "error", "warn", "info", "debug", "trace"];
        let word = text.trim().to_ascii_lowercase();
        match word.parse() {
            Ok(level) if known.contains(&word.as_str()) => Ok(Self(level)),
            _ => Err(format!(
                "'{text}' is not a level; write one of {}",
                known.join(", ")
            )),
        }
    }
}

/// How a line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text at a terminal, else JSON.
    Auto,
    /// One JSON object a line, for log collectors.
    Json,
    /// For people.
    Text,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim().to_ascii_lowercase().as_str() {
            "auto" => Ok(Self::Auto),
            "json" => Ok(Self::Json),
            "text" => Ok(Self::Text),
            _ => Err(format!(
                "'{text}' is not a log format; write auto, json or text"
            )),
        }
    }
}

/// What is known of where the log goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Output {
    is_terminal: bool,
    /// The user wants none, or the terminal has none.
    no_colour: bool,
}

/// How lines are written there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Json,
    Text { colour: bool, hints: bool },
}

impl Style {
    fn of(format: LogFormat, output: Output) -> Self {
        let text = match format {
            LogFormat::Auto => output.is_terminal,
            LogFormat::Json => false,
            LogFormat::Text => true,
        };
        if text {
            Self::Text {
                colour: output.is_terminal && !output.no_colour,
                hints: output.is_terminal,
            }
        } else {
            Self::Json
        }
    }
}

/// Starts logging to standard output. What was logged is written when the guard is dropped.
#[must_use = "what is logged is written when the guard is dropped"]
pub fn start(config: LogConfig) -> LogGuard {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let output = Output {
        is_terminal: std::io::stdout().is_terminal(),
        // https://no-color.org
        no_colour: is_set("NO_COLOR") || std::env::var_os("TERM").is_some_and(|it| it == "dumb"),
    };
    start_as(
        config.level,
        Style::of(config.format, output),
        std::io::stdout(),
    )
}

/// The same, with `output`, which is no terminal, in the place of standard output.
#[must_use = "what is logged is written when the guard is dropped"]
pub fn start_to(config: LogConfig, output: impl std::io::Write + Send + 'static) -> LogGuard {
    let nobody = Output {
        is_terminal: false,
        no_colour: true,
    };
    start_as(config.level, Style::of(config.format, nobody), output)
}

/// Libraries that ask other servers for something.
const CLIENTS: [&str; 5] = ["h2", "hyper_util", "object_store", "reqwest", "rustls"];

fn start_as(
    LogLevel(level): LogLevel,
    style: Style,
    output: impl std::io::Write + Send + 'static,
) -> LogGuard {
    let (writer, guard) = log_writer::start(output);
    // Libraries talk about themselves at the level at which we talk about requests.
    let libraries = if level > Level::INFO {
        level
    } else {
        level.min(LevelFilter::WARN)
    };
    let hints = match style {
        Style::Text { hints: true, .. } => level,
        Style::Text { .. } | Style::Json => LevelFilter::OFF,
    };
    // But for those of `fetch`: where they are sent to is a signed address, or one with a password.
    let clients = level.min(LevelFilter::WARN);
    let filter = Targets::new()
        .with_default(libraries)
        .with_targets(CLIENTS.map(|library| (library, clients)))
        .with_target("model_serving", level)
        .with_target("access", level)
        .with_target(HINTS, hints);
    let layer = match style {
        Style::Json => JsonLog::new(writer).boxed(),
        Style::Text { colour, .. } => TextLog::new(writer, colour).boxed(),
    };
    tracing_subscriber::registry()
        .with(layer.with_filter(filter))
        .init();
    guard
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_words() {
        for level in ["off", "error", "warn", "info", "debug", "trace", "INFO"] {
            assert!(level.parse::<LogLevel>().is_ok(), "{level}");
        }
        for wrong in ["", "3", "verbose", "info,hyper=debug"] {
            assert!(wrong.parse::<LogLevel>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_log_is_text_with_colour_at_a_terminal_and_json_elsewhere() {
        use LogFormat::{Auto, Json, Text};
        let text = |colour, hints| Style::Text { colour, hints };
        for (format, is_terminal, no_colour, style) in [
            (Auto, true, false, text(true, true)),
            (Auto, true, true, text(false, true)),
            (Auto, false, false, Style::Json),
            (Json, true, false, Style::Json),
            (Text, true, false, text(true, true)),
            (Text, false, false, text(false, false)),
        ] {
            let output = Output {
                is_terminal,
                no_colour,
            };
            assert_eq!(Style::of(format, output), style, "{format:?} {output:?}");
        }
    }
}
