# `make demo` and `make test` do all the set-up themselves, in a virtual environment of their own.
# Another interpreter: make demo PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs

# Idle threads that spin slow down everything else on a busy machine.
export OMP_WAIT_POLICY := PASSIVE
OMP_NUM_THREADS ?= 1
export OMP_NUM_THREADS
# An activated environment of the user's must not leak in.
unexport PYTHONPATH PYTHONHOME

.PHONY: help demo test lint docs bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   set up, then run the whole thing and print what came out"
	@echo "make test   set up, then lint, types, import contracts and tests"
	@echo "make lint   the same without the tests"
	@echo "make docs   build the documentation into docs/_build/html"
	@echo "make bench  measure the speed of the environments"
	@echo "make clean  remove what was built, the virtual environment included"

demo: $(STAMP)
	$(BIN)/ilrec demo $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest $(ARGS)

docs: $(DOCS_STAMP)
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

bench: $(STAMP)
	$(BIN)/python benchmarks/env_speed.py $(ARGS)

clean:
	rm -rf $(VENV) .venv-plain build dist ilrec.egg-info docs/_build .mypy_cache .ruff_cache \
		.pytest_cache .hypothesis .import_linter_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
		echo "ilrec needs Python 3.11, 3.12 or 3.13 and '$(PYTHON)' is" \
		"'$$($(PYTHON) --version 2>&1)': give one with make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(STAMP): requirements.txt requirements-nodeps.txt pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' requirements.txt)"
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps -r requirements-nodeps.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(DOCS_STAMP): requirements-docs.txt $(STAMP)
	$(BIN)/python -m pip install --quiet -r requirements-docs.txt
	@touch $@
