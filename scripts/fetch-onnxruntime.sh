#!/usr/bin/env bash
# Fetches the ONNX Runtime CPU library into .onnxruntime/ at the root of the repository.
#
# The library comes out of the official Python wheel, because pip can check a locked hash before anything
# is unpacked, and because a package mirror that a site already has for pip then serves this too.
# A second call is silent and takes milliseconds, so every recipe may call it first.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
lock="$root/scripts/onnxruntime.txt"
target="$root/.onnxruntime"

fail() {
    printf 'fetch-onnxruntime: %s\n' "$1" >&2
    exit 1
}

[[ -r $lock ]] || fail "scripts/onnxruntime.txt is missing or unreadable; restore it with: git checkout scripts/onnxruntime.txt"

# The version stands in the lock file alone, so that an upgrade is an edit of one file.
version=$(sed -n 's/^onnxruntime==\([0-9][0-9.]*\).*/\1/p' "$lock")
[[ -n $version ]] || fail "scripts/onnxruntime.txt names no version; it needs a line onnxruntime==X.Y.Z with its hashes"

[[ $OSTYPE == linux* ]] ||
    fail "only Linux is fetched for; install ONNX Runtime $version yourself and set ORT_DYLIB_PATH to its library"

# The stamp also names the machine, because one checkout may be mounted into containers of either kind.
machine=$(uname -m)
checksum=$(sha256sum <"$lock")
stamp="${checksum%% *} $machine"

is_current() {
    [[ -f $target/libonnxruntime.so.$version && -e $target/libonnxruntime.so && -f $target/stamp ]] &&
        [[ $(<"$target/stamp") == "$stamp" ]]
}

is_current && exit 0

case $machine in
x86_64 | aarch64) ;;
*) fail "there is no locked library for $machine; build ONNX Runtime $version and set ORT_DYLIB_PATH to its library" ;;
esac
command -v python3 >/dev/null ||
    fail "python3 is needed to fetch ONNX Runtime; install it (Debian, Ubuntu: apt-get install python3 python3-pip)"
python3 -m pip --version >/dev/null 2>&1 ||
    fail "this python3 has no pip; install it (Debian, Ubuntu: apt-get install python3-pip; elsewhere: python3 -m ensurepip)"

# The work happens beside the target, because a rename is atomic only within one file system.
# The folder ignores itself, so that git stays clean without an entry elsewhere.
work=$(mktemp -d "$root/.onnxruntime.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir "$work/wheel" "$work/new"
printf '*\n' | tee "$work/.gitignore" >"$work/new/.gitignore"

# The wheel's Python version is fixed, so that any python3 of the host gets the same, locked file.
if ! python3 -m pip download --quiet --no-input --disable-pip-version-check \
    --no-deps --only-binary=:all: --require-hashes \
    --implementation cp --python-version 3.11 --platform "manylinux_2_28_$machine" \
    --dest "$work/wheel" --requirement "$lock" >"$work/pip.log" 2>&1; then
    if grep -q 'DO NOT MATCH THE HASHES' "$work/pip.log"; then
        fail "the downloaded ONNX Runtime $version does not have the hash in scripts/onnxruntime.txt and was thrown away; check the package mirror, or correct the lock file"
    fi
    reason=$(grep -m 1 '^ERROR' "$work/pip.log" || tail -n 1 "$work/pip.log")
    fail "pip could not download ONNX Runtime $version; check the network and pip's configuration (pip says: ${reason#ERROR: })"
fi

python3 - "$work" "$version" <<'PYTHON' 2>"$work/unpack.log" || fail "the wheel of ONNX Runtime $version could not be unpacked; free some disk space and run this again ($(tail -n 1 "$work/unpack.log"))"
import os
import pathlib
import shutil
import sys
import zipfile

work, version = pathlib.Path(sys.argv[1]), sys.argv[2]
(wheel,) = (work / "wheel").glob("*.whl")
library = f"libonnxruntime.so.{version}"
members = {
    f"onnxruntime/capi/{library}": library,
    "onnxruntime/LICENSE": "LICENSE",
    "onnxruntime/ThirdPartyNotices.txt": "ThirdPartyNotices.txt",
}
with zipfile.ZipFile(wheel) as archive:
    for member, name in members.items():
        with archive.open(member) as source, open(work / "new" / name, "wb") as copy:
            shutil.copyfileobj(source, copy)
os.chmod(work / "new" / library, 0o755)
os.symlink(library, work / "new" / "libonnxruntime.so")
PYTHON
printf '%s\n' "$stamp" >"$work/new/stamp"

# Another call may have been faster; its library must not vanish for a moment under whoever loads it now.
is_current && exit 0
# An older version is moved aside, not deleted in place: a server that has it open keeps its file.
[[ ! -e $target && ! -L $target ]] || mv -T "$target" "$work/old" 2>/dev/null || true
# If another call comes in between even so, the rename fails and its result is as good as ours.
mv -T "$work/new" "$target" 2>/dev/null || is_current ||
    fail "could not put ONNX Runtime into .onnxruntime; remove that folder and run this again"
printf 'fetch-onnxruntime: ONNX Runtime %s (%s) is in .onnxruntime\n' "$version" "$machine" >&2
