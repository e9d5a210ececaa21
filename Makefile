# Each target works alone on a fresh machine: it makes the virtual environment first.
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

# what a user runs: under 90 seconds on two cores
test: setup
	$(PYTHON) -m pytest

# and then what takes minutes: runs that are killed, torchrun, browsers, the scripts from end to end
test-all: test
	$(PYTHON) -m pytest -m "full and not slow"

bench: setup
	$(PYTHON) -m benchmarks

lint: setup
	$(VENV)/bin/ruff check .
