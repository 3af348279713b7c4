#!/usr/bin/env bash
# image-digest.sh [--package-may-be-new] IMAGE: prints the digest of an image in a registry, or nothing if there is none.
#
# Only the registry's own word that there is none counts as that. Any other answer, such as that it cannot say now, is a
# failure: whoever took it for "none" would overwrite what is there. With --package-may-be-new it may also refuse to
# answer, as GitHub's registry does for a package that nobody has pushed yet. That is for looking before anything was
# pushed, and no ground for giving a name.
set -euo pipefail

none=': not found$|manifest unknown|name unknown'
if [ "$1" = --package-may-be-new ]; then
    none="$none|denied|401 Unauthorized|403 Forbidden|404 Not Found"
    shift
fi
said=$(mktemp)
trap 'rm -f "$said"' EXIT
if found=$(docker buildx imagetools inspect "$1" --format '{{json .Manifest}}' 2>"$said"); then
    digest=$(jq --raw-output .digest <<<"$found")
    if ! [[ $digest =~ ^sha256:[0-9a-f]{64}$ ]]; then
        echo "image-digest: $1 has no digest" >&2
        exit 1
    fi
    echo "$digest"
elif ! grep --quiet --ignore-case --extended-regexp "$none" "$said"; then
    cat "$said" >&2
    exit 1
fi
