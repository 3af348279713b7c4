# The CPU image: one binary, ONNX Runtime's library, and a base without a shell.
#
#   docker build -t model-serving .
#   docker run --rm -p 8000:8000 -v ./models:/app/models:ro --read-only model-serving
#
# It needs nothing of BuildKit, so any builder can build it, natively on x86-64 and arm64.
# Each base is pinned by digest; a site with a mirror of its own overrides it with --build-arg.
# checkov:skip=CKV_DOCKER_7:the tags and digests of the bases are the defaults of the arguments below

ARG RUST_IMAGE=rust:1.95-slim-bookworm@sha256:d7482085ff5b415f84dba5647ae71606650bdef00db7aeb69f4b3d170c3e4082
ARG DEBIAN_IMAGE=debian:bookworm-20261005-slim@sha256:7c7b2c966bc9ee8cedfeef67e0e279108992c77681fa595db4a9d65c06ccc587
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian12:nonroot@sha256:9dac0a79194e45a7da0158a9c6da57b217585af0786db3845d1f0ec1a0dd182f

# ONNX Runtime, out of the wheel that scripts/onnxruntime.txt locks by hash.
FROM ${DEBIAN_IMAGE} AS onnxruntime
WORKDIR /build
# Debian keeps only the newest revision of a package, so a version pinned here would soon not be found.
# Nothing of these packages reaches the image; what does is checked by its hash.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3 python3-pip \
    && rm -rf /var/lib/apt/lists/*
COPY scripts/fetch-onnxruntime.sh scripts/onnxruntime.txt scripts/
RUN scripts/fetch-onnxruntime.sh \
    && mkdir -p /image/usr/local/lib /image/usr/share/doc/onnxruntime \
    && cp -a .onnxruntime/libonnxruntime.so* /image/usr/local/lib/ \
    && cp .onnxruntime/LICENSE .onnxruntime/ThirdPartyNotices.txt /image/usr/share/doc/onnxruntime/

# The binary. Dependencies are compiled before the sources are there, so that a change in src/ leaves their layer alone.
FROM ${RUST_IMAGE} AS build
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
COPY testing/Cargo.toml testing/
RUN mkdir -p src benches/load testing/src \
    && echo 'fn main() {}' > src/main.rs \
    && for bench in gpu_check load/beside wire batching serve; do cp src/main.rs "benches/$bench.rs"; done \
    && touch src/lib.rs testing/src/lib.rs \
    && cargo build --release --locked \
    && rm -r src
COPY src src
# Cargo goes by times, and those of the copied files are older than the empty program's.
RUN find src -name '*.rs' -exec touch {} + \
    && cargo build --release --locked \
    && target/release/model-serving --version
COPY LICENSE-APACHE LICENSE-MIT /image/usr/share/doc/model-serving/
RUN install -D target/release/model-serving /image/usr/local/bin/model-serving

FROM ${RUNTIME_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="model-serving" \
      org.opencontainers.image.description="A small server for ONNX models: HTTP in, dynamic batching, ONNX Runtime, honest metrics" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=onnxruntime /image/ /
COPY --from=build /image/ /
# The model is mounted here, read-only; the image has none.
WORKDIR /app
ENV MODEL_PATH=/app/models/best.onnx
# By number, because Kubernetes' runAsNonRoot cannot look a name up.
USER 65532:65532
EXPOSE 8000
# Liveness at the port in PORT. An engine first asks after one interval, hence a short one.
HEALTHCHECK --interval=5s --timeout=5s --retries=3 CMD ["/usr/local/bin/model-serving", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/model-serving"]
