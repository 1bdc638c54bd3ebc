"""All ranks commit one directory: with files of each, or not at all."""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from threaded import together

from sparseflow.files.commit import commit, commit_written, validate
from sparseflow.files.part import Part, tensors_part
from sparseflow.files.readers import read_tensors
from sparseflow.files.shelf import Shelf
from sparseflow.ranks import Ranks


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def own(ranks: Ranks) -> Mapping[str, Part]:
    return {f"rank-{ranks.rank}.safetensors": tensors_part({"rank": torch.tensor([float(ranks.rank)])})}


def test_every_rank_has_its_files_in_it(tmp_path: Path) -> None:
    found = together(3, lambda ranks: commit(tmp_path / "all", lambda: own(ranks), ranks, {"by": ranks.rank}))
    manifest = validate(tmp_path / "all")
    assert found == [manifest] * 3
    assert sorted(manifest.files) == [f"rank-{rank}.safetensors" for rank in range(3)]
    assert manifest.about == {"by": 0}


def test_what_libraries_write_on_every_rank_is_committed(tmp_path: Path) -> None:
    def write(ranks: Ranks, folder: Path) -> None:
        (folder / f"{ranks.rank}.bin").write_bytes(bytes(ranks.rank))

    together(3, lambda ranks: commit_written(tmp_path / "all", lambda folder: write(ranks, folder), ranks))
    assert {name: entry.size for name, entry in validate(tmp_path / "all").files.items()} == {
        f"{rank}.bin": rank for rank in range(3)
    }


@pytest.mark.parametrize("world", [2, 3])
def test_an_error_of_one_rank_is_raised_on_all_and_leaves_what_was_there(tmp_path: Path, world: int) -> None:
    together(world, lambda ranks: commit(tmp_path / "all", lambda: own(ranks), ranks))

    def refuse(sink: object) -> None:
        raise OSError(5, "input/output error")

    def some(ranks: Ranks) -> Mapping[str, Part]:
        return {"bad": Part(refuse, 0)} if ranks.rank == 1 else own(ranks)

    found = together(world, lambda ranks: commit(tmp_path / "all", lambda: some(ranks), ranks))
    assert [type(error) for error in found] == [OSError] * world
    assert all("input/output error" in str(error) for error in found)
    assert len(validate(tmp_path / "all").files) == world
    assert [path.name for path in tmp_path.iterdir()] == ["all"]


def test_two_ranks_with_a_file_of_one_name_are_refused(tmp_path: Path) -> None:
    part = tensors_part({"x": torch.ones(1)})
    found = together(2, lambda ranks: commit(tmp_path / "all", lambda: {"x": part}, ranks))
    assert [type(error) for error in found] == [FileExistsError] * 2
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_of_a_rank_is_damage_to_all_and_said_once(tmp_path: Path) -> None:
    together(2, lambda ranks: Shelf(tmp_path, ranks).commit_each("all", lambda: own(ranks)))
    (tmp_path / "all" / "rank-1.safetensors").unlink()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")

        def look(ranks: Ranks) -> list[bool]:
            shelf = Shelf(tmp_path, ranks)
            return [shelf.valid("all") is None for _ in range(2)]

        found = together(2, look)
    assert found == [[True, True]] * 2
    assert len(said) == 1 and "all/rank-1.safetensors breaks the rule 'missing'" in str(said[0].message)


def test_a_rank_that_sees_something_else_than_rank_0_stops_all(tmp_path: Path) -> None:
    """As where a file system shows a machine old content."""
    together(2, lambda ranks: Shelf(tmp_path, ranks).commit("all", lambda: own(ranks)))
    path = tmp_path / "all" / "rank-0.safetensors"
    whole = path.read_bytes()

    def read(ranks: Ranks) -> object:
        shelf = Shelf(tmp_path, ranks)
        assert shelf.valid("all") is not None
        path.write_bytes(whole[:-1] + b"\1")
        ranks.barrier()
        return shelf.read("all", path.name, read_tensors)

    found = together(2, read)
    assert all(isinstance(error, Exception) and "breaks the rule 'sha256'" in str(error) for error in found)
