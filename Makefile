# `make demo` and `make test` need nothing but Python >= 3.11 and make: each sets up a private .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNNABLE := $(VENV)/.runnable
STAMP := $(VENV)/.installed
SOURCES := streams_queue $(wildcard compat migrations) tests

.DEFAULT_GOAL := help
.PHONY: help venv test matrix check chaos bench scaling pictures rehearsal demo clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP)  ## make .venv, or renew it when pyproject.toml has changed

$(RUNNABLE): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'  # the first that knows --group
	$(BIN)/python -m pip install --quiet --editable '.[all]'
	@touch $@

$(STAMP): $(RUNNABLE)
	$(BIN)/python -m pip install --quiet --group test --group check
	@touch $@

test: $(STAMP)  ## run the test suite; ARGS="-k name --server redis-6.2" goes to pytest
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder --durations 15 $(ARGS)

matrix: $(STAMP)  ## the core suite on each server, redis-py and Python; ARGS="--redis 5 6 --server redis-6.2" chooses
	PYTHONPATH=tests $(BIN)/python tests/matrix.py $(ARGS)

check: $(STAMP)  ## lint, formatting, types, import rules
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy $(SOURCES)
	$(BIN)/lint-imports

chaos: $(STAMP)  ## every fault at full size, into docs/reliability.md; ARGS="--only 1,20b" chooses
	PYTHONPATH=tests $(BIN)/python -m chaos $(ARGS)

bench: $(STAMP)  ## ours beside other queues, into docs/benchmarks.md; ARGS="--only finish --peers arq" chooses
	PYTHONPATH=tests $(BIN)/python -m bench $(ARGS)

scaling: $(STAMP)  ## one server beside four; ARGS="--messages 40000 --write" draws docs/scaling.svg
	PYTHONPATH=tests $(BIN)/python -m bench.shards $(ARGS)

pictures: $(STAMP)  ## the dashboard's pictures of the README, taken anew by the tests; needs chromium
	$(BIN)/python -m pytest -q tests/dashboard/browser/test_picture.py
	cp tests/.artefacts/dashboard/picture-light.png docs/dashboard.png
	cp tests/.artefacts/dashboard/picture-dark.png docs/dashboard-dark.png

rehearsal: $(STAMP)  ## the guide to moving in, followed on an old queue; ARGS=1000000 says how long
	PYTHONPATH=tests $(BIN)/python -m migrations.rehearsal $(ARGS)

demo: $(RUNNABLE)  ## a queue at work, on a server of its own
	$(BIN)/streams-queue demo

clean:  ## remove everything that was built here
	rm -rf $(VENV) .bench build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
