//! The log: one line per event on standard output, as JSON or as text.
//!
//! Invariant: writing never blocks. A reader that stops costs lines, not requests.

use std::str::FromStr;

use tracing::Level;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use super::json_log::JsonLog;
use super::log_writer;
pub use super::log_writer::LogGuard;

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
        let text = text.to_ascii_lowercase();
        match text.parse() {
            Ok(level) if known.contains(&text.as_str()) => Ok(Self(level)),
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
    /// One JSON object a line, for log collectors.
    Json,
    /// For people at a terminal.
    Text,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "json" => Ok(Self::Json),
            "text" => Ok(Self::Text),
            _ => Err(format!("'{text}' is not a log format; write json or text")),
        }
    }
}

/// Starts logging. What was logged is written when the guard is dropped.
#[must_use = "what is logged is written when the guard is dropped"]
pub fn start(config: LogConfig) -> LogGuard {
    start_to(config, std::io::stdout())
}

/// The same, with `output` in the place of standard output.
#[must_use = "what is logged is written when the guard is dropped"]
pub fn start_to(config: LogConfig, output: impl std::io::Write + Send + 'static) -> LogGuard {
    let (writer, guard) = log_writer::start(output);
    let LogLevel(level) = config.level;
    // Libraries talk about themselves at the level at which we talk about requests.
    let libraries = if level > Level::INFO {
        level
    } else {
        level.min(LevelFilter::WARN)
    };
    let filter = Targets::new()
        .with_default(libraries)
        .with_target("model_serving", level)
        .with_target("access", level);
    let layer = match config.format {
        LogFormat::Json => JsonLog::new(writer).boxed(),
        LogFormat::Text => fmt::layer()
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .boxed(),
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
}
