"""Whether `inspect` and `serve` say the same of batching: of the bundled model, the fixtures and packaged models.

    batching.py FOLDER [--server PROGRAM] [--library FILE] [--also MODEL ...]

Both run as anybody would run them. What is compared is whether requests are merged, the kind of reason where both name
one, and the reason's words without its figures. Verdicts that rest on measured times may change from one run to the next
where a gain is near the threshold, so a disagreement has to be seen three times. Exit code 1 if there is one.
"""

import argparse
import dataclasses
import json
import pathlib
import re
import subprocess
import sys

import suite
from server import Died, Refused, Server

import models

ATTEMPTS = 3


@dataclasses.dataclass
class Verdict:
    """What one of them says."""

    batching: str
    kind: str = ""
    reason: str = ""

    def agrees(self, other):
        kinds = not self.kind or not other.kind or self.kind == other.kind
        return self.batching == other.batching and kinds and _words(self.reason) == _words(other.reason)

    def __str__(self):
        return " ".join(filter(None, [self.batching, self.kind]))


def _words(text):
    """A sentence without the figures in it, which are measured anew each time."""
    return re.sub(r"[-+]?\d[\d.,]*(e[-+]?\d+)?", "#", text).strip()


def inspected(model, program, library):
    done = subprocess.run(
        [program, "inspect", str(model)],
        capture_output=True,
        text=True,
        env={"ORT_DYLIB_PATH": str(pathlib.Path(library).resolve())},
        timeout=300,
    )
    if done.returncode != 0:
        return Verdict("refused", reason=_about(done.stderr, model))
    line = re.search(r"^batching +(.*)$", done.stdout, re.M)[1]
    kind = re.search(r"^reason +(\w+)", done.stdout, re.M)
    reason = line.removeprefix("none:").strip() if line.startswith("none") else ""
    return Verdict("off" if line.startswith("none") else "on", kind[1] if kind else "", reason)


def served(model, program, library):
    try:
        with Server(program, library, model) as server:
            metrics = server.request("GET", "/metrics").body.decode()
            ready = json.loads(server.request("GET", "/ready").body)
    except Refused as refusal:
        return Verdict("refused", reason=_about(str(refusal), model))
    labels = re.search(r"^ml_model_batching_info\{(.*)\} 1$", metrics, re.M)[1]
    batching, kind = (re.search(rf'{label}="([^"]*)"', labels)[1] for label in ("batching", "reason"))
    return Verdict(batching, kind, ready["models"][0].get("not_batched_because") or "")


def _about(complaint, model):
    return complaint.strip().replace(str(model), "the model")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="where the packages' models are")
    parser.add_argument("--also", nargs="+", default=[], help="more models")
    suite.add_arguments(parser)
    arguments = parser.parse_args()
    suite.check_program(arguments)
    fixtures = sorted((suite.ROOT / "tests/fixtures").glob("*.onnx"))
    known = {path.stem: path for path in [suite.ROOT / "models/best.onnx", *fixtures]}
    known |= {model.name: model.path for model in models.packaged(arguments.folder)}
    known |= {path.stem: path for path in models.networks() + [pathlib.Path(path) for path in arguments.also]}
    faults = []
    print(f"{'model':20}{'inspect':16}{'serve':16}same?")
    for name, path in known.items():
        try:
            for _ in range(ATTEMPTS):
                pair = [side(path, arguments.server, arguments.library) for side in (inspected, served)]
                same = pair[0].agrees(pair[1])
                if same:
                    break
        except (Died, subprocess.TimeoutExpired) as fault:
            faults.append(f"{name}: {fault}")
            continue
        print(f"{name:20}{pair[0]!s:16}{pair[1]!s:16}{'yes' if same else 'NO'}", flush=True)
        if not same:
            faults.append(f"{name}: inspect says '{pair[0]}' ({pair[0].reason}), serve '{pair[1]}' ({pair[1].reason})")
    print("\n".join(faults))
    print(f"{len(known)} models: {len(faults) or 'no'} disagreements")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
