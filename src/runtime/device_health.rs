//! Whether the GPU that executes the models can still be used.
//!
//! After some errors CUDA refuses everything that a process asks for, until the process ends. Invariant: once lost,
//! always lost; nothing is executed on the GPU afterwards, and nobody is told anything else.

use std::sync::OnceLock;

use super::providers::ExecutionProvider;

/// What is known about the GPU. One for the whole process, because CUDA's errors are.
#[derive(Debug, Default)]
pub struct DeviceHealth {
    serving: OnceLock<ExecutionProvider>,
    lost: OnceLock<String>,
}

impl DeviceHealth {
    /// Notes that models are executed on this GPU.
    pub fn set_serving(&self, gpu: ExecutionProvider) {
        // All models are executed on the same GPU, so that a second time says the same.
        let _ = self.serving.set(gpu);
    }

    /// The GPU that executes the models, as its provider counts them; none if a CPU does.
    #[must_use]
    pub fn serving(&self) -> Option<u16> {
        self.serving.get().map(|gpu| gpu.index())
    }

    /// Notes that the GPU is lost, and says so in the log, once.
    pub fn lose(&self, reason: &str) {
        if self.lost.set(reason.to_owned()).is_ok() {
            tracing::error!(
                device = self.serving.get().map(ToString::to_string),
                reason,
                "the GPU is lost to this process; requests are refused with 503 and /health asks for a restart"
            );
        }
    }

    /// Whether the GPU is lost.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lost.get().is_some()
    }
}
