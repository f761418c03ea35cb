# make setup         create .venv with every package at the version and hash in requirements/lock.txt
# make quickstart    real text -> tokenizer -> .bin/.idx -> a toy Llama trained by NeMo with tensor parallelism -> report
# make quickstart-finetune   that toy to Hugging Face and back -> LoRA with tensor parallelism -> adapter, merged weights -> answers
# make test          lint, types and every test, the quick ones with coverage; make test-quick runs the quick ones only
# make lint          ruff, mypy, codespell, hadolint
# make coverage      the quick tests, with the share of lines that they run
# make docs          build the documentation site in build/site; make docs-serve shows it on port 8000
# make docs-figures  regenerate the pictures and the accuracy report that the documentation quotes
# make lock          resolve pyproject.toml again; UPGRADE=1 takes the newest versions
# make image         build the container with docker, podman or buildah: slipway:VERSION on nvcr.io/nvidia/nemo:25.11
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
QUICK := not slow and not nemo and not slurm and not image
# Compiled once at install: importing NeMo then takes a third of the time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup quickstart quickstart-finetune test test-quick coverage lint docs docs-serve docs-figures lock image clean

setup: .venv/.ready

# torch's CPU build is installed where pip finds it. Elsewhere the published CUDA build is, with NVIDIA's libraries (several GiB).
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check
PIP_FINDS_CPU_TORCH = $(PIP) --dry-run --no-deps --require-hashes -r requirements/torch-cpu.txt 2> /dev/null

# Compiled beside what does not wait for it: .ci/run lints meanwhile.
.venv/.ready: .venv/.installed
	$(BIN)/python -m compileall -q -j 0 $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])') > /dev/null || true
	touch .venv/.ready

.venv/.installed: requirements/lock.txt requirements/cuda.txt requirements/torch-cpu.txt pyproject.toml recipes/reference/stand_ins/pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v == (3, 11) else f"The lock is for Python 3.11 and this is {v[0]}.{v[1]}: run make setup PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	$(PIP) --no-compile --no-deps --require-hashes -r requirements/lock.txt \
	  -r requirements/$$($(PIP_FINDS_CPU_TORCH) && echo torch-cpu.txt || echo cuda.txt)
	$(PIP) --no-deps --no-build-isolation -e . -e recipes/reference/stand_ins
	$(BIN)/python -m pip check
	touch .venv/.installed

quickstart: setup
	$(BIN)/python -m slipway.launch.cli.quickstart

quickstart-finetune: setup
	$(BIN)/python -m slipway.launch.cli.quickstart_finetune

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/hadolint docker/Dockerfile
	$(BIN)/codespell
	$(BIN)/mypy

test-quick: setup lint
	$(BIN)/python -m pytest -m "$(QUICK)" --durations=20 --durations-min=0.5

test: setup lint
	$(BIN)/python -m tests

coverage: setup
	$(BIN)/python -m tests.measured -m "$(QUICK)" --durations=20

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

# TRUTH is a folder of tables of published measurements, which are not part of the repository; without it, plan.png only.
docs-figures: setup
	$(BIN)/python -m benchmarks.figures $(if $(TRUTH),--truth $(TRUTH))

lock: setup
	$(BIN)/python requirements/lock.py $(if $(UPGRADE),--upgrade)

BUILDER ?= $(shell command -v docker || command -v podman || command -v buildah || echo docker)
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
image:
	$(BUILDER) build --file docker/Dockerfile --build-arg COMMIT=$$(git rev-parse HEAD) --tag slipway:$(VERSION) .

clean:
	rm -rf .venv runs build
