//! CUDA on an NVIDIA GPU: how it is registered, and why it cannot be had, in words that say what to do.
//!
//! ONNX Runtime reports the first function that failed, far away from the cause. The causes are few, and each has its
//! mark in the text. Invariant: what is not recognised is passed on as it is; nothing is guessed.

use std::fs;

use ort::ep::{self, ExecutionProvider as _, ExecutionProviderDispatch};
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};

use super::row::{Errors, Explanation, Options, Row, is_not_built_in, missing_library};

pub(super) static ROW: Row = Row {
    word: "cuda",
    name: "CUDAExecutionProvider",
    is_numbered: true,
    is_gpu: true,
    is_preferred: true,
    takes_tuned_settings: true,
    is_built_in: || ep::CUDA::is_available().unwrap_or(false),
    registration,
    host_memory: |index| {
        MemoryInfo::new(
            AllocationDevice::CUDA_PINNED,
            i32::from(index),
            AllocatorType::Device,
            MemoryType::CPUOutput,
        )
    },
    needs: &[
        "libonnxruntime_providers_shared.so",
        "libonnxruntime_providers_cuda.so",
    ],
    errors: Errors {
        is_concerned,
        is_out_of_memory,
        is_lost,
        explain,
        not_built_in: NOT_BUILT_IN,
    },
};

fn registration(index: u16, options: Options) -> Vec<ExecutionProviderDispatch> {
    let mut cuda = ep::CUDA::default()
        .with_device_id(i32::from(index))
        // An exhaustive search costs hundreds of milliseconds for every new batch size.
        .with_conv_algorithm_search(ep::cuda::ConvAlgorithmSearch::Heuristic)
        // The shapes of padded batches repeat, so that memory which was needed once suffices; doubling it
        // each time would take up to twice of what is ever used.
        .with_arena_extend_strategy(ep::ArenaExtendStrategy::SameAsRequested)
        .with_tf32(options.cuda.tf32);
    if let Some(limit) = options.cuda.memory_limit {
        cuda = cuda.with_memory_limit(limit);
    }
    vec![cuda.build().error_on_failure()]
}

/// Where the kernel says which NVIDIA driver it has loaded.
const DRIVER: &str = "/proc/driver/nvidia/version";

/// The cause where the CPU's library is used.
const NOT_BUILT_IN: &str = "this ONNX Runtime is built without CUDA";

/// Explains why the GPU of this index cannot be had, from what ONNX Runtime said.
fn explain(complaint: &str, index: u16) -> Explanation {
    explain_with(complaint, index, driver().as_deref())
}

fn explain_with(complaint: &str, index: u16, driver: Option<&str>) -> Explanation {
    let explanation = |cause: String, fix: &str| Explanation {
        cause,
        fix: fix.to_owned(),
    };
    // Where in ONNX Runtime it happened helps nobody who reads this.
    let complaint = complaint
        .find("CUDA failure")
        .and_then(|start| complaint.get(start..))
        .unwrap_or(complaint);
    let text = complaint.to_ascii_lowercase();
    let has = |part: &str| text.contains(part);
    let failure = |code: u32| has(&format!("cuda failure {code}:"));
    let no_driver = || {
        explanation(
            format!("there is no NVIDIA driver here ({complaint})"),
            "install the driver, or give the container its GPU (docker run --gpus=all)",
        )
    };
    if is_not_built_in(complaint) {
        return explanation(
            NOT_BUILT_IN.to_owned(),
            "run the GPU image, or set --onnxruntime (ORT_DYLIB_PATH) to the library of onnxruntime-gpu",
        );
    }
    if let Some(library) = missing_library(complaint) {
        if library.starts_with("libcuda.so") {
            return no_driver();
        }
        return explanation(
            format!("the library {library} is missing"),
            "run the GPU image, or put the CUDA and cuDNN that this ONNX Runtime is built for on the library path (LD_LIBRARY_PATH)",
        );
    }
    if has("undefined symbol") || (has("version `") && has("not found")) {
        return explanation(
            complaint.to_owned(),
            "use libraries of one release of ONNX Runtime, CUDA and cuDNN, as the GPU image has them",
        );
    }
    if failure(35) {
        return match driver {
            None => no_driver(),
            Some(driver) => explanation(
                format!("the NVIDIA driver {driver} is too old for these CUDA libraries"),
                "update the driver, or run the image for an older CUDA (CUDA 12 needs driver 525 or newer, CUDA 13 needs 580)",
            ),
        };
    }
    if failure(803) || failure(804) {
        return explanation(
            format!("the NVIDIA driver does not fit its own libraries ({complaint})"),
            "restart the host after a driver update, and remove CUDA compatibility libraries from the library path",
        );
    }
    if failure(100) {
        return explanation(
            "the NVIDIA driver shows no GPU".to_owned(),
            "give the container its GPU (docker run --gpus=all), and look at CUDA_VISIBLE_DEVICES",
        );
    }
    if failure(101) || has("invalid device ordinal") {
        return explanation(
            format!("there is no GPU {index}"),
            "choose one that nvidia-smi -L lists, counted from 0 among those in CUDA_VISIBLE_DEVICES",
        );
    }
    if failure(209) || has("no kernel image is available") {
        return explanation(
            format!("GPU {index} is too old for these CUDA kernels"),
            "use a GPU that this CUDA supports",
        );
    }
    if is_out_of_memory(complaint) {
        return explanation(
            format!("GPU {index} has not enough free memory ({complaint})"),
            "lower INSTANCES or MAX_BATCH_SIZE, or end what else uses the GPU",
        );
    }
    explanation(
        complaint.to_owned(),
        "run the GPU image on a host with an NVIDIA driver",
    )
}

/// The errors of CUDA after which a process can use its GPU no more, whatever it does: faults of the memory, of the
/// link or of the card, and kernels that went wrong.
const STICKY: [u32; 15] = [
    214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 999,
];

/// Whether the GPU is lost to this process after this error of a run.
fn is_lost(complaint: &str) -> bool {
    let numbers = complaint.split("CUDA failure ").skip(1).filter_map(|rest| {
        let number = rest.split(|character: char| !character.is_ascii_digit());
        number.into_iter().next()?.parse::<u32>().ok()
    });
    numbers.into_iter().any(|number| STICKY.contains(&number))
}

/// Whether the GPU, and not the model or the request, is what an error is about.
fn is_concerned(complaint: &str) -> bool {
    let text = complaint.to_ascii_lowercase();
    let marks = [
        "cuda failure",
        "cuda error",
        "cuda driver",
        "cudnn",
        "cublas",
        "cufft",
        "curand",
        "cusparse",
    ];
    marks.iter().any(|mark| text.contains(mark)) || is_out_of_memory(complaint)
}

/// Whether the GPU's memory did not suffice.
fn is_out_of_memory(complaint: &str) -> bool {
    let text = complaint.to_ascii_lowercase();
    text.contains("out of memory") || text.contains("failed to allocate memory")
}

/// The version of the NVIDIA driver that the kernel runs, if it says so: the first word that looks like `550.54.14`.
fn driver() -> Option<String> {
    version_in(&fs::read_to_string(DRIVER).ok()?)
}

fn version_in(text: &str) -> Option<String> {
    let is_version =
        |word: &&str| word.contains('.') && word.split('.').all(|part| part.parse::<u32>().is_ok());
    text.split_whitespace().find(is_version).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_apart_and_each_has_a_fix() {
        let too_old =
            "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version";
        let cases = [
            (
                "CUDA execution provider is not enabled in this build.",
                None,
                "built without CUDA",
                "GPU image",
            ),
            (
                "Failed to load library /x/libonnxruntime_providers_cuda.so with error: libcublasLt.so.12: cannot open shared object file: No such file or directory",
                None,
                "the library libcublasLt.so.12 is missing",
                "LD_LIBRARY_PATH",
            ),
            (
                "libcuda.so.1: cannot open shared object file: No such file or directory",
                None,
                "no NVIDIA driver",
                "--gpus=all",
            ),
            (too_old, None, "no NVIDIA driver", "install the driver"),
            (
                too_old,
                Some("525.60.13"),
                "driver 525.60.13 is too old",
                "CUDA 13 needs 580",
            ),
            (
                "CUDA failure 100: no CUDA-capable device is detected",
                Some("580.1"),
                "shows no GPU",
                "CUDA_VISIBLE_DEVICES",
            ),
            (
                "CUDA failure 101: invalid device ordinal",
                Some("580.1"),
                "there is no GPU 3",
                "nvidia-smi -L",
            ),
            (
                "CUDA failure 2: out of memory",
                Some("580.1"),
                "not enough free memory",
                "INSTANCES",
            ),
            (
                "CUDA failure 209: no kernel image is available for execution on the device",
                Some("580.1"),
                "too old for these",
                "supports",
            ),
            (
                "CUDA failure 804: forward compatibility was attempted",
                Some("580.1"),
                "does not fit",
                "restart the host",
            ),
            (
                "x.so: undefined symbol: _Z",
                None,
                "undefined symbol: _Z",
                "one release",
            ),
            ("something new", None, "something new", "GPU image"),
        ];
        for (complaint, driver, cause, fix) in cases {
            let explained = explain_with(complaint, 3, driver);
            assert!(
                explained.cause.contains(cause),
                "{complaint}: {explained:?}"
            );
            assert!(explained.fix.contains(fix), "{complaint}: {explained:?}");
        }
    }

    #[test]
    fn a_lost_gpu_is_told_from_one_that_had_a_bad_moment() {
        for lost in [
            "CUDA failure 700: an illegal memory access was encountered",
            "node Conv_3: CUDA failure 214: uncorrectable ECC error encountered",
        ] {
            assert!(is_lost(lost) && is_concerned(lost), "{lost}");
        }
        for bad in [
            "CUDA failure 2: out of memory",
            "CUDNN failure 8: CUDNN_STATUS_EXECUTION_FAILED",
            "BFCArena: Failed to allocate memory for requested buffer of size 4096",
        ] {
            assert!(!is_lost(bad) && is_concerned(bad), "{bad}");
        }
        let request = "Gather: indices element out of data bounds, idx=7000";
        assert!(!is_lost(request) && !is_concerned(request));
    }

    #[test]
    fn the_driver_s_version_is_found_in_what_the_kernel_says() {
        let text = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22 01:44:30 UTC 2024\nGCC version: 12.2.0";
        assert_eq!(version_in(text).as_deref(), Some("550.54.14"));
        assert_eq!(version_in("NVRM version: none"), None);
    }
}
