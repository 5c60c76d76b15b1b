# make demo        the main job on real images, on this machine, nothing downloaded but packages
# make test        lint, types, and a real one of everything: a run, one killed and gone on with, a
#                  training, a comparison, a submitted job; under ten minutes on two cores
# make test-slow   the rest: nodes lost, S3, every method and backbone, long interruptions
# Each makes .venv first and installs the project into it; all work on a bare checkout.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow lint clean

demo: .venv/installed
	$(BIN)/python examples/make_demo_data.py runs/demo-data
	DATA=runs/demo-data OUTPUT=runs/demo $(BIN)/curate run examples/demo.yaml --fresh
	$(BIN)/curate report runs/demo

test: .venv/installed lint
	$(BIN)/python -m pytest -m "not slow" --durations=20

test-slow: .venv/installed
	$(BIN)/python -m pytest -m slow --durations=20

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv runs build *.egg-info
