//! The watchdog: a thread that looks at the instances, at the runtime of the connections, and at freed memory, and tells
//! systemd, if that asks for it, that the server lives.
//!
//! Invariant: it runs on nothing that it watches, so that probes on the admin port tell of a main port that is stuck.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::runtime::Handle;

use crate::models::registry::Registry;
use crate::process;
use crate::runtime::library::Library;
use crate::service_manager;
use crate::telemetry::supervision::{self, Restarts};

/// How often it looks, and how often the runtime says that it runs.
const INTERVAL: Duration = Duration::from_millis(250);

/// Looks without a sign of the runtime after which it counts as stuck: ten seconds. Looks are counted and not the time,
/// because a process that was suspended has missed none.
const MOST_MISSED: u32 = 40;

/// How often freed memory between allocations is given back, if there is much of it.
const TRIM_INTERVAL: Duration = Duration::from_secs(3);

/// The running watchdog; it ends when this is dropped.
pub struct Watchdog {
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
    beating: tokio::task::JoinHandle<()>,
}

/// Whether it is to end.
#[derive(Default)]
struct Stop {
    wanted: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    /// Waits for `time`, and says whether the watchdog is still wanted.
    fn wait(&self, time: Duration) -> bool {
        let mut wanted = self.wanted.lock();
        if !*wanted {
            self.changed.wait_for(&mut wanted, time);
        }
        !*wanted
    }
}

impl Watchdog {
    /// Begins to watch the models of `registry`, and `runtime`.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn start(registry: Arc<Registry>, runtime: &Handle) -> std::io::Result<Self> {
        let beats = Arc::new(AtomicU64::new(0));
        let beating = runtime.spawn(beat(Arc::clone(&beats)));
        let stop = Arc::new(Stop::default());
        let (own, pool) = (Arc::clone(&stop), runtime.clone());
        let thread = thread::Builder::new().name("watchdog".to_owned());
        let thread = thread.spawn(move || watch(&registry, &pool, &beats, &own))?;
        Ok(Self {
            stop,
            thread: Some(thread),
            beating,
        })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.beating.abort();
        *self.stop.wanted.lock() = true;
        self.stop.changed.notify_one();
        // A panic in it was counted and logged where it happened.
        drop(self.thread.take().map(JoinHandle::join));
    }
}

/// Says again and again that the runtime still runs what is ready.
async fn beat(beats: Arc<AtomicU64>) {
    let mut interval = tokio::time::interval(INTERVAL);
    loop {
        interval.tick().await;
        #[cfg(feature = "testkit")]
        crate::testkit::panic_at("beat");
        beats.fetch_add(1, Ordering::Relaxed);
    }
}

fn watch(registry: &Registry, pool: &Handle, beats: &AtomicU64, stop: &Stop) {
    let mut restarts = Restarts::of("watchdog");
    let mut runtime = Progress::default();
    let mut trimmed = Instant::now();
    let mut told = Instant::now();
    let telling = service_manager::alive_interval();
    let mut pause = INTERVAL;
    while stop.wait(pause) {
        pause = INTERVAL;
        let looked = supervision::guard(|| {
            #[cfg(feature = "testkit")]
            crate::testkit::panic_at("watchdog");
            registry.check(Instant::now());
        });
        match looked {
            Some(()) => restarts.succeeded(),
            None => pause = restarts.panicked(),
        }
        let was_stuck = runtime.is_stuck();
        runtime.look(beats.load(Ordering::Relaxed));
        if runtime.is_stuck() != was_stuck {
            registry.set_stuck(runtime.is_stuck());
            if was_stuck {
                tracing::info!("the threads of connections run again");
            } else {
                tracing::error!("the threads of connections are stuck");
            }
        }
        // Silence asks for the restart that 503 of /health asks other platforms for.
        if telling.is_some_and(|interval| told.elapsed() + INTERVAL >= interval)
            && registry.fault().is_none()
        {
            told = Instant::now();
            service_manager::alive();
        }
        if trimmed.elapsed() >= TRIM_INTERVAL {
            trimmed = Instant::now();
            pool.spawn_blocking(process::trim);
        }
        if Library::has_unneeded_memory(Instant::now()) {
            // To give much back takes a while.
            pool.spawn_blocking(Library::give_back_memory);
        }
    }
}

/// Whether something that counts still gets on.
#[derive(Debug, Default)]
struct Progress {
    seen: u64,
    missed: u32,
}

impl Progress {
    fn look(&mut self, count: u64) {
        if count == self.seen {
            self.missed = self.missed.saturating_add(1);
        } else {
            *self = Self {
                seen: count,
                missed: 0,
            };
        }
    }

    fn is_stuck(&self) -> bool {
        self.missed >= MOST_MISSED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_gets_on_now_and_then_is_not_stuck_and_what_does_not_is_until_it_does() {
        let mut progress = Progress::default();
        for count in 1..3 {
            for _ in 0..MOST_MISSED {
                progress.look(count);
                assert!(!progress.is_stuck());
            }
        }
        progress.look(2);
        assert!(progress.is_stuck());
        progress.look(2);
        assert!(progress.is_stuck());
        progress.look(3);
        assert!(!progress.is_stuck());
    }
}
