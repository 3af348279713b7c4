#!/usr/bin/env bash
# name-image.sh IMAGE TAG DIGEST: gives the image of that digest a name, unless the name is another image's already.
# Names are never moved.
set -euo pipefail
cd "$(dirname "$0")/.."

image=$1
tag=$2
digest=$3
# Whoever cannot read this one would not see what the name stands for either.
if [ "$(scripts/image-digest.sh "$image@$digest")" != "$digest" ]; then
    echo "::error::$image has no image $digest"
    exit 1
fi
before=$(scripts/image-digest.sh "$image:$tag")
if [ -n "$before" ]; then
    [ "$before" = "$digest" ] && exit
    echo "::error::$image:$tag is $before already, and is not moved"
    exit 1
fi
docker buildx imagetools create --tag "$image:$tag" "$image@$digest"
if [ "$(scripts/image-digest.sh "$image:$tag")" != "$digest" ]; then
    echo "::error::$image:$tag did not become $digest"
    exit 1
fi
