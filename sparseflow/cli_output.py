"""Where commands print: results alone go to standard output."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def own_output() -> Iterator[None]:
    """Keeps standard output for our results: packages log there as they are imported, DeepSpeed among them."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
