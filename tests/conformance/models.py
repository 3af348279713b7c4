"""Models that packages ship, and inputs for them that look like what they were made for.

    models.py FOLDER    takes the .onnx files out of the wheels in FOLDER

Invariant: the inputs come from a fixed seed, and a row is the same whatever stands beside it.
"""

import dataclasses
import pathlib
import sys
import zipfile
from collections.abc import Callable

import numpy as np
import onnx.backend.test
import onnxruntime


@dataclasses.dataclass(frozen=True)
class Packaged:
    """A model, and its inputs by number of rows and seed."""

    name: str
    path: str
    # Rows (or time steps) of requests to try, and what makes the arrays of one, in the graph's order.
    sizes: tuple
    arrays: Callable
    # More rows than an execution takes; none where there is no such axis, or a run takes long.
    many: int = 0
    start: str = "same"


def _rows(make):
    """Arrays of `rows` rows, each from a seed of its own."""

    def arrays(rows, seed):
        made = [make(np.random.default_rng([seed, row])) for row in range(rows)]
        return [np.stack(parts) for parts in zip(*made, strict=True)]

    return arrays


def file_beginning(random):
    """The first and the last 1,024 bytes of a file of text, of which 256 stands for none, as Magika takes them."""
    words = [
        b"def",
        b"return",
        b"import",
        b"self",
        b"(x)",
        b":\n    ",
        b"= ",
        b"#",
        b"{",
        b"};\n",
        b"<div>",
        b"\x7fELF",
    ]
    text = b" ".join(words[place] for place in random.integers(0, len(words), 60 + int(random.integers(0, 300))))
    edge = np.full(1024, 256, np.int32)
    taken = np.frombuffer(text[:1024], np.uint8)
    edge[: len(taken)] = taken
    return [np.concatenate([edge, edge])]


def page(height, width):
    """A picture of light paper with dark strokes, as PP-OCR takes it: three channels around zero."""

    def picture(random):
        image = np.full((height, width), 0.9, np.float32) + random.normal(0, 0.02, (height, width)).astype(np.float32)
        for _ in range(12):
            top, left = int(random.integers(0, height - 8)), int(random.integers(0, width - 12))
            image[top : top + int(random.integers(2, 8)), left : left + int(random.integers(2, 12))] = 0.1
        return [np.repeat((image[None] - 0.5) / 0.5, 3, axis=0).astype(np.float32)]

    return picture


def speech(samples):
    """Something like a voice: harmonics of a low tone with noise."""

    def sound(random):
        time = np.arange(samples) / 16_000
        tone = 90 + 120 * random.random()
        harmonics = sum(np.sin(2 * np.pi * tone * number * time) / number for number in range(1, 9))
        return (0.1 * harmonics + random.normal(0, 0.01, samples)).astype(np.float32)

    return sound


def voice_with_state(samples, rate=True):
    """Rows of speech, the state of a recurrent network, whose rows lie on its second axis, and the sample rate."""

    def arrays(rows, seed):
        sound = np.stack([speech(samples)(np.random.default_rng([seed, row])) for row in range(rows)])
        state = np.random.default_rng(seed).normal(0, 0.1, (2, rows, 128)).astype(np.float32)
        return [sound, state] + ([np.array(16_000, np.int64)] if rate else [])

    return arrays


def voice_in_steps(steps, seed):
    """Steps of one recording, and the two states of the network that reads them one after the other."""
    sound = np.stack([speech(576)(np.random.default_rng([seed, step])) for step in range(steps)])
    states = np.random.default_rng(seed).normal(0, 0.1, (2, 1, 1, 128)).astype(np.float32)
    return [sound, states[0], states[1]]


def numbers(*shape):
    def arrays(_rows, seed):
        return [np.random.default_rng(seed).normal(0, 2, shape).astype(np.float32)]

    return arrays


def _rate_second(arrays):
    """The same with the sample rate between the other two inputs."""

    def reordered(rows, seed):
        sound, state, rate = arrays(rows, seed)
        return [sound, rate, state]

    return reordered


def packaged(folder):
    """The models in `folder`, and those in ONNX Runtime's own package."""
    ocr, silero = "rapidocr_onnxruntime/models", "silero_vad/data"
    datasets = pathlib.Path(onnxruntime.__file__).parent / "datasets"
    voice = voice_with_state(512)
    models = [
        Packaged("magika", "magika/models/standard_v3_3/model.onnx", (1, 2, 5), _rows(file_beginning), many=40),
        Packaged("ocr-detection", f"{ocr}/ch_PP-OCRv4_det_infer.onnx", (1, 2), _rows(page(64, 96)), many=40),
        Packaged("ocr-recognition", f"{ocr}/ch_PP-OCRv4_rec_infer.onnx", (1, 3), _rows(page(48, 160)), many=40),
        Packaged("ocr-direction", f"{ocr}/ch_ppocr_mobile_v2.0_cls_infer.onnx", (1, 3), _rows(page(48, 192)), many=40),
        Packaged("basic-pitch", "basic_pitch/saved_models/icassp_2022/nmp.onnx", (1, 2), _rows(pitch)),
        Packaged("silero", f"{silero}/silero_vad.onnx", (1, 3), voice, many=40),
        Packaged("silero-op15", f"{silero}/silero_vad_16k_op15.onnx", (1, 3), voice, many=40),
        Packaged("silero-ifless", f"{silero}/silero_vad_op18_ifless.onnx", (1, 3), _rate_second(voice), many=40),
        Packaged("silero-half", f"{silero}/silero_vad_half.onnx", (1, 3), voice_with_state(576, rate=False), many=40),
        Packaged("silero-openvino", f"{silero}/silero_vad_openvino_16k.onnx", (1,), voice_with_state(576, rate=False)),
        Packaged("silero-sequence", f"{silero}/silero_vad_16k_sequence.onnx", (1, 7, 40), voice_in_steps),
        Packaged("whisper-silero", "faster_whisper/assets/silero_vad_v6.onnx", (1, 7, 40), voice_in_steps),
        Packaged("sigmoid", f"{datasets}/sigmoid.onnx", (3,), numbers(3, 4, 5)),
        Packaged("mul", f"{datasets}/mul_1.onnx", (3,), numbers(3, 2)),
        Packaged("iris", f"{datasets}/logreg_iris.onnx", (3,), numbers(3, 2), start="refused-start"),
    ]
    return [dataclasses.replace(model, path=pathlib.Path(folder) / model.path) for model in models]


def pitch(random):
    return [speech(43_844)(random)[:, None]]


def networks():
    """The networks with small weights that the package `onnx` ships for its backend suite."""
    return sorted((pathlib.Path(onnx.backend.test.__file__).parent / "data/light").glob("*.onnx"))


def main():
    folder = pathlib.Path(sys.argv[1])
    for wheel in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.endswith(".onnx"):
                    archive.extract(name, folder)
    missing = [str(model.path) for model in packaged(folder) if not model.path.exists()]
    if missing:
        raise SystemExit(f"not in the packages: {', '.join(missing)}")


if __name__ == "__main__":
    main()
