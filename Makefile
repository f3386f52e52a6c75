# mpsearch: `make help` lists what can be made.

PYTHON ?= python3
WORKERS ?= 2

BIN := .venv/bin
READY := .venv/.ready
DIST := build/dist
LOG := build/log

# One thread a process: the figures repeat, and the test workers do not fight over cores.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo test lint check clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 8

demo: $(READY) ## search bits for a small trained network, measure them, write bits.json and report.html
	@$(BIN)/mpsearch demo

test: $(READY) ## run the tests
	@$(BIN)/pytest -n $(WORKERS) --dist loadgroup

lint: $(READY) ## format, lint, types, import contracts, wheel
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo
	@rm -rf $(DIST) && mkdir -p $(DIST)
	$(BIN)/python -m build --no-isolation --outdir $(DIST) . >$(LOG) 2>&1 || { cat $(LOG); exit 1; }
	$(BIN)/check-wheel-contents $(DIST)

check: lint test ## everything that must hold before a commit

clean: ## remove the environment, caches and what was built
	rm -rf .venv build dist *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt setup.py $(wildcard mpsearch/kernels/native/*)
	@echo "Setting up .venv (once, a few minutes)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install -qq --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@
