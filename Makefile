# Everything a machine with Python 3.11 or later and make needs: each target does the set-up that it lacks.
#
#   PYTHON    the interpreter that the environment is made with (default: the first suitable one on the PATH)
#   VENV      where the environment lives (default: .venv)
#   PIP_ARGS  options added to every `pip install`, for instance an index that has CPU builds of torch
#   ARGS      options added to pytest, or to `recon demo`
#   JOBS      processes that share the tests (default: one for each core, at most 4)

VENV ?= .venv
PIP_ARGS ?=
JOBS ?= auto --maxprocesses 4
ARGS ?=

SUITABLE := import sys, venv; sys.exit(sys.version_info < (3, 11))
CANDIDATES := python3 python3.14 python3.13 python3.12 python3.11 python
PYTHON ?= $(firstword $(shell for p in $(CANDIDATES); do "$$p" -c '$(SUITABLE)' 2>/dev/null && echo "$$p" && break; done) python3)

STAMP := $(VENV)/.installed
SOURCES := $(wildcard models/regularizers/kernels/native/*.* models/regularizers/kernels/native/network/* \
    recon/lower_level/solvers/total_variation/*.cpp recon/lower_level/solvers/compiled/*pp \
    recon/operators/tomography/matrix/*.cpp)
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help install demo test lint format clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*##  *\(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{ printf "%-16s %s\n", $$1, $$2 }'

install: $(STAMP)  ## make the environment (done once, and again when pyproject.toml, constraints.txt or C++ sources change)

# setuptools comes from the locked versions too, so that nothing of the installation is left to the day it runs on.
$(STAMP): pyproject.toml constraints.txt $(SOURCES)
	@"$(PYTHON)" -c '$(SUITABLE)' || { echo "Python 3.11 or later with its venv module is needed; '$(PYTHON)' is not. Set PYTHON=/path/to/python3." >&2; exit 1; }
	"$(PYTHON)" -m venv "$(VENV)"
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt setuptools
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt --no-build-isolation -e '.[dev]'
	@touch "$@"

demo: $(STAMP)  ## learn regularizers from built-in images, denoise others, write pictures and a table to demo/
	"$(BIN)/recon" demo --output demo $(ARGS)

test: $(STAMP)  ## run the tests
	"$(BIN)/python" -m pytest -n $(JOBS) $(ARGS)

lint: $(STAMP)  ## check style, types and the layers of the imports
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .
	"$(BIN)/mypy"
	"$(BIN)/lint-imports"

format: $(STAMP)  ## bring the code into the project's format
	"$(BIN)/ruff" format .
	"$(BIN)/ruff" check --fix .

clean:  ## remove caches and the output of the demo, but not the environment
	rm -rf demo .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build ./*.egg-info
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
