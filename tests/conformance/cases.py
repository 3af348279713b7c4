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


def with_open_dimensions(model):
    """Makes a model state no size of its inputs and outputs, only their ranks."""
    for value in [*given(model), *model.graph.output]:
        if value.type.HasField("tensor_type"):
            for dim in value.type.tensor_type.shape.dim:
                dim.Clear()


def with_passed_inputs(model):
    """Makes a model put out its inputs too, as exporters make them of states that a step leaves as they are."""
    already = {value.name for value in model.graph.output}
    model.graph.output.extend(value for value in given(model) if value.name not in already)


VARIANTS = {"open": with_open_dimensions, "passed": with_passed_inputs}


def changed(case, variant, folder):
    """The case with a model of this variant in `folder`; the networks, whose inputs follow from their shapes, stay."""
    if variant is None or not case.data_sets:
        return case
    model = onnx.load(case.model)
    VARIANTS[variant](model)
    path = pathlib.Path(folder) / "model.onnx"
    onnx.save(model, path)
    return dataclasses.replace(case, model=path)


def given(model):
    """The inputs that a request has to give."""
    defaulted = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in defaulted]


def inputs(case):
    """The values of each data set, as lists of NumPy arrays in the graph's order; None stands for what is no tensor."""
    declared = given(onnx.load(case.model, load_external_data=False))
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
