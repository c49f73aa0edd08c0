# README's commands. Each makes the virtual environment first if it is missing or out of date.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
export OMP_WAIT_POLICY := PASSIVE
export HF_HUB_OFFLINE ?= 1

INPUTS := pyproject.toml constraints.txt requirements-dev.txt $(wildcard plugins/*/pyproject.toml)

.PHONY: demo test lint bench clean

demo: $(VENV)/.installed
	$(BIN)/earec demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/align.py
	$(BIN)/python benchmarks/encode.py
	$(BIN)/python benchmarks/generate.py
	$(BIN)/python benchmarks/recommend.py
	$(BIN)/python benchmarks/compose.py

$(VENV)/.installed: $(INPUTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
