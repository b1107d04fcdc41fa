# Two commands do everything on a fresh Debian 12: `make demo` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
export PATH := $(PATH):/usr/sbin:/sbin
BIN := .venv/bin
PACKAGES := foundation guest workflows activities machines storage api worker client cli
# Tests without machines, which run on every processor; those with machines fill the host one at a time.
MACHINELESS := tests/unit tests/integration tests/dialects
CHECKED := $(PACKAGES) tests $(wildcard benchmarks examples)

.DEFAULT_GOAL := help
.PHONY: help setup demo test check up client image bench docs clean requirements

help: ## This list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | awk -F'\t' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: ## Install what is missing: OS packages and the virtual environment
	@setup/install

demo: setup ## Watch one task run from submission to artifacts, in a real virtual machine
	@$(BIN)/sandbox demo

test: check image client ## The whole suite: checks, then unit, integration and end-to-end tests
	@failed=0; $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadscope $(MACHINELESS) || failed=1; \
		$(BIN)/python -m pytest tests/e2e || failed=1; exit $$failed

check: setup ## Lint, format, types and the direction of imports; no tests
	@$(BIN)/ruff check $(CHECKED)
	@$(BIN)/ruff format --check $(CHECKED)
	@$(BIN)/mypy
	@$(BIN)/lint-imports

up: setup ## The whole stack in the foreground until Ctrl-C
	@exec $(BIN)/sandbox up

client: setup ## Fetch the published client of the task-runs API that tests run, if it is not there
	@setup/fetch-test-client >/dev/null

image: setup ## Build the guest image if it is not there
	@$(BIN)/sandbox image build

bench: setup ## Measure what docs/performance.md reports
	@$(BIN)/python -m benchmarks

docs: setup ## Write what docs/ tells of commands and settings anew
	@$(BIN)/python -m cli.reference

clean: ## Remove what Taskyard made on this host, except OS packages
	@if [ -x $(BIN)/sandbox ]; then $(BIN)/sandbox clean --yes; fi
	@rm -rf .venv .venv-install.log .venv-install.lock .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build
	@find $(PACKAGES) tests -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "Removed .venv and caches. OS packages stay; setup/install names the ones it may have added."

# Only the public index is asked, so that the hashes are those of any machine.
requirements: setup ## Pin all dependencies of pyproject.toml with their hashes
	@env -u PIP_FIND_LINKS -u PIP_EXTRA_INDEX_URL PIP_CONFIG_FILE=/dev/null CUSTOM_COMPILE_COMMAND="make requirements" \
		$(BIN)/pip-compile --quiet --extra dev --generate-hashes --allow-unsafe --strip-extras \
		--no-emit-index-url --no-emit-find-links --no-emit-trusted-host --output-file requirements.txt pyproject.toml
