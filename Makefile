# `make demo` and `make test` set up everything they need in .venv; Python 3.11+, git and make are enough.

PYTHON ?= python3
BIN = .venv/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint bench clean

demo: .venv/ready-plot
	$(BIN)/python examples/demo.py --folder demo

# One torch thread for each of the two workers; scikit-learn checks its array API only if told to.
test: .venv/ready-test
	SCIPY_ARRAY_API=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: .venv/ready-test
	$(PIP) ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: .venv/ready-test
	$(BIN)/python benchmarks/speed.py --pairs 15
	$(BIN)/python benchmarks/speed.py --memory

clean:
	rm -rf .venv demo build *.egg-info

.venv/ready-%: pyproject.toml constraints.txt | .venv/python
	$(PIP) torch
	$(PIP) --editable ".[$*]"
	touch $@

.venv/python:
	$(PYTHON) -m venv .venv
	touch $@
