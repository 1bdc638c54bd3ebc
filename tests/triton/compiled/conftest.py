"""Triton's compiler, which cannot compile what its interpreter has decorated."""

from __future__ import annotations

import os

import pytest

if os.environ.get("TRITON_INTERPRET", "0") != "0":
    raise pytest.UsageError(
        "tests/triton/compiled cannot run under Triton's interpreter, nor beside tests/triton/interpreted: "
        "run tools/areas.py triton"
    )
# Where Triton 3.9 is not told, it warns that its default will change.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
