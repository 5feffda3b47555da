# make demo: two small real models, compiled and run.   make test: everything that must hold.   Both need python3 with venv, nothing else
# (make test installs a C compiler where there is none and it may).

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMPS := $(VENV)/stamps
PIP    := $(BIN)/python -m pip --disable-pip-version-check
MODELS := .cache/models
LLAMA := .cache/llama.cpp
TORCH  := torch==2.13.0
JOBS   ?= 2
BENCH  ?=

# The pinned versions belong to one Python; with another one pip chooses.
PINS := $(shell $(PYTHON) -c 'import sys; print("-c constraints.txt" * (sys.version_info[:2] == (3, 11)))' 2>/dev/null)

.PHONY: help venv dev model models llama.cpp demo test test-long lint docs bench clean
.DELETE_ON_ERROR:

help:
	@echo "make demo       compile two small real models: sentences compared, a question answered"
	@echo "make test       lint, types and the test suite"
	@echo "make test-long  the tests that take minutes"
	@echo "make lint       ruff and mypy alone"
	@echo "make docs       rewrite the pages of docs/ that come from tables in the code"
	@echo "make bench      the table of all bars, against peers (BENCH=--quick: a part of it; tfc bench --help)"
	@echo "make venv       $(VENV) with the project, installed editable"
	@echo "make dev        the same with torch and the test tools"
	@echo "make model      the small real model, into $(MODELS)/minilm (make models: also a decoder, into $(MODELS)/smollm2)"
	@echo "make clean      remove $(VENV), .cache and what tools leave behind"

$(STAMPS)/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "Python 3.10 or newer is needed: make PYTHON=…")'
	$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/project: pyproject.toml constraints.txt $(STAMPS)/python
	$(PIP) install --quiet $(PINS) -e '.[hf]'
	@touch $@

# torch first and alone: this version is a CPU build; a resolver left to itself may choose one with gigabytes of CUDA.
$(STAMPS)/torch: $(STAMPS)/project
	$(PIP) install --quiet $(PINS) $(TORCH)
	@touch $@

$(STAMPS)/test: $(STAMPS)/torch
	$(PIP) install --quiet $(PINS) -e '.[hf,test]'
	@touch $@

$(STAMPS)/peers: $(STAMPS)/torch
	$(PIP) install --quiet $(PINS) -e '.[hf,peers]'
	@touch $@

$(MODELS)/minilm/.complete: $(STAMPS)/project trustformers_ir/tools/fetch.py
	$(BIN)/python -m trustformers_ir.tools.fetch minilm --into $(MODELS)

$(MODELS)/smollm2/.complete: $(STAMPS)/project trustformers_ir/tools/fetch.py
	$(BIN)/python -m trustformers_ir.tools.fetch smollm2 --into $(MODELS)

venv: $(STAMPS)/project

dev: $(STAMPS)/test

model: $(MODELS)/minilm/.complete

models: model $(MODELS)/smollm2/.complete

demo: venv models
	$(BIN)/python -m trustformers_ir.tools.demo
	$(BIN)/python -m trustformers_ir.tools.demo_text

# The shared libraries of llama.cpp, with code for every CPU: a peer in measurements, not needed for anything else.
llama.cpp: $(LLAMA)/.complete

$(LLAMA)/.complete:
	@mkdir -p $(LLAMA)
	cd $(LLAMA) && npm pack --silent @node-llama-cpp/linux-x64@3.22.1 && tar xzf *.tgz --strip-components=3 package/bins/linux-x64 && rm *.tgz
	@touch $@

lint: $(STAMPS)/test
	$(BIN)/ruff check .
	$(BIN)/mypy

# The tests of C libraries want a C compiler, and skip without one.
$(STAMPS)/cc:
	@command -v cc >/dev/null || { command -v apt-get >/dev/null && apt-get update -qq && apt-get install -qq -y --no-install-recommends \
		gcc libc6-dev make >/dev/null; } || echo "no C compiler, and none could be installed: tests of C libraries are skipped"
	@mkdir -p $(STAMPS) && touch $@

test: lint models $(STAMPS)/cc
	$(BIN)/python -m pytest -n $(JOBS)

test-long: $(STAMPS)/test models $(STAMPS)/cc
	$(BIN)/python -m pytest -n $(JOBS) -m long

docs: venv
	$(BIN)/python -m trustformers_ir.tools.docs

bench: $(STAMPS)/peers model
	$(BIN)/tfc bench $(BENCH)

clean:
	rm -rf $(VENV) .cache build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
