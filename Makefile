# Everything here sets itself up: a machine needs Python 3.11 or newer with its headers and venv, a C++ compiler
# and git.
# PIP_ARGS is passed to pip, for example a package index that has the CPU build of torch:
#   make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PYTHON ?= python3
PIP_ARGS ?=
MINUTES ?= 10
BIN := .venv/bin
# A test process a core, each with one thread of its own.
TEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 8 --dist worksteal
# Packages that bring medical images, which the nightly tests read beside those of the packages that are needed anyway.
SAMPLES := pydicom-data dipy scikit-image
SOURCES := pyproject.toml setup.py constraints.txt requirements.lock $(shell find csrc -type f)

.PHONY: demo test lint nightly torch-floor gpu install lock clean

demo: install  ## train a small VM-DDPM on a real brain and draw new slices
	$(BIN)/vmddpm demo --minutes $(MINUTES) --out runs/demo

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

gpu:  ## on a machine with a GPU and torch, in eight minutes: builds, measures the CUDA kernels and their rivals, tests
	$(PYTHON) benchmarks/gpu/run.py

install: .venv/installed

# torch comes first, from its own line of the constraints: which of its builds it is depends on the machine and on
# PIP_ARGS, so that it and what it alone brings have no hash. Everything else is a file that requirements.lock knows.
.venv/installed: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(PIP_ARGS) "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install $(PIP_ARGS) --no-deps --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --no-deps --no-build-isolation -e .
	touch $@

lock:  ## after a change of constraints.txt or of the dependencies: writes requirements.lock anew
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet $(PIP_ARGS) uv
	echo 'torch ; python_version < "3"' > build/lock/without-torch.txt
	build/lock/bin/uv pip compile pyproject.toml --extra dev -c constraints.txt --overrides build/lock/without-torch.txt \
	  --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --quiet --upgrade -o build/lock/hashes
	{ sed '/^[^#]/,$$d' requirements.lock; cat build/lock/hashes; } > build/lock/new
	mv build/lock/new requirements.lock

clean:
	rm -rf .venv build *.egg-info vmddpm_kernels/_native*.so
