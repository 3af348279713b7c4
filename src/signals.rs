//! What the operating system asks of the process: to stop, or to load its models again.
//!
//! Invariant: from the moment these are installed, no signal that is meant for us ends the process by itself.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Why the server stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// SIGTERM: the platform replaces us, and its load balancers need the drain delay.
    Terminate,
    /// SIGINT: somebody at a terminal waits.
    Interrupt,
}

impl Stop {
    /// The signal's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT",
        }
    }
}

/// Every signal that the server takes.
pub struct Signals {
    /// Those that stop it.
    pub stop: StopSignals,
    /// The one that asks for the models to be loaded again.
    pub reload: ReloadSignal,
}

/// SIGTERM and SIGINT.
pub struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

/// SIGHUP.
pub struct ReloadSignal(Signal);

impl Signals {
    /// Takes over SIGTERM, SIGINT and SIGHUP.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn install() -> std::io::Result<Self> {
        Ok(Self {
            stop: StopSignals {
                terminate: signal(SignalKind::terminate())?,
                interrupt: signal(SignalKind::interrupt())?,
            },
            reload: ReloadSignal(signal(SignalKind::hangup())?),
        })
    }
}

impl StopSignals {
    /// Waits for the next signal.
    pub async fn next(&mut self) -> Stop {
        tokio::select! {
            _ = self.terminate.recv() => Stop::Terminate,
            _ = self.interrupt.recv() => Stop::Interrupt,
        }
    }
}

impl ReloadSignal {
    /// Waits for the next signal; several that came meanwhile are one.
    pub async fn next(&mut self) {
        self.0.recv().await;
    }
}
