# Two commands do everything: `make demo` runs the main job on real data, `make test` checks the project.
# `make nightly` runs the tests with fresh random examples, many more of them, and the variants that `make test` leaves out: hours.
# `make docs` builds the pages for reading in site/, and `make docs-serve` shows them at http://127.0.0.1:8000.
# Each makes .venv by itself when it is missing.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint types floors schemas reference docs docs-serve unit nightly package clean

demo: .venv/ready
	$(BIN)/sparsify apply recipes/digits-cnn.yaml --from-scratch --out runs

test: lint types floors unit

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/ready
	$(BIN)/mypy

floors: .venv/ready
	$(BIN)/lint-imports --no-cache

schemas: .venv/ready
	$(BIN)/python -m sparsify_schemas

# Pages and pictures that are made from the program, its reports and its tables; a test refuses stale ones.
reference: .venv/ready
	$(BIN)/python docs/scripts/reference_pages.py
	$(BIN)/python docs/scripts/report_picture.py
	$(BIN)/python docs/scripts/repair_picture.py
	$(BIN)/python docs/scripts/study_page.py

docs: .venv/ready
	$(BIN)/mkdocs build --strict

docs-serve: .venv/ready
	$(BIN)/mkdocs serve

unit: .venv/ready
	$(BIN)/pytest -n 2

nightly: .venv/ready
	NIGHTLY=1 $(BIN)/pytest -n 2

package: .venv/ready
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[demo,dev,docs,zoo]'
	touch $@

clean:
	rm -rf .venv dist runs site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
