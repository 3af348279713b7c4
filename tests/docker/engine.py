"""The Docker engine, as the proofs use it."""

import datetime
import http.client
import io
import json
import os
import re
import subprocess
import tarfile
import tempfile
import time

from claims import Failed

# What this run starts carries this label, so that it is found again whatever happened.
LABEL = f"model-serving.proof={os.getpid()}"


def docker(*arguments, check=True, **options):
    """Runs docker and returns the finished process, with its output as text."""
    if arguments[0] in ("run", "create"):
        arguments = (arguments[0], "--label", LABEL, *arguments[1:])
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
    # A builder that makes a container of each step leaves that of a step that fails, unless it is told not to.
    command = ["docker", "build", "--force-rm", *arguments, str(context)]
    for option, name in zip(arguments, arguments[1:]):
        if option == "--tag":
            LEFT.note(name)
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as builder:
        try:
            for line in builder.stdout:
                lines.append(line)
                # Some builders make an image of each step, and name it.
                if step := re.match(r"(?: ---> |Successfully built )([0-9a-f]{12})$", line):
                    LEFT.note(step[1])
        except BaseException:
            builder.kill()
            raise
    if builder.returncode != 0:
        raise Failed("".join(lines))
    return "".join(lines)


class Left:
    """The images that this run has made or pulled, which it removes at its end, unless they were there before."""

    def __init__(self):
        self.before = set()
        self.noted = []

    def begin(self):
        self.before = self._images()

    def note(self, reference):
        """Notes an image by its name or id; it need not be there yet."""
        self.noted.append(reference)

    def clean(self, project, keep_images):
        """Removes what this run has made, and returns the images that could not be removed."""
        for label in (LABEL, f"com.docker.compose.project={project}"):
            ours = ("--quiet", "--filter", f"label={label}")
            self._remove(("rm", "--force", "--volumes"), docker("ps", "--all", *ours, check=False))
            self._remove(("network", "rm"), docker("network", "ls", *ours, check=False))
            self._remove(("volume", "rm", "--force"), docker("volume", "ls", *ours, check=False))
        if keep_images:
            return []
        # A builder that was stopped may have made one image more than it has named, and takes a moment to end.
        made, last = self._made(), time.monotonic()
        while made and time.monotonic() < last + 20:
            for name in [*self.noted, *made]:
                if self._id(name) in made:
                    docker("image", "rm", name, check=False)
            left = self._made()
            if left != made:
                last = time.monotonic()
            made = left
        return sorted(made)

    def _made(self):
        """The ids of the images that are noted, or were made from one of these, and are new."""
        new = self._images() - self.before
        made = {self._id(name) for name in self.noted} & new
        parents = {image: self._parent(image) for image in new - made}
        while more := {image for image, parent in parents.items() if parent in made and image not in made}:
            made |= more
        return made

    @staticmethod
    def _parent(image):
        return docker("image", "inspect", "--format", "{{.Parent}}", image, check=False).stdout.strip()

    @staticmethod
    def _remove(command, listed):
        names = listed.stdout.split()
        if names:
            docker(*command, *names, check=False)

    @staticmethod
    def _images():
        return set(docker("image", "ls", "--all", "--quiet", "--no-trunc").stdout.split())

    @staticmethod
    def _id(name):
        done = docker("image", "inspect", "--format", "{{.Id}}", name, check=False)
        return done.stdout.strip() if done.returncode == 0 else None


LEFT = Left()


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
