#!/usr/bin/env bash
# make-environment.sh FOLDER LOCK: a Python environment in FOLDER with exactly what LOCK lists, checked by hash.
set -euo pipefail

folder=$1 lock=$2

fail() {
    printf 'make-environment: %s\n' "$1" >&2
    exit 1
}

python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    fail "Python 3.11 or newer is needed for the checks; install it (Debian 12 and Ubuntu 24.04 have it as python3)"
rm -rf "$folder"
python3 -m venv "$folder" || fail "this python3 has no venv; install it (Debian, Ubuntu: apt-get install python3-venv)"
"$folder/bin/python" -m pip install --quiet --no-input --disable-pip-version-check \
    --only-binary=:all: --require-hashes --requirement "$lock" ||
    fail "pip could not install what $lock lists; check the network and pip's configuration"
touch "$folder/ready"
