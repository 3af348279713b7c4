//! What the table says of one execution provider.
//!
//! Invariant: whatever differs from provider to provider is a field here, so that nobody else asks which one it is.

use ort::ep::ExecutionProviderDispatch;
use ort::memory::MemoryInfo;

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

/// What a provider is told when it is registered with a session.
#[derive(Debug, Clone, Copy)]
pub(in crate::runtime) struct Options {
    /// How CUDA is used.
    pub(in crate::runtime) cuda: CudaConfig,
    /// Threads that one run may use, the calling one included.
    pub(in crate::runtime) threads: usize,
}

/// What is missing, and what to do about it.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::runtime) struct Explanation {
    pub(in crate::runtime) cause: String,
    pub(in crate::runtime) fix: String,
}

/// One execution provider.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own about a provider, and a column of the table"
)]
pub(super) struct Row {
    /// As users write it: `cuda`.
    pub(super) word: &'static str,
    /// As ONNX Runtime calls it, also where it reports which nodes it executes: `CUDAExecutionProvider`.
    pub(super) name: &'static str,
    /// Whether there can be several of its devices, told apart by a number: `cuda:1`.
    pub(super) is_numbered: bool,
    /// Whether it executes on a device with memory of its own, beside the CPU.
    pub(super) is_gpu: bool,
    /// Whether `auto` takes it where it can be had.
    pub(super) is_preferred: bool,
    /// Whether settings that `tune` measured, with ONNX Runtime's CPU kernels, are taken for it.
    pub(super) takes_tuned_settings: bool,
    /// Whether the loaded ONNX Runtime is built with it; that does not mean that its device is there.
    pub(super) is_built_in: fn() -> bool,
    /// What to register with a session to execute on the device of this index.
    pub(super) registration: fn(u16, Options) -> Vec<ExecutionProviderDispatch>,
    /// The host's memory from which the device of this index copies best.
    pub(super) host_memory: fn(u16) -> Result<MemoryInfo<'static>, ort::Error>,
    /// What must lie beside ONNX Runtime's library: how the files' names begin.
    pub(super) needs: &'static [&'static str],
    /// What its errors mean.
    pub(super) errors: Errors,
}

/// How a provider's errors read.
pub(super) struct Errors {
    /// Whether the provider, and not the model or the request, is what an error is about.
    pub(super) is_concerned: fn(&str) -> bool,
    /// Whether memory did not suffice.
    pub(super) is_out_of_memory: fn(&str) -> bool,
    /// Whether the device is lost to this process.
    pub(super) is_lost: fn(&str) -> bool,
    /// Why the device of this index cannot be had, and what to do.
    pub(super) explain: fn(&str, u16) -> Explanation,
    /// The same, where the library is built without the provider.
    pub(super) not_built_in: &'static str,
}

/// Whether ONNX Runtime says that it is built without the provider which was asked for.
pub(super) fn is_not_built_in(complaint: &str) -> bool {
    let text = complaint.to_ascii_lowercase();
    text.contains("execution provider is not enabled in this build")
        || text.contains("execution provider is not supported in this build")
}

/// The library that the loader did not find: `libx.so.1: cannot open shared object file: …`.
pub(super) fn missing_library(complaint: &str) -> Option<&str> {
    let (before, _) = complaint.split_once(": cannot open shared object file")?;
    before.rsplit([' ', '/']).next()
}
