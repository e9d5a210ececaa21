# Every target works on a fresh machine: it creates the virtual environment first.
VENV ?= .venv
PYTHON := $(VENV)/bin/python

.PHONY: setup torch demo test test-all bench lint

setup: $(VENV)/.done

# pip reads its settings from make's command line too, such as a mirror of PyPI (files are checked by their hashes):
# make setup PIP_INDEX_URL=https://pypi.tuna.tsinghua.edu.cn/simple
$(VENV)/.done: requirements.lock requirements-cuda.lock
	@echo "installing into $(VENV) (about 200 MB to download, more with CUDA; some minutes)"
	@python3 -m venv $(VENV)
	@$(PYTHON) -m pip show --quiet torch 2> /dev/null || $(MAKE) --no-print-directory torch
	@$(PYTHON) -m pip install --quiet --no-deps --require-hashes --requirement requirements.lock
	@! $(PYTHON) -m pip show torch | grep -q nvidia-cudnn-cu13 || \
		$(PYTHON) -m pip install --quiet --no-deps --require-hashes --requirement requirements-cuda.lock
	@touch $@

# The build of torch that this machine's pip prefers, be it PyPI's or one without CUDA (a local version is the newer one to
# pip, but only in the absence of hashes: so they are compared here).
torch:
	@$(PYTHON) -m pip download --quiet --no-deps --dest $(VENV)/torch torch==2.13.0
	@$(PYTHON) -m pip hash $(VENV)/torch/*.whl | tail -n 1 | grep -qFf - requirements.lock || \
		{ echo "error: $(VENV)/torch: no build of torch that requirements.lock knows; install torch 2.13.0 into $(VENV) by hand"; exit 1; }
	@$(PYTHON) -m pip install --quiet --no-deps $(VENV)/torch/*.whl
	@rm -r $(VENV)/torch

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
