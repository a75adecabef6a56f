# `make demo` and `make test` each set everything up by themselves. They need Linux on x86-64, git, make and Python 3.11
# (3.11.1 or later), 3.12 or 3.13; the tests need nginx as well. Another interpreter: `make demo PYTHON=python3.13`.
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
	$$python -c 'import venv' 2> /dev/null && echo $$python && break; done)
BIN := .venv/bin
export FLWR_TELEMETRY_ENABLED = 0
export FLWR_DISABLE_UPDATE_CHECK = 1
export RAY_USAGE_STATS_ENABLED = 0

# The environment is made anew where the interpreter or the lock has changed.
INTERPRETER := $(shell $(PYTHON) -c 'import sys; print(sys.base_prefix, sys.version)' 2> /dev/null)
ifneq ($(INTERPRETER),$(shell cat .venv/interpreter 2> /dev/null))
.PHONY: .venv/installed
endif

.PHONY: demo test test-all check docs wheel lock clean

demo: .venv/installed
	$(BIN)/python -m simulations run demo --out runs/demo --overwrite

test: check
	$(BIN)/python -m pytest -m 'not slow' --durations=30

test-all: check
	HYPOTHESIS_PROFILE=long $(BIN)/python -m pytest --durations=30

check: .venv/installed
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest --collect-only --quiet --numprocesses=0 > .venv/collected || { tail -n 30 .venv/collected; exit 1; }
	$(BIN)/mkdocs build --strict --quiet --config-file .mkdocs.yml

.venv/installed: pyproject.toml requirements.lock
	@test -n '$(INTERPRETER)' || { echo "$(PYTHON) does not run: name Python 3.11, 3.12 or 3.13, as in make demo PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	echo '$(INTERPRETER)' > .venv/interpreter
	touch $@

# The reference of commands from the code, and the pages in build/site.
docs: .venv/installed
	$(BIN)/python tests/command_reference.py
	$(BIN)/mkdocs build --strict --quiet --config-file .mkdocs.yml

# What a hospital installs: the wheel, and the hashes of all that it stands on.
wheel: .venv/installed
	$(BIN)/python -m build --wheel --no-isolation --outdir dist
	cp requirements-site.lock dist/requirements.lock

# New versions of everything, for the three interpreters at once. requirements.lock is the checkout's, with tools and
# tests; requirements-site.lock has the same versions of what the wheel needs. uv comes with Flower.
LOCK = $(BIN)/uv pip compile --quiet --universal --fork-strategy fewest --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-header --no-annotate pyproject.toml
lock: .venv/installed
	$(LOCK) --upgrade --extra simulation --extra bench --extra dev --output-file requirements.lock
	$(LOCK) --constraint requirements.lock --output-file requirements-site.lock
	sed -i 's/ ; implementation_name.* \\$$/ \\/' requirements.lock requirements-site.lock

clean:
	rm -rf .venv runs build dist *.egg-info
