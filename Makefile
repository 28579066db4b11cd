# Everything runs in one virtual environment that the first target called makes by itself.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt# or constraints-oldest.txt
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test lint docs format clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

install: $(INSTALLED) ## make .venv with everything in it

$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c $(CONSTRAINTS) -e '.[all]'
	touch $@

demo: $(INSTALLED) ## collect a maze dataset, train four methods on it, draw, report
	$(BIN)/python -m benchmarks.demo

# One thread per test process: two processes with several threads each fight over the cores.
test: $(INSTALLED) ## run the test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: $(INSTALLED) ## check style, docstrings, types and spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

docs: $(INSTALLED) ## build the documentation in build/site; any warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

format: $(INSTALLED) ## rewrite the code in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment, the demo's output and caches
	rm -rf $(VENV) demo build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
