#!/usr/bin/env bash
# stage-package.sh PROGRAM: puts into target/package/ what a release has beside the program: ONNX Runtime's library,
# licences, pages of the manual, completions, and the link of /usr/bin. The program itself says what it can.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

program=$1 folder=target/package
scripts/fetch-onnxruntime.sh
rm -rf "$folder"
mkdir -p "$folder"/{bin,completions,doc,man}
cp -L .onnxruntime/libonnxruntime.so "$folder/"
cp LICENSE-APACHE LICENSE-MIT "$folder/doc/"
cp .onnxruntime/LICENSE "$folder/doc/LICENSE-onnxruntime"
cp .onnxruntime/ThirdPartyNotices.txt "$folder/doc/ThirdPartyNotices-onnxruntime.txt"
"$program" man > "$folder/man/model-serving.1"
for command in serve inspect tune fetch healthcheck completions man; do
    "$program" man "$command" > "$folder/man/model-serving-$command.1"
done
"$program" completions bash > "$folder/completions/model-serving.bash"
"$program" completions zsh > "$folder/completions/_model-serving"
"$program" completions fish > "$folder/completions/model-serving.fish"
ln -s ../lib/model-serving/model-serving "$folder/bin/model-serving"
