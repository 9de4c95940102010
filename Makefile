# make install | serve | test | test-slow | check | bench: nothing else to remember.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=

# A server that may not write bytecode compiles every module at every start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install serve test test-slow check format bench bench-peers clean

help:
	@echo "make install    make $(VENV) with pinned dependencies"
	@echo "make serve      serve the models of models.yaml on 127.0.0.1:8000 (ARGS='--port 8080' to change)"
	@echo "make test       the test suite, under 10 minutes"
	@echo "make test-slow  full counts and long runs"
	@echo "make check      ruff, mypy, import layers"
	@echo "make bench      throughput at 1, 4, 16 and 32 streams, and what HTTP costs, against servers of its own"
	@echo "make bench-peers  the same load on HelixFlow and on other servers, which it installs"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "HelixFlow needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip -c constraints.txt
	$(BIN)/python -m pip install --progress-bar on -c constraints.txt -e '.[dev]'
	$(BIN)/python -m compileall -q inference_server
	$(BIN)/python -m inference_server.execution.native.precompile
	@touch $@

serve: $(STAMP)
	@exec $(BIN)/helixflow serve $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest $(ARGS)

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow $(ARGS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-peers: $(STAMP)
	$(BIN)/python -m benchmarks.peers $(ARGS)

bench: $(STAMP)
	$(BIN)/python -m benchmarks.serve_levels $(ARGS)
	$(BIN)/python -m benchmarks.http_cost

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
