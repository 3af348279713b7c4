"""Whether what `inspect` says is true of `serve`: of the bundled model, the fixtures and packaged models.

    inspection.py FOLDER [--server PROGRAM] [--library FILE] [--also MODEL ...]

Both run as anybody would run them. What is compared is whether requests are merged, the kind of reason where both name
one, and the reason's words without its figures. Verdicts that rest on measured times may change from one run to the next
where a gain is near the threshold, so a disagreement has to be seen three times. The request that `inspect` prints is sent
to the server as it stands there, by a shell; the answer has to be 200. Exit code 1 if anything is not true.
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

# Models for which no request is found, and `inspect` says why: this fixture answers NaN to all that is made up.
WITHOUT_REQUEST = {"negative"}


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
    """The verdict, and the command that sends a request."""
    done = subprocess.run(
        [program, "inspect", "--json", str(model)],
        capture_output=True,
        text=True,
        env={"ORT_DYLIB_PATH": str(pathlib.Path(library).resolve())},
        timeout=300,
    )
    if done.returncode != 0:
        return Verdict("refused", reason=_about(done.stderr, model)), None
    [described] = json.loads(done.stdout)["models"]
    batching = described["batching"]
    reason = "" if batching["merged"] else batching["text"] or ""
    request = described["request"]
    verdict = Verdict("on" if batching["merged"] else "off", batching["reason"] or "", reason)
    return verdict, request and request["curl"]


def served(model, program, library, curl):
    """The verdict, and the status of what the command gets."""
    status = None
    try:
        with Server(program, library, model) as server:
            metrics = server.request("GET", "/metrics").body.decode()
            ready = json.loads(server.request("GET", "/ready").body)
            if curl:
                status = _status(curl, server.address)
    except Refused as refusal:
        return Verdict("refused", reason=_about(str(refusal), model)), status
    labels = re.search(r"^ml_model_batching_info\{(.*)\} 1$", metrics, re.M)[1]
    batching, kind = (re.search(rf'{label}="([^"]*)"', labels)[1] for label in ("batching", "reason"))
    return Verdict(batching, kind, ready["models"][0].get("not_batched_because") or ""), status


def _status(curl, address):
    """What the printed command gets from the server, whose address is another one here."""
    assert "localhost:8000" in curl, curl
    command = curl.replace("localhost:8000", address) + " -s -o /dev/null -w '%{http_code}'"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    return done.stdout or f"no answer: {done.stderr.strip()}"


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
    # Its load never ends, whoever asks for it.
    fixtures = [path for path in fixtures if path.name != "endless.onnx"]
    known = {path.stem: path for path in [suite.ROOT / "models/best.onnx", *fixtures]}
    known |= {model.name: model.path for model in models.packaged(arguments.folder)}
    known |= {path.stem: path for path in models.networks() + [pathlib.Path(path) for path in arguments.also]}
    faults = []
    print(f"{'model':20}{'inspect':16}{'serve':16}{'same?':7}request")
    for name, path in known.items():
        try:
            for _ in range(ATTEMPTS):
                described, curl = inspected(path, arguments.server, arguments.library)
                verdict, status = served(path, arguments.server, arguments.library, curl)
                same = described.agrees(verdict)
                if same:
                    break
        except (Died, subprocess.TimeoutExpired) as fault:
            faults.append(f"{name}: {fault}")
            continue
        print(f"{name:20}{described!s:16}{verdict!s:16}{'yes' if same else 'NO':7}{status or ''}", flush=True)
        if not same:
            faults.append(
                f"{name}: inspect says '{described}' ({described.reason}), serve '{verdict}' ({verdict.reason})"
            )
        if described.batching != "refused" and status != "200" and name not in WITHOUT_REQUEST:
            faults.append(f"{name}: the request to try gets {status}: {curl}")
    print("\n".join(faults))
    print(f"{len(known)} models: {len(faults) or 'no'} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
