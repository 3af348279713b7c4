//! What others may know about an instance: whether it executes, hangs or is dead.
//!
//! Invariant: an interrupt ends the very run that nobody waits for, and no later one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::runtime::Interrupt;

/// How long a run may go on after its interruption before the instance counts as hung.
const HANG_GRACE: Duration = Duration::from_secs(20);

/// What others may know about an instance.
pub(super) struct InstanceStatus {
    interrupt: Arc<dyn Interrupt>,
    /// The last deadline of the batch being executed. The lock makes sure that an interrupt ends this very run.
    running: Mutex<Option<Instant>>,
    dead: AtomicBool,
}

/// How an instance is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstanceHealth {
    /// Idle, or executing something that somebody waits for.
    Healthy,
    /// Executing on and on, although it was interrupted.
    Hung,
    /// Its thread or task ended.
    Dead,
}

impl InstanceStatus {
    pub(super) fn new(interrupt: Arc<dyn Interrupt>) -> Self {
        Self {
            interrupt,
            running: Mutex::new(None),
            dead: AtomicBool::new(false),
        }
    }

    /// A run begins that nobody waits for after `deadline`.
    pub(super) fn begin(&self, deadline: Instant) {
        *self.running.lock() = Some(deadline);
    }

    /// It has ended.
    pub(super) fn end(&self) {
        *self.running.lock() = None;
    }

    /// Interrupts a run that nobody waits for at `now`, and says how the instance is.
    pub(super) fn check(&self, now: Instant) -> InstanceHealth {
        if self.dead.load(Ordering::Relaxed) {
            return InstanceHealth::Dead;
        }
        let running = self.running.lock();
        match *running {
            Some(deadline) if now >= deadline + HANG_GRACE => InstanceHealth::Hung,
            Some(deadline) if now >= deadline => {
                self.interrupt.interrupt();
                InstanceHealth::Healthy
            }
            _ => InstanceHealth::Healthy,
        }
    }
}

/// Marks the instance dead however its thread ends early.
pub(super) struct DeathMark {
    status: Arc<InstanceStatus>,
    finished: bool,
}

impl DeathMark {
    /// Until it is told otherwise, its end is early.
    pub(super) fn new(status: &Arc<InstanceStatus>) -> Self {
        Self {
            status: Arc::clone(status),
            finished: false,
        }
    }

    /// The end that comes now is not early.
    pub(super) fn finish(&mut self) {
        self.finished = true;
    }
}

impl Drop for DeathMark {
    fn drop(&mut self) {
        self.status.dead.store(!self.finished, Ordering::Relaxed);
    }
}
