# Needs Python 3.11, make and git; everything else is installed into .venv by the first command.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := dev,bnb,xformers,optim,lycoris,parquet,search,cluster
READY := $(VENV)/.ready-train
READY_DEV := $(VENV)/.ready-dev

.PHONY: help train test test-slow check smoke bench evidence docs setup clean

help:                ## show this list
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

train: $(READY)      ## train the default experiment; ARGS="optimizer.lr=3e-4" overrides
	@$(BIN)/python train.py $(ARGS)

test: $(READY_DEV)   ## the default test suite
	@$(BIN)/python -m pytest -n 2 $(ARGS)

test-slow: $(READY_DEV) ## every test
	@$(BIN)/python -m pytest -n 2 -m "slow or not slow" $(ARGS)

check: $(READY_DEV)  ## style and types
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy src

smoke: $(READY)      ## ten steps: does everything run?
	@$(BIN)/python train.py experiment=smoke $(ARGS)

bench: $(READY_DEV)  ## speed and memory beside a bare floor; writes benchmarks/RESULTS.md
	@$(BIN)/python benchmarks/bench.py $(ARGS)

evidence: $(READY_DEV) ## rerun what the documentation claims; writes docs/evidence.md
	@$(BIN)/python benchmarks/evidence.py $(ARGS)

docs: $(READY_DEV)   ## regenerate docs/config.md and docs/settings.md
	@$(BIN)/python -m loralab.app.reference > docs/config.md
	@$(BIN)/python -m loralab.app.settings_reference > docs/settings.md

setup: $(READY_DEV)  ## the full environment, for development

$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed; set PYTHON=/path/to/python3.11."; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade -c constraints.txt pip

$(READY): pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing loralab into $(VENV) (a few minutes, once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(READY_DEV): pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing loralab and its development tools into $(VENV) (a few minutes, once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	@touch $(READY) $@

clean:               ## remove the environment
	rm -rf $(VENV)
