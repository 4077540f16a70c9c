# Two commands for a fresh machine: `make demo` and `make test`. Both make .venv and install into it first.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
export TOKENIZERS_PARALLELISM = false

.PHONY: demo test lint install clean

demo: $(INSTALLED)
	$(BIN)/python examples/demo.py

# One thread a worker: more threads than cores wait for each other, which makes small networks many times slower.
test: export OMP_NUM_THREADS = 1
test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -q --durations=25
	LIMBECK_SHAPE_CHECKS=0 $(BIN)/python -m pytest -n 2 -q -m compile --durations=10

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs
