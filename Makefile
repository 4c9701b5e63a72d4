# make demo | test | check | build | bench | lint | format | conformance | test-wheels | clean
#
#   TORCH='torch==2.14.1'    which torch the environment gets       VENV=none   use the current environment as it is
#   PYTEST_ARGS='-k causal'  what pytest is told                    MAX_JOBS=2  compile jobs
#   FLAGATTN_CUDA=OFF        build without CUDA              DATA=path   what make demo trains on
TORCH ?= torch==2.13.0
VENV ?= .venv
PYTEST_ARGS ?=
DATA ?=
DEMO_ARGS ?= $(if $(DATA),--data '$(DATA)')
BENCH_ARGS ?=
SHELL := /bin/bash
export FLAGATTN_WERROR ?= ON
.DEFAULT_GOAL := build

# The environment: torch comes first and alone, so that nothing else chooses another one.
ifeq ($(VENV),none)
PYTHON := python3
CLANG_FORMAT := clang-format
ENVIRONMENT :=
else
PYTHON := $(VENV)/bin/python
CLANG_FORMAT := $(VENV)/bin/clang-format
# Made anew where TORCH or the requirements in pyproject.toml differ from those it was made for.
REQUIREMENTS := $(shell sed '/^\[tool/,$$d' pyproject.toml | cksum | cut -d ' ' -f 1)
ENVIRONMENT := $(VENV)/.ready-$(subst /,_,$(subst =,_,$(TORCH)))-$(REQUIREMENTS)
endif

$(VENV)/.ready-%:
	@mkdir -p build
	@flock build/.environment.lock $(MAKE) --no-print-directory environment

.PHONY: environment build test check demo bench lint format conformance conformance-arguments test-wheels clean
environment:
	@python3 -c 'import ensurepip, venv' 2>/dev/null || { echo "flagattn: python3-venv is missing; on Debian or Ubuntu run 'apt install python3-venv g++ make'." >&2; exit 1; }
	test -x $(PYTHON) || python3 -m venv $(VENV)
	$(PYTHON) -m pip install -q --disable-pip-version-check '$(TORCH)' 'setuptools>=77' cmake ninja
	$(PYTHON) -m pip install -q --disable-pip-version-check --no-build-isolation -e '.[dev]'
	@rm -f $(VENV)/.ready-*
	@touch $(ENVIRONMENT)

# Configures, compiles what changed and links the libraries into flagattn/; safe to run twice at once.
build: $(ENVIRONMENT)
	@$(PYTHON) setup.py -q build_ext --inplace

test: build
	$(PYTHON) -m pytest $(PYTEST_ARGS)

# Everything; pytest's summary comes last. Benches run each case once, for correctness.
check: build lint
	$(PYTHON) -m pytest tests $(wildcard bench) $(PYTEST_ARGS)

demo: build
	$(PYTHON) -m aquila2.cli demo $(DEMO_ARGS)

# Measures and writes bench/results/<machine>/; BENCH_ARGS='attention -k causal' measures a part (docs/benchmarks.md).
bench: build
	$(PYTHON) -m bench $(BENCH_ARGS)

CPP_FILES = $(shell find csrc tests bench -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
PYTHON_FILES = $(wildcard setup.py flagattn aquila2 tests bench docs/*.py)
lint: $(ENVIRONMENT)
	$(PYTHON) -m ruff check $(PYTHON_FILES)
	$(PYTHON) -m ruff format --check $(PYTHON_FILES)
	$(PYTHON) -m mypy
	@$(CLANG_FORMAT) --dry-run --Werror $(CPP_FILES)

format: $(ENVIRONMENT)
	$(PYTHON) -m ruff check --fix-only -q $(PYTHON_FILES)
	$(PYTHON) -m ruff format -q $(PYTHON_FILES)
	@$(CLANG_FORMAT) -i $(CPP_FILES)

# Other projects' own tests, from a checkout, on the CPU: make conformance SUITE=flash-attention SRC=folder CASES=1000
SUITE ?= flash-attention
SRC ?=
CASES ?= 1000
SUITES := flash-attention flash-attention-3 flag-attention liger
conformance: conformance-arguments build
	$(PYTHON) -m flagattn.testing.conformance --suite $(SUITE) --src '$(SRC)' --cases $(CASES) $(CONFORMANCE_ARGS)

conformance-arguments:
	@$(if $(filter $(SUITES),$(SUITE)),,echo "SUITE is '$(SUITE)'; it must be one of $(SUITES)" >&2; exit 1)
	@test -d '$(SRC)' || { echo "SRC is '$(SRC)'; it must be the folder of a checkout of $(SUITE)" >&2; exit 1; }

# Downloads gigabytes: the wheel built against one torch is loaded and run under another.
test-wheels: build
	$(PYTHON) -m pytest tests/build/test_wheels.py -m slow $(PYTEST_ARGS)

clean:
	rm -rf build flagattn/_C.so flagattn/_C_cuda.so
