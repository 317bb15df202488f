# make demo     the study of the README: BatchNorm against LayerNorm over batch sizes
# make test     the tests, but for the slow ones
# make check    style and types
# make mutation every change of the norms' code must be noticed by a test (an hour)
PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= test

.PHONY: demo test test-all check mutation clean

demo: $(VENV)/ready
	$(VENV)/bin/fpnlab study configs/demo.toml

test: $(VENV)/ready-test
	$(VENV)/bin/python -m pytest -n 2 -m "not slow"

test-all: $(VENV)/ready-test
	$(VENV)/bin/python -m pytest -n 2

check: $(VENV)/ready-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyrefly check

mutation: $(VENV)/ready-test
	$(VENV)/bin/python -m pip install --quiet --editable ".[$(EXTRAS),mutation]"
	$(VENV)/bin/python tests/mutation/run.py

clean:
	rm -rf $(VENV) runs

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable .
	touch $@

$(VENV)/ready-test: $(VENV)/ready
	$(VENV)/bin/python -m pip install --quiet --editable ".[$(EXTRAS)]"
	touch $@
