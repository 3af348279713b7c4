# The recipes of this project; CI calls the same ones. `make run` and `make test` do all set-up themselves.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CARGO ?= cargo
CARGO_DENY_VERSION := 0.20.2
CARGO_DENY := .tools/bin/cargo-deny

.PHONY: help run test fmt fmt-check lint unit black-box doc deny fixtures-check bench onnxruntime clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

onnxruntime: ## Fetch ONNX Runtime's CPU library (once, pinned, checksummed) into .onnxruntime/
	@scripts/fetch-onnxruntime.sh

run: onnxruntime ## Build the server and serve the bundled model on port 8000
	$(CARGO) run --release --locked

test: onnxruntime fmt-check lint doc deny unit black-box ## Every check: format, lints, docs, licences, tests
	@echo "all checks passed"

fmt: ## Format the sources
	$(CARGO) fmt

fmt-check:
	$(CARGO) fmt --check

lint: ## Clippy, warnings denied
	$(CARGO) clippy --locked --all-targets -- -D warnings

doc: ## API documentation, warnings denied
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --document-private-items

deny: $(CARGO_DENY) ## Licences, bans and sources of dependencies
	$(CARGO_DENY) --locked check --hide-inclusion-graph licenses bans sources

$(CARGO_DENY):
	$(CARGO) install --locked --root .tools --version $(CARGO_DENY_VERSION) cargo-deny

unit: onnxruntime ## Unit tests
	$(CARGO) test --locked --lib --bins

black-box: onnxruntime ## Tests of the running server
	$(CARGO) test --locked --test '*'

bench: onnxruntime ## Requests/s as ratios to an empty axum route, in one process on this machine
	$(CARGO) bench --locked --bench rough

clean: ## Remove everything that was built or fetched
	rm -rf target .onnxruntime .tools
