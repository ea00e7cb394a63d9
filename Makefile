# Two commands do everything, set-up included: `make demo` and `make test`.
PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
# A Python of your choice (`make test PYTHON=python3.12`) gets an environment of its own, here .venv-3.12.
VENV := .venv$(if $(filter-out python3,$(PYTHON)),-$(VERSION))
BIN := $(VENV)/bin
BUILT := $(firstword $(shell sed -n 's/^version[_info]* = \([0-9]*\.[0-9]*\).*/\1/p' $(VENV)/pyvenv.cfg 2>/dev/null))

.PHONY: demo test test-slow browser-test integration-test lint types format docs bench wheel clean

# An environment of another Python is never reused: its recipe then runs although the file is there.
ifneq ($(BUILT),$(VERSION))
.PHONY: $(VENV)/python
endif

$(VENV)/python:
	@test -n "$(VERSION)" || { echo "$(PYTHON) is not a Python that runs here. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "lossscope needs Python 3.11 or newer, got $(VERSION). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -z "$(BUILT)" || echo "== replacing $(VENV): it has Python $(BUILT), and $(PYTHON) is Python $(VERSION)"
	@echo "== making a virtual environment with Python $(VERSION) in $(VENV)"
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/ready: $(VENV)/python pyproject.toml constraints.txt
	@echo "== installing lossscope and its dependencies (the first time takes minutes: torch is large)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/ready-dev: $(VENV)/ready
	@echo "== installing the development extras"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

$(VENV)/ready-docs: $(VENV)/ready-dev
	@echo "== installing what the documentation is built with"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

demo: $(VENV)/ready
	@echo "== training three arms with six seeds each on handwritten digits, into runs/demo"
	@$(BIN)/lossscope demo --force

test: $(VENV)/ready-dev
	@echo "== running the tests (all but the slow ones)"
	@$(BIN)/python -m pytest -m "not slow" -n auto --dist loadfile

test-slow: $(VENV)/ready-dev
	@echo "== running the slow tests"
	@$(BIN)/python -m pytest -m slow

CHROMIUM := $(firstword $(foreach name,chromium chromium-browser google-chrome,$(shell command -v $(name))))

$(VENV)/ready-browser: $(VENV)/ready-dev
	@echo "== installing what drives Chromium"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[browser]'
	@touch $@

browser-test: $(if $(CHROMIUM),$(VENV)/ready-browser)
ifdef CHROMIUM
	@echo "== opening the pages of reports in $(CHROMIUM); screenshots are in .browser"
	@$(BIN)/python -m pytest tests/browser
else
	@echo "== SKIPPED: browser-test needs Chromium (apt-get install chromium), and none is here"
endif

# Trainers of other packages get an environment of their own: they bring much, and the development extras bring
# a torchvision that does not fit a torch without CUDA, with which none of them starts.
OTHERS := .venv-integrations

$(OTHERS)/ready: $(VENV)/python pyproject.toml constraints.txt
	@echo "== making an environment with the trainers of other packages in $(OTHERS)"
	@test -x $(OTHERS)/bin/python || $(BIN)/python -m venv $(OTHERS)
	@$(OTHERS)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[integrations-test]'
	@touch $@

integration-test: $(OTHERS)/ready
	@echo "== recording in the trainers of other packages"
	@$(OTHERS)/bin/python -m pytest tests/integrations

lint: $(VENV)/ready-dev
	@echo "== checking style"
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/ready-dev
	@echo "== checking types"
	@$(BIN)/mypy

format: $(VENV)/ready-dev
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

docs: $(VENV)/ready-docs
	@echo "== building the documentation into site/"
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@LOSSSCOPE_SITE=site $(BIN)/python -m pytest tests/test_site.py
	@echo "open site/index.html; with search: $(PYTHON) -m http.server --bind 127.0.0.1 --directory site"

bench: $(VENV)/ready-dev
	@$(BIN)/python benchmarks/startup.py
	@$(BIN)/python benchmarks/step.py
	@$(BIN)/python benchmarks/grokking.py
	@$(BIN)/python benchmarks/ablation.py

wheel: $(VENV)/ready-dev
	@echo "== building a wheel into dist, installing it into an empty environment, recording two steps with it"
	@.ci/wheel $(BIN)/python

clean:
	rm -rf .venv .venv-* build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
