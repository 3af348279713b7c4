"""What ONNX Runtime answers in this very process: the right value of every comparison.

Invariant: options that could change bits are those of the server under test: the CPU, one thread, all optimisations.
"""

import ctypes
import os

# Read when the library is loaded; a test has nothing to report.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402
from tensors import BY_RUNTIME_TYPE, ELEMENTS, Tensor  # noqa: E402

onnxruntime.set_default_logger_severity(4)
VERSION = onnxruntime.__version__


class NotRunnable(Exception):
    """ONNX Runtime itself refuses the model or the values."""


class Reference:
    """A model in this process."""

    def __init__(self, model):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common base
            raise NotRunnable(_first_line(error)) from None
        self.inputs = self._session.get_inputs()
        self.outputs = [value.name for value in self._session.get_outputs()]

    def unserved(self):
        """The types of inputs and outputs that are no tensors of a datatype that is served."""
        values = [*self.inputs, *self._session.get_outputs()]
        return sorted({value.type for value in values if value.type not in BY_RUNTIME_TYPE})

    def tensors(self, arrays):
        """The inputs `arrays`, in the graph's order, by name."""
        return {
            value.name: Tensor.of(BY_RUNTIME_TYPE[value.type], array)
            for value, array in zip(self.inputs, arrays, strict=False)
        }

    def run(self, tensors):
        """The outputs by name."""
        try:
            if any(tensor.datatype == "BYTES" for tensor in tensors.values()):
                # It makes no values of its own of strings.
                arrays = self._session.run(self.outputs, {name: tensor.array() for name, tensor in tensors.items()})
                types = [BY_RUNTIME_TYPE[value.type] for value in self._session.get_outputs()]
                answers = [Tensor.of(datatype, array) for datatype, array in zip(types, arrays, strict=True)]
            else:
                values = {name: _to_value(tensor) for name, tensor in tensors.items()}
                answers = map(_from_value, self._session.run_with_ort_values(self.outputs, values))
            return dict(zip(self.outputs, answers, strict=True))
        except Exception as error:  # its exceptions have no common base
            raise NotRunnable(_first_line(error)) from None


def _first_line(error):
    return str(error).strip().splitlines()[0]


def _to_value(tensor):
    array = tensor.array()
    if tensor.datatype == "BF16":
        bfloat16 = 16  # TensorProto's number of the datatype
        words = np.ascontiguousarray(array).view(np.uint16)
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(words, bfloat16)
    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array).reshape(array.shape))


def _from_value(value):
    datatype = BY_RUNTIME_TYPE[value.data_type()]
    shape = tuple(value.shape())
    if datatype == "BYTES":
        return Tensor.of(datatype, value.numpy().reshape(shape))
    # The memory itself: the way through NumPy does not know every datatype.
    size = int(np.prod(shape, dtype=np.int64)) * ELEMENTS[datatype].itemsize
    return Tensor(datatype, shape, ctypes.string_at(value.data_ptr(), size) if size else b"")
