//! What a command is busy with, on standard error, so that nobody takes a long measurement for a hang.
//!
//! Invariant: standard output stays what was asked for; and where nobody watches, only stages that last are told.

use std::io::{IsTerminal, Write};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

/// A stage that is shorter is not worth a line in a file.
const WORTH_A_LINE: Duration = Duration::from_secs(1);

/// Tells the stages of a command.
pub struct Progress {
    stages: Sender<String>,
}

impl Progress {
    /// Begins to tell. At a terminal each stage is told when it begins, elsewhere when it has lasted a second.
    #[must_use]
    pub fn start() -> Self {
        let (stages, told) = mpsc::channel::<String>();
        let patience = if std::io::stderr().is_terminal() {
            Duration::ZERO
        } else {
            WORTH_A_LINE
        };
        thread::spawn(move || {
            let mut stage = told.recv();
            while let Ok(text) = stage {
                stage = match told.recv_timeout(patience) {
                    Err(RecvTimeoutError::Timeout) => {
                        // Whoever closed standard error wants no progress.
                        let _ = writeln!(std::io::stderr(), "{text} ...");
                        told.recv()
                    }
                    Ok(next) => Ok(next),
                    Err(RecvTimeoutError::Disconnected) => break,
                };
            }
        });
        Self { stages }
    }

    /// Says that `stage` begins.
    pub fn stage(&self, stage: &str) {
        // Without the thread there is no progress, and nothing else is lost.
        let _ = self.stages.send(stage.to_owned());
    }
}
