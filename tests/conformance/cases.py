"""The cases of the ONNX project's backend suite, as the `onnx` package ships them.

Invariant: nothing is fetched and nothing is made up by chance; a case is the same on every machine.
"""

import dataclasses
import json
import pathlib
import re
import zlib

import numpy as np
import onnx
import onnx.backend.test
import onnx.numpy_helper

DATA = pathlib.Path(onnx.backend.test.__file__).parent / "data"
KINDS = ["node", "simple", "pytorch-converted", "pytorch-operator", "real"]


@dataclasses.dataclass(frozen=True)
class Case:
    """A model and the folders of its inputs."""

    name: str
    model: pathlib.Path
    data_sets: tuple

    def is_in_third(self):
        """Whether it belongs to the third that is run on every change, which its name decides for good."""
        return zlib.crc32(self.name.encode()) % 3 == 0


def find():
    """All cases, by kind and name."""
    return [case for kind in KINDS for case in _of_kind(kind)]


def _of_kind(kind):
    for folder in sorted((DATA / kind).iterdir()):
        if not folder.is_dir():
            continue
        model = folder / "model.onnx"
        if not model.exists():
            # The models with names have small weights of their own here, and inputs made as the suite makes them.
            url = json.loads((folder / "data.json").read_text())["url"]
            model = DATA / "light" / url.rsplit("/", 1)[1]
        data_sets = sorted(path for path in folder.glob("test_data_set_*") if path.is_dir())
        yield Case(f"{kind}/{folder.name}", model, tuple(data_sets))


def inputs(case):
    """The values of each data set, as lists of NumPy arrays in the graph's order; None stands for what is no tensor."""
    graph = onnx.load(case.model, load_external_data=False).graph
    defaulted = {tensor.name for tensor in graph.initializer}
    declared = [value for value in graph.input if value.name not in defaulted]
    if not case.data_sets:
        return [[_ramp(value) for value in declared]]
    return [[_read(path, declared) for path in _numbered(folder)] for folder in case.data_sets]


def _numbered(folder):
    return sorted(folder.glob("input_*.pb"), key=lambda path: int(re.search(r"\d+", path.stem)[0]))


def _read(path, declared):
    value = declared[int(re.search(r"\d+", path.stem)[0])]
    if not value.type.HasField("tensor_type"):
        return None
    tensor = onnx.TensorProto()
    tensor.ParseFromString(path.read_bytes())
    return onnx.numpy_helper.to_array(tensor)


def _ramp(value):
    """The input that the suite gives to a model without data."""
    shape = [dim.dim_value if dim.HasField("dim_value") else 1 for dim in value.type.tensor_type.shape.dim]
    count = int(np.prod(shape))
    return (np.arange(count).reshape(shape) / count).astype(np.float32)
