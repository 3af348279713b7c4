"""One image of ours: how it is built, what is in it, and how it fails to start."""

import contextlib
import pathlib
import re
import shlex
import shutil
import tempfile
import time

import engine
from claims import Failed, prove, say
from engine import docker, inspect
from standins import ROOT

LOGS = ROOT / "target/docker-test"
MEGABYTE = 1e6


class Image:
    """One of our images: its name, what it was built from, and what its layers hold."""

    def __init__(self, name, dockerfile, bases, *arguments):
        self.name, self.dockerfile, self.arguments = name, dockerfile, [*arguments]
        references = dict(re.findall(r"^ARG (\w+)_IMAGE=(\S+)$", (ROOT / dockerfile).read_text(), re.M))
        self.bases = {stage: bases.get(stage.lower(), reference) for stage, reference in references.items()}

    def build(self, *arguments, context=ROOT, log=None):
        command = ["--file", str(context / self.dockerfile), *self.arguments, *arguments]
        for stage, base in self.bases.items():
            command += ["--build-arg", f"{stage}_IMAGE={base}"]
        started = time.monotonic()
        output = engine.build(context, *command)
        if log:
            LOGS.mkdir(parents=True, exist_ok=True)
            (LOGS / log).write_text(output)
            say(f"  built {self.name} in {time.monotonic() - started:.0f} s")
        return output

    def build_final(self):
        return self.build("--tag", self.name, log=f"{self.dockerfile}.log")

    def program(self):
        """The bytes of the server."""
        container = docker("create", self.name).stdout.strip()
        try:
            with tempfile.TemporaryDirectory() as folder:
                docker("cp", f"{container}:/usr/local/bin/model-serving", folder)
                return pathlib.Path(folder, "model-serving").read_bytes()
        finally:
            docker("rm", "--force", "--volumes", container)

    def prove_contents(self):
        """Non-root, no shell, no model, and its size; returns the row of the closing table."""
        base = inspect(self.bases["RUNTIME"], "image")
        image = inspect(self.name, "image")
        user = image["Config"]["User"]
        prove(f"{self.name} runs as a user that is not root, by number", re.fullmatch(r"[1-9]\d*:[1-9]\d*", user), user)
        prove(
            "its entry point is the server itself, in exec form",
            image["Config"]["Entrypoint"] == ["/usr/local/bin/model-serving"],
        )
        prove(
            "it asks for its health by the server's own command",
            image["Config"]["Healthcheck"]["Test"] == ["CMD", "/usr/local/bin/model-serving", "healthcheck"],
        )
        labels = image["Config"]["Labels"]
        prove(
            "it says what it is",
            all(
                labels.get(f"org.opencontainers.image.{key}")
                for key in ("title", "description", "licenses", "version", "revision")
            ),
        )
        layers = engine.layers(self.name)
        below = len(base["RootFS"]["Layers"])
        prove("it lies on its base", image["RootFS"]["Layers"][:below] == base["RootFS"]["Layers"])
        files = [name for layer in layers for name, _, _ in layer]
        shells = [name for name in files if re.fullmatch(r"(usr/)?(local/)?s?bin/(\w*sh|busybox|curl|wget)", name)]
        prove("no shell and no downloader in any layer", not shells, " ".join(shells))
        models = [name for name in files if re.search(r"\.(onnx|ort|pb|data)$|(^|/)models?(/|$)", name)]
        prove("no model in any layer", not models, " ".join(models))
        prove("its program has no faults on demand", b"TESTKIT_FAULTS" not in self.program())
        in_base = sum(size for layer in layers[:below] for _, size, plain in layer if plain)
        content = sum(size for layer in layers[below:] for _, size, plain in layer if plain)
        return {
            "image": self.name,
            "base MB": in_base / MEGABYTE,
            "content MB": content / MEGABYTE,
            "all MB": (in_base + content) / MEGABYTE,
            "user": user,
        }


def run_to_its_end(*arguments):
    """Runs a container that is expected to fail, and returns its exit code and the lines for people."""
    done = docker("run", "--rm", "--read-only", "--cap-drop", "ALL", *arguments, check=False, timeout=60)
    return done.returncode, done.stderr.strip().splitlines()


def documented_command(image):
    """The command of docs/docker.md that runs `image`, in words."""
    page = (ROOT / "docs/docker.md").read_text().replace("\\\n", " ")
    commands = [shlex.split(line) for line in page.splitlines() if line.startswith("docker run ")]
    for words in commands:
        if words[-1] == image:
            return words
    raise Failed(f"docs/docker.md has no 'docker run … {image}'")


@contextlib.contextmanager
def started_as_documented(image, name, *arguments):
    """A container that runs by the page's own command, but on a free port, in the background, and without a GPU."""
    words = [word.replace("$PWD", str(ROOT)) for word in documented_command(name)]
    words = [
        "127.0.0.1:0:8000" if word == "8000:8000" else word for word in words if word not in ("--rm", "--gpus=all")
    ]
    container = docker("run", "--detach", *arguments, *words[2:-1], image.name).stdout.strip()
    try:
        yield container
    finally:
        docker("rm", "--force", "--volumes", container, check=False)


def prove_failed_start(what, words, *arguments):
    code, lines = run_to_its_end(*arguments)
    prove(
        f"{what} ends the start with code 1 and one line",
        code == 1 and len(lines) == 1 and all(word in lines[0] for word in words),
        f"code {code}: {' | '.join(lines)}",
    )


def prove_wrong_hash(image, lock, target, program):
    """The build with a changed hash must end in one line of ours."""
    with tempfile.TemporaryDirectory() as folder:
        context = pathlib.Path(folder)
        shutil.copytree(ROOT / "scripts", context / "scripts")
        for name in (".dockerignore", "Cargo.toml", "Cargo.lock", image.dockerfile):
            shutil.copy(ROOT / name, context / name)
        path = context / "scripts" / lock
        path.write_text(re.sub(r"sha256:[0-9a-f]{64}", f"sha256:{'0' * 64}", path.read_text()))
        try:
            image.build("--target", target, context=context)
        except Failed as failure:
            # Builders colour lines, number them, and repeat the last ones.
            lines = set(re.findall(rf"{program}: [^\x1b\n]+", str(failure)))
            prove(
                "a wrong hash of a wheel ends the build with one line",
                len(lines) == 1 and "does not have the hash" in min(lines),
                " | ".join(lines),
            )
        else:
            raise Failed("NOT SO: a wrong hash of a wheel ends the build")
