# Everything is reached by a make target; `make help` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# A short run on the images that ship; `make train TRAIN_FLAGS="..."` changes it.
TRAIN_FLAGS ?= --num_epochs 20 --images_per_epoch 240 --batch_size_train 8 \
	--balance_folders True

.PHONY: help train test test-gpu lint bench reliability notebook clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(READY): requirements.txt requirements-extra.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

train: $(READY)  ## train with SSIM on the images that ship, then evaluate
	$(BIN)/python Training_SSIM.py $(TRAIN_FLAGS)
	$(BIN)/python Evaluation_SSIM.py --model_path_ssim checkpoints/SSIM/Final_Model_AE_SSIM.pth

test: $(READY)  ## run the whole test suite
	$(BIN)/python -m pytest

test-gpu: $(READY)  ## run the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

lint: $(READY)  ## check format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(READY)  ## measure speeds beside the conventional loop
	$(BIN)/python -m benchmarks.throughput
	$(BIN)/python -m benchmarks.augmentation
	$(BIN)/python -m benchmarks.precision
	$(BIN)/python -m benchmarks.memory

reliability: $(READY)  ## kill, damage and fill up: what a run survives
	$(BIN)/python -m benchmarks.reliability

notebook: $(READY)  ## open visualize.ipynb
	$(BIN)/jupyter lab visualize.ipynb

clean:  ## remove the environment and caches; what runs wrote stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .tile_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
