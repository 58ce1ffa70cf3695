# Everything here sets itself up: a machine needs Python 3.11 or newer with its headers and venv, a C++ compiler
# and git.
# PIP_ARGS is passed to pip, for example a package index that has the CPU build of torch:
#   make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PYTHON ?= python3
PIP_ARGS ?=
MINUTES ?= 10
OUT ?= runs/demo
ARCHS ?= x86_64 aarch64
BIN := .venv/bin
# A test process a core, each with one thread of its own.
TEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 8 --dist worksteal
# Packages for the nightly tests alone: those that bring medical images, and the extra radiomics.
SAMPLES := pydicom-data dipy scikit-image frd-score pyradiomics-bhklab
SOURCES := pyproject.toml setup.py constraints.txt $(shell find csrc -type f)
# For `make lock`: what the packages and their build need, without torch.
COMPILE := build/lock/bin/uv pip compile pyproject.toml build/lock/build.txt -c constraints.txt --universal \
  --python-version 3.11 --overrides build/lock/without-torch.txt --generate-hashes --no-annotate --no-header --quiet

.PHONY: demo test lint nightly torch-floor gpu wheels install lock clean

demo: .venv/demo  ## train a small VM-DDPM on a real brain and draw new slices, in MINUTES once .venv is set up
	$(BIN)/vmddpm demo --minutes $(MINUTES) --out $(OUT)

test: install lint  ## what CI runs
	$(TEST)

lint: install
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/mkdocs build --quiet --strict --site-dir build/site

nightly: install lint torch-floor .venv/samples  ## longer tests, more random cases, every instruction set, the oldest torch
	for isa in baseline avx2; do VMDDPM_CPU_ISA=$$isa $(TEST) tests/kernels/test_scan_accuracy.py || exit 1; done
	$(TEST) -m "" --hypothesis-profile=nightly

.venv/samples: .venv/installed
	$(BIN)/python -m pip install $(PIP_ARGS) -c constraints.txt $(SAMPLES)
	touch $@

torch-floor: install  ## the packages against the types of the oldest torch that pyproject.toml allows
	$(BIN)/python tests/torch_floor/torch_floor.py

gpu:  ## on a machine with a GPU and torch, in eight minutes: builds, measures the CUDA kernels and their baselines, tests
	$(PYTHON) benchmarks/gpu/run.py

# BUILD says what pyproject.toml builds with, one a line.
BUILD = -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")'

wheels: build/wheels/venv/installed  ## manylinux_2_28 wheels in dist/: x86_64 with CUDA, aarch64 cross-compiled
	build/wheels/venv/bin/python wheels/build_wheels.py $(ARCHS)

build/wheels/venv/installed: pyproject.toml wheels/requirements.txt
	$(PYTHON) -m venv build/wheels/venv
	build/wheels/venv/bin/python $(BUILD) > build/wheels/build.txt
	build/wheels/venv/bin/python -m pip install --quiet $(PIP_ARGS) -r build/wheels/build.txt -r wheels/requirements.txt
	touch $@

install: .venv/installed

# torch comes first, from its own line of the constraints: which of its builds it is depends on the machine and on
# PIP_ARGS, so that it and what it alone brings have no hash. Everything else is a file that a lock knows. The extension is
# built by a command of its own, as pip shows nothing of what takes longest.
.venv/demo: $(SOURCES) requirements-demo.lock
	@echo "setting up .venv: packages, then the kernels: three minutes on two cores, and what downloads take"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --no-deps --require-hashes -r requirements-demo.lock
	$(BIN)/python setup.py --quiet build_ext --inplace
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

.venv/installed: .venv/demo requirements.lock  ## the developers' tools too
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --no-deps --require-hashes -r requirements.lock
	touch $@

lock:  ## after a change of constraints.txt or of the dependencies: writes both locks anew, of the same versions
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet $(PIP_ARGS) uv
	echo 'torch ; python_version < "3"' > build/lock/without-torch.txt
	build/lock/bin/python $(BUILD) > build/lock/build.txt
	$(COMPILE) --extra dev --upgrade -o build/lock/requirements.lock
	sed -n 's/ \\$$//; /^[^ #]/p' build/lock/requirements.lock > build/lock/versions.txt
	$(COMPILE) --extra demo -c build/lock/versions.txt --upgrade -o build/lock/requirements-demo.lock
	for name in requirements.lock requirements-demo.lock; do \
	  { sed '/^[^#]/,$$d' $$name; cat build/lock/$$name; } > build/lock/new && mv build/lock/new $$name || exit 1; done

clean:
	rm -rf .venv build *.egg-info vmddpm_kernels/_native*.so
