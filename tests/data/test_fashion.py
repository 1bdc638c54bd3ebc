import functools
import gzip
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO

import pytest
import torch

from sparseflow.data import fashion, fashion_mnist


@pytest.fixture
def here(published: Path, bare_machine: Path) -> Path:
    return shutil.copytree(published, bare_machine / "fashion-mnist")


def test_images_are_fractions_and_keep_their_labels(here: Path) -> None:
    data = fashion_mnist()
    assert (len(data.train), len(data.validation), len(data.test)) == (22, 2, 4)
    inputs, targets = data.train.batch(torch.arange(22))
    assert inputs.shape == (22, 784)
    assert inputs.dtype == torch.float32
    assert targets.dtype == torch.int64
    torch.testing.assert_close(inputs, (targets / 255)[:, None].expand(22, 784))
    assert data.source["from"] == str(here)


def test_every_published_image_is_in_one_split(here: Path) -> None:
    data = fashion_mnist()
    _, train = data.train.batch(torch.arange(22))
    _, validation = data.validation.batch(torch.arange(2))
    _, test = data.test.batch(torch.arange(4))
    assert sorted([*train.tolist(), *validation.tolist()]) == list(range(24))
    assert test.tolist() == [0, 1, 2, 3]


def test_the_split_is_fixed(here: Path) -> None:
    torch.manual_seed(1)
    _, first = fashion_mnist().validation.batch(torch.arange(2))
    torch.manual_seed(2)
    _, second = fashion_mnist().validation.batch(torch.arange(2))
    # Another order would be another data set.
    assert first.tolist() == second.tolist() == [20, 5]


def test_images_keep_their_shape_where_not_flat(here: Path) -> None:
    data = fashion_mnist(flat=False)
    inputs, _ = data.test.batch(torch.arange(4))
    assert inputs.shape == (4, 1, 28, 28)
    assert data.input_shape == (1, 28, 28)


@pytest.mark.parametrize("place", ["chosen", "cache/sparseflow", "system"])
def test_every_place_is_searched(published: Path, tmp_path: Path, place: str) -> None:
    shutil.copytree(published, tmp_path / place / "fashion-mnist")
    assert fashion.find() == tmp_path / place / "fashion-mnist"
    assert fashion_mnist().source["from"] == str(tmp_path / place / "fashion-mnist")


def test_missing_data_says_where_it_was_looked_for_and_what_to_do(published: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run `sparseflow data fashion_mnist`") as raised:
        fashion_mnist()
    for place in ("chosen", "cache/sparseflow", "system"):
        assert str(tmp_path / place / "fashion-mnist") in str(raised.value)
    assert "\n" not in str(raised.value)


def _flip_pixel(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.unlink(), "is missing"),
        (lambda file: file.write_bytes(file.read_bytes()[:-9]), "truncated or not gzip"),
        (lambda file: file.write_bytes(b"no gzip"), "truncated or not gzip"),
        # A whole gzip header, then a block of the one type that does not exist.
        (lambda file: file.write_bytes(file.read_bytes()[:10] + b"\xff" * 99), "truncated or not gzip"),
        (lambda file: _edit(file, _flip_pixel), "expected content of sha256"),
        (lambda file: _edit(file, lambda content: content[:-1]), "bytes of content, got 3,151"),
        (lambda file: _edit(file, lambda content: content + b"0"), "bytes of content, got more"),
        (lambda file: _edit(file, lambda content: b"\1" + content[1:]), "expected an IDX header"),
    ],
)
def test_a_damaged_file_is_named(here: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(here / "t10k-images.gz")
    with pytest.raises(ValueError, match=message) as raised:
        fashion_mnist()
    assert str(here / "t10k-images.gz") in str(raised.value)


def test_fetch_from_the_web(published: Path, bare_machine: Path) -> None:
    with _served(published) as url:
        assert fashion.fetch(url) == bare_machine / "fashion-mnist"
    assert len(fashion_mnist().train) == 22
    assert [path.name for path in bare_machine.iterdir()] == ["fashion-mnist"]


def test_fetch_writes_beside_its_target_only(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Temporary files often lie on another disk, from which nothing can be renamed into place.
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    fashion.fetch(f"file://{published}/")
    assert len(fashion_mnist().train) == 22


def test_fetch_from_debian(published: Path, fake_apt: Path, bare_machine: Path) -> None:
    shutil.copytree(published, fake_apt / "usr/share/datasets/fashion-mnist")
    assert fashion.fetch("file:///nowhere/") == bare_machine / "fashion-mnist"
    assert len(fashion_mnist().train) == 22


def test_fetch_leaves_good_data_alone(here: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in here.iterdir()}
    assert fashion.fetch("file:///nowhere/") == here
    assert {path: path.stat().st_mtime_ns for path in here.iterdir()} == before


def test_fetch_replaces_a_damaged_file(published: Path, here: Path) -> None:
    (here / "train-labels.gz").write_bytes(b"half")
    fashion.fetch(f"file://{published}/")
    assert len(fashion_mnist().train) == 22


def test_failed_fetch_says_how_each_way_failed(published: Path) -> None:
    with pytest.raises(ValueError, match=r"Debian: apt-get is not on PATH; file:///nowhere/: .*yourself"):
        fashion.fetch("file:///nowhere/")


def test_tampered_download_leaves_nothing(published: Path, bare_machine: Path) -> None:
    _edit(published / "t10k-images.gz", _flip_pixel)
    with pytest.raises(ValueError, match=r"t10k-images.gz: expected content of sha256"):
        fashion.fetch(f"file://{published}/")
    assert [path for path in bare_machine.rglob("*") if path.is_file()] == []


def test_interrupted_download_leaves_nothing(
    published: Path, bare_machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(source: BinaryIO, copy: BinaryIO) -> None:
        copy.write(source.read(9))
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copyfileobj", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fashion.fetch(f"file://{published}/")
    assert [path.name for path in bare_machine.rglob("*")] == ["fashion-mnist"]


def test_a_folder_that_cannot_be_made_names_the_way_out(published: Path, bare_machine: Path) -> None:
    bare_machine.write_text("a file where the folder belongs")
    with pytest.raises(ValueError, match="set SPARSEFLOW_DATA"):
        fashion.fetch("file:///nowhere/")


def _edit(file: Path, change: Callable[[bytes], bytes]) -> None:
    file.write_bytes(gzip.compress(change(gzip.decompress(file.read_bytes()))))


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    handler = functools.partial(_Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()
