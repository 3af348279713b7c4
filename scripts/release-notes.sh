#!/usr/bin/env bash
# release-notes.sh VERSION: prints what CHANGELOG.md says of a version, whose heading is `## 1.2.3` or
# `## [1.2.3] - 2026-01-31`; fails if that is nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

notes=$(awk -v version="$1" '
    /^## / { heading = $2; gsub(/[][]/, "", heading); inside = heading == version; next }
    inside' "${CHANGELOG:-CHANGELOG.md}")
if [ -z "${notes//[[:space:]]/}" ]; then
    echo "::error::CHANGELOG.md says nothing under the heading ## $1" >&2
    exit 1
fi
printf '%s\n' "$notes"
