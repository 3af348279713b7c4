"""The protocol's forms as this client writes and reads them, from docs/api.md and not from the server's sources."""

import json

import numpy as np
from tensors import ELEMENTS, FLOATS, Tensor


class Malformed(Exception):
    """An answer is not what the protocol says."""


class Number(str):
    """The digits of a number in JSON, kept as they were written."""


def to_json(tensors):
    """A body of JSON columns."""
    columns = {name: _nested(tensor) for name, tensor in tensors.items()}
    return json.dumps({"inputs": columns}, ensure_ascii=False, allow_nan=False).encode()


def _nested(tensor):
    array = tensor.array()
    return (array.astype(np.float64) if tensor.datatype in FLOATS else array).tolist()


def _no_constant(text):
    raise Malformed(f"{text} is no JSON")


def columns(body):
    """The outputs of an answer in JSON columns, by name, with numbers as their digits."""
    try:
        answer = json.loads(body, parse_int=Number, parse_float=Number, parse_constant=_no_constant)
    except ValueError as error:
        raise Malformed(f"no JSON: {error}") from None
    if list(answer) != ["model_name", "model_version", "outputs"]:
        raise Malformed(f"the keys {list(answer)}")
    return answer["outputs"]


def from_json(nested, right):
    """The tensor that `nested` states, read as the datatype and the shape of `right`."""
    leaves = []
    _flatten(nested, right.shape, leaves)
    if right.datatype == "BYTES":
        _expect(leaves, right, lambda leaf: type(leaf) is str)
        return Tensor("BYTES", right.shape, tuple(leaf.encode() for leaf in leaves))
    if right.datatype == "BOOL":
        _expect(leaves, right, lambda leaf: type(leaf) is bool)
        return Tensor.of("BOOL", np.array(leaves, bool).reshape(right.shape))
    _expect(leaves, right, lambda leaf: isinstance(leaf, Number))
    dtype = ELEMENTS[right.datatype]
    if right.datatype not in FLOATS:
        _expect(leaves, right, lambda leaf: leaf.removeprefix("-").isdecimal())
        limits = np.iinfo(dtype)
        values = [int(leaf) for leaf in leaves]
        if not all(limits.min <= value <= limits.max for value in values):
            raise Malformed(f"a number beyond {right.datatype}")
        return Tensor(right.datatype, right.shape, np.array(values, dtype).tobytes())
    return Tensor(right.datatype, right.shape, np.array(leaves, np.float64).astype(dtype).tobytes())


def _expect(leaves, right, is_right):
    wrong = next((leaf for leaf in leaves if not is_right(leaf)), None)
    if wrong is not None:
        raise Malformed(f"{wrong!r} in an output of datatype {right.datatype}")


def _flatten(nested, shape, leaves):
    if not shape:
        if isinstance(nested, (list, dict)):
            raise Malformed(f"a {type(nested).__name__} where an element is expected")
        leaves.append(nested)
        return
    if not isinstance(nested, list) or len(nested) != shape[0]:
        got = f"{len(nested)} entries" if isinstance(nested, list) else repr(nested)[:40]
        raise Malformed(f"{got} where {shape[0]} are expected")
    for entry in nested:
        _flatten(entry, shape[1:], leaves)


def surplus_digits(nested, right):
    """An element that is written with more digits than reading it back needs, or None."""
    # Half floats are written as the FP32 that they are exactly.
    if right.datatype not in ("FP32", "FP64"):
        return None
    leaves = []
    _flatten(nested, right.shape, leaves)
    for leaf, value in zip(leaves, right.array().ravel(), strict=True):
        shortest = np.format_float_scientific(value, unique=True, trim="-")
        if _significant(leaf) > _significant(shortest):
            return f"{leaf} where {shortest} suffices"
    return None


def _significant(text):
    digits = text.lower().split("e")[0].replace("-", "").replace(".", "").lstrip("0")
    return len(digits.rstrip("0"))
