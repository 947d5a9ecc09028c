# Needs make, bash and a Python of at least 3.10; everything else goes into .venv.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-dev
TEST_ARGS ?=
BENCH_ARGS ?=

.PHONY: help demo test test-oldest test-newest coverage lint format bench reproduce reproduce-training clean

help: ## Show this list
	@echo "make <target>; the first one to need it creates $(VENV) and installs the package into it."
	@awk -F ':.*## ' '/^[a-z -]+:.*## / { printf "  make %-24s %s\n", $$1, $$2 }' Makefile
	@echo "  PYTHON=python3.12 chooses the Python for $(VENV); TEST_ARGS and BENCH_ARGS are passed on."

demo: $(STAMP) ## Run the demo on the small model inside the package
	@$(BIN)/medusa demo

# Each test process computes on one thread: several processes with several threads each slow each other down.
test: $(STAMP) ## Run all tests, the slow ones too
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n auto --maxprocesses=8 --dist worksteal $(TEST_ARGS)

test-oldest test-newest: test-%: ## Run all tests with the oldest or the newest versions of the libraries
	@bash scripts/test-versions.sh $* $(TEST_ARGS)

coverage: $(STAMP) ## Run all tests and list the lines that none of them runs
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n auto --maxprocesses=8 --dist worksteal \
		--cov=medusa --cov-report=term-missing:skip-covered $(TEST_ARGS)

lint: $(STAMP) ## Check style, formatting and types
	@echo "ruff check"; $(BIN)/ruff check .
	@echo "ruff format --check"; $(BIN)/ruff format --check .
	@echo "mypy"; $(BIN)/mypy

format: $(STAMP) ## Format the code and mend what ruff can mend
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

bench: $(STAMP) ## Measure speed on this machine
	@$(BIN)/python -m benchmarks.speed $(BENCH_ARGS)

reproduce: $(STAMP) ## Measure the paper's tables and figures, and write docs/paper.md
	@$(BIN)/python -m benchmarks.reproduce $(BENCH_ARGS)

reproduce-training: $(STAMP) ## Train the embedded model in all ways and compare them: tables 2 and 3 of the paper
	@$(BIN)/python -m benchmarks.training $(BENCH_ARGS)

clean: ## Delete .venv, caches and build outputs
	rm -rf $(VENV) .venv-oldest .venv-newest build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks tools scripts deploy -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt scripts/create-venv.sh scripts/install-torch.sh
	@PYTHON="$(PYTHON)" bash scripts/create-venv.sh $(VENV)
	@bash scripts/install-torch.sh $(VENV)
	@echo "Installing the package with its development tools into $(VENV)"
	@$(BIN)/python -m pip install -c $(VENV)/constraints.txt -e '.[dev]'
	@touch $@
