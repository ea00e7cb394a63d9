# Two commands do everything, set-up included: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint types format bench clean

$(VENV)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "lossscope needs Python 3.11 or newer; this is $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "== making a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/ready: $(VENV)/python pyproject.toml constraints.txt
	@echo "== installing lossscope and what it needs (the first time takes minutes: torch is large)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/ready-dev: $(VENV)/ready
	@echo "== installing the development extras"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(VENV)/ready
	@echo "== training three arms with three seeds each on handwritten digits, into runs/demo"
	@$(BIN)/lossscope demo --force

test: $(VENV)/ready-dev
	@echo "== running the tests (all but the slow ones)"
	@$(BIN)/python -m pytest -m "not slow" -n auto --dist loadfile

test-slow: $(VENV)/ready-dev
	@echo "== running the slow tests"
	@$(BIN)/python -m pytest -m slow

lint: $(VENV)/ready-dev
	@echo "== checking style"
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/ready-dev
	@echo "== checking types"
	@$(BIN)/mypy

format: $(VENV)/ready-dev
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

bench: $(VENV)/ready-dev
	@$(BIN)/python benchmarks/startup.py
	@$(BIN)/python benchmarks/step.py
	@$(BIN)/python benchmarks/grokking.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
