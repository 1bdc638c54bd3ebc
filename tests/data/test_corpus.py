import hashlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseflow.data import Characters, corpus, text

PRINT_VERSES = """#!/bin/sh
[ "$1 $2" = "-f -p" ] && [ -e "$3bible.data" ] || {{ echo "Cannot open data file" >&2; exit 255; }}
yes 'Ge1:1 In the beginning' | head -n {count}
"""


@settings(max_examples=50, deadline=None)
@given(st.text(min_size=1, max_size=40))
def test_decode_undoes_encode(written: str) -> None:
    characters = Characters.of(written)
    tokens = characters.encode(written)
    assert characters.decode(tokens) == written
    assert set(tokens.tolist()) == set(range(len(characters.alphabet)))


def test_tokens_follow_the_order_of_the_characters() -> None:
    assert Characters.of("banana").alphabet == "abn"
    assert Characters.of("banana").encode("nab").tolist() == [2, 0, 1]


def test_a_character_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="'xy'"):
        Characters.of("banana").encode("bayx")


def test_splits_are_contiguous(tmp_path: Path) -> None:
    written = "".join(chr(0x4E00 + i) for i in range(200))
    data = text(path=_file(tmp_path, written), context=4, stride=1)
    assert data.classes == 200
    assert data.input_shape == (4,)
    assert data.decode is not None
    seen = []
    for split in (data.train, data.validation, data.test):
        inputs, targets = split.batch(torch.tensor([0, len(split) - 1]))
        seen.append(data.decode(inputs[0])[0] + data.decode(targets[1])[-1])
    # The last windows of validation and test end where the last whole window does.
    assert seen == [written[0] + written[179], written[180] + written[188], written[190] + written[198]]
    assert data.source["sha256"] == hashlib.sha256(written.encode()).hexdigest()


def test_stride_spaces_the_training_windows_only(tmp_path: Path) -> None:
    path = _file(tmp_path, "abcde" * 200)
    apart, dense = text(path, context=10), text(path, context=10, stride=1)
    assert (len(apart.train), len(dense.train)) == (89, 890)
    assert len(apart.validation) == len(dense.validation) == 4


def test_line_ends_stay_as_they_are(tmp_path: Path) -> None:
    data = text(_file(tmp_path, "a\r\nb\n" * 20), context=2)
    assert data.classes == 4


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file .*nothing\.txt"):
        text(str(tmp_path / "nothing.txt"))


def test_other_encodings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt is not UTF-8"):
        text(str(tmp_path / "latin.txt"))


def test_a_text_too_short_for_the_context_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 129 tokens"):
        text(_file(tmp_path, "abc" * 100))


def test_missing_text_says_what_to_do(bare_machine: Path) -> None:
    with pytest.raises(ValueError, match="run `sparseflow data text`"):
        text()


def test_fetch_prints_the_text_once(fake_apt: Path, bare_machine: Path) -> None:
    _package(fake_apt, verses=31_102)
    file = corpus.fetch()
    assert file == bare_machine / "bible-kjv" / "bible-kjv.txt"
    assert file.read_text() == "Ge1:1 In the beginning\n" * 31_102
    assert sorted(path.name for path in file.parent.iterdir()) == ["bible-kjv.txt", "bible-kjv.txt.sha256"]
    (fake_apt / "usr/bin/bible").unlink()
    assert corpus.fetch() == file
    assert text(context=64).source == {"from": str(file), "sha256": _sha256(file)}


def test_a_changed_text_is_refused_and_fetched_again(fake_apt: Path) -> None:
    _package(fake_apt, verses=31_102)
    whole = corpus.fetch().read_bytes()
    corpus.fetch().write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="has changed since it was fetched"):
        text()
    assert corpus.fetch().read_bytes() == whole


@pytest.mark.parametrize(("verses", "message"), [(31_101, "got 31,101"), (None, "Cannot open data file")])
def test_a_failed_print_leaves_nothing(fake_apt: Path, bare_machine: Path, verses: int | None, message: str) -> None:
    _package(fake_apt, verses=verses or 31_102)
    if verses is None:
        (fake_apt / "usr/lib/bible.data").unlink()
    with pytest.raises(ValueError, match=message):
        corpus.fetch()
    assert [path.name for path in bare_machine.rglob("*")] == ["bible-kjv"]


def test_without_apt_fetch_names_the_other_way(bare_machine: Path) -> None:
    with pytest.raises(ValueError, match=r"apt-get is not on PATH.*`path` takes any UTF-8 file"):
        corpus.fetch()


def _file(folder: Path, written: str) -> str:
    (folder / "corpus.txt").write_bytes(written.encode())
    return str(folder / "corpus.txt")


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _package(content: Path, verses: int) -> None:
    (content / "usr/bin").mkdir(parents=True)
    (content / "usr/lib").mkdir()
    (content / "usr/lib/bible.data").touch()
    (content / "usr/bin/bible").write_text(PRINT_VERSES.format(count=verses))
    (content / "usr/bin/bible").chmod(0o755)
