#!/usr/bin/env bash
# The parts of a deployment of one Cloud Run service, which Terraform has made:
#
#   deploy-cloud-run.sh look SERVICE              notes how it is, and prints its URL
#   deploy-cloud-run.sh serves SERVICE NAME       prints the commit that the image with the traffic was built from;
#                                                 nothing if docker.yml did not build it under that name
#   deploy-cloud-run.sh try SERVICE IMAGE DEVICE  makes a revision that gets no traffic, and predicts with it
#   deploy-cloud-run.sh shift SERVICE DEVICE      gives that revision the traffic, and predicts through the service
#   deploy-cloud-run.sh undo SERVICE              puts image, tag and traffic back as they were, if they were touched
#
# Image, tag and traffic are all that is set here; everything else is Terraform's. No revision is given a name: the name
# would stay in the service's template, and whatever Terraform changes next would be refused as another revision of that
# name. gcloud is logged in, and knows the project and the region. API_KEY_SECRET is the version of the secret with the
# server's API keys; what scripts/check-deployment.sh takes may be set, too. Notes are kept in RUNNER_TEMP.
set -euo pipefail
cd "$(dirname "$0")/.."

phase=$1
service=$2
notes=${RUNNER_TEMP:?}/cloud-run.$service

check() {
    if [ -n "${API_KEY_SECRET:-}" ] && [ -z "${API_KEY:-}" ]; then
        API_KEY=$(gcloud secrets versions access "$API_KEY_SECRET" | grep --invert-match --extended-regexp --max-count=1 '^[[:space:]]*(#|$)')
        echo "::add-mask::$API_KEY"
        export API_KEY
    fi
    scripts/check-deployment.sh "$1" "$2"
}

case $phase in
look)
    found=$(gcloud run services describe "$service" --format=json)
    serving=$(jq --raw-output '[.status.traffic[]? | select(.percent > 0)] | max_by(.percent) | .revisionName // ""' <<<"$found")
    if [ "$serving" = "$(jq --raw-output .status.latestCreatedRevisionName <<<"$found")" ]; then
        image=$(jq --raw-output '.spec.template.spec.containers[0].image' <<<"$found")
    elif [ -n "$serving" ]; then
        image=$(gcloud run revisions describe "$serving" --format=json | jq --raw-output '.spec.containers[0].image')
    else
        image=
    fi
    echo "$image" >"$notes.image"
    jq --raw-output '[.status.traffic[]? | select(.percent > 0) | "\(.revisionName)=\(.percent)"] | join(",")' <<<"$found" >"$notes.traffic"
    jq --raw-output .status.url <<<"$found" | tee "$notes.url"
    ;;
serves)
    image=$(cat "$notes.image")
    # The mirror of the project has it under another name and the same digest.
    ours=$3@${image##*@}
    [[ $image == *@sha256:* ]] || exit 0
    found=$(scripts/image-digest.sh "$ours")
    if [ -n "$found" ]; then
        docker buildx imagetools inspect "$ours" --format '{{json .Image}}' |
            jq --raw-output '[.. | objects | .["org.opencontainers.image.revision"]? // empty] | unique | join(" ")
                | select(test("^[0-9a-f]{40}$"))'
    fi
    ;;
try)
    image=$3
    [[ $image =~ @sha256:[0-9a-f]{64}$ ]] || { echo "::error::'$image' is not an image by digest"; exit 1; }
    touch "$notes.touched"
    gcloud run services update "$service" --image="$image" --no-traffic --quiet
    revision=$(gcloud run services describe "$service" --format=json | jq --exit-status --raw-output --arg image "$image" '
        select(.spec.template.spec.containers[0].image == $image) | .status.latestCreatedRevisionName')
    gcloud run services update-traffic "$service" --update-tags="candidate=$revision" --quiet
    url=$(gcloud run services describe "$service" --format=json | jq --exit-status --raw-output --arg revision "$revision" '
        .status.traffic[] | select(.tag == "candidate" and .revisionName == $revision) | .url')
    check "$url" "$4"
    echo "$revision" >"$notes.revision"
    ;;
shift)
    # The revision that was tried, and not whatever the tag or the newest one may be by now.
    gcloud run services update-traffic "$service" --to-revisions="$(cat "$notes.revision")=100" --quiet
    check "$(cat "$notes.url")" "$3"
    ;;
undo)
    [ -e "$notes.touched" ] || exit 0
    traffic=$(cat "$notes.traffic")
    image=$(cat "$notes.image")
    echo "::error::$service gets back its traffic (${traffic:-none}) and its image (${image:-none})"
    code=0
    # Without the tag the revision costs nothing, and leaves its GPU to others.
    gcloud run services update-traffic "$service" ${traffic:+--to-revisions="$traffic"} --remove-tags=candidate --quiet || code=1
    # Whatever Terraform changes next becomes a revision with the image of the template.
    [ -z "$image" ] || gcloud run services update "$service" --image="$image" --no-traffic --quiet || code=1
    exit "$code"
    ;;
*)
    echo "usage: deploy-cloud-run.sh look|serves|try|shift|undo SERVICE ..., see the head of this script" >&2
    exit 2
    ;;
esac
