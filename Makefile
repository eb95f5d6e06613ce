# Every target builds its own environment first; a second call finds it and is quick.
#   PYTHON       the interpreter that the environment is made from (3.11 to 3.13)
#   VENV         where the environment lies
#   CONSTRAINTS  versions to install (constraints.txt: the set that was tested)

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt

BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 8

.DEFAULT_GOAL := help
.PHONY: help demo test lint format doctest docs bench clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: $(VENV)/.installed-examples  ## install and run the main example; pictures go to out/quickstart
	$(BIN)/python examples/quickstart.py

test: $(VENV)/.installed-test  ## install and run the whole suite, doctests included
	$(PYTEST) --cov --cov-fail-under=95 --durations=10

doctest: $(VENV)/.installed-test  ## run the examples of the docstrings, the README and the documentation
	$(PYTEST) pyro_causal tests/test_docs_and_readme.py

lint: $(VENV)/.installed-dev  ## check format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev  ## rewrite the sources in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-docs  ## build the documentation; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -n docs docs/_build/html

bench: $(VENV)/.installed-bench  ## time handlers (against ChiRho), identification (against y0) and deep models
	$(BIN)/python benchmarks/handlers.py
	$(BIN)/python benchmarks/graphs.py
	$(BIN)/python benchmarks/counterfactual_images.py
	$(BIN)/python benchmarks/acyclicity.py
	$(BIN)/python benchmarks/structural_equations.py
	$(BIN)/python benchmarks/gradient_step.py

clean:  ## remove everything that a target made
	rm -rf $(VENV) build out docs/_build docs/reference *.egg-info
	rm -rf .coverage .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp per extra, so that an extra is installed once and again when its versions change.
$(VENV)/.installed-%: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(BIN)/python -m pip install --constraint $(CONSTRAINTS) --editable '.[$*]'
	@touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
