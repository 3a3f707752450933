# Each target works as the first command after a clone and needs python3 alone.
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2

PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
TOOLS := $(VENV)/.tools
# Twice quiet: errors alone. Python compiles what it imports, which is the smaller part.
PIP_INSTALL := $(PY) -m pip install -qq --no-compile --disable-pip-version-check

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint wheel-check clean

help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

demo: $(INSTALLED) ## Compare federated algorithms on the handwritten digits.
	$(PY) -m algorithms compare configs/digits_server_step.toml --overwrite

test: $(INSTALLED) ## Run all tests, the slow ones too, and the examples in docstrings.
	$(PY) -m pytest tests fad --doctest-modules -n $(JOBS)

lint: $(TOOLS) ## Run ruff and pyright at their pinned versions.
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright --pythonpath $(PY)

wheel-check: $(TOOLS) ## Build the wheel and use it from outside the checkout.
	$(PY) .ci/wheel_check.py

clean: ## Remove the environments, the builds and the caches, but not runs/.
	rm -rf $(VENV) .venv-newest .benchmarks build dist *.egg-info .cache .hypothesis .pytest_cache .ruff_cache
	find fad algorithms tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so that an interrupted installation is done again; and into
# a cleared folder, so that what it left behind does no harm.
$(INSTALLED): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "fad needs Python 3.11 or newer, but $(PYTHON) is: $$($(PYTHON) --version 2>&1)"; \
	  echo "Name a newer one, for example: PYTHON=python3.12 make $(MAKECMDGOALS)"; \
	  exit 1; }
	@echo "Installing fad and what it needs into $(VENV); this takes some minutes."
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP_INSTALL) --upgrade pip
	@$(PIP_INSTALL) --editable '.[experiments,data,private,test]'
	@touch $@

$(TOOLS): $(INSTALLED)
	@echo "Installing the pinned tools into $(VENV)."
	@$(PIP_INSTALL) --group dev
	@touch $@
