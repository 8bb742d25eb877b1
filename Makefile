# make demo: the whole pipeline on scikit-learn's digits, three seeds.  make test: tests and linters.
# make overhead: what a training step costs, in every variant (a quarter of an hour on a quiet machine).
# All make .venv and install into it what constraints.txt pins.
PYTHON ?= python3
BIN := .venv/bin
# waiting threads sleep instead of spinning: on a shared machine spinning slows everything down many times
export OMP_WAIT_POLICY ?= passive
# freed memory is kept for the next step instead of going back to the system (a third of a training step otherwise)
export MALLOC_MMAP_MAX_ ?= 0
export MALLOC_TRIM_THRESHOLD_ ?= 100000000000

.PHONY: demo test lint overhead clean

.venv/installed: constraints.txt setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .[dev]
	touch $@

demo: .venv/installed
	$(BIN)/dnas -m experiment=digits_demo seed=0,1,2

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2
	$(MAKE) lint

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

overhead: .venv/installed
	$(BIN)/python benchmarks/overhead.py

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
