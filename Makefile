# Every target sets up what it needs; a fresh machine needs only Python (>= 3.11) and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test lint types check docs clean bench-models bench-gated-step \
	bench-main-job bench-coverage bench-trace bench-onnx-in bench-onnx-groups bench-onnx-resnet20 \
	bench-onnx-ultraface bench-verdict bench-accuracy bench-accuracy-b bench-ablation bench-scores-alone \
	bench-data-free bench-latency bench-precision gpu-test

install: $(STAMP)

# uv resolves and links the 6 GB of wheels in half a minute, where pip takes several.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gbn-compress needs Python 3.11 or newer: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/python -m benchmarks.demo

test: install
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

check: lint types test

# The theme announces its successor at each build; that is no warning of these pages.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench-models: install
	$(BIN)/python -m benchmarks.main_models

bench-gated-step: install
	$(BIN)/python -m benchmarks.gated_step

# Torch-Pruning, beside which the coverage is shown, is installed for this target alone.
bench-coverage: install
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --target bench-runs/peers torch-pruning==1.6.1
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.coverage

bench-trace: install
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --target bench-runs/peers torch-pruning==1.6.1
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.trace_speed

bench-onnx-in: install
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.onnx_in

# Torch-Pruning and onnxsim, beside which the result is shown, are installed for this target alone.
bench-data-free: install
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --target bench-runs/peers torch-pruning==1.6.1 onnxsim==0.8.1
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.data_free

# What was measured already is not measured again.
bench-latency: install
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --target bench-runs/peers torch-pruning==1.6.1
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.latency

# Finished runs are not done again.
bench-precision: install
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.precision

# Where there is no GPU it says so, and is content.
gpu-test: install
	$(BIN)/python -m benchmarks.gpu

bench-verdict: install
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.verdict

bench-onnx-resnet20: install
	$(BIN)/python -m benchmarks.onnx_resnet20 --document

bench-onnx-groups: install
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.onnx_groups

bench-onnx-ultraface: install
	$(BIN)/python -m benchmarks.onnx_ultraface

# Cells that are measured already are not measured again.
bench-accuracy: install
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --target bench-runs/peers torch-pruning==1.6.1
	OMP_NUM_THREADS=1 nice -n 5 $(BIN)/python -m benchmarks.accuracy $(CELLS)

bench-accuracy-b: install
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --target bench-runs/peers torch-pruning==1.6.1
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.accuracy_b

bench-ablation: install
	OMP_NUM_THREADS=1 nice -n 5 $(BIN)/python -m benchmarks.ablation $(CELLS)

bench-scores-alone: install
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.scores_alone

bench-main-job: install
	$(BIN)/python -m benchmarks.resnet20_main_job

clean:
	rm -rf $(VENV) build *.egg-info demo-run
