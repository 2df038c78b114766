# `make demo` and `make test` need Python >= 3.10, make and g++, nothing else.
# With WITH_EXT=0, both run without compiled kernels, in an environment of
# their own.
PYTHON ?= python3
WITH_EXT ?= 1
SAMPLE ?= 50
SEED ?= 0
VENV := .venv$(if $(filter 0,$(WITH_EXT)),-fallback)
BIN := $(VENV)/bin
# Kernels are built in place; without them, nothing may be found in place.
EDITABLE := $(if $(filter 0,$(WITH_EXT)),,--editable)
PIP := $(BIN)/pip --disable-pip-version-check -qq
SOURCES := setup.py pyproject.toml .ci/constraints.txt \
	$(shell find torch_geometric_ext/csrc -type f)
ifeq ($(WITH_EXT),0)
SOURCES += $(shell find torch_geometric_ext -name '*.py')
endif

.PHONY: demo demo-fallback test test-fallback mutants lint types \
	doctest docs check format clean

demo: $(VENV)/.examples
	@$(BIN)/python examples/quickstart.py

test: $(VENV)/.test
	$(BIN)/pytest

demo-fallback:
	$(MAKE) demo WITH_EXT=0

test-fallback:
	$(MAKE) test WITH_EXT=0

# For example, `make mutants MODULE=loader/draw.py SAMPLE=40 SEED=1`.
mutants: $(VENV)/.test
	$(BIN)/python test/mutants/run.py $(MODULE) --sample $(SAMPLE) --seed $(SEED)

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.cpp' '*.h')

types: $(VENV)/.dev
	$(BIN)/mypy

doctest: $(VENV)/.dev
	$(BIN)/pytest --doctest-modules torch_geometric_ext
	$(BIN)/pytest --doctest-glob='*.md' README.md

docs: $(VENV)/.dev
	$(BIN)/sphinx-build -W --keep-going -q docs/source docs/build

check: test lint types doctest docs

format: $(VENV)/.dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $$(git ls-files '*.cpp' '*.h')

clean:
	rm -rf .venv .venv-fallback build docs/build torch_geometric_ext/*.so

# Environments, one stamp for each extra. Torch comes first: the kernels are
# built against it.
$(VENV)/.torch: .ci/constraints.txt
	@echo 'Creating $(VENV) with PyTorch ...'
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install -c .ci/constraints.txt torch 'setuptools>=77' wheel ninja
	@touch $@

$(VENV)/.%: $(VENV)/.torch $(SOURCES)
	@echo 'Installing torch_geometric_ext[$*]$(if $(EDITABLE), and building its kernels) ...'
	@WITH_EXT=$(WITH_EXT) $(PIP) install -c .ci/constraints.txt \
		--no-build-isolation $(EDITABLE) '.[$*]'
	@touch $@
