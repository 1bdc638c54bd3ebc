"""A backend of somebody else: a package of its own, found by its entry point, and right, with no edit to ours."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from sparseflow.testing import check_backend

PACKAGE = Path(__file__).parent / "third_party_backend"
SOURCE = PACKAGE / "src" / "torch_coo.py"
PAGE = (Path(__file__).parent.parent / "docs" / "extend.md").read_text()


def test_installed_package_is_a_backend_like_ours(tmp_path: Path, own_cache: Path) -> None:
    installed = install(tmp_path)
    found = session(installed)
    assert found["listed"]["torch-coo"] is None
    assert found["file"] == str(installed / "torch_coo.py")
    assert found["losses"]["torch-coo"] == pytest.approx(found["losses"]["dense"], rel=1e-5)
    assert found["losses"]["dense"][-1] < 0.6 * found["losses"]["dense"][0]
    assert set(found["plan"]) == {"0.weight", "2.weight"}
    for candidates in found["plan"].values():
        assert {"dense", "dense-compact", "torch-coo"} <= set(candidates)
        assert candidates["torch-coo"] > 0


@pytest.mark.parametrize("path", [PACKAGE / "pyproject.toml", SOURCE], ids=lambda path: path.name)
def test_page_shows_the_package_as_it_is(path: Path) -> None:
    language = {".toml": "toml", ".py": "python"}[path.suffix]
    assert f"```{language}\n{path.read_text()}```" in PAGE


def test_page_shows_what_the_kit_says_of_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    source = SOURCE.read_text()
    faulty = source.replace("y_OB.t().contiguous()", "y_OB.t()")
    assert faulty != source
    module = types.ModuleType("torch_coo")
    monkeypatch.setitem(sys.modules, "torch_coo", module)
    exec(compile(faulty, str(SOURCE), "exec"), module.__dict__)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.raises(AssertionError) as error:
        check_backend(module.TorchCoo())
    torch.set_num_threads(threads)
    shown = re.search(r"^AssertionError: (backend 'torch-coo' breaks .*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert shown is not None
    assert shown[1].strip() == str(error.value)


def install(folder: Path) -> Path:
    """The package, installed as pip installs any other, in a folder of its own and without a network."""
    # A build leaves files beside what it builds.
    shutil.copytree(PACKAGE, folder / "package", ignore=shutil.ignore_patterns("__pycache__"))
    target = folder / "installed"
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--no-compile"]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", *offline, "--target", str(target)]
    subprocess.run([*pip, str(folder / "package")], check=True)
    return target


def session(installed: Path) -> Any:
    """What came of `session.py` in a process that has the package."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(PACKAGE / "session.py")], env=environment, cwd=installed, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
