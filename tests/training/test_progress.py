"""Checkpoints of a training in the middle: what is in them, how many stay, and on how many ranks."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from threaded import together

from sparseflow.files.shelf import Shelf
from sparseflow.ranks import ALONE, Ranks
from sparseflow.training.progress import Progress
from sparseflow.training.rng import restore_rng_state, rng_state

MODEL = {"w": torch.arange(4.0)}


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def own_generators() -> Iterator[None]:
    """Puts the global generators back."""
    before = rng_state()
    yield
    restore_rng_state(before)


def open_progress(folder: Path, ranks: Ranks = ALONE, round: int = 1) -> Progress:
    return Progress(Shelf(folder, ranks), {"round": round}, every_seconds=0, about=lambda: {"plan": None})


def save(progress: Progress, step: int) -> None:
    progress.save(MODEL, {"best": torch.ones(1)}, {"a/b": torch.zeros(2)}, {"step": step, "best_loss": None})


def test_what_is_given_is_kept(tmp_path: Path) -> None:
    progress = open_progress(tmp_path)
    assert progress.saved is None and progress.due()
    save(progress, 3)
    saved = open_progress(tmp_path).saved
    assert saved is not None
    assert saved.state == {"step": 3, "best_loss": None}
    assert list(saved.best) == ["best"] and list(saved.optimizer) == ["a/b"]
    assert torch.equal(saved.model["w"], MODEL["w"])


def test_the_newest_two_stay(tmp_path: Path) -> None:
    for first in (3, 1_000_000):
        progress = open_progress(tmp_path)
        for step in range(first, first + 3):
            save(progress, step)
        assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{first + more:06d}" for more in (1, 2)]
    saved = open_progress(tmp_path).saved
    assert saved is not None and saved.state["step"] == 1_000_002


def test_an_older_one_goes_only_when_there_is_a_newer_valid_one(tmp_path: Path) -> None:
    for step in (1, 2):
        save(open_progress(tmp_path), step)
    (tmp_path / "step-000002" / "state.safetensors").unlink()
    with pytest.warns(UserWarning, match="step-000002/state.safetensors breaks the rule 'missing'"):
        progress = open_progress(tmp_path)
    assert progress.saved is not None and progress.saved.state["step"] == 1
    save(progress, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000001", "step-000003"]


def test_a_step_can_be_saved_again(tmp_path: Path) -> None:
    progress = open_progress(tmp_path)
    for step in (1, 2, 2):
        save(progress, step)
    assert open_progress(tmp_path).saved is not None


def test_another_training_is_refused(tmp_path: Path) -> None:
    save(open_progress(tmp_path), 1)
    with pytest.raises(
        ValueError, match=r"step-000001 belongs to another run: expected {'round': 2}, got {'round': 1}"
    ):
        open_progress(tmp_path, round=2)


def test_what_is_not_finite_is_never_in_it(tmp_path: Path) -> None:
    progress = open_progress(tmp_path)
    with pytest.raises(ValueError, match="cannot save 'optimizer/a': expected finite numbers"):
        progress.save(MODEL, {}, {"a": torch.tensor(float("nan"))}, {"step": 1})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("own_generators")
def test_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    # A second normal number lies in wait in each.
    random.gauss(0, 1)
    np.random.standard_normal()
    save(open_progress(tmp_path), 1)
    drawn = draw()
    saved = open_progress(tmp_path).saved
    assert saved is not None and draw() != drawn
    saved.restore_rng()
    assert draw() == drawn


def draw() -> list[float]:
    """Two numbers of each generator."""
    normal = [random.gauss(0, 1), float(np.random.standard_normal()), float(torch.randn(()))]
    return [*normal, random.random(), float(np.random.random()), float(torch.rand(()))]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_another_number_of_ranks_goes_on(tmp_path: Path, world: int) -> None:
    """Tensors are rank 0's; generators are of each rank that there was, and is."""

    def write(ranks: Ranks) -> None:
        progress = open_progress(tmp_path, ranks)
        empty: dict[str, torch.Tensor] = {}
        progress.save(MODEL if ranks.main else empty, {}, {}, {"step": 5})

    assert together(2, write) == [None, None]
    names = {path.name for path in (tmp_path / "step-000005").iterdir()}
    assert names == {"MANIFEST.json", "state.safetensors", "rank-0.safetensors", "rank-1.safetensors"}

    def read(ranks: Ranks) -> tuple[list[float], bool]:
        saved = open_progress(tmp_path, ranks).saved
        assert saved is not None
        return saved.model["w"].tolist(), saved.rng is None

    assert together(world, read) == [([0.0, 1.0, 2.0, 3.0], rank > 1) for rank in range(world)]


def test_a_missing_rank_file_is_damage(tmp_path: Path) -> None:
    together(2, lambda ranks: save(open_progress(tmp_path, ranks), 1))
    (tmp_path / "step-000001" / "rank-1.safetensors").unlink()
    with pytest.warns(UserWarning, match="rank-1.safetensors breaks the rule 'missing'"):
        assert open_progress(tmp_path).saved is None
