# Thin: each line also works typed by hand.

PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do \
    $$python -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $$python && break; done)
BIN = .venv/bin
CYTHON_SOURCES = $(shell find gopher -name '*.pyx' -o -name '*.pxd')

.PHONY: test demo bench lint clean

test: .venv/installed
	$(BIN)/python -m pytest

demo: .venv/installed
	$(BIN)/python demo/demo.py

bench: .venv/installed
	$(BIN)/python benchmarks/run.py

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint gopher
	$(BIN)/codespell
	@# A performance hint means that code without the GIL takes it after all, to look for an exception.
	! $(BIN)/cython -3 -o build/ $(filter %.pyx,$(CYTHON_SOURCES)) 2>&1 | grep -A 9 'performance hint'

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find gopher -name '*.so' -delete

# The virtual environment with gopher (editable) and the tools; renewed when the build or the Cython code changes.
.venv/installed: pyproject.toml setup.py $(CYTHON_SOURCES)
	@test -n "$(PYTHON)" && $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || \
	    { echo 'gopher needs Python 3.10 or newer: apt install python3, or make PYTHON=/path/to/python3'; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo 'gopher needs the venv module of Python: apt install python3-venv'; exit 1; }
	@echo '#include <Python.h>' | $(CC) -E -I"$$($(PYTHON) -c 'import sysconfig as s; print(s.get_path("include"))')" - \
	    >/dev/null 2>&1 || \
	    { echo 'gopher needs a C compiler and the headers of Python: apt install gcc libc6-dev python3-dev'; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test,lint]'
	touch $@
