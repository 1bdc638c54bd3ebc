"""Where this machine keeps what was measured on it."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path | None:
    """`$SPARSEFLOW_CACHE_DIR`, else `$XDG_CACHE_HOME/sparseflow`, else `~/.cache/sparseflow`; None keeps nothing.

    An empty `SPARSEFLOW_CACHE_DIR` asks for that; so does a user without a home. The folder need not exist.
    """
    own = os.environ.get("SPARSEFLOW_CACHE_DIR")
    if own is not None:
        return Path(own) if own else None
    shared = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = Path(shared) if shared else Path.home() / ".cache"
    # Path.home where there is no home.
    except RuntimeError:
        return None
    return folder / "sparseflow"
