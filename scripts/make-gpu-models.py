#!/usr/bin/env python3
"""Writes the convolutional model of `make gpu-check`: ResNet-50's shape, with random weights.

    make-gpu-models.py FOLDER

What a network answers does not matter for its speed, so nothing is downloaded. The weights are scaled so that the
values keep their size from layer to layer; otherwise a comparison of two devices would compare infinities.
"""

import pathlib
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))
EXPANSION = 4
CLASSES = 1000


class Graph:
    """Nodes and weights, as they are added."""

    def __init__(self):
        self.random = np.random.default_rng(50)
        self.nodes, self.weights = [], []

    def weight(self, shape, scale):
        name = f"w{len(self.weights)}"
        values = (self.random.standard_normal(shape) * scale).astype(np.float32)
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def node(self, operator, inputs, **attributes):
        output = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def conv(self, value, inputs, outputs, size, stride=1, gain=2.0):
        weight = self.weight((outputs, inputs, size, size), np.sqrt(gain / (inputs * size * size)))
        bias = self.weight((outputs,), 0.01)
        pads = [size // 2] * 4
        return self.node("Conv", [value, weight, bias], kernel_shape=[size, size], strides=[stride, stride], pads=pads)

    def bottleneck(self, value, inputs, width, stride):
        outputs = width * EXPANSION
        inner = self.node("Relu", [self.conv(value, inputs, width, 1)])
        inner = self.node("Relu", [self.conv(inner, width, width, 3, stride)])
        inner = self.conv(inner, width, outputs, 1, gain=0.2)
        if stride != 1 or inputs != outputs:
            value = self.conv(value, inputs, outputs, 1, stride, gain=1.0)
        return self.node("Relu", [self.node("Add", [value, inner])])


def resnet50():
    graph = Graph()
    value = graph.node("Relu", [graph.conv("image", 3, 64, 7, 2)])
    value = graph.node("MaxPool", [value], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    for stage, (blocks, width) in enumerate(STAGES):
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            value = graph.bottleneck(value, channels, width, stride)
            channels = width * EXPANSION
    value = graph.node("Flatten", [graph.node("GlobalAveragePool", [value])])
    weight, bias = graph.weight((CLASSES, channels), np.sqrt(1 / channels)), graph.weight((CLASSES,), 0.01)
    graph.nodes.append(helper.make_node("Gemm", [value, weight, bias], ["scores"], transB=1))
    tensor = helper.make_tensor_value_info
    inputs = [tensor("image", TensorProto.FLOAT, ["N", 3, 224, 224])]
    outputs = [tensor("scores", TensorProto.FLOAT, ["N", CLASSES])]
    whole = helper.make_graph(graph.nodes, "resnet50", inputs, outputs, graph.weights)
    return helper.make_model(whole, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(resnet50(), folder / "resnet50.onnx")


if __name__ == "__main__":
    main()
