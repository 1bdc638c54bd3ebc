#!/bin/sh
# Makes the virtual environment: `setup.sh base` for users, `setup.sh all` with everything that the tests need,
# `setup.sh bench` with what the bench compares with. PYTHON, VENV, TORCH and SYSTEM come from the Makefile. Needs
# neither root nor, unless for the bench's comparisons, a compiler.
set -eu
what=$1

if [ -z "$PYTHON" ]; then
    echo "sparseflow needs Python 3.11 or newer; none was found. Say which: make PYTHON=/path/to/python" >&2
    exit 2
fi

if [ ! -x "$VENV/bin/python" ]; then
    options=""
    [ -n "$SYSTEM" ] && options="--system-site-packages"
    # Debian's Python has no ensurepip of its own; pip can put itself into an environment from outside.
    "$PYTHON" -m venv $options "$VENV" 2>/dev/null || {
        rm -rf "$VENV"
        "$PYTHON" -m venv $options --without-pip "$VENV"
        "$PYTHON" -m pip --python "$VENV/bin/python" install --quiet pip
    }
fi

pip() { "$VENV/bin/python" -m pip --disable-pip-version-check "$@" --quiet; }

# torch comes first: with one installed, nothing else makes pip fetch another build of it.
pinned=constraints.txt
if [ -z "$SYSTEM" ] && [ "$TORCH" = "torch==2.13.0" ]; then
    pip install "$TORCH" --constraint "$pinned"
else
    # Another torch brings its own triton, and that its own numpy.
    grep -v -E '^(torch|triton|numpy)==' constraints.txt > "$VENV/constraints.txt"
    pinned=$VENV/constraints.txt
    [ -n "$SYSTEM" ] || pip install "$TORCH"
fi

extras=""
[ "$what" = all ] && extras="[test,lint,digits,transformers,deepspeed,cerebras]"
pip install --constraint "$pinned" --editable ".$extras"
if [ "$what" = bench ]; then
    # SparseProp's setup script runs whatever pip and python3 come first in PATH.
    PATH="$(cd "$VENV/bin" && pwd):$PATH"
    pip install --constraint "$pinned" --editable ".[bench]" || echo \
        "SparseProp could not be built here (it needs a C++ compiler); the bench goes on without it" >&2
    touch "$VENV/.ready-bench"
fi
if [ "$what" = all ]; then
    if command -v g++ >/dev/null; then
        # What DeepSpeed compiles when it is first used without a GPU. Should it fail, the tests that need it say why.
        DS_ACCELERATOR=cpu "$VENV/bin/python" -c \
            "from sparseflow_launchers.zero_engine import load_cpu_library; load_cpu_library()" >/dev/null 2>&1 || true
    fi
    touch "$VENV/.ready-all"
fi
touch "$VENV/.ready-base"
