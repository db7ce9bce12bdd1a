# make demo    the whole story on the bundled model: quantize, evaluate, report.html
# make test    the test suite            make test-slow   what it leaves out, such as the install matrix
# make lint    format, lint, types, import contracts
# make docs    the documentation as a site, into build/site
# make native  the C++ kernels into the source tree, for work without an editable install
# make sanitize    the kernels against plain loops, under address, undefined-behaviour and thread sanitizers; 2 minutes
# make emulate     the same on emulated processors: ARM, cross compiled, and x86-64 without AVX-512 and without AVX
#
# PYTHON makes the environment (default python3), VENV is where it lies (default .venv). To use an environment of your
# own that already has everything:  make test VENV=/path/to/it INSTALLED=1

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(wildcard kernels/cpu/src/*)

ifdef INSTALLED
DEMO_READY :=
DEV_READY :=
else
DEMO_READY := $(VENV)/.installed
DEV_READY := $(VENV)/.installed-dev
endif

.PHONY: demo test test-slow lint docs format native sanitize neon older emulate clean

demo: $(DEMO_READY)
	$(BIN)/llmquant demo

test: $(DEV_READY)
	$(BIN)/python -m pytest -n $(JOBS)

test-slow: $(DEV_READY)
	$(BIN)/python -m pytest -m slow

lint: $(DEV_READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-cache

docs: $(DEV_READY)
	$(BIN)/mkdocs build --strict

format: $(DEV_READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i kernels/cpu/src/*.cpp kernels/cpu/src/*.h tests/kernels/cpp/*.cpp tests/kernels/cpp/*.h

native:
	cmake -S . -B build/native -DCMAKE_BUILD_TYPE=Release
	cmake --build build/native
	cmake --install build/native --prefix .

sanitize:
	tests/kernels/cpp/sanitize.sh

emulate: neon older

neon older:
	tests/kernels/cpp/$@.sh || [ $$? -eq 77 ]

clean:
	rm -rf build dist kernels/libllmquant_cpu.*

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# What is never imported need not be compiled.
# Two stamps: whoever only wants the demo does not wait for the developers' tools.
$(VENV)/.installed: $(SOURCES) | $(BIN)/python
	$(PIP) install --no-compile -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(SOURCES) | $(BIN)/python
	$(PIP) install --no-compile -c constraints.txt -e .[dev]
	touch $@ $(VENV)/.installed
