#!/usr/bin/env bash
# Puts Prometheus, promtool, Alertmanager and amtool into .tools/prometheus/, out of the distribution's packages, without
# installing them.
# apt checks the package's signature. Elsewhere the programs are taken from the PATH, or their checks are skipped.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
target="$root/.tools/prometheus"

[[ -x $target/promtool && -x $target/amtool ]] && exit 0
mkdir -p "$root/.tools"
work=$(mktemp -d "$root/.tools/prometheus.XXXXXX")
trap 'rm -rf "$work"' EXIT

if command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null; then
    # The package lists may never have been fetched on a fresh machine; only root can do that.
    [[ -n $(apt-cache madison prometheus 2>/dev/null) ]] || apt-get update --quiet=2 || true
    said=$(cd "$work" && apt-get download --quiet=2 prometheus prometheus-alertmanager 2>&1) || printf '%s\n' "$said" >&2
    for package in "$work"/*.deb; do
        [[ -f $package ]] && dpkg-deb --extract "$package" "$work/files"
    done
fi
mkdir "$work/new"
# Debian's name of the one program is its package's.
[[ -x $work/files/usr/bin/prometheus-alertmanager ]] && mv "$work/files/usr/bin/prometheus-alertmanager" "$work/files/usr/bin/alertmanager"
for program in prometheus promtool alertmanager amtool; do
    if [[ -x $work/files/usr/bin/$program ]]; then
        mv "$work/files/usr/bin/$program" "$work/new/$program"
    elif command -v "$program" >/dev/null; then
        ln -s "$(command -v "$program")" "$work/new/$program"
    else
        printf 'SKIPPED: %s is neither in the package sources nor installed, so the monitoring rules are not checked with it\n' "$program" >&2
        exit 0
    fi
done
rm -rf "$target"
mv "$work/new" "$target"
