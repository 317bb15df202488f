# make demo     the study of the README: BatchNorm against LayerNorm over batch sizes
# make test     the tests, but for the slow ones
# make check    style and types
# make mutation every change of the norms' code must be noticed by a test (an hour)
PYTHON ?= python3
EXTRAS ?= test

.PHONY: demo test test-all check mutation clean

demo: .venv/ready
	.venv/bin/fpnlab study configs/demo.toml

test: .venv/ready-test
	.venv/bin/python -m pytest -n 2 -m "not slow"

test-all: .venv/ready-test
	.venv/bin/python -m pytest -n 2

check: .venv/ready-test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyrefly check

mutation: .venv/ready-test
	.venv/bin/python -m pip install --quiet --editable ".[$(EXTRAS),mutation]"
	.venv/bin/python tests/mutation/run.py

clean:
	rm -rf .venv runs

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --editable .
	touch $@

.venv/ready-test: .venv/ready
	.venv/bin/python -m pip install --quiet --editable ".[$(EXTRAS)]"
	touch $@
