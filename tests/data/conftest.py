import gzip
import hashlib
import os
from math import prod
from pathlib import Path

import pytest

from sparseflow.data import fashion, places
from sparseflow.data.idx import IdxFile

SHAPES = {
    "train-images": (24, 28, 28),
    "train-labels": (24,),
    "t10k-images": (4, 28, 28),
    "t10k-labels": (4,),
}


def idx_content(shape: tuple[int, ...]) -> bytes:
    header = bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)
    # Labels count up, and image i is filled with i.
    return header + b"".join(bytes([i]) * prod(shape[1:]) for i in range(shape[0]))


@pytest.fixture
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without data and without apt. Returns the folder in which this user's data belongs."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("SPARSEFLOW_DATA", str(tmp_path / "chosen"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(places, "SYSTEM", tmp_path / "system")
    return tmp_path / "chosen"


@pytest.fixture
def published(bare_machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny Fashion-MNIST, in none of the places where it is looked for."""
    folder = tmp_path / "published"
    folder.mkdir()
    files = []
    for name, shape in SHAPES.items():
        content = idx_content(shape)
        files.append(IdxFile(f"{name}.gz", shape, hashlib.sha256(content).hexdigest()))
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    monkeypatch.setattr(fashion, "FILES", tuple(files))
    return folder


@pytest.fixture
def fake_apt(bare_machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An apt with empty package lists. Returns the folder with the content of every package of its."""
    content = tmp_path / "content"
    content.mkdir()
    # `download` works only with private lists that an `update` has filled.
    apt = """
        for last; do :; done
        case "$*" in
            *Dir::State::lists=*) lists=${*#*Dir::State::lists=}; lists=${lists%% *};;
            *) lists=/none;;
        esac
        case "$*" in
            *update) touch "$lists/Packages";;
            *download*)
                [ -e "$lists/Packages" ] || { echo "E: Unable to locate $last" >&2; exit 100; }
                touch "$last.deb";;
        esac"""
    unpack = f'mkdir -p "$3" && cp -R {content}/. "$3"'
    for name, script in {"apt-get": apt, "dpkg-deb": unpack}.items():
        program = tmp_path / "bin" / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin")

    return content
