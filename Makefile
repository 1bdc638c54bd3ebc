# Every target sets up what it needs by itself: a Python of at least 3.11 with pip is enough.
#   make demo     find a lottery ticket and prove it, about four minutes on two cores
#   make test     lint and all tests, with the time of each area
#   make bench    the promises about speed and memory, measured here
#   make reproduce   claims of papers, checked: about half an hour; writes docs/reproduction.md
#   make soak     what takes longer
# SEEDS=3,4 picks the demo's seeds. TORCH=torch==2.11.0 takes another torch; SYSTEM=1 uses the one already installed.

PYTHON ?= $(firstword $(foreach name,python3 python3.14 python3.13 python3.12 python3.11,$(if $(shell $(name) -c 'import sys; print(sys.version_info >= (3, 11) or "")' 2>/dev/null),$(name))))
VENV ?= .venv
TORCH ?= torch==2.13.0
SEEDS ?=
BIN := $(VENV)/bin
SETUP = PYTHON="$(PYTHON)" VENV="$(VENV)" TORCH="$(TORCH)" SYSTEM="$(SYSTEM)" sh tools/setup.sh

.PHONY: setup demo test lint bench reproduce soak clean

setup: $(VENV)/.ready-all

$(VENV)/.ready-base: pyproject.toml constraints.txt tools/setup.sh
	$(SETUP) base

$(VENV)/.ready-all: pyproject.toml constraints.txt tools/setup.sh
	$(SETUP) all

$(VENV)/.ready-bench: pyproject.toml constraints.txt tools/setup.sh
	$(SETUP) bench

demo: $(VENV)/.ready-base
	$(BIN)/sparseflow run lenet --resume \
	  --out runs/demo$(if $(SEEDS),-$(subst $(comma),-,$(SEEDS))) $(if $(SEEDS),--set seeds=[$(SEEDS)])

test: $(VENV)/.ready-all
	$(BIN)/python tools/areas.py

lint: $(VENV)/.ready-all
	$(BIN)/python tools/areas.py lint

bench: $(VENV)/.ready-bench
	$(BIN)/sparseflow bench

reproduce: $(VENV)/.ready-base
	$(BIN)/sparseflow reproduce --out docs

soak: $(VENV)/.ready-all
	$(BIN)/python tools/soak.py
	PYTHONPATH=tests:tests/distributed $(BIN)/python tools/soak_kills.py
	PYTHONPATH=tests:tests/streaming $(BIN)/python tools/soak_stores.py
	$(BIN)/python tools/compile_matrix.py --all
	$(BIN)/python tools/soak_triton.py

clean:
	rm -rf $(VENV) build dist

comma := ,
