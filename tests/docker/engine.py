"""The Docker engine, as the proofs use it."""

import datetime
import http.client
import io
import json
import re
import subprocess
import tarfile
import tempfile
import time

from claims import Failed


def docker(*arguments, check=True, **options):
    """Runs docker and returns the finished process, with its output as text."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, **options)
    if check and done.returncode != 0:
        raise Failed(f"'docker {' '.join(arguments)}' failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return done


def is_there():
    """Whether an engine answers."""
    try:
        return docker("version", "--format", "{{.Server.Version}}", check=False).returncode == 0
    except FileNotFoundError:
        return False


def compose_command():
    """Compose as a plug-in of docker, or as a program of its own."""
    for command in (["docker", "compose"], ["docker-compose"]):
        try:
            if subprocess.run([*command, "version"], capture_output=True).returncode == 0:
                return command
        except FileNotFoundError:
            pass
    raise Failed(
        "neither 'docker compose' nor 'docker-compose' is installed; install one, or stop the engine to skip this"
    )


def inspect(name, kind="container"):
    return json.loads(docker(kind, "inspect", name).stdout)[0]


def build(context, *arguments):
    """Builds an image and returns the builder's output; raises `Failed` with it if the build fails."""
    done = docker("build", *arguments, str(context), check=False)
    output = done.stdout + done.stderr
    if done.returncode != 0:
        raise Failed(output)
    return output


def layers(image):
    """The files of each layer of an image, base first: a list of lists of (name, size, is a plain file)."""
    with tempfile.NamedTemporaryFile() as file:
        docker("image", "save", "--output", file.name, image)
        with tarfile.open(file.name) as archive:
            manifest = json.load(archive.extractfile("manifest.json"))
            found = []
            for path in manifest[0]["Layers"]:
                with tarfile.open(fileobj=io.BufferedReader(archive.extractfile(path), 1 << 20), mode="r|*") as layer:
                    found.append([(member.name.removeprefix("./"), member.size, member.isfile()) for member in layer])
            return found


def until(what, seconds, ask):
    """Asks until the answer is truthy, and returns it."""
    end = time.monotonic() + seconds
    while True:
        try:
            answer = ask()
        except (OSError, http.client.HTTPException) as error:
            answer, last = None, error
        else:
            last = answer
        if answer:
            return answer
        if time.monotonic() > end:
            raise Failed(f"{what}: not within {seconds} s (last: {last})")
        time.sleep(0.1)


def timestamps(container, message):
    """When the container started, and when its log first had `message`."""
    started = moment(inspect(container)["State"]["StartedAt"])
    for line in docker("logs", "--timestamps", container).stdout.splitlines():
        at, _, text = line.partition(" ")
        if f'"message":"{message}"' in text:
            return started, moment(at)
    raise Failed(f"the log of {container} has no '{message}'")


def moment(text):
    """An RFC 3339 time of the engine; it writes nanoseconds, and Python reads microseconds."""
    return datetime.datetime.fromisoformat(re.sub(r"(\.\d{6})\d*", r"\1", text).replace("Z", "+00:00"))
