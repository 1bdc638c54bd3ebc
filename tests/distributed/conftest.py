from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from zero_launches import Zygote


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """Launches processes that know DeepSpeed already."""
    if shutil.which("g++") is None:
        pytest.skip("DeepSpeed compiles a small library when it is first used without a GPU, and there is no g++")
    with (tmp_path_factory.mktemp("zygote") / "errors").open("w") as errors:
        found = Zygote(errors)
        try:
            yield found
        finally:
            found.close()
