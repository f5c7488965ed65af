# make env | demo | test | lint | docs: each creates what it needs. Requires Python 3.11, g++ and make.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: env demo test lint docs clean

env: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: env
	$(BIN)/mofore demo

test: env
	$(BIN)/python -m pytest

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

docs: env
	$(BIN)/mkdocs build --strict

clean:
	rm -rf demo build site *.egg-info .pytest_cache .mypy_cache .ruff_cache
