# The recipes of this project; CI calls the same ones. `make run` and `make test` do all set-up themselves.
# They stand in the order in which people need them, which is how `make help` lists them.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CARGO ?= cargo

OHA_VERSION := 1.16.0
OHA := .tools/bin/oha

BENCH := .tools/bench
FIXTURES := .tools/fixtures
CONFORMANCE := .tools/conformance
BENCH_MODELS := target/bench/models
GPU_CHECK := target/gpu-check
CUDA_MAJOR ?= 12
GPU_CHECK_LIBRARIES := $(GPU_CHECK)/libraries-$(CUDA_MAJOR)/usr/local/lib
# The program under test can be told to fail as a GPU would; a release cannot.
TESTED := --features testkit

LINTERS := .tools/linters
CHECKOV := .tools/checkov
GOOGLE_SCHEMA := .tools/google-schema
HELM := .tools/helm
RAY := .tools/ray
CHECK_OPERATORS_CARGO := CARGO_TARGET_DIR=target/operators $(CARGO)
CHECK_OPERATORS := --quiet --locked --manifest-path scripts/checks/operators/Cargo.toml
# The kinds that check-operators knows.
OPERATORS := Gateway|HTTPRoute|HealthCheckPolicy|GCPBackendPolicy|PodMonitor|PrometheusRule|ScaledObject|Service with api version serving.knative.dev/v1
# The oldest Kubernetes that the manifests are for: the first whose preStop hook sleeps without a feature gate.
KUBERNETES := 1.30
COMPOSE_FILES := -f docker-compose.yml -f docker-compose.gpu.yml

# What is quick or fails often comes first. CONTRIBUTING.md has the times.
CHECKS := fmt-check unit lint black-box
ALL_CHECKS := fmt-check unit black-box lint doc deny lint-files lint-workflows lint-terraform lint-monitoring lint-k8s \
	lint-chart conformance-third docker-test play-kube

.PHONY: help run check test fmt fmt-check unit black-box lint doc deny advisories secrets lint-files lint-unit lint-workflows lint-terraform \
	lint-monitoring lint-k8s lint-chart ray-test compose-config conformance-third docker-test play-kube validate-terraform lock-terraform \
	conformance docker-test-gpu plant-faults trust bench bench-pieces instructions memcheck gpu-check onnxruntime openvino monitoring-tools \
	strace buckets clean

help: ## Show this list
	@awk '/^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z0-9-]+:.*## / { name = $$0; sub(/:.*/, "", name); sub(/.*## /, ""); printf "  %-18s%s\n", name, $$0 }' $(MAKEFILE_LIST)

##@ Every day

run: onnxruntime ## Build the server and serve the bundled model on port 8000
	@$(CARGO) run --release --locked

check: ## While you work: format, unit tests, clippy, tests of the running server
	+@MAKE="$(MAKE)" python3 -B scripts/run-stages.py $(CHECKS)

test: ## Before a push: every check there is, as CI runs them
	+@MAKE="$(MAKE)" python3 -B scripts/run-stages.py $(ALL_CHECKS)

fmt: $(LINTERS)/ready ## Format the sources
	$(CARGO) fmt --all
	$(CARGO) fmt --manifest-path scripts/checks/operators/Cargo.toml
	$(LINTERS)/bin/ruff format

##@ Parts of `make test`

fmt-check: $(LINTERS)/ready ## Format of Rust and Python
	$(CARGO) fmt --all --check
	$(CARGO) fmt --check --manifest-path scripts/checks/operators/Cargo.toml
	$(LINTERS)/bin/ruff format --check

unit: onnxruntime ## Unit tests
	$(CARGO) test --locked $(TESTED) --lib --bins

black-box: onnxruntime openvino monitoring-tools strace buckets ## Tests of the running server
	$(CARGO) test --locked $(TESTED) --test '*'

lint: ## Clippy, warnings denied
	$(CARGO) clippy --locked --all-targets --all-features -- -D warnings

# With the examples, so that dependencies have the features that tests give them: clippy has compiled those already.
doc: ## API documentation, warnings denied
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --document-private-items --workspace --lib --examples

deny: $(LINTERS)/ready ## Licences, bans and sources of dependencies
	$(LINTERS)/bin/cargo-deny --locked check --hide-inclusion-graph licenses bans sources

lint-files: $(LINTERS)/ready $(CHECKOV)/ready compose-config lint-unit ## Scripts, Dockerfiles, Compose files and other YAML
	$(LINTERS)/bin/ruff check --quiet
	$(LINTERS)/bin/shellcheck scripts/*.sh .ci/run
	$(LINTERS)/bin/yamllint --strict .
	$(LINTERS)/bin/hadolint Dockerfile Dockerfile.gpu
	$(LINTERS)/bin/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml docker-compose.gpu.yml docker-compose.fetch.yml
	$(CHECKOV)/bin/checkov --file Dockerfile Dockerfile.gpu --framework dockerfile --skip-download --compact --quiet

# The program need not be installed here. Of a key that it does not know, systemd-analyze only warns; it may also warn of
# units of this machine that ours refers to.
lint-unit:
	@if ! command -v systemd-analyze >/dev/null; then echo "SKIPPED: systemd-analyze is not installed, so the unit of systemd was not read"; exit 0; fi; \
	mkdir -p target/unit && sed 's|=/usr/bin/model-serving|=/bin/true|; /^Documentation=/d' packaging/systemd/model-serving.service > target/unit/model-serving.service; \
	set -x; said=$$(systemd-analyze verify target/unit/model-serving.service 2>&1) && [[ $$said != *model-serving.service* ]] || { echo "$$said"; exit 1; }; \
	systemd-analyze security --offline=yes --no-pager --threshold=20 target/unit/model-serving.service >/dev/null

compose-config:
	@if docker compose version >/dev/null 2>&1; then compose="docker compose"; \
	elif docker-compose version >/dev/null 2>&1; then compose=docker-compose; \
	else echo "SKIPPED: Compose is not installed, so it did not read the Compose files"; exit 0; fi; \
	$$compose -f docker-compose.yml config --quiet; \
	$$compose $(COMPOSE_FILES) config --quiet; \
	MODEL_URI=https://models.example.com/best.onnx $$compose -f docker-compose.yml -f docker-compose.fetch.yml config --quiet

lint-workflows: $(LINTERS)/ready $(CHECKOV)/ready ## GitHub workflows and actions: schemas, actionlint, zizmor, checkov
	$(LINTERS)/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(LINTERS)/bin/check-jsonschema --builtin-schema vendor.github-actions .github/actions/*/action.yml
	$(LINTERS)/bin/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(LINTERS)/bin/actionlint .github/workflows/*.yml
	$(LINTERS)/bin/zizmor --offline --quiet .github
	$(CHECKOV)/bin/checkov --directory .github --framework github_actions --skip-download --compact --quiet

lint-terraform: $(LINTERS)/ready $(CHECKOV)/ready $(GOOGLE_SCHEMA)/ready ## Terraform: format, arguments against the provider's schema, names, values of variables, checkov
	@if command -v terraform >/dev/null; then set -x; TF_CLI_CONFIG_FILE=/dev/null terraform fmt -check -recursive -diff terraform; \
	else echo "SKIPPED: terraform is not installed, so neither the format of terraform/ nor the checks of its variables were tried"; fi
	$(LINTERS)/bin/python scripts/check-terraform.py $(GOOGLE_SCHEMA)/*.whl terraform
	$(CHECKOV)/bin/checkov --directory terraform --framework terraform --skip-download --compact --quiet

$(GOOGLE_SCHEMA)/ready: scripts/checks/google-schema.txt
	rm -rf $(@D)
	python3 -m pip download --quiet --no-input --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
		--dest $(@D) --requirement $<
	touch $@

# The paths in prometheus.yml are those of the container, so that promtool checks only its syntax.
lint-monitoring: monitoring-tools ## Rules and alerts, and their unit tests
	@if [ -x .tools/prometheus/promtool ]; then set -x; \
	.tools/prometheus/promtool check config --syntax-only monitoring/prometheus.yml; \
	.tools/prometheus/promtool check rules monitoring/rules/*.yml; \
	.tools/prometheus/promtool test rules monitoring/tests/*.yml; \
	.tools/prometheus/amtool check-config monitoring/alertmanager.yml; fi

# Kubernetes' own kinds against its schemas; the operators' kinds, of which it would warn, against the operators'.
lint-k8s: $(LINTERS)/ready $(CHECKOV)/ready ## Kubernetes manifests: every overlay and component, rendered, against the schemas and each other, and checkov
	@rm -rf target/k8s && mkdir -p target/k8s
	@if ! command -v kubectl >/dev/null; then echo "SKIPPED: kubectl is not installed, so the overlays were not rendered"; exit 0; fi; \
	set -x; $(LINTERS)/bin/python scripts/check-kubernetes.py target/k8s; { set +x; } 2>/dev/null; \
	cp k8s/components/model-volume/load-model.yaml k8s/components/gpu-time-slicing/device-plugin.yaml target/k8s/; \
	for rendered in target/k8s/*.yaml; do \
		$(LINTERS)/bin/kubernetes-validate --quiet --strict --kubernetes-version $(KUBERNETES) $$rendered \
			2>&1 | { grep -vE "^WARN .* schema for kind ($(OPERATORS)) " || true; }; \
	done; \
	set -x; $(CHECKOV)/bin/checkov --directory target/k8s --skip-path target/k8s/overlays --framework kubernetes --skip-download --compact --quiet
	$(CHECK_OPERATORS_CARGO) test $(CHECK_OPERATORS)
	$(CHECK_OPERATORS_CARGO) run $(CHECK_OPERATORS) -- k8s/overlays/*/*.yaml k8s/components/*/*.yaml $$(find target/k8s -maxdepth 1 -name '*.yaml')

# Helm itself renders, out of a package that carries it as a library; the checks are those of the overlays. Helm tells of
# the links into monitoring/ each time, which is no news.
lint-chart: $(HELM)/ready $(LINTERS)/ready $(CHECKOV)/ready ## Helm chart: rendered for several sets of values, against the schemas, k8s/ and what it promises
	$(HELM)/bin/python -B tests/chart/render.py target/chart 2> >(grep -v " INFO found symbolic link in path" >&2)
	@for file in target/chart/*.yaml; do \
		set -x; $(LINTERS)/bin/kubernetes-validate --quiet --strict --kubernetes-version $(KUBERNETES) $$file \
			2>&1 | { grep -vE "^WARN .* schema for kind ($(OPERATORS)) " || true; }; { set +x; } 2>/dev/null; \
	done
	$(CHECKOV)/bin/checkov --directory target/chart --framework kubernetes --skip-download --compact --quiet
	$(CHECK_OPERATORS_CARGO) run $(CHECK_OPERATORS) -- target/chart/*.yaml
	$(HELM)/bin/python -B -m unittest discover --quiet --start-directory tests/chart 2> >(grep -v " INFO found symbolic link in path" >&2)

# The program that the black-box tests run: `cargo build` would compile it again, with other features of its dependencies.
conformance-third: onnxruntime $(CONFORMANCE)/ready ## A fixed third of the ONNX backend suite through the server
	$(CARGO) test --locked $(TESTED) --no-run --test suite
	$(CONFORMANCE)/bin/python -B tests/conformance/test_comparison.py
	$(CONFORMANCE)/bin/python -B tests/conformance/suite.py --server target/debug/model-serving --third

$(CONFORMANCE)/ready: tests/conformance/requirements.txt scripts/make-environment.sh
	scripts/make-environment.sh $(CONFORMANCE) $<

docker-test: ## The CPU image and the Compose stack, on a Docker engine; skipped, with a word, where none answers (KEEP_IMAGES=1)
	python3 -B tests/docker/prove.py $(if $(KEEP_IMAGES),--keep-images) cpu

play-kube: onnxruntime $(LINTERS)/ready ## The pod of the CPU overlay under podman: fetch, probes, drain; skipped, with a word, where podman runs nothing
	$(CARGO) test --locked $(TESTED) --no-run --test suite
	$(LINTERS)/bin/python -B tests/kube/play.py --server target/debug/model-serving

##@ More checks

advisories: $(LINTERS)/ready ## Known vulnerabilities of dependencies; needs the advisory database from the internet
	$(LINTERS)/bin/cargo-deny --locked check --hide-inclusion-graph advisories

# The program itself: its action asks organizations for a licence.
GITLEAKS_VERSION := 8.30.1
GITLEAKS_SHA256 := 551f6fc83ea457d62a0d98237cbad105af8d557003051f41f3e7ca7b3f2470eb
GITLEAKS := .tools/gitleaks/$(GITLEAKS_VERSION)/gitleaks

secrets: SINCE ?= origin/main
secrets: $(GITLEAKS) ## Secrets in the commits since a branch (SINCE=origin/main); fetches gitleaks from the internet
	$(GITLEAKS) git --no-banner --redact --log-opts="$(SINCE)..HEAD"

$(GITLEAKS):
	mkdir -p $(@D)
	curl --silent --show-error --fail --location --retry 3 --output $(@D)/archive \
		https://github.com/gitleaks/gitleaks/releases/download/v$(GITLEAKS_VERSION)/gitleaks_$(GITLEAKS_VERSION)_linux_x64.tar.gz
	echo "$(GITLEAKS_SHA256)  $(@D)/archive" | sha256sum --check --quiet
	tar -xzf $(@D)/archive -C $(@D) gitleaks

# On a copy, so that nothing is written into the tree. The lock files are held to.
validate-terraform: ## Terraform's own check of terraform/; needs its providers from the internet
	rm -rf target/terraform
	mkdir -p target
	cp -r terraform target/terraform
	@for environment in target/terraform/environments/*; do \
		(set -x; terraform -chdir=$$environment init -backend=false -input=false -lockfile=readonly; terraform -chdir=$$environment validate); \
	done

lock-terraform: ## Write the lock files of Terraform's providers, to be committed; needs the internet
	@for environment in terraform/environments/*; do (set -x; terraform -chdir=$$environment providers lock \
		-platform=linux_amd64 -platform=linux_arm64 -platform=darwin_arm64); done

conformance: SERVER ?= target/release/model-serving
conformance: onnxruntime $(CONFORMANCE)/ready $(CONFORMANCE)-models/ready ## Models of others through the server: the ONNX backend suite and packaged ones (SERVER=...)
	$(if $(filter target/release/model-serving,$(SERVER)),$(CARGO) build --locked --release)
	$(CONFORMANCE)/bin/python -B tests/conformance/test_comparison.py
	@failed=0; for check in suite.py "suite.py --variant open --third" "suite.py --variant passed --third" "merging.py --third" "merging.py --variant passed --third" "packaged.py $(CONFORMANCE)-models" "inspection.py $(CONFORMANCE)-models"; do \
		printf '\n%s\n' "tests/conformance/$$check --server $(SERVER)"; \
		$(CONFORMANCE)/bin/python -B tests/conformance/$$check --server $(SERVER) || failed=1; \
	done; exit $$failed

# The wheels are read for their models only, so that the Python that they are for does not matter.
$(CONFORMANCE)-models/ready: tests/conformance/models.txt $(CONFORMANCE)/ready
	rm -rf $(@D)
	python3 -m pip download --quiet --no-input --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.11 \
		--require-hashes --dest $(@D) --requirement $<
	$(CONFORMANCE)/bin/python -B tests/conformance/models.py $(@D)
	touch $@

ray-test: SERVER ?= target/debug/model-serving
ray-test: onnxruntime $(RAY)/ready ## The Ray Serve example on a Ray of its own: load, killed replicas, scaling up and down (SERVER=...; 134 MB of downloads, 2 minutes)
	$(if $(filter target/debug/model-serving,$(SERVER)),$(CARGO) build --locked)
	$(RAY)/bin/python -B examples/ray/test_serve_model.py --server $(SERVER)

$(RAY)/ready: examples/ray/requirements.txt scripts/make-environment.sh
	scripts/make-environment.sh $(RAY) $<

docker-test-gpu: ## The GPU image, as far as a machine without a GPU can (gigabytes of downloads; CUDA_MAJOR=13 for CUDA 13)
	python3 -B tests/docker/prove.py $(if $(KEEP_IMAGES),--keep-images) gpu

plant-faults: onnxruntime monitoring-tools ## A fault in each kind of deployment artifact, and which check catches it (15 minutes)
	python3 scripts/plant-faults.py

memcheck: onnxruntime ## The server under valgrind, with outputs that lie in memory which is not ONNX Runtime's own (3 minutes)
	$(CARGO) build --locked --profile profiling --bin model-serving
	python3 scripts/memcheck.py target/profiling/model-serving

##@ Measuring

bench: onnxruntime $(OHA) $(BENCH)/ready $(addprefix $(BENCH_MODELS)/,resnet50.onnx squeezenet.onnx tiny.onnx) ## Speed, as ratios to an empty route, the bare session and other servers (NAME=..., BENCH_FLAGS=--quick)
	CARGO="$(CARGO)" $(BENCH)/bin/python -B benches/load/bench.py $(if $(NAME),--name "$(NAME)") $(BENCH_FLAGS)

$(BENCH)/ready: benches/load/requirements.txt scripts/make-environment.sh
	scripts/make-environment.sh $(BENCH) $<

# Its default features: it does not compile without TLS.
$(OHA):
	$(CARGO) install --locked --root .tools --version $(OHA_VERSION) oha

trust: onnxruntime $(FIXTURES)/ready ## What clients must be able to trust: memory, own answers, deadlines, starts, as figures with targets (5 minutes; SERVER=PROGRAM TRUST_FLAGS="--only 1,4")
	$(if $(SERVER),,$(CARGO) build --locked --release)
	$(FIXTURES)/bin/python -B benches/trust/trust.py $(if $(SERVER),--server "$(SERVER)") $(TRUST_FLAGS)

bench-pieces: onnxruntime ## Criterion benches of the pieces: wire formats, batching, one request (BENCH=decode selects by name)
	$(CARGO) bench --locked --bench wire --bench batching --bench serve -- $(BENCH)

# Two builds, so that what the example is built with leaves the server as it is released.
instructions: onnxruntime ## Instructions per request, by valgrind, which repeat where times do not (COUNT="json --top 60")
	$(CARGO) build --locked --profile profiling --bin model-serving
	$(CARGO) build --locked --profile profiling --example empty_route
	python3 scripts/count-instructions.py $(COUNT)

# The CPU's library serves to compare with; DEVICE=cpu tries the check itself.
gpu-check: onnxruntime $(BENCH_MODELS)/resnet50.onnx $(GPU_CHECK)/libraries-$(CUDA_MAJOR) ## Everything that is promised of a GPU, shown on this machine's (NAME=... CUDA_MAJOR=12|13)
	$(CARGO) build --locked --release
	LD_LIBRARY_PATH="$(CURDIR)/$(GPU_CHECK_LIBRARIES):$${LD_LIBRARY_PATH:-}" $(CARGO) bench --locked --bench gpu_check -- \
		--server target/release/model-serving --conv $(BENCH_MODELS)/resnet50.onnx --device $(or $(DEVICE),cuda) \
		--library $(GPU_CHECK_LIBRARIES)/libonnxruntime.so --name "$(or $(NAME),unnamed)" --out benches/results/gpu-$(or $(NAME),unnamed).md $(GPU_CHECK_FLAGS)

$(BENCH_MODELS)/%.onnx: scripts/make-bench-models.py $(FIXTURES)/ready
	$(FIXTURES)/bin/python $< $(@D) $*

$(FIXTURES)/ready: tests/fixtures/requirements.txt scripts/make-environment.sh
	scripts/make-environment.sh $(FIXTURES) $<

# What the GPU image has, on top of this machine's own libraries.
$(GPU_CHECK)/libraries-$(CUDA_MAJOR): scripts/gpu-cuda$(CUDA_MAJOR).txt scripts/fetch-gpu-libraries.py
	rm -rf $@ && mkdir -p $@.new
	python3 scripts/fetch-gpu-libraries.py fetch $< / $@.new
	mv $@.new $@

##@ Set-up

onnxruntime: ## Fetch ONNX Runtime's CPU library (once, pinned, checksummed) into .onnxruntime/
	@scripts/fetch-onnxruntime.sh

monitoring-tools: ## Fetch Prometheus and promtool, out of the distribution's package, into .tools/
	@scripts/fetch-prometheus.sh

openvino: ## Fetch ONNX Runtime with OpenVINO, for `--device openvino`, into .tools/openvino/ (84 MB)
	@scripts/fetch-openvino.sh

strace: ## Fetch strace, unless it is installed, out of the distribution's package into .tools/
	@scripts/fetch-strace.sh

buckets: .tools/buckets/ready ## Fetch moto, which speaks S3 to the tests of `fetch`, into .tools/

.tools/buckets/ready: tests/buckets/requirements.txt scripts/make-environment.sh
	scripts/make-environment.sh $(@D) $<

$(LINTERS)/ready: scripts/checks/linters.txt scripts/make-environment.sh
	scripts/make-environment.sh $(LINTERS) $<

$(HELM)/ready: scripts/checks/helm.txt scripts/make-environment.sh
	scripts/make-environment.sh $(HELM) $<

$(CHECKOV)/ready: scripts/checks/checkov.txt scripts/make-environment.sh
	scripts/make-environment.sh $(CHECKOV) $<

clean: ## Remove everything that was built or fetched
	rm -rf target .onnxruntime .tools
