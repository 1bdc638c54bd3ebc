from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keeps every test away from the timings of the user."""
    folder = tmp_path / "sparseflow-cache"
    monkeypatch.setenv("SPARSEFLOW_CACHE_DIR", str(folder))
    return folder
