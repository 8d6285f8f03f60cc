# Every target sets up what it needs in .venv; Python 3.11+ and make are enough.

PYTHON ?= python3
BIN = .venv/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test quick budget test-browser test-oldest docs lint bench clean

demo: .venv/ready-plot
	$(BIN)/python examples/demo.py --folder demo

# One torch thread for each of the two workers; scikit-learn checks its array API only if told to.
PYTEST = SCIPY_ARRAY_API=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test: .venv/ready-test
	$(PYTEST)

# Without the tests that train until something is learned.
quick: .venv/ready-test
	$(PYTEST) -m "not learning and not study"

# Fails where tests take more CPU time than BUDGET in tests/conftest.py.
budget: .venv/ready-test
	$(PYTEST) --budget

# The report in Debian's Chromium (packages chromium and chromium-driver).
test-browser: .venv/ready-test
	$(PIP) selenium
	$(BIN)/python -m pytest tests/browser/report.py

# The oldest versions that pyproject.toml promises; what they warn of is not an error.
test-oldest: .venv-oldest/ready
	SCIPY_ARRAY_API=1 OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -n 2 -W default

lint: .venv/ready-test
	$(PIP) ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Examples run in two processes of one torch thread each; doc/_build/html/index.html is the start page.
docs: .venv/ready-doc
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W --keep-going -q -b html doc doc/_build/html

# A short form, to see that it works; the figures in benchmarks/results come from the commands written there.
bench: .venv/ready-test
	$(BIN)/python benchmarks/accuracy.py --seeds 1 --epochs 3 --sets cxr_pneumonia_64 --results build/bench
	$(BIN)/python benchmarks/speed.py --pairs 3
	$(BIN)/python benchmarks/speed.py --memory --images 3000

clean:
	rm -rf .venv .venv-oldest demo build doc/_build doc/api doc/gallery doc/methods.rst doc/guide/false_alarms.inc *.egg-info

.venv/ready-%: pyproject.toml constraints.txt | .venv/python
	$(PIP) torch
	$(PIP) --editable ".[$*]"
	touch $@

.venv/python:
	$(PYTHON) -m venv .venv
	touch $@

.venv-oldest/ready: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints-oldest.txt --editable ".[test]"
	touch $@
