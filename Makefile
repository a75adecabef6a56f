# `make demo` and `make test` each set everything up by themselves: Python 3.11 (3.11.1 or later), git and make are
# enough, and nginx for the tests.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
export FLWR_TELEMETRY_ENABLED = 0
export FLWR_DISABLE_UPDATE_CHECK = 1
export RAY_USAGE_STATS_ENABLED = 0

.PHONY: demo test check clean

demo: .venv/installed
	$(BIN)/python -m simulations run demo --out runs/demo --overwrite

test: check
	$(BIN)/python -m pytest

check: .venv/installed
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[simulation,dev]'
	touch $@

clean:
	rm -rf .venv runs build *.egg-info
