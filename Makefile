# Two commands matter: `make demo` shows what litheseg does, `make test` is what CI runs. Both build .venv first.

PYTHON ?= python3
VENV   ?= .venv
# Test processes; each uses one thread, so that tiny tensors do not fight over the cores.
JOBS   ?= 2

BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
# What one process has compiled, those that it starts need not compile again, wherever Python is told to write nothing.
COMPILED := PYTHONDONTWRITEBYTECODE=

.DEFAULT_GOAL := help
.PHONY: help install demo test lint format slow package site lock clean

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The stamp makes a second run instant; a change of what is built installs again into the same environment.
$(STAMP): pyproject.toml setup.py $(wildcard litheseg/masks/*.c)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "litheseg needs Python 3.11 or newer, and '$(PYTHON)' is not: make PYTHON=python3.11 ..." >&2; exit 1; }
	@test -x $(BIN)/pip || { $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null && $(PYTHON) -m venv --clear $(VENV); } || \
		{ echo "'$(PYTHON)' cannot make a virtual environment." >&2; \
		  echo "On Debian and Ubuntu:  sudo apt install python3-venv   and run make again." >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile $(if $(LOCKED),-c requirements-dev.lock) -e '.[dev]'
	@$(BIN)/python -m compileall -qq -j 0 -x '/tests?/' $(VENV)/lib || true  # as pip would, on one core and with tests
	@touch $@

install: $(STAMP)  ## create .venv and install litheseg with its development tools

demo: $(STAMP)  ## a trained network on photographs; a small one trained, measured and reported
	$(BIN)/litheseg demo

test: lint  ## everything that CI checks: ruff, mypy, pytest (without the slow tests)
	$(ONE_THREAD) $(COMPILED) $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --max-worker-restart 0

lint: $(STAMP)  ## ruff and mypy only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## mend formatting and what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

slow: $(STAMP)  ## the slow tests
	$(ONE_THREAD) $(COMPILED) $(BIN)/python -m pytest -q -m slow

package:  ## build wheel and sdist into dist/, check them, and try them in an empty environment
	PYTHON=$(PYTHON) .ci/package

site: $(VENV)/.site  ## the documentation site, into build/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(VENV)/.site: pyproject.toml
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	@touch $@

lock: $(STAMP)  ## requirements-dev.lock anew: the versions of all that development needs, for every Python and system
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile --quiet --universal --upgrade --python-version 3.11 --extra dev --no-header pyproject.toml -o requirements-dev.lock

clean:  ## remove .venv and caches (runs/ stays)
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
