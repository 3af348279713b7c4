"""The models of the cases. Each is as small as the fault that it stands for."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 17, 8
FLOAT, INT64, STRING, UINT8 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING, TensorProto.UINT8

# The floats of `widen`'s answer to each float that it is sent.
WIDENING = 1000
# The floats of a row of the models whose outputs are inputs.
ALIASED = 64
# The size of the matrices of `slow`.
MATRIX = 256

# Every datatype that the server takes and ONNX Runtime's Identity serves on the CPU.
DATATYPES = {
    "bool": TensorProto.BOOL,
    "uint8": TensorProto.UINT8,
    "uint16": TensorProto.UINT16,
    "uint32": TensorProto.UINT32,
    "uint64": TensorProto.UINT64,
    "int8": TensorProto.INT8,
    "int16": TensorProto.INT16,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "string": TensorProto.STRING,
}


def save(path, nodes, inputs, outputs, weights=()):
    """Inputs and outputs are (name, type, shape)."""
    tensors = [[helper.make_tensor_value_info(*value) for value in values] for values in (inputs, outputs)]
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in dict(weights).items()]
    graph = helper.make_graph(nodes, path.stem, *tensors, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def node(operator, inputs, output, **attributes):
    return helper.make_node(operator, inputs, [output], **attributes)


def widen(folder):
    """y[n, l, k] = x[n, l] * w[k]: an answer is a thousand times as large as its request, and as wide as it says."""
    nodes = [node("Unsqueeze", ["x", "axis"], "column"), node("Mul", ["column", "w"], "y")]
    weights = {"axis": np.array([2]), "w": widening()}
    return save(
        folder / "widen.onnx",
        nodes,
        [("x", FLOAT, ["N", "L"])],
        [("y", FLOAT, ["N", "L", WIDENING])],
        weights,
    )


def widening():
    return np.arange(1, WIDENING + 1, dtype=np.float32) / 8


def fill(folder):
    """An answer of as many bytes a row as the largest number of the request says."""
    nodes = [
        node("ReduceMax", ["x"], "size", keepdims=0),
        node("Reshape", ["size", "one"], "columns"),
        node("Shape", ["x"], "rows", end=1),
        node("Concat", ["rows", "columns"], "shape", axis=0),
        node("ConstantOfShape", ["shape"], "y", value=numpy_helper.from_array(np.array([7], np.uint8))),
    ]
    return save(
        folder / "fill.onnx",
        nodes,
        [("x", INT64, ["N", 1])],
        [("y", UINT8, ["N", "K"])],
        {"one": np.array([1])},
    )


def scratch(folder):
    """The same, but the large tensor lies inside the graph; the answer is its sum."""
    nodes = [
        node("ReduceMax", ["x"], "size", keepdims=0),
        node("Reshape", ["size", "one"], "columns"),
        node("Shape", ["x"], "rows", end=1),
        node("Concat", ["rows", "columns"], "shape", axis=0),
        node("ConstantOfShape", ["shape"], "ones", value=numpy_helper.from_array(np.array([1], np.float32))),
        node("ReduceMax", ["ones"], "y", axes=[1], keepdims=1),
    ]
    return save(
        folder / "scratch.onnx",
        nodes,
        [("x", INT64, ["N", 1])],
        [("y", FLOAT, ["N", 1])],
        {"one": np.array([1])},
    )


def texts(folder):
    """Returns its strings."""
    return save(
        folder / "texts.onnx",
        [node("Identity", ["x"], "y")],
        [("x", STRING, ["N", "L"])],
        [("y", STRING, ["N", "L"])],
    )


def aliased(folder):
    """A repository of models whose outputs are inputs, or may lie where an input lies. Returns what each is about."""
    about = {}

    def add(name, datatype, nodes, outputs, row=ALIASED, inputs=(), weights=()):
        shape = ["N", row]
        save(
            folder / name / "1" / "model.onnx",
            nodes,
            [("x", datatype, shape), *inputs],
            [output if isinstance(output, tuple) else (output, datatype, shape) for output in outputs],
            weights,
        )
        about[name] = outputs

    for name, datatype in DATATYPES.items():
        add(f"{name}", datatype, [node("Identity", ["x"], "y")], ["y", "x"])
    add("relu", FLOAT, [node("Relu", ["x"], "y")], ["y", "x"])
    branch = helper.make_graph(
        [node("Identity", ["x"], "taken")], "branch", [], [helper.make_tensor_value_info("taken", FLOAT, None)]
    )
    passing = {
        "identity": node("Identity", ["x"], "identity"),
        "dropout": node("Dropout", ["x"], "dropout"),
        "cast": node("Cast", ["x"], "cast", to=FLOAT),
        "reshape": node("Reshape", ["x", "same"], "reshape"),
        "flatten": node("Flatten", ["x"], "flatten"),
        "squeeze": node("Squeeze", ["deeper", "two"], "squeeze"),
        "concat": node("Concat", ["x"], "concat", axis=0),
        "transpose": node("Transpose", ["x"], "transpose", perm=[0, 1]),
        "if": node("If", ["true"], "if", then_branch=branch, else_branch=branch),
    }
    nodes = [node("Unsqueeze", ["x", "two"], "deeper"), *passing.values()]
    weights = {"same": np.array([0, -1]), "two": np.array([2]), "true": np.array(True)}
    add("no-ops", FLOAT, nodes, list(passing), weights=weights)
    add("no-ops-and-input", FLOAT, nodes, [*passing, "x"], weights=weights)
    # An input that is left out, so that the output is its default.
    add(
        "defaulted",
        FLOAT,
        [node("Add", ["x", "bias"], "y")],
        ["y", ("bias", FLOAT, [ALIASED])],
        inputs=[("bias", FLOAT, [ALIASED])],
        weights={"bias": np.arange(ALIASED, dtype=np.float32)},
    )
    return about


def large_aliased(folder):
    """An output of 8 MB that is an input, whose memory the allocator gives back to the system when it is freed."""
    shape = ["N", 2_000_000]
    return save(
        folder / "large-aliased.onnx",
        [node("Relu", ["x"], "y")],
        [("x", FLOAT, shape)],
        [("y", FLOAT, shape), ("x", FLOAT, shape)],
    )


def slow(folder, multiplications):
    """A chain of products of matrices: so many milliseconds for each row, whatever stands beside it."""
    weight = (np.random.default_rng(9).standard_normal((MATRIX, MATRIX)) / np.sqrt(MATRIX)).astype(np.float32)
    nodes = [
        node("Unsqueeze", ["x", "two"], "column"),
        node("Unsqueeze", ["x", "one"], "row"),
        node("MatMul", ["column", "row"], "m0"),
    ]
    for number in range(multiplications):
        nodes.append(node("MatMul", [f"m{number}", "w"], f"m{number + 1}"))
    nodes.append(node("ReduceMean", [f"m{multiplications}"], "y", axes=[1, 2], keepdims=0))
    return save(
        folder / f"slow-{multiplications}.onnx",
        nodes,
        [("x", FLOAT, ["N", MATRIX])],
        [("y", FLOAT, ["N"])],
        {"w": weight, "one": np.array([1]), "two": np.array([2])},
    )


def addone(folder):
    """y = x + 1, row by row."""
    return save(
        folder / "addone.onnx",
        [node("Add", ["x", "one"], "y")],
        [("x", FLOAT, ["N", 4])],
        [("y", FLOAT, ["N", 4])],
        {"one": np.float32(1)},
    )


def cumsum(folder):
    """Running totals: its only axis is no batch, since each value depends on those before it."""
    return save(
        folder / "cumsum.onnx",
        [node("CumSum", ["x", "axis"], "y")],
        [("x", FLOAT, ["T"])],
        [("y", FLOAT, ["T"])],
        {"axis": np.array(0)},
    )
