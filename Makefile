# `make demo` and `make test` need Python >= 3.10, make and g++, nothing else.
# With WITH_EXT=0, both run without compiled kernels, in an environment of
# their own.
PYTHON ?= python3
WITH_EXT ?= 1
SANITIZE ?= 0
SAMPLE ?= 50
SEED ?= 0
JOBS ?= 2
VENV := .venv$(if $(filter 0,$(WITH_EXT)),-fallback)$(if $(filter 1,$(SANITIZE)),-sanitize)
BIN := $(VENV)/bin
# Kernels are built in place, where other environments may not find them.
EDITABLE := $(if $(filter .venv,$(VENV)),--editable)
# Python compiles what it imports, much less than pip would compile.
INSTALL := $(BIN)/pip --disable-pip-version-check -qq install --no-compile \
	-c .ci/constraints.txt
unexport PYTHONDONTWRITEBYTECODE
KERNELS := setup.py $(shell find torch_geometric_ext/csrc -type f)
SOURCES := pyproject.toml .ci/constraints.txt
ifeq ($(EDITABLE),)
SOURCES += $(KERNELS) $(shell find torch_geometric_ext -name '*.py')
endif

# Without kernels, run the tests whose results depend on them: those of the
# operators, of the modules that call an operator, and of the examples, which
# run each part of the package end to end. The other tests compute the same in
# both environments, as do the pretend accelerator and the kernels for GPUs.
# `test/test_architecture.py` asserts that no module that calls an operator is
# missing.
FALLBACK_TESTS := test/data/test_shared_trees.py test/examples \
	test/full_batch/conv test/full_batch/test_adjacency.py \
	test/full_batch/test_plan.py test/full_batch/test_sparse_input.py \
	test/loader/test_paper_draw.py \
	test/loader/test_shared_tree_loader.py \
	test/nn/conv/test_masked_gcn_conv.py test/nn/dense \
	test/nn/test_prototypes.py test/nn/test_random_trees.py test/ops \
	test/sparsity/test_blocks.py test/sparsity/test_explored.py \
	test/sparsity/test_optimizer_state.py test/sparsity/test_ranking.py \
	test/sparsity/test_rigl.py test/sparsity/test_set.py \
	test/sparsity/test_topology_scheduler.py test/test_typing.py \
	test/transforms/mirage \
	test/transforms/test_share_computation_trees.py

.PHONY: setup demo demo-full demo-fallback test coverage test-fallback fuzz \
	sanitize sanitized mutants lint types doctest docs check check-fallback wheel \
	format clean

demo: $(VENV)/.demo
	@$(BIN)/python -m examples.demo

# Compares five methods with all their baselines, over five seeds: five minutes.
demo-full: $(VENV)/.examples
	@$(BIN)/python examples/compare_methods.py

# For contributors: all tools, and hooks that run linters before each commit.
setup: $(VENV)/.dev
	$(BIN)/pre-commit install

# Each of `JOBS` processes runs on one core.
PYTEST := $(BIN)/pytest --numprocesses $(JOBS) --dist worksteal
test coverage: export OMP_NUM_THREADS = 1
test: $(VENV)/.test
	$(PYTEST) $(if $(filter 0,$(WITH_EXT)),-k 'not pretend and not gpu' $(FALLBACK_TESTS))

# The tests take 1.6 times as long before Python 3.14, which counts lines itself.
coverage: $(VENV)/.test
	$(BIN)/coverage erase
	$(BIN)/coverage run $(PYTEST)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

demo-fallback:
	$(MAKE) demo WITH_EXT=0

test-fallback:
	$(MAKE) test WITH_EXT=0

# Two minutes by default; `make fuzz MINUTES=60` takes an hour.
MINUTES ?= 2
fuzz: $(VENV)/.test
	cd test && ../$(BIN)/python -W ignore -m fuzz.fuzz_operators --minutes $(MINUTES)
	cd test && ../$(BIN)/python -m fuzz.fuzz_files \
		--cases $$(($(MINUTES) * 25)) --kills $$(($(MINUTES) * 10))

# Tests of operators and the fuzz campaigns, with kernels that check each
# access to memory. PyTorch is not built for it, hence the libraries come first.
sanitize:
	$(MAKE) sanitized SANITIZE=1

PRELOAD = $(shell g++ -print-file-name=libasan.so) $(shell g++ -print-file-name=libstdc++.so)
sanitized: export ASAN_OPTIONS = detect_leaks=0
sanitized: export UBSAN_OPTIONS = print_stacktrace=1
sanitized: $(VENV)/.test
	LD_PRELOAD='$(PRELOAD)' $(BIN)/pytest test/ops -k 'not compile and not opcheck'
	cd test && LD_PRELOAD='$(PRELOAD)' ../$(BIN)/python -W ignore \
		-m fuzz.fuzz_operators --minutes $(MINUTES)

# For example, `make mutants MODULE=loader/draw.py SAMPLE=40 SEED=1`.
mutants: $(VENV)/.test
	$(BIN)/python test/mutants/run.py $(MODULE) --sample $(SAMPLE) --seed $(SEED)

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.cpp' '*.h')

types: $(VENV)/.dev
	$(BIN)/mypy

# As in `test/conftest.py`:
doctest: export TORCH_GEOMETRIC_EXT_CALIBRATION = off
doctest: $(VENV)/.dev
	$(BIN)/pytest --doctest-modules torch_geometric_ext
	$(BIN)/pytest --doctest-glob='*.md' README.md

docs: $(VENV)/.dev
	$(BIN)/sphinx-build -W --keep-going -q docs/source docs/build

# All that has to hold before a change is accepted, `JOBS` targets at a time on
# one core each. The installations come first, since they change what other
# targets import.
check:
	$(MAKE) test
	$(MAKE) $(VENV)/.dev
	OMP_NUM_THREADS=1 $(MAKE) --jobs=$(JOBS) --output-sync=target MINUTES=1 \
		check-fallback docs fuzz types doctest lint

# One process, next to other targets.
check-fallback:
	$(MAKE) test-fallback JOBS=0

# Builds a wheel for this version of Python and PyTorch, and checks it in an
# empty environment without a compiler.
wheel: $(VENV)/.torch
	rm -rf build/bdist* build/lib* build/smoke
	WITH_EXT=1 $(WITH_NINJA) $(BIN)/pip --disable-pip-version-check -qq wheel \
		--no-build-isolation --no-deps --wheel-dir dist .
	$(PYTHON) -m venv build/smoke
	build/smoke/bin/pip --disable-pip-version-check -qq install \
		-c .ci/constraints.txt $$(ls -t dist/*.whl | head -1)
	env -i build/smoke/bin/python test/smoke.py

format: $(VENV)/.dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $$(git ls-files '*.cpp' '*.h')

clean:
	rm -rf .venv .venv-fallback .venv-sanitize build dist docs/build torch_geometric_ext/*.so

# Environments, one stamp for each extra. Torch comes first: the kernels are
# built against it, while pip installs the other packages. Ninja needs to be on
# the path. Without the flags of make, it uses all cores.
WITH_NINJA := MAKEFLAGS= PATH='$(CURDIR)/$(BIN)':"$$PATH"

$(VENV)/.torch: .ci/constraints.txt
	@echo 'Creating $(VENV) with PyTorch ...'
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) torch 'setuptools>=77' wheel ninja
	@touch $@

$(VENV)/.kernels: $(VENV)/.torch $(KERNELS)
	@echo 'Compiling kernels ...'
	@$(WITH_NINJA) WITH_EXT=1 $(BIN)/python setup.py build_ext --inplace >$@.log 2>&1 \
		|| { cat $@.log; exit 1; }
	@touch $@

# The first import writes bytecode.
$(VENV)/.packages-%: $(VENV)/.torch $(SOURCES)
	@echo 'Installing torch_geometric_ext[$*] ...'
	@$(WITH_NINJA) WITH_EXT=$(if $(EDITABLE),0,$(WITH_EXT)) SANITIZE=$(SANITIZE) \
		$(INSTALL) --no-build-isolation $(EDITABLE) '.[$*]'
	@$(BIN)/python -c 'import torch_geometric.nn'
	@touch $@

$(VENV)/.%: $(VENV)/.torch $(SOURCES) $(KERNELS)
	@$(MAKE) --silent --no-print-directory --jobs=2 $(VENV)/.packages-$* \
		$(if $(EDITABLE),$(VENV)/.kernels)
	@touch $@
