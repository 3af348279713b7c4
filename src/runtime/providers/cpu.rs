//! ONNX Runtime's own kernels on the CPU: always there, and registered with every session without being asked for.

use ort::memory::MemoryInfo;

use super::row::{Errors, Explanation, Row};
use crate::runtime::arena;

pub(super) static ROW: Row = Row {
    word: "cpu",
    name: "CPUExecutionProvider",
    is_numbered: false,
    is_gpu: false,
    is_preferred: false,
    takes_tuned_settings: true,
    is_built_in: || true,
    registration: |_, _| Vec::new(),
    host_memory: |_| Ok(MemoryInfo::default()),
    needs: &[],
    errors: Errors {
        // What it says is about the model or the request.
        is_concerned: |_| false,
        is_out_of_memory: arena::is_exhausted,
        is_lost: |_| false,
        explain: |complaint, _| Explanation {
            cause: complaint.to_owned(),
            fix: "use an official build of ONNX Runtime".to_owned(),
        },
        not_built_in: "this ONNX Runtime is built without CPU kernels",
    },
};
