//! Execution providers: which device executes a model, chosen once and reported truthfully.
//!
//! Invariant: a provider that was asked for by name either registers or fails the load. ONNX Runtime's own default,
//! to fall back to the CPU without a word, is never used.

use std::fmt;
use std::str::FromStr;

use ort::ep::{self, ExecutionProvider as _, ExecutionProviderDispatch};

/// The device that the user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Device {
    /// CUDA where it can be had, else the CPU; the log and `/ready` say which and why.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The NVIDIA GPU of this index; a failure to get it fails the start.
    Cuda(u16),
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let word = text.trim().to_ascii_lowercase();
        match word.as_str() {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => {
                let index = word
                    .strip_prefix("cuda:")
                    .filter(|index| index.bytes().all(|byte| byte.is_ascii_digit()))
                    .and_then(|index| index.parse().ok());
                index.map(Self::Cuda).ok_or_else(|| {
                    format!(
                        "'{text}' is not a device; write auto, cpu, cuda or cuda:N, for example cuda:0"
                    )
                })
            }
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => formatter.write_str("auto"),
            Self::Cpu => formatter.write_str("cpu"),
            Self::Cuda(index) => write!(formatter, "cuda:{index}"),
        }
    }
}

/// The provider that really executes a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecutionProvider {
    /// ONNX Runtime's CPU kernels.
    Cpu,
    /// ONNX Runtime's CUDA kernels on the GPU of this index.
    Cuda(u16),
}

/// How CUDA is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CudaConfig {
    /// Bytes of the GPU's memory that one session may take for its tensors; what there is if not given.
    pub memory_limit: Option<usize>,
    /// Whether FP32 is multiplied with the precision of TF32.
    pub tf32: bool,
    /// Whether inputs and outputs pass through pinned memory.
    pub pinned: bool,
}

impl Default for CudaConfig {
    fn default() -> Self {
        Self {
            memory_limit: None,
            tf32: false,
            pinned: true,
        }
    }
}

impl ExecutionProvider {
    /// The providers to try for `device`, in order. More than one means that falling back was asked for (`auto`).
    #[must_use]
    pub fn candidates(device: Device) -> Vec<Self> {
        match device {
            Device::Cuda(index) => vec![Self::Cuda(index)],
            Device::Auto if Self::has_cuda() => {
                vec![Self::Cuda(0), Self::Cpu]
            }
            Device::Cpu | Device::Auto => vec![Self::Cpu],
        }
    }

    /// Whether this ONNX Runtime is built with CUDA; that does not mean that there is a GPU.
    pub(super) fn has_cuda() -> bool {
        ep::CUDA::is_available().unwrap_or(false)
    }

    /// Whether it executes on a device with memory of its own, beside the CPU.
    #[must_use]
    pub fn is_gpu(self) -> bool {
        match self {
            Self::Cpu => false,
            Self::Cuda(_) => true,
        }
    }

    /// The name in ONNX Runtime, as `ml_model_info` reports it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "CPUExecutionProvider",
            Self::Cuda(_) => "CUDAExecutionProvider",
        }
    }

    /// The device that it executes on.
    #[must_use]
    pub fn device(self) -> Device {
        match self {
            Self::Cpu => Device::Cpu,
            Self::Cuda(index) => Device::Cuda(index),
        }
    }

    /// What to register with a session; the CPU is always there and needs nothing.
    pub(super) fn registration(self, config: CudaConfig) -> Vec<ExecutionProviderDispatch> {
        match self {
            Self::Cpu => Vec::new(),
            Self::Cuda(index) => {
                let mut cuda = ep::CUDA::default()
                    .with_device_id(i32::from(index))
                    // An exhaustive search costs hundreds of milliseconds for every new batch size.
                    .with_conv_algorithm_search(ep::cuda::ConvAlgorithmSearch::Heuristic)
                    // The shapes of padded batches repeat, so that memory which was needed once suffices; doubling it
                    // each time would take up to twice of what is ever used.
                    .with_arena_extend_strategy(ep::ArenaExtendStrategy::SameAsRequested)
                    .with_tf32(config.tf32);
                if let Some(limit) = config.memory_limit {
                    cuda = cuda.with_memory_limit(limit);
                }
                vec![cuda.build().error_on_failure()]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_as_in_the_flag() {
        for text in ["auto", "cpu", "cuda:0", "cuda:3"] {
            assert_eq!(
                text.parse::<Device>().map(|device| device.to_string()),
                Ok(text.to_owned())
            );
        }
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        assert_eq!("CUDA:1".parse(), Ok(Device::Cuda(1)));
        assert_eq!(" Auto ".parse(), Ok(Device::Auto));
        for wrong in [
            "",
            "gpu",
            "cuda:",
            "cuda:-1",
            "cuda:+1",
            "cuda:x",
            "cuda:65536",
        ] {
            assert!(wrong.parse::<Device>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_device_asked_for_by_name_has_no_fallback() {
        assert_eq!(
            ExecutionProvider::candidates(Device::Cuda(1)),
            [ExecutionProvider::Cuda(1)]
        );
        assert_eq!(
            ExecutionProvider::candidates(Device::Cpu),
            [ExecutionProvider::Cpu]
        );
    }
}
