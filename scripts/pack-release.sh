#!/usr/bin/env bash
# Packs a release, out of the CPU image or of a program that was built here:
#
#   pack-release.sh image IMAGE ARCHITECTURE ROOT             what a release needs of the image, into the folder ROOT
#   pack-release.sh program PROGRAM ROOT                      the same of PROGRAM, and of the ONNX Runtime fetched here
#   pack-release.sh tarball VERSION ARCHITECTURE ROOT FOLDER  FOLDER/model-serving-VERSION-linux-ARCHITECTURE.tar.gz
#   pack-release.sh deb VERSION ARCHITECTURE ROOT FOLDER      the same as a Debian package, by cargo-deb
#
# ARCHITECTURE is amd64 or arm64. Nothing is compiled, and of another architecture nothing is run: completions and the
# manual are the same for both, and are made by the image of this machine, which is pulled anew: after the image of
# another architecture an engine may have that one under the name. SOURCE_DATE_EPOCH dates what is packed, so
# that the same image gives the same bytes.
set -euo pipefail
cd "$(dirname "$0")/.."

# What the program says of itself, into the folder ROOT; behind ROOT stands how it is run.
describe() {
    local root=$1
    shift
    mkdir -p "$root/completions" "$root/man"
    "$@" completions bash >"$root/completions/model-serving.bash"
    "$@" completions zsh >"$root/completions/_model-serving"
    "$@" completions fish >"$root/completions/model-serving.fish"
    "$@" man >"$root/man/model-serving.1"
    for command in serve inspect tune fetch healthcheck completions man; do
        "$@" man "$command" >"$root/man/model-serving-$command.1"
    done
}

what=$1
case $what in
image)
    image=$2 architecture=$3 root=$4
    rm -rf "$root"
    mkdir -p "$root/lib" "$root/doc"
    container=$(docker create --quiet --pull always --platform "linux/$architecture" "$image")
    trap 'docker rm "$container" >/dev/null' EXIT
    docker cp "$container:/usr/local/bin/model-serving" "$root/model-serving"
    docker cp "$container:/usr/local/lib/." "$root/lib/"
    docker cp "$container:/usr/share/doc/onnxruntime" "$root/doc/onnxruntime"
    here="linux/$(dpkg --print-architecture)"
    describe "$root" docker run --rm --quiet --pull always --platform "$here" "$image"
    ;;
program)
    program=$2 root=$3
    scripts/fetch-onnxruntime.sh
    rm -rf "$root"
    mkdir -p "$root/lib" "$root/doc/onnxruntime"
    install -m 755 "$program" "$root/model-serving"
    cp -P .onnxruntime/libonnxruntime.so* "$root/lib/"
    cp .onnxruntime/LICENSE .onnxruntime/ThirdPartyNotices.txt "$root/doc/onnxruntime/"
    describe "$root" "$root/model-serving"
    ;;
tarball)
    version=$2 architecture=$3 root=$4 folder=$5
    name=model-serving-$version-linux-$architecture
    stage=$(mktemp -d)
    trap 'rm -rf "$stage"' EXIT
    mkdir -p "$stage/$name/doc" "$stage/$name/systemd" "$folder"
    # The server finds ONNX Runtime beside itself.
    install -m 755 "$root/model-serving" "$stage/$name/"
    cp -P "$root"/lib/libonnxruntime.so* "$stage/$name/"
    cp -r "$root/completions" "$root/man" "$stage/$name/"
    cp -r "$root/doc/onnxruntime" "$stage/$name/doc/"
    cp LICENSE-APACHE LICENSE-MIT "$stage/$name/doc/"
    cp packaging/systemd/model-serving.service packaging/debian/default "$stage/$name/systemd/"
    [ -s "$stage/$name/libonnxruntime.so" ] && [ -s "$stage/$name/man/model-serving.1" ]
    tar --create --directory "$stage" --sort=name --owner=0 --group=0 --numeric-owner --mode=go=rX,u+rw \
        --mtime="@${SOURCE_DATE_EPOCH:?}" "$name" | gzip --no-name >"$folder/$name.tar.gz"
    ;;
deb)
    version=$2 architecture=$3 root=$4 folder=$5
    case $architecture in amd64) target=x86_64-unknown-linux-gnu ;; arm64) target=aarch64-unknown-linux-gnu ;; esac
    # Where Cargo.toml's [package.metadata.deb] looks: as if cargo had built for that target.
    rm -rf target/package
    mkdir -p "target/$target/release" target/package/{bin,doc} "$folder"
    install -m 755 "$root/model-serving" "target/$target/release/model-serving"
    cp -L "$root/lib/libonnxruntime.so" target/package/
    cp LICENSE-APACHE LICENSE-MIT target/package/doc/
    cp "$root/doc/onnxruntime/LICENSE" target/package/doc/LICENSE-onnxruntime
    cp "$root/doc/onnxruntime/ThirdPartyNotices.txt" target/package/doc/ThirdPartyNotices-onnxruntime.txt
    cp -r "$root/completions" "$root/man" target/package/
    # The program lies beside the library, where it finds it.
    ln -s ../lib/model-serving/model-serving target/package/bin/model-serving
    cargo deb --no-build --no-strip --target "$target" --output "$folder/model-serving-$version-linux-$architecture.deb"
    ;;
*)
    echo "usage: pack-release.sh image|program|tarball|deb ..., see the head of this script" >&2
    exit 2
    ;;
esac
