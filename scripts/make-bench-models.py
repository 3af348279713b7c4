#!/usr/bin/env python3
"""Writes the models of `make bench` and `make gpu-check`: shapes that everybody knows, with random weights.

    make-bench-models.py FOLDER NAME...

What a network answers does not matter for its speed, so nothing is downloaded. The weights are seeded, and scaled so
that the values keep their size from layer to layer; otherwise a comparison of two servers or devices would compare
infinities.
"""

import pathlib
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

RESNET_STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))
RESNET_EXPANSION = 4
# Channels of each fire module: squeezed, and expanded by either kernel. A pool stands before each group.
SQUEEZENET_FIRES = (((16, 64), (16, 64)), ((32, 128), (32, 128)), ((48, 192), (48, 192), (64, 256), (64, 256)))
CLASSES = 1000


class Graph:
    """Nodes and weights, as they are added."""

    def __init__(self, name, seed):
        self.name = name
        self.random = np.random.default_rng(seed)
        self.nodes, self.weights = [], []

    def weight(self, shape, scale):
        name = f"w{len(self.weights)}"
        values = (self.random.standard_normal(shape) * scale).astype(np.float32)
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def node(self, operator, inputs, output=None, **attributes):
        output = output or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def conv(self, value, inputs, outputs, size, stride=1, gain=2.0, pad=None):
        weight = self.weight((outputs, inputs, size, size), np.sqrt(gain / (inputs * size * size)))
        bias = self.weight((outputs,), 0.01)
        pads = [size // 2 if pad is None else pad] * 4
        return self.node("Conv", [value, weight, bias], kernel_shape=[size, size], strides=[stride, stride], pads=pads)

    def gemm(self, value, inputs, outputs, output=None, gain=1.0):
        weight, bias = self.weight((outputs, inputs), np.sqrt(gain / inputs)), self.weight((outputs,), 0.01)
        return self.node("Gemm", [value, weight, bias], output, transB=1)

    def bottleneck(self, value, inputs, width, stride):
        outputs = width * RESNET_EXPANSION
        inner = self.node("Relu", [self.conv(value, inputs, width, 1)])
        inner = self.node("Relu", [self.conv(inner, width, width, 3, stride)])
        inner = self.conv(inner, width, outputs, 1, gain=0.2)
        if stride != 1 or inputs != outputs:
            value = self.conv(value, inputs, outputs, 1, stride, gain=1.0)
        return self.node("Relu", [self.node("Add", [value, inner])])

    def fire(self, value, inputs, squeezed, expanded):
        value = self.node("Relu", [self.conv(value, inputs, squeezed, 1)])
        sides = [self.node("Relu", [self.conv(value, squeezed, expanded, size)]) for size in (1, 3)]
        return self.node("Concat", sides, axis=1)

    def model(self, source, row, target, outputs):
        """The whole model: FP32 `source` of any number of rows, and so `target`."""
        tensor = helper.make_tensor_value_info
        inputs = [tensor(source, TensorProto.FLOAT, ["N", *row])]
        outputs = [tensor(target, TensorProto.FLOAT, ["N", outputs])]
        whole = helper.make_graph(self.nodes, self.name, inputs, outputs, self.weights)
        return helper.make_model(whole, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def resnet50():
    graph = Graph("resnet50", 50)
    value = graph.node("Relu", [graph.conv("image", 3, 64, 7, 2)])
    value = graph.node("MaxPool", [value], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    for stage, (blocks, width) in enumerate(RESNET_STAGES):
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            value = graph.bottleneck(value, channels, width, stride)
            channels = width * RESNET_EXPANSION
    value = graph.node("Flatten", [graph.node("GlobalAveragePool", [value])])
    graph.gemm(value, channels, CLASSES, "scores")
    return graph.model("image", (3, 224, 224), "scores", CLASSES)


def squeezenet():
    """SqueezeNet 1.1."""
    graph = Graph("squeezenet", 11)
    value, channels = graph.node("Relu", [graph.conv("image", 3, 64, 3, 2, pad=0)]), 64
    for group in SQUEEZENET_FIRES:
        value = graph.node("MaxPool", [value], kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
        for squeezed, expanded in group:
            value = graph.fire(value, channels, squeezed, expanded)
            channels = 2 * expanded
    value = graph.node("Relu", [graph.conv(value, channels, CLASSES, 1)])
    graph.node("Flatten", [graph.node("GlobalAveragePool", [value])], "scores")
    return graph.model("image", (3, 224, 224), "scores", CLASSES)


def tiny():
    """So small that all that is measured is the server."""
    graph = Graph("tiny", 4)
    graph.gemm(graph.node("Relu", [graph.gemm("x", 4, 16, gain=2.0)]), 16, 3, "y")
    return graph.model("x", (4,), "y", 3)


MODELS = {"resnet50": resnet50, "squeezenet": squeezenet, "tiny": tiny}


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[2:]:
        onnx.save(MODELS[name](), folder / f"{name}.onnx")


if __name__ == "__main__":
    main()
