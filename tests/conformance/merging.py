"""Whether merged answers are those of a request alone, for the suite's cases with an open first dimension.

    merging.py [--variant passed] [--third] [--case TEXT] [--server PROGRAM] [--library FILE]

Each case whose inputs agree in their first dimension is served with that dimension open, as `N`, so that the server has
to find out for itself whether rows depend on each other. Where it says that it merges, requests of different values and
rows are sent at once, and each answer is held against the same request alone in this process. Exit code 1 if an answer
depends on other requests.
"""

import argparse
import collections
import pathlib
import re
import sys
import tempfile
import threading
import time

import cases
import numpy as np
import onnx
import packaged
import reference
import suite
import workers
from server import Died, Refused, Server

# Requests wait for company; those of many rows do so beside each other.
FLAGS = ("--max-queue-delay", "20ms", "--max-queue-size", "100000")
ROUNDS = 3


def opened(case, variant, folder):
    """The case's model with an open first dimension, or None if it has no inputs of equally many rows."""
    model = onnx.load(case.model)
    if variant is not None:
        cases.VARIANTS[variant](model)
    inputs = cases.given(model)
    shapes = [value.type.tensor_type.shape.dim for value in inputs]
    if not shapes or not all(shape and shape[0].dim_value > 0 for shape in shapes):
        return None
    rows = shapes[0][0].dim_value
    if any(shape[0].dim_value != rows for shape in shapes):
        return None
    for value in [*inputs, *model.graph.output]:
        dims = value.type.tensor_type.shape.dim
        if dims and dims[0].dim_value == rows:
            dims[0].dim_param = "N"
    path = pathlib.Path(folder) / "model.onnx"
    onnx.save(model, path)
    return path


def variants(arrays):
    """Inputs of other values and rows: as they are, the first row, rolled elements, doubled rows, and scaled ones."""
    yield arrays
    yield [array[:1] for array in arrays]
    yield [np.roll(array.ravel(), 1).reshape(array.shape) for array in arrays]
    if len(arrays[0]) < 1000:  # a request may have 16,384 rows
        yield [np.concatenate([array, array[::-1]]) for array in arrays]
    yield [array * 50 if array.dtype.kind == "f" else array[::-1] for array in arrays]


def examine(case, arguments):
    """The verdict of the server, the number of requests and executions, and what is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        path = opened(case, arguments.variant, folder)
        if path is None:
            return "no rows", 0, 0, []
        try:
            right = reference.Reference(path)
            if right.unserved():
                return "not served", 0, 0, []
            requests = []
            for arrays in variants(cases.inputs(case)[0]):
                inputs = right.tensors(arrays)
                try:
                    answers = right.run(inputs)
                except reference.NotRunnable:
                    continue
                forms = suite.bodies(right, inputs)
                if forms:
                    requests.append((forms.get("raw") or forms["json"], answers))
            with Server(arguments.server, arguments.library, path, *suite.FLAGS, *FLAGS) as server:
                metrics = server.request("GET", "/metrics").body.decode()
                if 'ml_model_batching_info{batching="on"' not in metrics:
                    kind = re.search(r'^ml_model_batching_info\{.*reason="(\w+)"', metrics, re.M)[1]
                    return f"off {kind}", 0, 0, []
                faults = _at_once(server, right, requests)
                metrics = server.request("GET", "/metrics").body.decode()
        except reference.NotRunnable:
            return "not runnable", 0, 0, []
        except Refused as refusal:
            return "refused", 0, 0, [str(refusal)]
        except Died as death:
            return "crash", 0, 0, [str(death)]
    executions = int(re.search(r"^ml_executed_batch_size_count\{.*\} (\d+)$", metrics, re.M)[1])
    return "on", len(requests) * ROUNDS, executions, faults


def _at_once(server, right, requests):
    gathered = threading.Barrier(len(requests))
    faults = []

    def client(number):
        try:
            (body, content_type, shape), answers = requests[number]
            connection = server.connect()
            for round_number in range(ROUNDS):
                name = right.outputs[round_number % len(right.outputs)]
                gathered.wait()
                answer = server.predict(body, content_type, raw_output=name, shape=shape, connection=connection)
                fault, _ = packaged.held_against(answer, answers[name])
                if fault:
                    faults.append(f"request {number}, output '{name}': {fault}")
            connection.close()
        except Exception as fault:  # the others must not wait for it
            faults.append(f"request {number}: {fault!r}")
            gathered.abort()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return faults


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    suite.add_arguments(parser)
    suite.add_case_arguments(parser)
    arguments = parser.parse_args()
    if arguments.worker:
        by_name = {case.name: case for case in cases.find()}
        workers.serve(lambda name: examine(by_name[name], arguments))
        return 0
    suite.check_program(arguments)
    begin = time.monotonic()
    names = [case.name for case in suite.select(arguments)]
    flags = suite.worker_flags(arguments)
    found = workers.run(__file__, flags, names, lambda why: ["crash", 0, 0, [why]])
    for verdict, count in sorted(collections.Counter(verdict for verdict, *_ in found.values()).items()):
        print(f"{verdict:20}{count:>6}")
    requests, executions = (sum(result[place] for result in found.values()) for place in (1, 2))
    faults = [f"{name}: {fault}" for name, (*_, faults) in found.items() for fault in faults[:1]]
    suite.print_faults(faults)
    seconds = time.monotonic() - begin
    print(
        f"{requests} requests in {executions} executions, in {seconds:.0f} s: {len(faults) or 'no'} cases with faults"
    )
    return 1 if faults or (requests and executions == requests) else 0


if __name__ == "__main__":
    sys.exit(main())
