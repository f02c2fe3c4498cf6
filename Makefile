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
.PHONY: help setup setup-bench demo test test-all test-matrix coverage mutation soak lint bench bench-quick clean

help: ## show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

setup: $(READY) ## create .venv with the library, its training extra and the development tools

setup-bench: $(BENCH_READY) ## run all benchmarks that need no GPU; results in benchmarks/results (hours)
	@set -e; for name in gradients peers precision front stiff; do \
		$(BIN)/python -m benchmarks $$name --out benchmarks/results; \
	done

bench-quick: $(READY) ## time small solves and compare them with the run before, which runs/speed has
	@$(BIN)/python -m pytest benchmarks/speed -p no:randomly --benchmark-storage=runs/speed --benchmark-autosave \
		--benchmark-columns=min,median,iqr,rounds --benchmark-group-by=func \
		$(if $(wildcard runs/speed/*/*.json),--benchmark-compare) $(SPEED)

clean: ## remove caches and build products; .venv and runs/ stay
	rm -rf build dist src/*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks -type d -name __pycache__ -prune -exec rm -rf {} +
