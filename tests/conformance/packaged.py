"""Models that packages ship, through the server: alone against this process, and with many clients at once.

    packaged.py FOLDER [--server PROGRAM] [--library FILE]

A request alone is compared bit by bit, in every form, in several sizes. Merged requests, and one of more rows than an
execution takes (`many`), may differ by rounding, since an execution of more
rows may add in another order: by at most TOLERANCE of the largest value of the output, which is what the server promises
of the rows that it merges. Exit code 1 if anything is not as it should be.
"""

import argparse
import re
import sys
import threading

import numpy as np
import reference
import suite
from expectations import EXPECTABLE, Outcome
from server import Died, Refused, Server
from tensors import FLOATS

import models

# Of an FP32 output's largest value (docs/batching.md, "Independent rows").
TOLERANCE = 1e-3
CLIENTS = 8
ROUNDS = 5


def alone(model, program, library):
    """The outcomes of each form, the worst over all sizes."""
    try:
        right = reference.Reference(model.path)
    except reference.NotRunnable as refusal:
        return {"start": Outcome("error", str(refusal))}
    outcomes = {}
    try:
        with Server(program, library, model.path, *suite.FLAGS) as server:
            outcomes["start"] = Outcome("same")
            for rows in model.sizes:
                inputs = right.tensors(model.arrays(rows, 0))
                for form, outcome in suite.compare(server, right, inputs):
                    if outcomes.get(form, Outcome("same")).is_right:
                        outcomes[form] = outcome
            if model.many:
                outcomes["many"] = _many(server, right, right.tensors(model.arrays(model.many, 0)))
    except Refused as refusal:
        return {"start": Outcome("refused-start", str(refusal))}
    except Died as death:
        outcomes["start"] = Outcome("crash", str(death))
    return outcomes


def _many(server, right, inputs):
    """The outcome of one request of more rows than an execution takes, which may be executed in parts."""
    forms = suite.bodies(right, inputs)
    body, content_type, shape = forms.get("raw") or forms["json"]
    for name, tensor in right.run(inputs).items():
        answer = server.predict(body, content_type, raw_output=name, shape=shape)
        fault, _ = held_against(answer, tensor)
        if fault:
            return Outcome("wrong" if answer.status == 200 else "refused-request", f"output '{name}': {fault}")
    return Outcome("same")


def together(model, program, library):
    """What several clients at once get: the largest difference, and requests and executions; or a fault."""
    right = reference.Reference(model.path)
    name = right.outputs[0]
    bodies, answers = [], []
    for seed in range(CLIENTS):
        inputs = right.tensors(model.arrays(model.sizes[seed % len(model.sizes)], seed + 1))
        bodies.append(suite.bodies(right, inputs))
        answers.append(right.run(inputs)[name])
    got, faults = [], []
    gathered = threading.Barrier(CLIENTS)
    with Server(program, library, model.path, *suite.FLAGS, "--max-queue-delay", "20ms") as server:

        def client(number):
            connection = server.connect()
            forms = bodies[number]
            body = forms.get("raw") or forms["json"]
            for _ in range(ROUNDS):
                gathered.wait()
                answer = server.predict(*body[:2], raw_output=name, shape=body[2], connection=connection)
                got.append((number, answer))
            connection.close()

        def guarded(number):
            try:
                client(number)
            except Exception as fault:  # the others must not wait for it
                faults.append(f"client {number}: {fault!r}")
                gathered.abort()

        threads = [threading.Thread(target=guarded, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        metrics = server.request("GET", "/metrics").body.decode()
    largest = 0.0
    for number, answer in got:
        fault, difference = held_against(answer, answers[number])
        largest = max(largest, difference)
        if fault:
            faults.append(f"client {number}: {fault}")
    executions = int(re.search(r"^ml_executed_batch_size_count\{.*\} (\d+)$", metrics, re.M)[1])
    is_on = 'ml_model_batching_info{batching="on"' in metrics
    if is_on and executions == len(got):
        faults.append(f"batching is on, but none of {executions} executions was shared")
    return largest, len(got), executions, is_on, faults


def held_against(answer, right):
    """What is wrong with one answer, and by how much of the largest value it differs."""
    if answer.status != 200:
        return f"{answer.status} {answer.error()}", 0.0
    answered = suite.raw_answer(answer)
    difference = right.difference(answered)
    if difference is None:
        return None, 0.0
    if right.datatype not in FLOATS or answered.datatype != right.datatype or answered.shape != right.shape:
        return difference, 0.0
    values, others = right.array().astype(np.float64), answered.array().astype(np.float64)
    is_finite = np.isfinite(values)
    if not np.array_equal(values[~is_finite], others[~is_finite], equal_nan=True):
        return difference, 0.0
    # What is not a number in both is alike, whichever NaN it is.
    values, others = values[is_finite], others[is_finite]
    share = float(np.abs(values - others).max(initial=0) / max(np.abs(values).max(initial=0), 1e-30))
    return (None if share <= TOLERANCE else f"{difference}, which is {share:.2g} of the largest value"), share


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="where the packages' models are")
    suite.add_arguments(parser)
    arguments = parser.parse_args()
    suite.check_program(arguments)
    faults = []
    print(f"{'model':18}{'alone':62}{'merged':>8}{'requests':>10}{'executions':>12}{'difference':>12}")
    for model in models.packaged(arguments.folder):
        outcomes = alone(model, arguments.server, arguments.library)
        for form, outcome in outcomes.items():
            expected = model.start if form == "start" else "same"
            if outcome.kind != expected or outcome.kind not in EXPECTABLE:
                faults.append(f"{model.name}, {form}: expected {expected}, got {outcome.kind}: {outcome.detail}")
        line = f"{model.name:18}{', '.join(f'{form} {outcome.kind}' for form, outcome in outcomes.items()):62}"
        if outcomes["start"].kind == "same":
            largest, requests, executions, is_on, wrong = together(model, arguments.server, arguments.library)
            faults += [f"{model.name}, {CLIENTS} clients: {fault}" for fault in wrong[:3]]
            line += f"{'on' if is_on else 'off':>8}{requests:>10}{executions:>12}{largest:>12.2g}"
        print(line, flush=True)
    print("\n".join(faults))
    print(f"{len(faults) or 'no'} faults; merged answers may differ by {TOLERANCE:g} of an output's largest value")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
