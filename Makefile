# make demo: set up and compile the bundled demo model.  make test: set up and run the tests.
# The first run of each installs; later runs work offline. README.md says the same in plain pip.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c tools/constraints.txt
CORE := $(VENV)/.core-installed
DEV := $(VENV)/.dev-installed
PINS := setup.cfg pyproject.toml tools/constraints.txt
DEMO := tools/demo

.DELETE_ON_ERROR:
.PHONY: demo test lint arm-check clean

demo: $(CORE)
	@mkdir -p out
	$(BIN)/qhv-onnx compile $(DEMO)/model.onnx -o out/demo.qdq.onnx --overwrite \
		--calib $(DEMO)/calib --calib-samples 48 --preprocess $(DEMO)/preprocess.toml
	$(BIN)/qhv-onnx eval $(DEMO)/model.onnx out/demo.qdq.onnx \
		--data $(DEMO)/eval --preprocess $(DEMO)/preprocess.toml

test: $(DEV)
	$(BIN)/python -m pytest

# Needs Debian packages, and says which; ZOO=folder, of tools/export_zoo.py, checks those models too.
arm-check: $(DEV)
	$(BIN)/python tools/check_arm.py $(if $(ZOO),--zoo $(ZOO))

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tools/size.py
	$(BIN)/python tools/typecheck.py

clean:
	rm -rf build out *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find qhyvit_onnx passes kernels tests tools -name __pycache__ -prune -exec rm -rf {} +

$(CORE): $(PINS)
	@[ -x $(BIN)/python ] || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "qhv-onnx needs Python 3.11 or newer, $(PYTHON) is not: try make PYTHON=python3.12" >&2; \
		exit 1; }
	[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	@touch $@

$(DEV): $(CORE)
	$(PIP) -e '.[dev,torch]'
	@touch $@
