# make setup       the environment, in .venv: every package at the version of requirements/lock.txt
# make quickstart  real text -> tokenizer -> .bin/.idx -> a toy Llama trained by NeMo with tensor parallelism -> report
# make test        lint, types, and every test; make test-quick leaves out the slow ones
# make image       the container, with docker, podman or buildah: slipway:VERSION on nvcr.io/nvidia/nemo:25.11
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# Compiled once at install: importing NeMo then takes a third of the time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup quickstart test test-quick lint image clean

setup: .venv/.ready

.venv/.ready: requirements/lock.txt pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v == (3, 11) else f"slipway is locked for Python 3.11 and this is {v[0]}.{v[1]}: say make setup PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -qq --no-compile --disable-pip-version-check -r requirements/lock.txt
	$(BIN)/python -m pip install -qq --no-deps --no-build-isolation --disable-pip-version-check -e .
	$(BIN)/python -m compileall -q -j 0 $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])') > /dev/null || true
	touch .venv/.ready

quickstart: setup
	$(BIN)/python -m slipway.launch.cli.quickstart

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/hadolint docker/Dockerfile
	$(BIN)/mypy

test-quick: lint
	$(BIN)/python -m pytest -m "not slow"

test: lint
	$(BIN)/python -m pytest

BUILDER ?= $(shell command -v docker || command -v podman || command -v buildah || echo docker)
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
image:
	$(BUILDER) build --file docker/Dockerfile --build-arg COMMIT=$$(git rev-parse HEAD) --tag slipway:$(VERSION) .

clean:
	rm -rf .venv runs
