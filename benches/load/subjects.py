"""The models that are served, the requests that are sent to them, and the right answers.

The right answers come from ONNX Runtime in this process; whatever is measured must give them first.
"""

import dataclasses
import json
import pathlib

import numpy as np
import onnxruntime

# The largest difference from the right answer, relative to the largest of its numbers where that exceeds 1.
TOLERANCE = 1e-4

CONTENT_TYPES = {"raw": "application/octet-stream", "JSON": "application/json"}


@dataclasses.dataclass(frozen=True)
class Request:
    """A body in one form, in a file because the load generator reads it from there."""

    form: str
    rows: int
    path: pathlib.Path
    expected: np.ndarray = dataclasses.field(repr=False)

    def headers(self):
        kind = CONTENT_TYPES[self.form]
        return {"Content-Type": kind, "Accept": kind}

    def check(self, body):
        """What is wrong with the answer `body`; nothing if it is right."""
        try:
            answer = self._read(body)
        except (ValueError, KeyError, TypeError) as error:
            return f"the answer cannot be read ({error}): {body[:200]!r}"
        if answer.shape != self.expected.shape:
            return f"the answer's shape is {answer.shape}, not {self.expected.shape}"
        difference = np.abs(answer - self.expected).max() / max(1.0, np.abs(self.expected).max())
        return None if difference <= TOLERANCE else f"the answer differs by {difference:.1e}"

    def _read(self, body):
        if self.form == "raw":
            return np.frombuffer(body, "<f4").reshape(self.rows, -1)
        outputs = json.loads(body)["outputs"]
        if isinstance(outputs, dict):
            (outputs,) = outputs.values()
        return np.array(outputs, np.float32)


class Subject:
    """A model, and requests for it."""

    def __init__(self, name, models, bodies):
        self.name = name
        self.path = models / f"{name}.onnx"
        self._bodies = bodies
        self._session = onnxruntime.InferenceSession(self.path, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0]
        self._requests = {}

    def request(self, form, rows=1):
        """Rows between 0 and 1 that are the same in every run, all different."""
        if (form, rows) not in self._requests:
            shape = (rows, *self._input.shape[1:])
            values = np.random.default_rng(1).random(shape, np.float32)
            (expected,) = self._session.run(None, {self._input.name: values})
            path = self._bodies / f"{self.name}-{rows}.{form.lower()}"
            path.write_bytes(values.tobytes() if form == "raw" else b'{"inputs": %b}' % _text(values).encode())
            self._requests[form, rows] = Request(form, rows, path, expected)
        return self._requests[form, rows]


def _text(values):
    """The shortest numbers that are these 32-bit floats, as one writes them who cares for the size of a body."""
    if values.ndim == 1:
        return f"[{', '.join(map(str, values))}]"
    return f"[{', '.join(map(_text, values))}]"
