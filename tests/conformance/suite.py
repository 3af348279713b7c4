"""The ONNX project's backend suite through the server, held against the table of expected classes.

    suite.py [--variant open|passed] [--third] [--case TEXT] [--server PROGRAM] [--library FILE] [--results FILE]

Each case is run in this process and by a server of its own, over HTTP, in every form that the protocol has for it.
Exit code 1 if anything deviates from expected.toml, in either direction.
"""

import argparse
import collections
import pathlib
import sys
import tempfile
import time

import cases
import expectations
import reference
import wire
import workers
from expectations import Outcome
from server import Died, Refused, Server
from tensors import Tensor

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# One session of one thread, as in the reference: more threads may add in another order.
FLAGS = ["--tuning-time", "off", "--instances", "1", "--intra-op-threads", "1"]


def examine(case, program, library):
    """What came of one case: an outcome for each form, or for `start` alone."""
    try:
        right = reference.Reference(case.model)
        unserved = right.unserved()
    except reference.NotRunnable as refusal:
        return {"start": _start_refused(case, program, library, "not-runnable", str(refusal))}
    if unserved:
        return {"start": _start_refused(case, program, library, "refused-start", ", ".join(unserved))}
    outcomes = {}
    try:
        with Server(program, library, case.model, *FLAGS) as server:
            outcomes["start"] = Outcome("same")
            for arrays in cases.inputs(case):
                inputs = right.tensors(arrays)
                for form, outcome in compare(server, right, inputs):
                    if outcomes.get(form, Outcome("same")).is_right:
                        outcomes[form] = outcome
    except Refused as refusal:
        return {"start": Outcome("refused-start", str(refusal))}
    except Died as death:
        return outcomes | {"start": Outcome("crash", str(death))}
    return outcomes


def _start_refused(case, program, library, kind, why):
    """A start that has to be refused in one line, because of `why`."""
    try:
        with Server(program, library, case.model, *FLAGS):
            return Outcome("wrong", f"served, though in this process: {why}")
    except Refused as refusal:
        return Outcome(kind, str(refusal))
    except Died as death:
        return Outcome("crash", str(death))


def compare(server, right, inputs):
    """The outcome of each form for one set of inputs."""
    try:
        # Generators with a seed answer alike twice before they go on.
        first, *others = [right.run(inputs) for _ in range(3)]
    except reference.NotRunnable as refusal:
        first, others, why = None, [], str(refusal)
    is_random = any(first[name].difference(other[name]) for other in others for name in first)
    obstacle = _json_obstacle(right, inputs)
    if obstacle is not None:
        yield "json", Outcome("no-json", obstacle)
    for form, (body, content_type, shape) in bodies(right, inputs).items():
        if first is None:
            answer = server.predict(body, content_type, shape=shape)
            yield form, _refusal(answer, 422, "not-runnable", why)
            continue
        yield form, _json_answer(server.predict(body, content_type, shape=shape), first, is_random)
        yield f"{form}-raw", _raw_answers(server, (body, content_type, shape), first, is_random)


def bodies(right, inputs):
    """The requests for these inputs, by form: body, content type, and the shape that a header states."""
    forms = {}
    if _json_obstacle(right, inputs) is None:
        forms["json"] = (wire.to_json(inputs), "application/json", None)
    if len(inputs) == 1:
        (tensor,) = inputs.values()
        forms["raw"] = (tensor.raw(), "application/octet-stream", _stated_shape(right, tensor))
    return forms


def _json_obstacle(right, inputs):
    """Why JSON cannot express these inputs, or None."""
    for value in right.inputs:
        tensor = inputs[value.name]
        if not tensor.is_finite():
            return f"input '{value.name}' is not finite"
        # Lists without entries say nothing of the dimensions within them.
        within = value.shape[tensor.shape.index(0) + 1 :] if 0 in tensor.shape else []
        if any(not isinstance(dim, int) for dim in within):
            return f"input '{value.name}' has no elements, and open dimensions"
    return None


def _stated_shape(right, tensor):
    """The shape that a raw body has to state: where more than one dimension is open."""
    declared = right.inputs[0].shape
    open_dims = sum(not isinstance(dim, int) for dim in declared)
    # The length of a body says nothing of how many rows without elements it holds.
    is_told = open_dims == 0 or (open_dims == 1 and tensor.bits)
    return None if is_told and len(declared) == len(tensor.shape) else tensor.shape


def _refusal(answer, status, kind, why):
    code, message = answer.error()
    if answer.status == status:
        return Outcome(kind, message)
    if answer.status == 200:
        return Outcome("wrong", f"answered, though: {why}")
    return _unexpected(answer, code, message)


def _unexpected(answer, code, message):
    kind = "refused-request" if 400 <= answer.status < 500 else "error"
    return Outcome(kind, f"{answer.status} {code}: {message}")


def _json_answer(answer, right, is_random):
    if not all(tensor.is_finite() for tensor in right.values()):
        return _refusal(answer, 422, "not-finite", "the answer is not finite")
    if answer.status != 200:
        return _unexpected(answer, *answer.error())
    try:
        outputs = wire.columns(answer.body)
        if list(outputs) != list(right):
            return Outcome("wrong", f"the outputs {list(outputs)} instead of {list(right)}")
        for name, tensor in right.items():
            answered = wire.from_json(outputs[name], tensor)
            if is_random:
                continue
            difference = tensor.difference(answered) or wire.surplus_digits(outputs[name], tensor)
            if difference:
                return Outcome("wrong", f"output '{name}': {difference}")
    except wire.Malformed as fault:
        return Outcome("wrong", str(fault))
    return Outcome("random" if is_random else "same")


def _raw_answers(server, request, right, is_random):
    body, content_type, shape = request
    for name, tensor in right.items():
        answer = server.predict(body, content_type, raw_output=name, shape=shape)
        if answer.status != 200:
            return _unexpected(answer, *answer.error())
        try:
            answered = raw_answer(answer)
        except (ValueError, TypeError, AttributeError) as fault:
            return Outcome("wrong", f"output '{name}': {fault!r} in {dict(answer.headers)}")
        if is_random:
            same = (answered.datatype, answered.shape) == (tensor.datatype, tensor.shape)
            difference = None if same else "another datatype or shape"
        else:
            difference = tensor.difference(answered)
        if difference:
            return Outcome("wrong", f"output '{name}': {difference}")
    return Outcome("random" if is_random else "same")


def raw_answer(answer):
    """The tensor of a raw answer; raises ValueError, TypeError or AttributeError if its headers are not as they should."""
    text = answer.headers["X-Tensor-Shape"]
    shape = tuple(int(size) for size in text.split(",")) if text.strip() else ()
    return Tensor.from_raw(answer.headers["X-Tensor-Datatype"], shape, answer.body)


def select(arguments):
    """The cases that the arguments ask for."""
    chosen = [case for case in cases.find() if case.is_in_third() or not arguments.third]
    return [case for case in chosen if not arguments.case or arguments.case in case.name]


def _work(arguments):
    by_name = {case.name: case for case in cases.find()}

    def outcomes(name):
        try:
            with tempfile.TemporaryDirectory() as folder:
                case = cases.changed(by_name[name], arguments.variant, folder)
                found = examine(case, arguments.server, arguments.library)
        except Exception as fault:  # one case that this program cannot handle hides no other
            found = {"start": Outcome("error", f"of this test: {fault!r}")}
        return {form: [outcome.kind, outcome.detail] for form, outcome in found.items()}

    workers.serve(outcomes)


def _run(selected, arguments):
    """The outcomes of all cases, by name."""
    names = [case.name for case in selected]
    found = workers.run(__file__, worker_flags(arguments), names, lambda why: {"start": ["crash", why]})
    return {name: {form: Outcome(*outcome) for form, outcome in case.items()} for name, case in found.items()}


def summarise(outcomes):
    """A table of the counts by class and form."""
    forms = ["start", "json", "json-raw", "raw", "raw-raw"]
    counts = collections.Counter((outcome.kind, form) for case in outcomes.values() for form, outcome in case.items())
    lines = [f"{'':16}" + "".join(f"{form:>10}" for form in forms)]
    for kind in expectations.KINDS:
        row = [counts[kind, form] for form in forms]
        if any(row):
            lines.append(f"{kind:16}" + "".join(f"{count or '':>10}" for count in row))
    return "\n".join(lines)


def add_case_arguments(parser):
    """Which cases."""
    parser.add_argument("--third", action="store_true", help="only the third that is run on every change")
    parser.add_argument("--variant", choices=cases.VARIANTS, help="with models that state no sizes, or pass inputs on")
    parser.add_argument("--case", help="only cases whose name contains this")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)


def worker_flags(arguments):
    """What a worker has to know of the arguments."""
    variant = ["--variant", arguments.variant] if arguments.variant else []
    return ["--server", arguments.server, "--library", arguments.library, *variant]


def print_faults(faults):
    """As many as anybody reads."""
    print("\n".join(faults[:100]))
    if len(faults) > 100:
        print(f"... and {len(faults) - 100} more")


def check_program(arguments):
    """Ends where a comparison would mean nothing."""
    for path in (arguments.server, arguments.library):
        if not pathlib.Path(path).exists():
            raise SystemExit(f"{path} is not there; build the server and run `make onnxruntime`, or name another")
    pinned = (ROOT / "scripts/onnxruntime.txt").read_text()
    if f"onnxruntime=={reference.VERSION} " not in pinned:
        raise SystemExit(f"this process has ONNX Runtime {reference.VERSION}, scripts/onnxruntime.txt another")


def add_arguments(parser):
    """What is tested, and with which library."""
    parser.add_argument("--server", default=str(ROOT / "target/release/model-serving"), help="the program under test")
    parser.add_argument(
        "--library", default=str(ROOT / ".onnxruntime/libonnxruntime.so"), help="ONNX Runtime's library"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    add_case_arguments(parser)
    parser.add_argument("--results", help="write every outcome to this file, tab-separated")
    arguments = parser.parse_args()
    if arguments.worker:
        _work(arguments)
        return 0
    check_program(arguments)
    begin = time.monotonic()
    known, selected = cases.find(), select(arguments)
    table = expectations.read(HERE / "expected.toml", arguments.variant)
    faults = table.unknown_names({case.name for case in known})
    outcomes = _run(selected, arguments)
    if arguments.results:
        lines = (
            f"{name}\t{form}\t{outcome.kind}\t{outcome.detail}\n"
            for name, case in outcomes.items()
            for form, outcome in case.items()
        )
        pathlib.Path(arguments.results).write_text("".join(lines))
    for name, case in outcomes.items():
        faults += table.deviations(name, case)
    print(summarise(outcomes))
    print_faults(faults)
    seconds = time.monotonic() - begin
    print(f"{len(selected)} of {len(known)} cases in {seconds:.0f} s: {len(faults) or 'no'} deviations from the table")
    return 1 if faults or not selected else 0


if __name__ == "__main__":
    sys.exit(main())
