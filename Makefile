# `make` lists the targets. PYTHON chooses the interpreter (3.11 to 3.13), VENV the environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SHELL := /bin/bash

.PHONY: help env demo test format benchmarks clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 13

env: $(VENV)/installed ## create the environment and install requirements.txt

$(VENV)/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
		|| { echo "Python 3.11 to 3.13 is needed; choose one with make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

demo: env ## train, extract, cache and plot two small networks
	$(BIN)/python -m scripts.demo

test: env ## every check: format, lint, types, tests, demo, notebooks
	$(BIN)/black --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4
	OMP_NUM_THREADS=1 $(BIN)/python -m scripts.demo
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --nbmake notebooks

format: env ## format the code and mend what the linter can
	$(BIN)/black .
	$(BIN)/ruff check --fix .

benchmarks: env ## measure everything beside its rival (about 15 minutes on a quiet machine)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks

clean: ## remove the environment and caches of tools; results stay
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
