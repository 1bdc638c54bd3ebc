"""How commands print: results alone go to standard output, as text or as JSON."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


@contextlib.contextmanager
def own_output() -> Iterator[None]:
    """Keeps standard output for our results: packages log there as they are imported, DeepSpeed among them."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
