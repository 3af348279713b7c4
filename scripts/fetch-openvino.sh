#!/usr/bin/env bash
# Fetches ONNX Runtime with OpenVINO into .tools/openvino/ at the root of the repository (84 MB of download).
#
# Beside ONNX Runtime's library lie OpenVINO's: each finds the others in its own folder. There are wheels for x86-64 only;
# elsewhere this says so and fetches nothing. A second call is silent and takes milliseconds.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
lock="$root/scripts/openvino.txt"
target="$root/.tools/openvino"

fail() {
    printf 'fetch-openvino: %s\n' "$1" >&2
    exit 1
}

if [[ $OSTYPE != linux* || $(uname -m) != x86_64 ]]; then
    printf 'fetch-openvino: there is no package of OpenVINO for this machine, so nothing was fetched\n' >&2
    exit 0
fi
checksum=$(sha256sum <"$lock")
stamp=${checksum%% *}
is_current() {
    [[ -f $target/stamp && $(<"$target/stamp") == "$stamp" ]]
}
is_current && exit 0
python3 -m pip --version >/dev/null 2>&1 ||
    fail "python3 with pip is needed; install it (Debian, Ubuntu: apt-get install python3 python3-pip)"

# The work happens beside the target, because a rename is atomic only within one file system.
mkdir -p "$root/.tools"
work=$(mktemp -d "$root/.tools/openvino.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir "$work/wheel" "$work/new"
if ! python3 -m pip download --quiet --no-input --disable-pip-version-check \
    --no-deps --only-binary=:all: --require-hashes \
    --implementation cp --python-version 3.12 --platform manylinux_2_28_x86_64 \
    --dest "$work/wheel" --requirement "$lock" >"$work/pip.log" 2>&1; then
    reason=$(grep -m 1 -e 'DO NOT MATCH' -e '^ERROR' "$work/pip.log" || tail -n 1 "$work/pip.log")
    fail "pip could not download what scripts/openvino.txt names; check the network and pip's configuration (pip says: ${reason#ERROR: })"
fi

# The plugins for Intel's GPUs and NPUs, and what only Python needs, stay behind.
python3 - "$work" <<'PYTHON' 2>"$work/unpack.log" || fail "the wheel could not be unpacked; free some disk space and run this again ($(tail -n 1 "$work/unpack.log"))"
import fnmatch
import os
import pathlib
import shutil
import sys
import zipfile

WANTED = [
    "onnxruntime/LICENSE",
    "onnxruntime/capi/libonnxruntime.so.*",
    "onnxruntime/capi/libonnxruntime_providers_*.so",
    "onnxruntime/capi/libopenvino.so.????",
    "onnxruntime/capi/libopenvino_onnx_frontend.so.????",
    "onnxruntime/capi/libopenvino_intel_cpu_plugin.so",
    "onnxruntime/capi/libtbb.so.*",
]

work = pathlib.Path(sys.argv[1])
(wheel,) = (work / "wheel").glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    names = archive.namelist()
    for pattern in WANTED:
        found = fnmatch.filter(names, pattern)
        if not found:
            sys.exit(f"it has no {pattern}")
        for name in found:
            copy = work / "new" / pathlib.PurePath(name).name
            with archive.open(name) as source, open(copy, "wb") as file:
                shutil.copyfileobj(source, file)
            if ".so" in copy.name:
                os.chmod(copy, 0o755)
(library,) = (work / "new").glob("libonnxruntime.so.*")
os.symlink(library.name, work / "new" / "libonnxruntime.so")
PYTHON
printf '%s\n' "$stamp" >"$work/new/stamp"
is_current && exit 0
# An older version is moved aside, not deleted in place: a server that has it open keeps its files.
[[ ! -e $target ]] || mv -T "$target" "$work/old" 2>/dev/null || true
mv -T "$work/new" "$target" 2>/dev/null || is_current ||
    fail "could not put OpenVINO into .tools/openvino; remove that folder and run this again"
printf 'fetch-openvino: ONNX Runtime with OpenVINO is in .tools/openvino\n' >&2
