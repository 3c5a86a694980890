# `make` alone lists the targets. Everything is installed into .venv from constraints.txt (exact pins, no addresses).

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
SERVICES_DIR ?= .services
# TORCH_BACKEND=cpu asks uv for the small build of torch; by default torch comes with its CUDA parts.
TORCH_BACKEND ?=
ARGS ?=

UV := $(BIN)/uv
UV_PIN := $(shell sed -n 's/^uv==/uv==/p' constraints.txt)
export UV_HTTP_TIMEOUT ?= 180
# Tests start hundreds of processes: each would compile all that it imports again (2 s) where Python may keep nothing.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(STAMP) ## create .venv and install everything (TORCH_BACKEND=cpu for the small torch)

$(STAMP): pyproject.toml constraints.txt setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(UV) || $(BIN)/python -m pip install --quiet --disable-pip-version-check "$(UV_PIN)"
	$(UV) pip install --quiet --python $(BIN)/python -c constraints.txt "$$(grep '^setuptools==' constraints.txt)"
	$(UV) pip install --python $(BIN)/python -c constraints.txt --no-build-isolation-package streamfold \
		$(if $(TORCH_BACKEND),--torch-backend $(TORCH_BACKEND)) -e ".[dev]"
	@test -x $(BIN)/streamfold
	@touch $@

.PHONY: demo
demo: setup ## about a minute through everything, on real passages and ratings
	$(BIN)/python -m streamfold.pipelines.demo $(ARGS)

.PHONY: serve
serve: setup ## serve the REST interface and the console
	$(BIN)/streamfold serve $(ARGS)

.PHONY: test
test: setup ## run all tests, files side by side (ARGS="-k word" for some, ARGS="-n 0" one after the other)
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

.PHONY: lint
lint: setup types ## check style, format, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

# mypy cannot follow the editable install's import hook: it reads the four folders through links of their real names.
.PHONY: types
types: setup
	@mkdir -p build/types/streamfold
	@for folder in core plugins pipelines migrations; do ln -sfn ../../../$$folder build/types/streamfold/$$folder; done
	MYPYPATH=build/types $(BIN)/mypy -p streamfold.core -p streamfold.plugins -p streamfold.pipelines

.PHONY: format
format: setup ## apply ruff's fixes and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: faults
faults: setup ## kill processes and services at random moments, and check that nothing is lost
	$(BIN)/python -m pytest tests/faults $(ARGS)

.PHONY: soak
soak: setup ## 1,000 kill -9 and an hour of load with flat memory: hours (ARGS="--kills 8 --minutes 1" is the short form)
	$(BIN)/python tests/faults/soak.py $(ARGS)

.PHONY: simulate
simulate: setup ## run many schedules of folds, leases, feed and intake under simulated faults (ARGS="--seeds 0:5000")
	$(BIN)/python tests/simulation/sim_report.py $(ARGS)

.PHONY: bench
bench: setup ## measure throughput, freshness and quality
	$(BIN)/python tests/benchmarks/run.py $(ARGS)

.PHONY: bench-vectors
bench-vectors: $(VENV)/.bench ## measure the vector index beside FAISS, hnswlib and usearch (ARGS="--quick")
	$(BIN)/python tests/benchmarks/bench_vectors.py $(ARGS)

$(VENV)/.bench: $(STAMP)
	$(UV) pip install --python $(BIN)/python -c constraints.txt --no-build-isolation-package streamfold \
		$(if $(TORCH_BACKEND),--torch-backend $(TORCH_BACKEND)) -e ".[dev,bench]"
	@touch $@

.PHONY: services
services: setup ## start real Kafka, PostgreSQL, RabbitMQ and Redis on loopback (as root: install what is missing)
	@$(BIN)/python -m streamfold.pipelines.services up --dir $(SERVICES_DIR) --env-file $(SERVICES_DIR).env \
		$$([ "$$(id -u)" = 0 ] && echo --install)
	@echo "# The same lines are in $(SERVICES_DIR).env. To stop: make services-down"

.PHONY: services-down
services-down: setup ## stop them; their data stays in .services
	@$(BIN)/python -m streamfold.pipelines.services down --dir $(SERVICES_DIR)

.PHONY: constraints
constraints: setup ## renew the pins in constraints.txt (torch stays as it is pinned)
	@mkdir -p build
	printf 'setuptools\nuv\n' > build/constraints.in
	grep '^torch==' constraints.txt >> build/constraints.in
	$(UV) pip compile --quiet --upgrade --python-version 3.11 --no-header --no-annotate --no-emit-index-url \
		--no-emit-find-links --extra dev --extra bench -o build/constraints.txt pyproject.toml build/constraints.in
	{ sed -n '/^#/p' constraints.txt; cat build/constraints.txt; } > build/constraints.new
	mv build/constraints.new constraints.txt

.PHONY: clean
clean: ## delete what was built or cached here, .venv too (stop the services first)
	@test ! -d $(SERVICES_DIR) || test ! -x $(BIN)/python || $(BIN)/python -m streamfold.pipelines.services down --dir $(SERVICES_DIR)
	rm -rf $(VENV) build dist *.egg-info $(SERVICES_DIR) $(SERVICES_DIR).env .hypothesis .pytest_cache .ruff_cache \
		.import_linter_cache .mypy_cache
	find core plugins pipelines migrations tests -name __pycache__ -type d -prune -exec rm -rf {} +
