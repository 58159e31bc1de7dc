# The only needs are Python 3.11+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help install demo test test-long fuzz lint bench docs clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

install: $(STAMP)  ## make the virtual environment .venv

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q uv
	$(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e '.[dev]'
	touch $(STAMP)

demo: install  ## run the whole pipeline on a local Apache Kafka: make demo ARGS="--seconds 60"
	$(BIN)/stream-app demo $(ARGS)

test: install  ## the whole default test suite, two files at a time
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

fuzz: install  ## a million seeded byte strings through the decoders: FUZZ_SEED=7 make fuzz
	$(BIN)/python -m pytest -s tests/events/test_fuzz.py $(ARGS)

test-long: install  ## chaos runs of the variants that are broken on purpose
	$(BIN)/python -m pytest -m long $(ARGS)

lint: install  ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy benchmarks

check-deploy: install  ## deploy/, images, compose file and pages, each through its own validator
	$(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e '.[deploy]'
	$(BIN)/python -m tests.deploy.tools
	$(BIN)/python -m pytest -m deploy $(ARGS)

bench: install  ## against what one would use instead, quickly: make bench ARGS="--parts state --summary FILE"
	$(BIN)/python benchmarks/suite.py --quick $(ARGS)

chaos: install  ## break workers, broker, network and disks on purpose: make chaos ARGS="--faults 200 --seed 1"
	$(BIN)/stream-app chaos $(ARGS)

docs: install  ## regenerate the reference pages under docs/
	$(BIN)/python -m stream_app.docs

clean:  ## remove what install and the demo made
	rm -rf $(VENV) .demo .bench
