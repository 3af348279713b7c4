#!/usr/bin/env bash
# Puts strace into .tools/strace/: this machine's own, or else the one out of the distribution's package, without
# installing it. apt checks the package's signature. Where there is neither, the test that needs it is skipped.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
target="$root/.tools/strace"

[[ -x $target/strace ]] && exit 0
mkdir -p "$root/.tools"
work=$(mktemp -d "$root/.tools/strace.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir "$work/new"

if installed=$(command -v strace); then
    ln -s "$installed" "$work/new/strace"
elif command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null; then
    # The package lists may never have been fetched on a fresh machine; only root can do that.
    [[ -n $(apt-cache madison strace 2>/dev/null) ]] || apt-get update --quiet=2 || true
    # The library that it unwinds stacks with may be missing as well; it lies beside it then.
    said=$(cd "$work" && apt-get download --quiet=2 strace libunwind8 2>&1) || printf '%s\n' "$said" >&2
    for package in "$work"/*.deb; do
        [[ -f $package ]] && dpkg-deb --extract "$package" "$work/files"
    done
    if [[ -x $work/files/usr/bin/strace ]]; then
        mv "$work/files/usr/bin/strace" "$work/new/strace.bin"
        find "$work/files" -name 'libunwind*.so.*' -exec mv -t "$work/new" {} +
        # The folder is for strace alone: what it starts must find the libraries that it finds without it.
        cat >"$work/new/strace" <<'SCRIPT'
#!/bin/sh
here=$(dirname "$0")
before=${LD_LIBRARY_PATH:-}
LD_LIBRARY_PATH="$here" exec "$here/strace.bin" -E "LD_LIBRARY_PATH=$before" "$@"
SCRIPT
        chmod +x "$work/new/strace"
    fi
fi
if ! "$work/new/strace" -V >/dev/null 2>&1; then
    printf 'SKIPPED: strace is neither installed nor in the package sources, so it is not seen whether the server writes files or calls home\n' >&2
    exit 0
fi
rm -rf "$target"
mv "$work/new" "$target"
