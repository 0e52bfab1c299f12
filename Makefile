# Two commands do everything: `make demo` runs the main job on real data, `make test` checks the project.
# `make nightly` runs the tests with fresh random examples, many more of them, and the variants that `make test` leaves out: hours.
# Each makes .venv by itself when it is missing.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint types floors schemas unit nightly clean

demo: .venv/ready
	$(BIN)/sparsify apply recipes/digits-cnn.yaml --from-scratch --out runs

test: lint types floors unit

lint: .venv/ready
	$(BIN)/ruff check .

types: .venv/ready
	$(BIN)/mypy

floors: .venv/ready
	$(BIN)/lint-imports --no-cache

schemas: .venv/ready
	$(BIN)/python -m sparsify_schemas

unit: .venv/ready
	$(BIN)/pytest -n 2 --dist worksteal

nightly: .venv/ready
	NIGHTLY=1 $(BIN)/pytest -n 2 --dist worksteal

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[demo,dev,zoo]'
	touch $@

clean:
	rm -rf .venv runs .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
