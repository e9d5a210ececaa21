# Every target works on a fresh machine: it creates the virtual environment first.
VENV ?= .venv
PYTHON := $(VENV)/bin/python

.PHONY: setup demo test test-all bench lint

setup: $(VENV)/.done

$(VENV)/.done: requirements.lock
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --constraint requirements.lock torch==2.13.0
	$(PYTHON) -m pip install --quiet --no-deps --requirement requirements.lock
	touch $@

demo: setup
	$(PYTHON) -m finetune.demo

# the fast tests: under three minutes on two cores
test: setup
	$(PYTHON) -m pytest

# plus the tests that take minutes: killed runs, torchrun, browsers, the scripts from end to end
test-all: test
	$(PYTHON) -m pytest -m "full and not slow"

bench: setup
	$(PYTHON) -m benchmarks

lint: setup
	$(VENV)/bin/ruff check .
