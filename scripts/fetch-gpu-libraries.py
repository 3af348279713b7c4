#!/usr/bin/env python3
"""Gathers the libraries of the GPU image: ONNX Runtime, its CUDA provider, and what that needs of CUDA and cuDNN.

    fetch-gpu-libraries.py fetch LOCK BASE IMAGE     download what LOCK pins by hash; fill IMAGE, the root of an image
    fetch-gpu-libraries.py check BASE IMAGE          check that nothing is missing in IMAGE on top of BASE, or superfluous

A library gets into the image only if another one there needs it: because it is linked to it, or because it opens it at
run time, in which case its name stands in the other's data. The check asks the base image's own loader, so that a
library, or a version of glibc, that only the build stage has does not pass.
"""

import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile

LIBRARIES = "usr/local/lib"
DOCUMENTS = "usr/share/doc"

# What the server opens; everything else follows from these.
ROOTS = ("libonnxruntime.so", "libonnxruntime_providers_shared.so", "libonnxruntime_providers_cuda.so")

# Opened at run time under names that do not stand in the data as text: since ONNX Runtime 1.31 the provider opens these
# two when an operator needs them.
OPENED = {"libonnxruntime_providers_cuda.so": {"libcudnn.so", "libcufft.so"}}

# NVIDIA's container toolkit (or Cloud Run) mounts the driver of the host.
DRIVER = ("libcuda.so", "libnvidia-")

# Named by a library that opens it only for what ONNX Runtime never asks of it.
UNUSED = {
    "libnvJitLink.so": "cuFFT links callbacks of its caller with it, and ONNX Runtime has none",
    "libnvrtc.alt.so": "another build of libnvrtc.so, for programs that choose it",
    "libnvrtc-builtins.alt.so": "belongs to libnvrtc.alt.so",
    "libcudnn_ext.so": "cuDNN's extensions for callers that link them, and ONNX Runtime does not",
}

# Small libraries that the base image lacks, taken from the build stage, which is pinned by its digest.
FROM_BUILD_STAGE = {"libz.so.1": "/lib/x86_64-linux-gnu/libz.so.1"}

NAME = re.compile(rb"(?<![A-Za-z0-9_/-])lib[A-Za-z0-9_+-]+(?:\.alt)?\.so(?:\.[0-9]+)*")
# Names in data can be leftovers of any kind, so only those of the pinned packages' families count.
FAMILY = re.compile(r"lib(cublas|cudart|cudnn|cufft|curand|nvJitLink|nvrtc)")


# The driver's functions, and what ONNX Runtime itself gives to the provider that it opens.
DEFINED_ELSEWHERE = re.compile(r"cu[A-Z]\w*|Provider_GetHost")


class Failure(Exception):
    """One line for whoever builds the image."""


def fetch(lock, base, image):
    with tempfile.TemporaryDirectory() as folder:
        wheels, pool = pathlib.Path(folder, "wheels"), pathlib.Path(folder, "pool")
        download(lock, wheels)
        documents = unpack(wheels, pool)
        wanted = needed(pool, base)
        target = image / LIBRARIES
        target.mkdir(parents=True)
        for name in wanted:
            source = pool / name
            shutil.copy(source if source.exists() else FROM_BUILD_STAGE[name], target / name)
        (runtime,) = (name for name in wanted if re.fullmatch(r"libonnxruntime\.so\.[0-9.]+", name))
        (target / "libonnxruntime.so").symlink_to(runtime)
        for name, text in documents.items():
            path = image / DOCUMENTS / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text)
    resolve(base, image)
    report(target, wanted)


def report(folder, wanted):
    """What takes which megabytes, and who asked for it."""
    sizes = {name: (folder / name).stat().st_size for name in wanted}
    for name, size in sorted(sizes.items(), key=lambda item: -item[1]):
        print(f"{size / 1e6:8.1f} MB  {name:<46} {wanted[name]}")
    print(f"{sum(sizes.values()) / 1e6:8.1f} MB  together")


def download(lock, wheels):
    """pip checks the hashes before anything is unpacked."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-cache-dir", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    done = subprocess.run([*command, "--dest", wheels, "--requirement", lock], capture_output=True, text=True)
    if done.returncode == 0:
        return
    if "DO NOT MATCH THE HASHES" in done.stderr:
        package = re.search(r"^\s+([A-Za-z0-9_.-]+==[^ ]+) from", done.stderr, re.M)
        what = package.group(1) if package else "a package"
        raise Failure(
            f"{what} does not have the hash in {lock} and was thrown away; check the package mirror, or correct the lock file"
        )
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    reason = (errors or done.stderr.strip().splitlines() or ["no reason given"])[0]
    raise Failure(
        f"pip could not download what {lock} lists; check the network and pip's configuration (pip says: {reason.removeprefix('ERROR: ')})"
    )


def unpack(wheels, pool):
    """Puts every shared library into `pool`, and returns the licences by their place in the image."""
    pool.mkdir()
    documents = {}
    for wheel in sorted(wheels.glob("*.whl")):
        package = wheel.name.split("-")[0]
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.namelist():
                name = member.rsplit("/", 1)[-1]
                if re.fullmatch(r"lib[^/]+\.so(\.[0-9.]+)?", name):
                    with archive.open(member) as source, open(pool / name, "wb") as copy:
                        shutil.copyfileobj(source, copy, 1 << 20)
                elif re.fullmatch(r"(licen[sc]e|thirdpartynotices)(\.txt)?", name, re.I):
                    documents[f"{package}/{name}"] = archive.read(member)
        wheel.unlink()
    return documents


def needed(pool, base):
    """The libraries that belong into the image, each with the first one that asked for it."""
    wanted, waiting = {}, [(root, "the server") for root in ROOTS]
    while waiting:
        name, by = waiting.pop(0)
        found = provided(name, pool)
        if found is None:
            if name in FROM_BUILD_STAGE:
                wanted.setdefault(name, by)
            elif not in_base(name, base) and not is_foreign(name):
                raise Failure(
                    f"{name}, needed by {by}, is in none of the pinned packages and not in the base image; add its package to the lock file"
                )
            continue
        if found in wanted:
            continue
        wanted[found] = by
        linked = {match.decode() for match in linked_names(pool / found)}
        opened = {match.decode() for match in NAME.findall((pool / found).read_bytes())}
        opened |= OPENED.get(found, set())
        # A library may also name other versions of what it opens; the pinned one is enough.
        opened = {name for name in opened if FAMILY.match(name) and not other_version(name, pool)}
        waiting += [(name, found) for name in sorted(linked | opened)]
    return wanted


def linked_names(library):
    """What the library is linked to, whether it can be found or not."""
    done = subprocess.run(["readelf", "--dynamic", "--wide", library], capture_output=True)
    return re.findall(rb"\(NEEDED\)\s+Shared library: \[([^\]]+)\]", done.stdout)


def provided(name, pool):
    """The library in `pool` that `name` stands for: itself, or the version of a name that leaves the version open."""
    if is_foreign(name):
        return None
    if (pool / name).exists():
        # In the image, libonnxruntime.so is a link to its version.
        return (pool / name).resolve().name
    versions = [path.name for path in pool.glob(f"{name}.*") if re.fullmatch(r"[0-9.]+", path.name[len(name) + 1 :])]
    return versions[0] if len(versions) == 1 else None


def other_version(name, pool):
    return provided(name, pool) is None and provided(name.partition(".so")[0] + ".so", pool) is not None


def is_foreign(name):
    return name.startswith(DRIVER) or name.startswith(tuple(UNUSED))


def in_base(name, base):
    return any(
        (base / folder / name).exists() for folder in ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib64")
    )


def check(base, image):
    """Fails if something is missing, and if something is there that nothing needs."""
    resolve(base, image)
    folder = image / LIBRARIES
    wanted = needed(folder, base)
    for file in folder.iterdir():
        if not file.is_symlink() and file.name not in wanted and ".so" in file.name:
            raise Failure(
                f"{file.name} is in the image, and nothing there needs it; remove its package from the lock file"
            )
    report(folder, wanted)


def resolve(base, image):
    """Resolves every library with the loader of the base image."""
    folder = image / LIBRARIES
    places = [folder, base / "lib/x86_64-linux-gnu", base / "usr/lib/x86_64-linux-gnu"]
    path = ":".join(str(place) for place in places)
    loader = base / "lib64/ld-linux-x86-64.so.2"
    if loader.is_symlink():
        # An absolute link of another root.
        loader = base / loader.readlink().relative_to("/") if loader.readlink().is_absolute() else loader
    libraries = sorted(file for file in folder.iterdir() if ".so" in file.name)
    if not any(file.name == ROOTS[-1] for file in libraries):
        raise Failure(f"{ROOTS[-1]} is not in {folder}")
    for library in libraries:
        # The loader lists what it would load, and every symbol that nothing of it defines.
        tracing = {"LD_TRACE_LOADED_OBJECTS": "1", "LD_WARN": "1", "LD_BIND_NOW": "1"}
        command = [loader, "--inhibit-cache", "--library-path", path, library]
        done = subprocess.run(command, capture_output=True, text=True, env=tracing)
        listing = done.stdout + done.stderr
        unsuitable = re.search(r"version `([^']+)' not found \(required by ([^)]+)\)", listing)
        if unsuitable:
            raise Failure(
                f"{pathlib.Path(unsuitable[2]).name} needs {unsuitable[1]}, which the base image does not have; use a newer base image"
            )
        resolved = re.findall(r"^\s*(\S+) => (not found|\S+)", listing, re.M)
        if not resolved and "statically linked" not in listing:
            raise Failure(f"the base image's loader cannot read {library.name}: {' '.join(listing.split())}")
        for name, where in resolved:
            if name.startswith(DRIVER):
                continue
            if where == "not found" or not where.startswith(tuple(str(place) for place in places)):
                raise Failure(
                    f"{name}, needed by {library.name}, is neither in the image nor in its base; add its package to the lock file"
                )
        for symbol in re.findall(r"^undefined symbol: (\S+)", listing, re.M):
            if not DEFINED_ELSEWHERE.fullmatch(symbol):
                raise Failure(
                    f"{library.name} needs {symbol}, which no library of the image has; a package in the lock file is too old for it"
                )


def main(arguments):
    match arguments:
        case ["fetch", lock, base, image]:
            fetch(lock, pathlib.Path(base), pathlib.Path(image))
        case ["check", base, image]:
            check(pathlib.Path(base), pathlib.Path(image))
        case _:
            raise Failure("usage: fetch-gpu-libraries.py fetch LOCK BASE IMAGE | check BASE IMAGE")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except Failure as failure:
        sys.exit(f"fetch-gpu-libraries: {failure}")
