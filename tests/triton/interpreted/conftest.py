"""Triton's interpreter, chosen before Triton is imported: what it decorates cannot be compiled afterwards."""

from __future__ import annotations

import os
import sys

if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
    raise RuntimeError("triton is imported already; run these tests in a process of their own: tools/areas.py triton")
os.environ["TRITON_INTERPRET"] = "1"
