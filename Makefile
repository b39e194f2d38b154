# Thin: each line also works typed by hand.

PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do \
    $$python -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $$python && break; done)
BIN = .venv/bin
CYTHON_FILES = $(shell find gopher -name '*.pyx' -o -name '*.pxd')
# And the Python modules that a .pxd beside them makes typed.
CYTHON_SOURCES = $(CYTHON_FILES) $(wildcard $(patsubst %.pxd,%.py,$(filter %.pxd,$(CYTHON_FILES))))
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' gopher/__init__.py)
SDIST = dist/gopher_mirror-$(VERSION).tar.gz
# Its name says which Python and which systems it is for, so it is known when it is there; the other one never is.
WHEEL = $(or $(firstword $(wildcard dist/gopher_mirror-$(VERSION)-*.whl)),dist/gopher_mirror-$(VERSION).whl)
# What is in them. Most of an sdist is not in the wheel, which takes the longer to build.
in_folders = $(sort $(shell find $(1) -name __pycache__ -prune -o -path packaging/generated -prune -o -type f ! -name '*.so' -print))
WHEEL_FILES = LICENSE MANIFEST.in README.md pyproject.toml setup.py packaging/host_files.py $(call in_folders,gopher)
SDIST_FILES = $(WHEEL_FILES) .dockerignore CHANGELOG.md Dockerfile Makefile \
    $(call in_folders,benchmarks demo docs packaging tests)
CLANG = clang
TARGET = reassembler
SECONDS = 60
# A build with other settings ($(1): in the environment) lives in a copy of the tree: the one in use stays as it is.
build_copy = mkdir -p build/$@ && \
    tar -c --exclude=./build --exclude='./.*' --exclude='*.so' --exclude=__pycache__ . | tar -x -C build/$@ && \
    $(BIN)/pip install --quiet --disable-pip-version-check 'Cython>=3.1' 'setuptools>=77' && \
    cd build/$@ && $(1) ../../$(BIN)/python setup.py --quiet build_ext --inplace
# Every Python object in an allocation of its own, whose bounds are watched; CPython leaks by design.
WATCHED = PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0

.PHONY: test test-pythons demo bench lint docs fuzz sanitize sdist wheel check-dist package clean FORCE

# Those of the packages among them, so there have to be packages.
test: .venv/package $(SDIST) $(WHEEL)
	$(BIN)/python -m pytest

# On every CPython that gopher supports and this machine has.
test-pythons:
	packaging/test_pythons.sh

demo: .venv/installed
	$(BIN)/python demo/demo.py

bench: .venv/installed
	$(BIN)/python benchmarks/run.py

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@# Whether the stubs say what the extensions are.
	$(BIN)/stubtest --concise --ignore-disjoint-bases --ignore-unused-allowlist --allowlist tests/support/stubtest.txt \
	    $(subst /,.,$(basename $(filter %.pyi,$(call in_folders,gopher))))
	PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint gopher
	$(BIN)/codespell
	@# A performance hint means that code without the GIL takes it after all, to look for an exception.
	! $(BIN)/cython -3 -X annotation_typing=False -o build/ $(filter %.pyx %.py,$(CYTHON_SOURCES)) 2>&1 | grep -A 9 'performance hint'

# Without the network; a warning, like that of a link that leads nowhere, is an error.
docs: .venv/installed
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --nitpicky -d build/doctrees docs build/docs

# For example: make fuzz TARGET=http_framing SECONDS=600. An input that breaks something becomes build/fuzz/TARGET-*;
# moved to tests/fuzz/corpus/TARGET, it is a test. Atheris has no version for all Pythons, so none is asked for.
fuzz: compiler = CC=$(CLANG) GOPHER_SANITIZE=address,undefined,fuzzer-no-link
fuzz: .venv/installed
	@command -v $(CLANG) >/dev/null || { echo 'make fuzz needs clang: apt install clang libclang-rt-dev'; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check atheris
	$(call build_copy,$(compiler))
	mkdir -p build/fuzz/corpus/$(TARGET)
	cd build/fuzz && env LD_PRELOAD="$$(../../$(BIN)/python -c 'import atheris; print(atheris.path())')/asan_with_fuzzer.so" \
	    $(WATCHED):malloc_context_size=0:quarantine_size_mb=16 ../../$(BIN)/python -m tests.fuzz.fuzz $(TARGET) \
	    corpus/$(TARGET) tests/fuzz/corpus/$(TARGET) -max_total_time=$(SECONDS) -timeout=20 -max_len=1000 -len_control=0 \
	    -artifact_prefix=$(TARGET)-

# The tests with AddressSanitizer and UndefinedBehaviorSanitizer; their reports go to files, past what pytest captures.
# Not end to end, nor what the documentation tells to type, nor packages: what is preloaded here goes for every nginx and
# curl, too, and they hang with it.
sanitize: compiler = GOPHER_SANITIZE=address,undefined
sanitize: reports = $(CURDIR)/build/sanitize/report
sanitize: .venv/installed
	$(call build_copy,$(compiler))
	rm -f $(reports).*
	cd build/sanitize && env LD_PRELOAD="$$($(CC) -print-file-name=libasan.so)" $(WATCHED):log_path=$(reports) \
	    UBSAN_OPTIONS=print_stacktrace=1:log_path=$(reports) \
	    GOPHER_CORPUS="$${GOPHER_CORPUS:-../../../shared/corpus}" ../../$(BIN)/python -m pytest --ignore tests/e2e \
	    --ignore tests/docs --ignore tests/packaging; \
	    status=$$?; ! cat $(reports).* 2>/dev/null && exit $$status

# The tools for packages, too. gopher is there already, and stays.
.venv/package: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check 'gopher-mirror[package]'
	touch $@

# Their names, because a file that is gone is newer than nothing.
build/in-sdist: names = $(SDIST_FILES)
build/in-wheel: names = $(WHEEL_FILES)
build/in-sdist build/in-wheel: FORCE
	@mkdir -p build
	@echo $(names) | cmp --quiet - $@ || echo $(names) >$@

sdist: $(SDIST)

# Not isolated: another Cython would write all its C anew, beside which what make has compiled is old.
$(SDIST): .venv/package build/in-sdist $(SDIST_FILES)
	$(BIN)/python packaging/host_files.py packaging/generated
	rm -f dist/*.tar.gz
	$(BIN)/python -m build --quiet --sdist --no-isolation --outdir dist .

wheel: $(WHEEL)

# From the sdist, so that an sdist that does not build shows. auditwheel says which systems it suits, and refuses to go
# on if it needs anything newer than glibc 2.28.
$(WHEEL): .venv/package build/in-wheel $(WHEEL_FILES) | $(SDIST)
	rm -rf build/wheel dist/*.whl
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/wheel $(SDIST)
	PATH="$(CURDIR)/$(BIN):$$PATH" auditwheel repair --plat manylinux_2_28_$$(uname -m) --wheel-dir dist build/wheel/*.whl

# What is in dist/, wherever it was built.
check-dist: .venv/package
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl
	$(BIN)/python packaging/check_wheels.py dist/*.whl
	PATH="$(CURDIR)/$(BIN):$$PATH"; for wheel in dist/*linux*.whl; do auditwheel show "$$wheel" || exit; done

package: wheel check-dist
	$(BIN)/python -m pytest tests/packaging

clean:
	rm -rf .venv build dist packaging/generated *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
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
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test,lint,docs]'
	touch $@
