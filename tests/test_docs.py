"""The Python of README and docs runs as it stands."""

import re
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "docs/algorithms.md", "docs/extend.md", "docs/distributed.md", "docs/stream.md"]


def blocks():
    return list(_blocks())


def _blocks():
    for page in PAGES:
        found = re.findall(r"^( *)```python\n(.*?)^ *```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
        for number, (indent, block) in enumerate(found):
            code = "\n".join(line.removeprefix(indent) for line in block.splitlines())
            yield pytest.param(code, id=f"{page}-{number}")


FOREIGN = ROOT / "sparseflow/integrations/masked_state.py"


@pytest.mark.parametrize("code", blocks())
def test_block_runs(code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    # In a module that can be imported, so that its classes can be pickled like any others.
    module = types.ModuleType("documentation")
    monkeypatch.setitem(sys.modules, "documentation", module)
    exec(compile(code, "<documentation>", "exec"), module.__dict__)


def test_there_are_blocks():
    assert len(blocks()) >= 6


@pytest.mark.parametrize("folder", ["kernels", "launchers"])
def test_source_roots_are_not_packages(folder):
    # A top-level package named `kernels` would shadow Hugging Face's.
    assert not (ROOT / folder / "__init__.py").exists()


def test_recipes_are_found_and_valid():
    from sparseflow.recipes import available_recipes, load_recipe

    assert {"lenet", "lenet_full", "digits", "resnet20", "gpt"} <= set(available_recipes())
    for name in available_recipes():
        assert load_recipe(name).name == name


def test_no_pickle_in_the_load_path():
    # Reading a file must not be able to run code.
    pattern = re.compile(r"^\s*(import pickle|from pickle)|torch\.load|allow_pickle=True", re.MULTILINE)
    for path in (ROOT / "sparseflow").rglob("*.py"):
        # The conformance kit pickles ops that it made itself; other tools' state dicts are pickles, of which only
        # tensors are read.
        if path not in (ROOT / "sparseflow/testing/structure.py", FOREIGN):
            assert not pattern.search(path.read_text()), path
    assert re.findall(r"pickle\.\w+|torch\.load\(.*", FOREIGN.read_text()) == [
        'torch.load(path, map_location="cpu", weights_only=True)',
        "pickle.UnpicklingError",
    ]
