//! One thread for the life of all models: at the start, on SIGHUP, and when files change, if that is watched.
//!
//! A model is loaded beside the one that serves, checked, warmed up, and only then takes its name. The old one answers
//! the requests that had found it and is then let go. Each load has a thread of its own, for which the others wait a
//! minute and not for ever. The first look is like every later one, but for one thing: if nothing at all can be served, the
//! server does not start.
//!
//! Invariant: whatever lies on the disk, the model that serves goes on until another one can take its place, and one that
//! is broken keeps no other from being loaded.

mod attempts;
mod config;
mod departures;
mod error;
mod events;
mod failures;
mod files;
mod notices;
mod plan;
mod required;
mod retired;
mod signature;
mod troubles;
mod worker;

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Instant;

use tokio::sync::oneshot;

use super::loading::{Loader, LoadingError};
use crate::telemetry::supervision;
pub use config::LifecycleConfig;
use events::Event;
use worker::Worker;

/// The thread that has models loaded and lets them go.
pub struct Lifecycle {
    events: Sender<Event>,
    ended: Receiver<()>,
}

/// How the first look ended; without a word if it panicked.
pub type FirstLook = oneshot::Receiver<Result<(), LoadingError>>;

impl Lifecycle {
    /// Starts the thread, which makes what loads models by `loader` and has them loaded. `until_then` is held until the
    /// first look has ended.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn start(
        config: LifecycleConfig,
        loader: impl FnOnce() -> Result<Loader, LoadingError> + Send + 'static,
        until_then: impl Send + 'static,
    ) -> std::io::Result<(Self, FirstLook)> {
        let (events, received) = mpsc::channel();
        let (ending, ended) = mpsc::channel::<()>();
        let (send_first, first) = oneshot::channel();
        let thread = thread::Builder::new().name("models".to_owned());
        let lifecycle = Self {
            events: events.clone(),
            ended,
        };
        thread.spawn(move || {
            let started = supervision::guard(|| {
                #[cfg(feature = "testkit")]
                crate::testkit::panic_at("start");
                let mut worker = Worker::new(config, loader()?, (events, received));
                worker.first_look()?;
                Ok(worker)
            });
            // Nobody waits any more when a signal came first.
            let worker = match started {
                None => None,
                Some(Err(error)) => {
                    drop(send_first.send(Err(error)));
                    None
                }
                Some(Ok(worker)) => {
                    drop(send_first.send(Ok(())));
                    Some(worker)
                }
            };
            drop(until_then);
            if let Some(mut worker) = worker {
                #[expect(
                    clippy::disallowed_methods,
                    reason = "a pause after a panic, which nothing is to shorten"
                )]
                let wait = |pause| {
                    thread::park_timeout(pause);
                    // It sees by itself whether it is still wanted.
                    true
                };
                supervision::keep_running("models", wait, || worker.run());
            }
            drop(ending);
        })?;
        Ok((lifecycle, first))
    }

    /// Asks for every model to be loaded again.
    pub fn reload(&self) {
        // The thread ends only after it was told to stop.
        let _ = self.events.send(Event::Reload);
    }

    /// Begins nothing more, and waits until what is under way has ended, or until `deadline`; not for loads, which nobody
    /// can end. Says whether it has.
    #[must_use]
    pub fn join(self, deadline: Instant) -> bool {
        let _ = self.events.send(Event::Stop);
        let left = deadline.saturating_duration_since(Instant::now());
        // It sends nothing: its end is that the other side is gone.
        self.ended.recv_timeout(left) != Err(RecvTimeoutError::Timeout)
    }
}

impl Drop for Lifecycle {
    fn drop(&mut self) {
        let _ = self.events.send(Event::Stop);
    }
}
