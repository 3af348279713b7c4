#!/usr/bin/env python3
"""Runs the server under valgrind while clients ask for outputs that ONNX Runtime answers in memory which is not its own.

    memcheck.py SERVER

Each fixture is served twice, with merging and without. Ends with status 1 if valgrind saw an access to memory that was
freed, or never was the program's, or if an answer is not what was sent. The system's loader is not looked at: it compares
names by whole words, beyond their ends.
"""

import json
import pathlib
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
WIDE = 500_000
CLIENTS, REQUESTS = 3, 3
TIMEOUT = 600
WHOLE = ["uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"]
FRACTIONS = ["float16", "bfloat16", "float32", "float64"]


def start(server, fixture, flags, log):
    command = ["valgrind", "--quiet", f"--log-file={log}", server, "--model", ROOT / f"tests/fixtures/{fixture}.onnx"]
    command += ["--host", "127.0.0.1", "--port", "0", "--tuning-time", "off", "--request-timeout", "5m", *flags]
    command += ["--onnxruntime", ROOT / ".onnxruntime/libonnxruntime.so"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    address = None
    for line in process.stdout:
        message = json.loads(line)
        if message["message"] == "listening":
            address = message["address"]
        if message["message"] == "ready":
            break
    threading.Thread(target=process.stdout.read, daemon=True).start()
    return process, address


def post(address, path, body, **headers):
    request = urllib.request.Request(f"http://{address}{path}", data=body, headers=headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        return answer.read()


def raw(address, number):
    sent = struct.pack("<f", number + 0.5) * WIDE
    kind = "application/octet-stream"
    return post(address, "/predict?outputs=x", sent, **{"Content-Type": kind, "Accept": kind}) == sent


def columns(address, number):
    def tensor(value):
        return [[value] * 300]

    inputs = {name: tensor(number % 100) for name in WHOLE} | {name: tensor(number + 0.5) for name in FRACTIONS}
    inputs |= {"bool": tensor(number % 2 == 0), "string": tensor(f"request {number}")}
    body = json.dumps({"inputs": inputs}).encode()
    outputs = json.loads(post(address, "/predict", body, **{"Content-Type": "application/json"}))["outputs"]
    return all(outputs[name] == values for name, values in inputs.items())


def accesses(text):
    """Each wrong access in valgrind's log, with where it happened; and the end of the process, if a signal ended it."""
    lines = [line.split("== ", 1)[-1] for line in text.splitlines()]
    found = []
    for index, line in enumerate(lines):
        if "Process terminating" in line:
            found.append(line)
        if line.startswith("Invalid "):
            stack = lines[index + 1 : index + 13]
            if not any("(dl-load.c" in frame for frame in stack):
                found.append(f"{line}: {stack[0].strip() if stack else ''}")
    return found


def check(server, fixture, ask, flags):
    with tempfile.TemporaryDirectory() as folder:
        log = pathlib.Path(folder) / "valgrind"
        process, address = start(server, fixture, flags, log)
        problems = []
        try:

            def client(first):
                for number in range(first, first + REQUESTS):
                    try:
                        if not ask(address, number):
                            problems.append(f"request {number} was answered with other values")
                    except OSError as error:
                        problems.append(f"request {number} was not answered: {error}")

            if address is None:
                problems.append("the server did not become ready")
            else:
                clients = [threading.Thread(target=client, args=(index * REQUESTS,)) for index in range(CLIENTS)]
                for thread in clients:
                    thread.start()
                for thread in clients:
                    thread.join()
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                problems.append("the server did not end")
        text = log.read_text() if log.exists() else ""
        problems += accesses(text)
    print(f"{fixture} {' '.join(flags)}: {CLIENTS * REQUESTS} requests, {len(problems)} problems", flush=True)
    for problem in problems[:10]:
        print(f"    {problem}")
    return not problems


def main():
    if shutil.which("valgrind") is None:
        sys.exit("valgrind is not installed; install it with the system's package manager")
    server = pathlib.Path(sys.argv[1]).resolve()
    fine = [
        check(server, fixture, ask, flags)
        for fixture, ask in (("passthrough", columns), ("passthrough_wide", raw))
        for flags in (["--max-queue-delay", "20ms"], ["--max-batch-size", "1"])
    ]
    sys.exit(not all(fine))


if __name__ == "__main__":
    main()
