"""Tensors as both sides of a comparison see them: the protocol's datatype, a shape, and the bits.

Invariant: two tensors are equal only if their datatypes, shapes and bits are, NaN payloads and signs of zero included.
"""

import dataclasses
import struct

import ml_dtypes
import numpy as np

# The protocol's names, ONNX Runtime's, and the elements.
DATATYPES = [
    ("BOOL", "bool", np.dtype(np.bool_)),
    ("UINT8", "uint8", np.dtype(np.uint8)),
    ("UINT16", "uint16", np.dtype(np.uint16)),
    ("UINT32", "uint32", np.dtype(np.uint32)),
    ("UINT64", "uint64", np.dtype(np.uint64)),
    ("INT8", "int8", np.dtype(np.int8)),
    ("INT16", "int16", np.dtype(np.int16)),
    ("INT32", "int32", np.dtype(np.int32)),
    ("INT64", "int64", np.dtype(np.int64)),
    ("FP16", "float16", np.dtype(np.float16)),
    ("BF16", "bfloat16", np.dtype(ml_dtypes.bfloat16)),
    ("FP32", "float", np.dtype(np.float32)),
    ("FP64", "double", np.dtype(np.float64)),
]
ELEMENTS = {name: dtype for name, _, dtype in DATATYPES}
FLOATS = {"FP16", "BF16", "FP32", "FP64"}
BY_RUNTIME_TYPE = {f"tensor({runtime})": name for name, runtime, _ in DATATYPES} | {"tensor(string)": "BYTES"}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor; `bits` are its elements in little-endian, row-major order, or its strings."""

    datatype: str
    shape: tuple
    bits: bytes | tuple

    @classmethod
    def of(cls, datatype, array):
        """The tensor of a NumPy array; strings may be text or bytes."""
        array = np.asarray(array)
        if datatype == "BYTES":
            strings = tuple(text if isinstance(text, bytes) else str(text).encode() for text in array.ravel().tolist())
            return cls(datatype, array.shape, strings)
        return cls(datatype, array.shape, np.ascontiguousarray(array, ELEMENTS[datatype]).tobytes())

    def array(self):
        """The elements as NumPy's, strings as text."""
        if self.datatype == "BYTES":
            array = np.empty(len(self.bits), object)
            array[:] = [text.decode(errors="replace") for text in self.bits]
            return array.reshape(self.shape)
        return np.ndarray(self.shape, ELEMENTS[self.datatype], self.bits)

    def is_finite(self):
        """Whether JSON can express every element."""
        return self.datatype not in FLOATS or bool(np.isfinite(self.array().astype(np.float64)).all())

    def raw(self):
        """The body that stands for it; a string is its length and its bytes."""
        if self.datatype != "BYTES":
            return self.bits
        return b"".join(struct.pack("<I", len(text)) + text for text in self.bits)

    @classmethod
    def from_raw(cls, datatype, shape, body):
        """The tensor that a raw answer states."""
        if datatype != "BYTES":
            if datatype not in ELEMENTS:
                raise ValueError(f"the unknown datatype {datatype}")
            return cls(datatype, shape, body)
        strings, position = [], 0
        while position < len(body):
            (length,) = struct.unpack_from("<I", body, position)
            position += 4
            strings.append(body[position : position + length])
            position += length
        return cls(datatype, shape, tuple(strings))

    def difference(self, other):
        """What distinguishes `other`, which was answered, from this one, which is right; None if nothing does."""
        if self.datatype != other.datatype:
            return f"datatype {other.datatype} instead of {self.datatype}"
        if self.shape != other.shape:
            return f"shape {list(other.shape)} instead of {list(self.shape)}"
        if self.bits == other.bits:
            return None
        if len(self.bits) != len(other.bits):
            return f"{len(other.bits)} bytes or strings instead of {len(self.bits)}"
        right, answered = self.array().ravel(), other.array().ravel()
        if self.datatype != "BYTES":
            unequal = np.flatnonzero(self._words() != other._words())
        else:
            unequal = [place for place, text in enumerate(self.bits) if text != other.bits[place]]
        place = int(unequal[0])
        return f"{len(unequal)} of {len(right)} elements, the first at {place}: {answered[place]!r} instead of {right[place]!r}"

    def _words(self):
        size = ELEMENTS[self.datatype].itemsize
        return np.frombuffer(self.bits, np.dtype(f"<u{size}"))
