"""save: what it refuses, that it is atomic, and that equal content gives equal bytes."""

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from raw_files import assert_same, assert_same_state, small_ticket
from safetensors.torch import load_file
from torch import Tensor, nn

from sparseflow.atomic import atomic_write
from sparseflow.files import FileMissingError, Ticket, Weights, load, save
from sparseflow.masks.masks import Masks

NAN, INF = float("nan"), float("inf")


def weights(name: str, tensor: Tensor, mask: Tensor | None = None) -> Weights:
    return Weights({name: tensor}, Masks({} if mask is None else {name: mask}), {})


def test_a_name_must_leave_room_for_its_parts(tmp_path: Path) -> None:
    what = weights("w" * 505, torch.ones(1), torch.tensor([True]))
    save(what, tmp_path / "dense")
    with pytest.raises(ValueError, match=r"with '\.sp\.values' after it, expected a name of 1 to 512"):
        save(what, tmp_path / "compact", format="compact")
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


@pytest.mark.parametrize("format", ["compact", "dense"])
@pytest.mark.parametrize(
    ("what", "message"),
    [
        (weights("fc.w", torch.tensor([1.0, NAN, INF])), r"'fc\.w': expected finite numbers, got .* 2 times"),
        (
            weights("fc.w", torch.tensor([1.0, 2.0]), torch.tensor([True, False])),
            r"'fc\.w': expected zeros where its mask has pruned, got 1 nonzero",
        ),
        (
            weights("fc.w", torch.tensor([1, 0]), torch.tensor([True, False])),
            "floating point .* got torch.int64",
        ),
        (weights("fc.w", torch.tensor(1.0), torch.tensor(True)), "one dimension, got torch.float32 with 0"),
        (
            weights("fc.w", torch.ones(2, dtype=torch.complex64)),
            r"'fc\.w': expected a strided .* torch.complex64",
        ),
        (
            weights("fc.w", torch.ones(2, device="meta")),
            r"'fc\.w': expected a strided tensor with data.* meta",
        ),
        (weights("fc.w", torch.eye(2).to_sparse()), r"'fc\.w': expected a strided .* torch.sparse_coo"),
        (weights("fc.sp.cols", torch.ones(2)), r"'fc\.sp\.cols': names that end in"),
        (weights("__metadata__", torch.ones(2)), "belongs to the file format"),
        (weights("f\n", torch.ones(2)), "printable ASCII"),
        (weights("w", torch.ones((1,) * 9)), "at most 8 dimensions, got 9"),
        (Ticket(Masks({}), {}, None, {"tuple": (1, 2)}), "ticket's provenance of plain JSON"),
        (Ticket(Masks({}), {}, {"x": torch.ones(1)}, {}), "ticket's plan of plain JSON"),
        (Ticket(Masks({}), {}, None, {"loss": NAN}), "ticket's provenance of plain JSON .* finite"),
        (Ticket(Masks({}), {}, None, cast(Any, {1: 2})), "ticket's provenance of plain JSON"),
    ],
)
def test_refused_with_the_tensor_named(tmp_path: Path, what: Ticket | Weights, message: str, format: Any) -> None:
    with pytest.raises(ValueError, match=message):
        save(what, tmp_path / "file", format=format)
    assert list(tmp_path.iterdir()) == []


def test_wrong_arguments(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(ValueError, match="no format 'zip'; available: dense, compact"):
        save(small_ticket(), path, format=cast(Any, "zip"))
    with pytest.raises(TypeError, match=r"Ticket, Weights or torch\.nn\.Module to save, got dict"):
        save(cast(Any, {}), path)
    with pytest.raises(TypeError, match="masks and metadata with a model only"):
        save(small_ticket(), path, metadata={})
    with pytest.raises(FileNotFoundError, match=r"expected a directory .*, found none; make it first"):
        save(small_ticket(), tmp_path / "none" / "file")
    for missing in (path, tmp_path):
        with pytest.raises(FileMissingError, match=r"expected a safetensors file, got .*; check the path"):
            load(missing)


def test_a_model_is_saved_dense_with_its_masks(tmp_path: Path) -> None:
    linear = nn.Linear(3, 2)
    model = nn.Sequential(linear, nn.BatchNorm1d(2))
    mask = torch.tensor([[True, False, True], [False, False, True]])
    with torch.no_grad():
        linear.weight.mul_(mask)
    save(model, tmp_path / "model", masks={"0.weight": mask}, metadata={"epoch": 3})
    plus = torch.where(mask, linear.weight.detach(), 0.0)
    assert_same_state(load_file(tmp_path / "model"), {**model.state_dict(), "0.weight": plus})
    loaded = load(tmp_path / "model")
    assert isinstance(loaded, Weights)
    assert loaded.masks == {"0.weight": mask}
    assert loaded.metadata == {"epoch": 3}
    with pytest.raises(ValueError, match="weight"):
        save(model, tmp_path / "model", masks={"1.wait": mask})


def test_equal_tickets_give_equal_bytes_in_every_process(tmp_path: Path) -> None:
    script = "import sys; from raw_files import small_ticket; from sparseflow.files import save\n"
    script += "save(small_ticket(), sys.argv[1])"
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONHASHSEED": "1234", "PYTHONPATH": paths}
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "theirs")], env=environment, check=True)
    save(small_ticket(), tmp_path / "ours")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_the_order_of_names_and_strides_do_not_reach_the_file(tmp_path: Path) -> None:
    ticket = small_ticket()
    turned = {name: ticket.rewind[name] for name in reversed(ticket.rewind)}
    turned["fc.weight"] = turned["fc.weight"].t().contiguous().t()
    other = Ticket(
        Masks({name: ticket.masks[name] for name in reversed(list(ticket.masks))}),
        turned,
        ticket.plan,
        ticket.provenance,
    )
    save(ticket, tmp_path / "one")
    save(other, tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("room", [0, 7, 100, 1000, -1])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, room: int) -> None:
    path = tmp_path / "ticket"
    save(small_ticket(), path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room if room >= 0 else len(before) - 1, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save(small_ticket(), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _fail(*_: object) -> None:
    raise OSError(errno.EIO, "the disk has gone")


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize(("fault", "error"), [(_interrupt, KeyboardInterrupt), (_fail, OSError)])
def test_an_error_at_any_call_leaves_what_was_there(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    fault: Callable[..., None],
    error: type[BaseException],
) -> None:
    path = tmp_path / "ticket"
    path.write_bytes(b"before")
    monkeypatch.setattr(os, call, fault)
    with pytest.raises(error):
        save(small_ticket(), path)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_inside_the_block_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "file") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_the_file_has_the_permissions_of_any_other(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"")
    save(small_ticket(), tmp_path / "ticket")
    assert (tmp_path / "ticket").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_nothing_is_pickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("pickle was used")

    for name in ("load", "loads", "dump", "dumps", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, forbidden)
    monkeypatch.setattr(torch, "load", forbidden)
    save(small_ticket(), tmp_path / "ticket")
    assert_same(load(tmp_path / "ticket"), small_ticket())
