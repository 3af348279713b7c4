//! What somebody who waits sees: a bar at a terminal, else a line of the log now and then. systemd, where it waits for a
//! server, is told that it is worth to wait.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::service_manager;

/// How often the log tells how far it is.
const LOGGED_EVERY: Duration = Duration::from_secs(10);

/// How far it is.
pub(super) struct Progress {
    /// At a terminal only.
    bar: Option<ProgressBar>,
    /// When the log or systemd were told last.
    logged: Instant,
    /// Bytes of all files together, if that is known.
    total: Option<u64>,
    /// Bytes of the files that are there.
    before: u64,
}

impl Progress {
    pub(super) fn new(total: Option<u64>) -> Self {
        let style = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = total.map_or_else(ProgressBar::no_length, ProgressBar::new);
            ProgressStyle::with_template(style)
                .map_or_else(|_| bar.clone(), |style| bar.clone().with_style(style))
        });
        service_manager::starting();
        Self {
            bar,
            logged: Instant::now(),
            total,
            before: 0,
        }
    }

    /// `length` bytes of `file` are there.
    pub(super) fn at(&mut self, file: &str, length: u64, of: Option<u64>) {
        let bytes = self.before + length;
        let is_due = self.logged.elapsed() >= LOGGED_EVERY;
        if is_due {
            self.logged = Instant::now();
            service_manager::starting();
        }
        if let Some(bar) = &self.bar {
            if let (None, Some(total)) = (self.total, of) {
                bar.set_length(self.before + total);
            }
            bar.set_message(file.to_owned());
            bar.set_position(bytes);
        } else if is_due {
            tracing::info!(file, bytes, of = self.total.or(of), "fetching");
        }
    }

    /// A file of `length` bytes is there.
    pub(super) fn arrived(&mut self, length: u64) {
        self.before += length;
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
