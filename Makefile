# Everything lives in .venv: each target sets up what it needs there, from a bare checkout with Python, pip and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
INSTALL := $(PIP) install --constraint constraints.txt
PYTEST := $(BIN)/python -m pytest -n 2

# A stamp is newer than the files that say what to install, so nothing is installed twice.
READY := $(VENV)/.ready
BENCH_READY := $(VENV)/.ready-bench

.DEFAULT_GOAL := help
.PHONY: help setup setup-bench demo test test-all lint bench clean

help: ## show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

setup: $(READY) ## create .venv with the library, its training extra and the development tools

setup-bench: $(BENCH_READY) ## add the libraries that the benchmarks compare with

$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/pip || { \
		$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
			echo "odenet needs Python 3.11 or newer and '$(PYTHON)' is $$($(PYTHON) --version 2>&1);" \
				"name another: make PYTHON=python3.12 ..." >&2; exit 1; }; \
		$(PYTHON) -m venv $(VENV); }
	@echo "Installing the pinned packages into $(VENV) (once; a few minutes) ..."
	@$(INSTALL) pip setuptools
	@$(INSTALL) --no-build-isolation --editable '.[train,dev]'
	@touch $@

$(BENCH_READY): $(READY)
	@$(INSTALL) --no-build-isolation --editable '.[bench]'
	@touch $@

demo: $(READY) ## train a residual network and an ODE-Net on digits; figures and tables in runs/digits
	@rm -rf runs/digits
	$(BIN)/odenet compare digits --out runs/digits

test: $(READY) ## the tests, without those marked slow
	@$(PYTEST) -m "not slow"

test-all: $(READY) ## all tests, and new random cases
	@ODENET_NEW_CASES=1 $(PYTEST)

lint: $(READY) ## ruff's rules and format, and types with pyright
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --project pyproject.toml

bench: $(BENCH_READY) ## measure the gradients, and other libraries beside this one; results in benchmarks/results
	$(BIN)/odenet bench gradients --out benchmarks/results
	$(BIN)/odenet bench peers --out benchmarks/results

clean: ## remove caches and build products; .venv and runs/ stay
	rm -rf build dist src/*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests -type d -name __pycache__ -prune -exec rm -rf {} +
