#!/usr/bin/env python3
"""Builds the images and proves on a real engine that they keep their promises.

    prove.py [--keep-images] cpu     the CPU image and the stack of docker-compose.yml
    prove.py [--keep-images] gpu     the GPU image, as far as a machine without a GPU can (some gigabytes of downloads)

Base images that cannot be pulled are replaced by stand-ins (standins.py). Where no engine answers, nothing is checked,
and that is said. What it makes on the engine it removes at its end, however it ends: containers, networks, volumes and
images, also those that it pulled. With `--keep-images` the images stay, so that the next run is quick.
"""

import json
import os
import signal
import sys
import time

import clients
import engine
import stack
import standins
from claims import Failed, prove, say
from engine import docker, inspect, timestamps, until
from image import MEGABYTE, Image, prove_failed_start, prove_wrong_hash, started_as_documented
from stack import DIGIT, JSON, prove_fetched, prove_stack
from standins import ROOT

# The promises in figures.
MOST_CONTENT, MOST_IN_ALL = 45 * MEGABYTE, 75 * MEGABYTE


def prove_documented_run(image, name, row, *arguments):
    with started_as_documented(image, name, *arguments) as container:
        until("its health state is 'healthy'", 60, lambda: inspect(container)["State"]["Health"]["Status"] == "healthy")
        started, ready = timestamps(container, "ready")
        row["ready s"] = (ready - started).total_seconds()
        port = int(inspect(container)["NetworkSettings"]["Ports"]["8000/tcp"][0]["HostPort"])
        status, body = clients.request(port, "POST", "/predict", DIGIT, JSON)
        prove(
            "started as in docs/docker.md, it predicts rightly",
            status == 200 and json.loads(body)["outputs"]["label"] == [7],
        )
        began = time.monotonic()
        docker("stop", container)
        row["stop s"] = time.monotonic() - began
        prove("docker stop ends it with code 0", inspect(container)["State"]["ExitCode"] == 0)


def prove_cpu(bases):
    say("the CPU image")
    image = Image("model-serving:proof", "Dockerfile", bases)
    image.build_final()
    row = image.prove_contents()
    prove(
        f"its content is at most {MOST_CONTENT / MEGABYTE:.0f} MB",
        row["content MB"] * MEGABYTE <= MOST_CONTENT,
        f"{row['content MB']:.1f} MB",
    )
    prove(
        f"with its base it is at most {MOST_IN_ALL / MEGABYTE:.0f} MB",
        row["all MB"] * MEGABYTE <= MOST_IN_ALL,
        f"{row['all MB']:.1f} MB",
    )
    say("what fails, fails in one line")
    prove_wrong_hash(image, "onnxruntime.txt", "onnxruntime", "fetch-onnxruntime")
    prove_failed_start(
        "a model that does not exist",
        ["/app/models/none.onnx", "MODEL_PATH"],
        "--env",
        "MODEL_PATH=/app/models/none.onnx",
        image.name,
    )
    prove_documented_run(image, "model-serving", row)
    say("the stack")
    prove_stack(image, bases, row)
    prove_fetched(image, bases)
    return row


def prove_gpu(bases):
    major = os.environ.get("CUDA_MAJOR", "12")
    say(f"the GPU image, CUDA {major}")
    image = Image(f"model-serving:proof-cuda{major}", "Dockerfile.gpu", bases, "--build-arg", f"CUDA_MAJOR={major}")
    image.build_final()
    libraries = f"model-serving:proof-cuda{major}-libraries"
    image.build("--target", "libraries", "--tag", libraries)
    check = "python3 scripts/fetch-gpu-libraries.py check /base /image"
    done = docker("run", "--rm", libraries, "sh", "-c", check, check=False)
    prove(
        "its libraries resolve on its base, and nothing is there that nothing needs",
        done.returncode == 0,
        done.stderr.strip(),
    )
    listing = done.stdout.rstrip()
    for missing in (
        "libcufft.so.*",
        "libcublasLt.so.*",
        "libnvrtc.so.*",
        "libcudnn_engines_precompiled.so.*",
        "libz.so.1",
    ):
        done = docker("run", "--rm", libraries, "sh", "-c", f"rm /image/usr/local/lib/{missing}; {check}", check=False)
        lines = done.stderr.strip().splitlines()
        prove(
            f"without {missing} the build would end with one line",
            done.returncode == 1 and len(lines) == 1,
            " | ".join(lines),
        )
    prove_wrong_hash(image, f"gpu-cuda{major}.txt", "libraries", "fetch-gpu-libraries")
    row = image.prove_contents()
    say("without a GPU")
    models = ("--volume", f"{ROOT}/models:/app/models:ro")
    prove_failed_start("the lack of a GPU", ["cuda:0", "no NVIDIA driver", "DEVICE"], *models, image.name)
    prove_failed_start(
        "a CUDA library that cannot be found",
        ["cuda:0", "the library lib", "is missing"],
        *models,
        "--env",
        "LD_LIBRARY_PATH=/nowhere",
        image.name,
    )
    # The page's command, but for the GPU itself, which an engine without one refuses to give.
    prove_documented_run(image, "model-serving:gpu", row, "--env", "DEVICE=cpu")
    say("what takes which megabytes (and who needs it)")
    say(listing)
    return row


def table(row):
    columns = list(row)
    cells = [f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()]
    widths = [max(len(column), len(cell)) for column, cell in zip(columns, cells)]
    say("")
    for line in (columns, ["-" * width for width in widths], cells):
        say("  ".join(text.ljust(width) for text, width in zip(line, widths)))


def clean(keep_images):
    # Who asks twice to stop must not stop this.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    left = engine.LEFT.clean(stack.PROJECT, keep_images)
    if left:
        sys.exit(f"docker-test: these images could not be removed: {' '.join(left)}")
    say("removed what this made on the engine" + (", but for the images" if keep_images else ""))


def main(arguments):
    proofs = {"cpu": prove_cpu, "gpu": prove_gpu}
    keep_images = arguments[:1] == ["--keep-images"]
    if keep_images:
        arguments = arguments[1:]
    if len(arguments) != 1 or arguments[0] not in proofs:
        sys.exit("usage: prove.py [--keep-images] cpu|gpu")
    if not engine.is_there():
        say("SKIPPED: no Docker engine answers here, so nothing about the images was checked")
        return
    # Stopped early, it still removes what it made.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit("docker-test: stopped"))
    engine.LEFT.begin()
    bases = standins.Bases()
    try:
        row = proofs[arguments[0]](bases)
    except (Failed, standins.Missing) as failure:
        sys.exit(f"docker-test: {failure}")
    finally:
        clean(keep_images)
    table(row)
    if bases.standins:
        say("\nStand-ins took the place of: " + ", ".join(reference.split("@")[0] for _, reference in bases.standins))


if __name__ == "__main__":
    main(sys.argv[1:])
