#!/usr/bin/env python3
"""Trains the bundled digit classifier and writes best.onnx, best.toml, samples/ and the figures of the model card.

    python3 -m venv /tmp/train
    /tmp/train/bin/pip install --require-hashes -r models/requirements.txt
    /tmp/train/bin/python models/train.py            train, measure, write
    /tmp/train/bin/python models/train.py --check    train, measure, compare with the committed files
    /tmp/train/bin/python models/train.py --choose   compare settings by cross-validation within the training rows

The 360 held-out rows are read once, after training, to measure. They choose nothing: not the settings,
not the seed, not the number of epochs.
"""

import os

# One thread for each operation, because several would add floating-point numbers in a changing order.
# JAX reads this when it is imported, hence its place.
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
os.environ["JAX_PLATFORMS"] = "cpu"

import argparse
import hashlib
import json
import math
import sys
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold, train_test_split

HERE = Path(__file__).resolve().parent
SEED = 2024
HELD_OUT_ROWS = 360
BATCH = 64
REQUIRED_ACCURACY = 0.98


class Settings(NamedTuple):
    """What cross-validation chose among CANDIDATES; hashable, so that JAX compiles one step for each."""

    epochs: int = 120
    learning_rate: float = 3e-3
    dropout: float = 0.0
    # Largest random shift in pixels, rotation in degrees, change of size and shear as fractions.
    shift: float = 0.7
    rotation: float = 12.0
    scale: float = 0.12
    shear: float = 0.12


CANDIDATES = {
    "chosen": Settings(),
    "no augmentation": Settings(shift=0.0, rotation=0.0, scale=0.0, shear=0.0),
    "half the augmentation": Settings(shift=0.35, rotation=6.0, scale=0.06, shear=0.06),
    "dropout of 30 %": Settings(dropout=0.3),
}


def split():
    """Returns (training images, training labels, held-out images, held-out labels); images are float32 [n,8,8]."""
    digits = load_digits()
    train_x, held_x, train_y, held_y = train_test_split(
        digits.images.astype(np.float32),
        digits.target.astype(np.int64),
        test_size=HELD_OUT_ROWS,
        stratify=digits.target,
        random_state=SEED,
    )
    return train_x, train_y, held_x, held_y


def initial_parameters(key):
    def layer(key, *shape):
        # He initialisation, which suits ReLU: variance 2 / fan-in.
        return jax.random.normal(key, shape) * math.sqrt(2 / math.prod(shape[1:]))

    keys = jax.random.split(key, 4)
    return {
        "conv1.weight": layer(keys[0], 16, 1, 3, 3),
        "conv1.bias": jnp.zeros(16),
        "conv2.weight": layer(keys[1], 32, 16, 3, 3),
        "conv2.bias": jnp.zeros(32),
        "conv3.weight": layer(keys[2], 32, 32, 3, 3),
        "conv3.bias": jnp.zeros(32),
        "dense.weight": layer(keys[3], 10, 128),
        "dense.bias": jnp.zeros(10),
    }


def logits(parameters, images, dropout=None):
    """The network on pixel values 0..16; `build_onnx` says the same in ONNX. `dropout` is (key, rate)."""

    def convolve(x, name):
        x = jax.lax.conv_general_dilated(x, parameters[f"{name}.weight"], (1, 1), "SAME")
        return jax.nn.relu(x + parameters[f"{name}.bias"][:, None, None])

    def pool(x):
        return x.reshape(*x.shape[:2], x.shape[2] // 2, 2, x.shape[3] // 2, 2).max((3, 5))

    x = images[:, None] / 16
    x = pool(convolve(convolve(x, "conv1"), "conv2"))
    x = pool(convolve(x, "conv3"))
    x = x.reshape(len(x), -1)
    if dropout is not None:
        key, rate = dropout
        x = jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)
    return x @ parameters["dense.weight"].T + parameters["dense.bias"]


def augment(key, images, settings):
    """Shifts, turns, stretches and slants each image a little, as another hand might have written it."""
    r = jax.random.uniform(key, (6, len(images)), minval=-1, maxval=1)
    angle = r[0] * math.radians(settings.rotation)
    height, width = 1 + r[1] * settings.scale, 1 + r[2] * settings.scale
    slant = r[3] * settings.shear
    rows, columns = jnp.mgrid[0:8, 0:8] - 3.5

    def warp(image, angle, height, width, slant, down, right):
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        sheared = columns + slant * rows
        y = (cos * rows - sin * sheared) * height + down + 3.5
        x = (sin * rows + cos * sheared) * width + right + 3.5
        return jax.scipy.ndimage.map_coordinates(image, [y, x], order=1, mode="constant")

    return jax.vmap(warp)(images, angle, height, width, slant, r[4] * settings.shift, r[5] * settings.shift)


@partial(jax.jit, static_argnames=("settings", "steps"))
def train_step(state, images, labels, key, step, settings, steps):
    """One step of Adam with a cosine schedule, and a running mean of the weights."""
    parameters, first, second, mean = state
    warp_key, dropout_key = jax.random.split(key)
    images = augment(warp_key, images, settings)

    def loss(parameters):
        scores = jax.nn.log_softmax(logits(parameters, images, (dropout_key, settings.dropout)))
        return -jnp.take_along_axis(scores, labels[:, None], 1).mean()

    gradient = jax.grad(loss)(parameters)
    rate = settings.learning_rate * 0.5 * (1 + jnp.cos(jnp.pi * step / steps))
    tree = jax.tree.map
    first = tree(lambda m, g: 0.9 * m + 0.1 * g, first, gradient)
    second = tree(lambda v, g: 0.999 * v + 0.001 * g * g, second, gradient)

    def update(p, m, v):
        return p - rate * (m / (1 - 0.9 ** (step + 1))) / (jnp.sqrt(v / (1 - 0.999 ** (step + 1))) + 1e-8)

    parameters = tree(update, parameters, first, second)
    mean = tree(lambda a, p: 0.995 * a + 0.005 * p, mean, parameters)
    return parameters, first, second, mean


def train(images, labels, settings):
    """Returns the trained parameters as NumPy arrays."""
    key, start = jax.random.split(jax.random.key(SEED))
    parameters = initial_parameters(start)
    zeros = jax.tree.map(jnp.zeros_like, parameters)
    state = (parameters, zeros, zeros, parameters)
    order = np.random.default_rng(SEED)
    per_epoch = len(images) // BATCH
    steps = settings.epochs * per_epoch
    for epoch in range(settings.epochs):
        shuffled = order.permutation(len(images))
        for i in range(per_epoch):
            rows = shuffled[i * BATCH : (i + 1) * BATCH]
            step = epoch * per_epoch + i
            state = train_step(
                state, images[rows], labels[rows], jax.random.fold_in(key, step), jnp.float32(step), settings, steps
            )
    return {name: np.asarray(array) for name, array in state[3].items()}


def choose(images, labels):
    """Prints the errors of each candidate in five-fold cross-validation within the training rows."""
    for name, settings in CANDIDATES.items():
        errors, start = 0, time.monotonic()
        for fit, rest in StratifiedKFold(5, shuffle=True, random_state=SEED).split(images, labels):
            parameters = train(images[fit], labels[fit], settings)
            errors += int((np.asarray(logits(parameters, images[rest])).argmax(1) != labels[rest]).sum())
        share = 100 * (1 - errors / len(labels))
        seconds = time.monotonic() - start
        print(f"{name}: {errors} errors in {len(labels)} rows ({share:.2f} %), {seconds:.0f} s", flush=True)


def build_onnx(parameters, metadata):
    """Writes the network as ONNX, of operators that treat each row alone, so that any batch gives the same answers."""
    node = helper.make_node
    convolution = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    pooling = {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes = [
        node("Mul", ["image", "sixteenth"], ["scaled"]),
        node("Conv", ["scaled", "conv1.weight", "conv1.bias"], ["conv1"], **convolution),
        node("Relu", ["conv1"], ["relu1"]),
        node("Conv", ["relu1", "conv2.weight", "conv2.bias"], ["conv2"], **convolution),
        node("Relu", ["conv2"], ["relu2"]),
        node("MaxPool", ["relu2"], ["pool2"], **pooling),
        node("Conv", ["pool2", "conv3.weight", "conv3.bias"], ["conv3"], **convolution),
        node("Relu", ["conv3"], ["relu3"]),
        node("MaxPool", ["relu3"], ["pool3"], **pooling),
        node("Flatten", ["pool3"], ["features"], axis=1),
        node("Gemm", ["features", "dense.weight", "dense.bias"], ["scores"], transB=1),
        node("Softmax", ["scores"], ["probabilities"], axis=1),
        node("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0),
    ]
    tensors = {"sixteenth": np.float32(1 / 16)} | parameters
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 10]),
            helper.make_tensor_value_info("label", TensorProto.INT64, ["batch"]),
        ],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items()],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
        producer_name="model-serving/models/train.py",
        model_version=1,
        doc_string="Classifies handwritten digits scanned as 8x8 pixels with values 0..16. See models/README.md.",
    )
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def request_body(image):
    """A JSON body for POST /predict with one image, one row of pixels on each line."""
    rows = ",\n".join("  " + json.dumps([int(pixel) for pixel in row]) for row in image)
    return ('{"inputs": {"image": [[[\n' + rows + "\n]]]}}\n").encode()


SIDECAR = """\
# Settings of best.onnx for the server; train.py writes this file.
name = "digits"
version = "1"
description = "Classifies handwritten digits scanned as 8x8 pixels with values 0..16."

[outputs.probabilities]
labels = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
"""

SAMPLES = """\
`digit-0.json` … `digit-9.json` are request bodies for `POST /predict`, each with one scan from the held-out rows.
`digit-7.f32` is the scan of `digit-7.json` as 256 raw bytes (64 little-endian float32) for `application/octet-stream`.
`held-out.csv` has all 360 held-out rows: the true digit, then the 64 pixels from left to right and top to bottom.
"""


def samples(images, labels, probabilities):
    files = {"README.md": SAMPLES.encode()}
    for digit in range(10):
        # The first scan that the model knows beyond doubt, so that an example never shows a lucky guess.
        i = np.flatnonzero((labels == digit) & (probabilities[:, digit] >= 0.99))[0]
        files[f"digit-{digit}.json"] = request_body(images[i])
        if digit == 7:
            files["digit-7.f32"] = images[i].astype("<f4").tobytes()
    lines = ["label," + ",".join(f"p{i}" for i in range(64))]
    lines += [",".join(map(str, [label, *image.reshape(-1).astype(int)])) for label, image in zip(labels, images)]
    files["held-out.csv"] = ("\n".join(lines) + "\n").encode()
    return {f"samples/{name}": content for name, content in files.items()}


def figures(content, parameters, labels, predicted):
    """The measured part of the model card."""
    errors = int((predicted != labels).sum())
    count = sum(array.size for array in parameters.values())
    lines = [
        f"- Held-out accuracy: **{100 * (1 - errors / len(labels)):.2f} %**, {errors} errors in {len(labels)} rows.",
        f"- Trained parameters: {count:,}. File: {len(content):,} bytes.",
        f"- SHA-256 of `best.onnx`: `{hashlib.sha256(content).hexdigest()}`",
        "",
        "Held-out rows by true digit (down) and predicted digit (across):",
        "",
        "| | " + " | ".join(map(str, range(10))) + " | recall |",
        "|---" * 12 + "|",
    ]
    for digit in range(10):
        row = np.bincount(predicted[labels == digit], minlength=10)
        cells = " | ".join(str(n) if n else "·" for n in row)
        lines.append(f"| **{digit}** | {cells} | {100 * row[digit] / row.sum():.1f} % |")
    return "\n".join(lines) + "\n"


def model_card(measured):
    """Puts the measured part between its two marks in README.md; the rest of the card is written by hand."""
    begin, end = "<!-- train.py writes from here -->\n", "<!-- to here -->\n"
    card = (HERE / "README.md").read_text(encoding="utf-8")
    before, rest = card.split(begin)
    return (before + begin + measured + end + rest.split(end)[1]).encode()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", action="store_true", help="compare with the committed files, write nothing")
    action.add_argument("--choose", action="store_true", help="compare settings within the training rows")
    arguments = parser.parse_args()

    train_x, train_y, held_x, held_y = split()
    if arguments.choose:
        return choose(train_x, train_y)

    parameters = train(train_x, train_y, Settings())
    reference = np.asarray(jax.nn.softmax(logits(parameters, held_x)))
    predicted = reference.argmax(1)
    accuracy = float((predicted == held_y).mean())
    content = build_onnx(
        parameters,
        {
            "training_data": "1,437 of the 1,797 scans of scikit-learn's digits "
            "(UCI Optical Recognition of Handwritten Digits)",
            "held_out_accuracy": f"{accuracy:.4f}",
            "held_out_rows": str(len(held_y)),
            "license": "The same as the model-serving project; training data CC BY 4.0, E. Alpaydin and C. Kaynak",
        },
    )

    # What is served must be what was measured: the same answers from ONNX, alone and in a batch.
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    probabilities, label = session.run(None, {"image": held_x[:, None]})
    np.testing.assert_allclose(probabilities, reference, atol=1e-5)
    np.testing.assert_array_equal(label, predicted)
    for i in range(20):
        alone, _ = session.run(None, {"image": held_x[i : i + 1, None]})
        np.testing.assert_allclose(alone[0], probabilities[i], atol=1e-6)

    measured = figures(content, parameters, held_y, predicted)
    print(measured)
    if accuracy < REQUIRED_ACCURACY:
        sys.exit(f"held-out accuracy {accuracy:.4f} is below {REQUIRED_ACCURACY}; nothing was written")

    files = {"best.onnx": content, "best.toml": SIDECAR.encode(), "README.md": model_card(measured)}
    files |= samples(held_x, held_y, probabilities)
    if arguments.check:
        different = [n for n, c in files.items() if not (HERE / n).is_file() or (HERE / n).read_bytes() != c]
        if different:
            sys.exit(f"not as committed: {', '.join(different)}")
        print(f"all {len(files)} files are as committed")
        return
    (HERE / "samples").mkdir(exist_ok=True)
    for name, file_content in files.items():
        (HERE / name).write_bytes(file_content)


if __name__ == "__main__":
    main()
