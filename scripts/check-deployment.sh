#!/usr/bin/env bash
# check-deployment.sh URL DEVICE: fails unless the server at URL has its models on DEVICE (cpu or cuda) and predicts.
#
# IDENTITY_TOKEN is Google's token for a private Cloud Run service, API_KEY a key of the server; either may be empty.
# The request is the sample of the bundled model. For another model, PREDICT_REQUEST names a file with a request, and
# PREDICT_CHECK is what jq must say yes to of its answer.
set -euo pipefail

url=$1
device=$2
request=${PREDICT_REQUEST:-models/samples/digit-7.json}
check=${PREDICT_CHECK:-.outputs.label == [7]}

# A revision without traffic may be asleep, and a new one still loading, which may take four minutes.
call=(curl --silent --show-error --fail --max-time 60 --retry "${RETRIES:-10}" --retry-delay 3 --retry-all-errors --retry-max-time 300)
# Cloud Run takes its own token from this header, and leaves the other one to the server.
[ -z "${IDENTITY_TOKEN:-}" ] || call+=(--header "X-Serverless-Authorization: Bearer $IDENTITY_TOKEN")
[ -z "${API_KEY:-}" ] || call+=(--header "Authorization: Bearer $API_KEY")

ready=$("${call[@]}" "$url/ready")
if ! jq --exit-status --arg device "$device" '.models | length > 0 and all(.[]; .device | startswith($device))' \
    <<<"$ready" >/dev/null; then
    echo "check-deployment: not all models are on $device: $ready" >&2
    exit 1
fi
answer=$("${call[@]}" "$url/predict" --header 'Content-Type: application/json' --data "@$request")
if ! jq --exit-status "$check" <<<"$answer" >/dev/null; then
    echo "check-deployment: the answer is not $check: ${answer:0:500}" >&2
    exit 1
fi
echo "check-deployment: $url predicts on $device"
