//! Intel's OpenVINO on the CPU, out of the package onnxruntime-openvino.
//!
//! Invariant: it computes FP32 as FP32. Left to itself, OpenVINO takes bfloat16 on processors that are fast at it.

use ort::ep::{self, ExecutionProvider as _};
use ort::memory::MemoryInfo;

use super::row::{Errors, Explanation, Row, is_not_built_in, missing_library};
use crate::runtime::arena;

pub(super) static ROW: Row = Row {
    word: "openvino",
    name: "OpenVINOExecutionProvider",
    is_numbered: false,
    is_gpu: false,
    // It is no faster everywhere, so that it is taken only where somebody has measured and asks for it.
    is_preferred: false,
    takes_tuned_settings: false,
    is_built_in: || ep::OpenVINO::is_available().unwrap_or(false),
    registration: |_, options| {
        let openvino = ep::OpenVINO::default()
            .with_device_type("CPU")
            .with_precision("FP32")
            // One run at a time in each session, as with ONNX Runtime's own kernels.
            .with_num_streams(1)
            .with_num_threads(options.threads);
        vec![openvino.build().error_on_failure()]
    },
    host_memory: |_| Ok(MemoryInfo::default()),
    needs: &[
        "libonnxruntime_providers_shared.so",
        "libonnxruntime_providers_openvino.so",
        "libopenvino.so.",
        "libopenvino_onnx_frontend.so.",
        "libopenvino_intel_cpu_plugin.so",
        "libtbb.so.",
    ],
    errors: Errors {
        is_concerned,
        is_out_of_memory: arena::is_exhausted,
        is_lost: |_| false,
        explain: |complaint, _| explain(complaint),
        not_built_in: NOT_BUILT_IN,
    },
};

const NOT_BUILT_IN: &str = "this ONNX Runtime is built without OpenVINO";

/// Stands before what the provider says of itself.
const MARK: &str = "[OpenVINO-EP]";

fn explain(complaint: &str) -> Explanation {
    let explanation = |cause: String, fix: &str| Explanation {
        cause,
        fix: fix.to_owned(),
    };
    // Where in OpenVINO's provider it happened helps nobody who reads this.
    let complaint = complaint
        .find(MARK)
        .and_then(|start| complaint.get(start + MARK.len()..))
        .map_or(complaint, str::trim_start);
    if is_not_built_in(complaint) {
        return explanation(
            NOT_BUILT_IN.to_owned(),
            "set --onnxruntime (ORT_DYLIB_PATH) to the library of onnxruntime-openvino (make openvino fetches it)",
        );
    }
    if let Some(library) = missing_library(complaint) {
        return explanation(
            format!("the library {library} is missing"),
            "put all libraries of the package onnxruntime-openvino into the folder of its libonnxruntime.so (make openvino does)",
        );
    }
    explanation(
        complaint.to_owned(),
        "use the libraries of one release of onnxruntime-openvino, and a model that OpenVINO can compile",
    )
}

fn is_concerned(complaint: &str) -> bool {
    complaint.to_ascii_lowercase().contains("openvino")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_told_with_what_to_do() {
        let told = explain(
            "Failed to load library /x/libonnxruntime_providers_openvino.so with error: libopenvino.so.2541: cannot open shared object file: No such file or directory",
        );
        assert_eq!(told.cause, "the library libopenvino.so.2541 is missing");
        assert!(told.fix.contains("make openvino"), "{}", told.fix);
    }

    #[test]
    fn what_is_not_recognised_is_passed_on_as_it_is() {
        assert_eq!(explain("something else").cause, "something else");
        let placed =
            explain("/x/ov.cc:28 auto f() [OpenVINO-EP] Exception while Reading network: y");
        assert_eq!(placed.cause, "Exception while Reading network: y");
    }
}
